//! What must not change an answer: the rest of the batch, the number of threads, the run.

use moeshard_encoder::model::Model;
use moeshard_encoder::shard::Strategy;
use moeshard_tensor::cpu::Isa;
use moeshard_tests::compare::{Random, assert_close};
use moeshard_tests::golden;
use moeshard_tests::world::{Layout, Run, run};

const CASES: [&str; 4] = ["switch", "nomic_moe", "nllb_moe", "nomic_dense"];

fn open(case: &str) -> Model {
    Model::open(&golden::folder(case)).expect("golden")
}

/// Sequences of odd lengths, one of a single token and one of the maximum.
fn sequences(model: &Model, n: usize, random: &mut Random) -> Vec<Vec<u32>> {
    let vocab_size = model.spec.embedding.vocab_size;
    let longest = model.settings.max_length;
    let length = |i, random: &mut Random| match i {
        0 => 1,
        1 => longest,
        _ => 1 + random.below(longest.min(40)),
    };
    (0..n)
        .map(|i| {
            let n_tokens = length(i, random);
            (0..n_tokens)
                .map(|_| random.below(vocab_size) as u32)
                .collect()
        })
        .collect()
}

fn bits(run: &Run) -> Vec<u32> {
    let pooled = run.pooled.iter().flatten();
    let all = run.hidden.iter().chain(pooled).chain(&run.logits);
    all.map(|x| x.to_bits()).collect()
}

#[test]
fn a_sequence_alone_and_in_a_bulk_batch_is_bit_for_bit_the_same() {
    for case in CASES {
        let model = open(case);
        let sequences = sequences(&model, 60, &mut Random(1));
        for isa in Isa::available() {
            let layout = Layout {
                isa,
                n_threads: 2,
                ..Layout::default()
            };
            check_alone(&format!("{case} on {isa}"), &model, layout, &sequences);
        }
    }
}

/// Alone, a sequence lies on another rank than in the bulk batch.
#[test]
fn with_several_ranks_too() {
    for case in ["switch", "nomic_moe", "nomic_moe_classify", "nllb_moe"] {
        let model = open(case);
        let sequences = sequences(&model, 30, &mut Random(5));
        for n_ranks in [2, 3] {
            for strategy in [Strategy::Sharded, Strategy::Parallel, Strategy::Replicated] {
                let layout = Layout {
                    n_ranks,
                    strategy,
                    ..Layout::default()
                };
                let what = format!("{case}, {n_ranks} ranks, {strategy}");
                check_alone(&what, &model, layout, &sequences);
            }
        }
    }
}

fn check_alone(what: &str, model: &Model, layout: Layout, sequences: &[Vec<u32>]) {
    let (together, _) = run(&model.spec, &model.checkpoint, layout, sequences);
    for (sequence, in_batch) in sequences.iter().zip(&together).step_by(7) {
        let one = std::slice::from_ref(sequence);
        let (alone, _) = run(&model.spec, &model.checkpoint, layout, one);
        assert_eq!(bits(&alone[0]), bits(in_batch), "{what}");
    }
}

#[test]
fn threads_and_repetition_change_no_bit() {
    for case in CASES {
        let model = open(case);
        let sequences = sequences(&model, 20, &mut Random(2));
        let of = |n_threads, n_ranks| {
            let layout = Layout {
                n_threads,
                n_ranks,
                ..Layout::default()
            };
            run(&model.spec, &model.checkpoint, layout, &sequences).0
        };
        for n_ranks in [1, 3] {
            let once = of(1, n_ranks);
            for n_threads in [1, 2, 5] {
                for (a, b) in of(n_threads, n_ranks).iter().zip(&once) {
                    assert_eq!(bits(a), bits(b), "{case}, {n_threads} threads");
                }
            }
        }
    }
}

#[test]
fn a_long_bulk_batch_is_the_same_on_every_world_size() {
    for case in ["switch", "nomic_moe", "nllb_moe"] {
        let model = open(case);
        let sequences = sequences(&model, 300, &mut Random(3));
        let of = |n_ranks, strategy| {
            let layout = Layout {
                n_ranks,
                strategy,
                n_threads: 2,
                ..Layout::default()
            };
            run(&model.spec, &model.checkpoint, layout, &sequences).0
        };
        let one = of(1, Strategy::Sharded);
        for n_ranks in [2, 3, 4] {
            for strategy in [Strategy::Sharded, Strategy::Parallel, Strategy::Replicated] {
                for (i, (a, b)) in of(n_ranks, strategy).iter().zip(&one).enumerate() {
                    let what = format!("{case}, {n_ranks} ranks, {strategy}, sequence {i}");
                    assert_close(&what, &a.pooled[1], &b.pooled[1], 2e-5);
                }
            }
        }
    }
}

#[test]
fn more_ranks_than_sequences_and_odd_world_sizes_work() {
    let model = open("switch");
    let one_sequence = &sequences(&model, 2, &mut Random(4))[1..];
    let of = |n_ranks| {
        let layout = Layout {
            n_ranks,
            ..Layout::default()
        };
        run(&model.spec, &model.checkpoint, layout, one_sequence).0
    };
    let solo = of(1);
    // d_ff is 37: 5, 7 and 37 ranks divide it into unequal parts, or into single hidden units.
    for n_ranks in [2, 5, 7, 37] {
        assert_close(
            &format!("{n_ranks} ranks"),
            &of(n_ranks)[0].hidden,
            &solo[0].hidden,
            5e-5,
        );
    }
}
