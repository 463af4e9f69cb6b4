//! What must not change an answer: the rest of the batch, the number of threads, the run.

use moeshard_encoder::model::Model;
use moeshard_encoder::shard::Strategy;
use moeshard_tensor::cpu::Isa;
use moeshard_tensor::dtype::DType;
use moeshard_tests::compare::{Random, assert_close};
use moeshard_tests::golden;
use moeshard_tests::random_moe::Family;
use moeshard_tests::service::mini_folder;
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

/// Every kernel path with every dtype of weights.
fn kernels() -> Vec<(Isa, DType)> {
    let of = |isa| [DType::F32, DType::BF16, DType::F16].map(|dtype| (isa, dtype));
    Isa::available().into_iter().flat_map(of).collect()
}

#[test]
fn a_sequence_alone_and_in_a_bulk_batch_is_bit_for_bit_the_same() {
    for case in CASES {
        let model = open(case);
        let sequences = sequences(&model, 60, &mut Random(1));
        for (isa, dtype) in kernels() {
            let layout = Layout {
                isa,
                dtype,
                n_threads: 2,
                ..Layout::default()
            };
            let what = format!("{case} on {isa} in {dtype}");
            check_alone(&what, &model, layout, &sequences);
        }
    }
}

/// Alone, a sequence lies on another rank than in the bulk batch.
#[test]
fn with_several_ranks_too() {
    for case in ["switch", "nomic_moe", "nomic_moe_classify", "nllb_moe"] {
        let model = open(case);
        let sequences = sequences(&model, 30, &mut Random(5));
        for dtype in [DType::F32, DType::BF16] {
            for n_ranks in [2, 3] {
                for strategy in [Strategy::Sharded, Strategy::Parallel, Strategy::Replicated] {
                    let layout = Layout {
                        n_ranks,
                        strategy,
                        dtype,
                        ..Layout::default()
                    };
                    let what = format!("{case}, {n_ranks} ranks, {strategy}, {dtype}");
                    check_alone(&what, &model, layout, &sequences);
                }
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
        for (isa, dtype) in kernels() {
            let of = |n_threads, n_ranks| {
                let layout = Layout {
                    isa,
                    dtype,
                    n_threads,
                    n_ranks,
                    ..Layout::default()
                };
                run(&model.spec, &model.checkpoint, layout, &sequences).0
            };
            for n_ranks in [1, 3] {
                let once = of(1, n_ranks);
                for n_threads in [1, 2, 3, 5] {
                    for (a, b) in of(n_threads, n_ranks).iter().zip(&once) {
                        let what = format!("{case} on {isa} in {dtype}, {n_threads} threads");
                        assert_eq!(bits(a), bits(b), "{what}");
                    }
                }
            }
        }
    }
}

/// The goldens are narrower than a tile of some kernels; these are of d 256, 128 and 96.
#[test]
fn wider_models_do_not_change_with_batch_or_threads_either() {
    let mini = Model::open(&mini_folder()).expect("mini");
    let random = |family: Family, seed| family.model(seed, DType::F32);
    let models = [
        mini,
        random(Family::NomicMoe, 21),
        random(Family::Switch, 22),
    ];
    for model in &models {
        let family = &model.spec.family;
        let sequences = sequences(model, 24, &mut Random(6));
        for (isa, dtype) in kernels() {
            // f16 differs from bf16 only in how weights are widened. The plain path is slow.
            let slow = isa == Isa::Portable && model.spec.d_model > 128;
            if dtype == DType::F16 || slow {
                continue;
            }
            let layout = |n_threads| Layout {
                isa,
                dtype,
                n_threads,
                ..Layout::default()
            };
            let what = format!("{family} on {isa} in {dtype}");
            check_alone(&what, model, layout(2), &sequences);
            let of = |n_threads| {
                run(
                    &model.spec,
                    &model.checkpoint,
                    layout(n_threads),
                    &sequences,
                )
                .0
            };
            let once = of(1);
            for n_threads in [2, 3] {
                for (a, b) in of(n_threads).iter().zip(&once) {
                    assert_eq!(bits(a), bits(b), "{what}, {n_threads} threads");
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
