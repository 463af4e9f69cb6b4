//! Every family gives the numbers of an independent implementation, on every layout and kernel path.

use moeshard_encoder::model::Model;
use moeshard_encoder::reference::Reference;
use moeshard_encoder::shard::Strategy;
use moeshard_encoder::spec::ProblemType;
use moeshard_engine::output::{embedding, probabilities};
use moeshard_tensor::cpu::Isa;
use moeshard_tensor::device::Routing;
use moeshard_tensor::dtype::DType;
use moeshard_tests::compare::{assert_close, cosine, unit};
use moeshard_tests::golden::{self, Golden, LayerRouting};
use moeshard_tests::world::{Layout, Run, run};

/// Every folder of goldens with weights.
const CASES: [&str; 14] = [
    "switch",
    "switch_bin",
    "nomic_moe",
    "nomic_moe_top1",
    "nomic_moe_normalized",
    "nomic_moe_classify",
    "nomic_dense",
    "nllb_moe",
    "bert_cls",
    "bert_last",
    "bert_classify",
    "bert_multi_label",
    "xlm_roberta",
    "xlm_roberta_classify",
];

fn open(case: &str) -> Model {
    Model::open(&golden::folder(case)).unwrap_or_else(|e| panic!("{case}: {e}"))
}

/// Every kernel path, world size and dropless strategy that the model's experts allow.
fn layouts(model: &Model) -> Vec<Layout> {
    let n_experts = model
        .spec
        .expert_layers()
        .next()
        .map(|(_, e)| e.experts.len());
    let mut layouts = Vec::new();
    for n_ranks in 1..=4 {
        for strategy in [Strategy::Sharded, Strategy::Parallel, Strategy::Replicated] {
            let fits = strategy != Strategy::Parallel || n_experts.is_none_or(|n| n >= n_ranks);
            layouts.extend(Isa::available().iter().filter(|_| fits).map(|&isa| Layout {
                n_ranks,
                strategy,
                isa,
                ..Layout::default()
            }));
        }
    }
    layouts
}

fn check(case: &str, golden: &Golden, runs: &[Run]) {
    for (i, (sequence, run)) in golden.sequences.iter().zip(runs).enumerate() {
        let what = format!("{case}, sequence {i} of {} tokens", sequence.ids.len());
        if let Some(hidden) = &sequence.hidden {
            assert_close(
                &format!("{what}: hidden"),
                &run.hidden,
                &hidden.concat(),
                1e-4,
            );
        }
        let embeddings = [
            &sequence.cls_embedding,
            &sequence.mean_embedding,
            &sequence.last_embedding,
        ];
        for (found, expected) in run.pooled.iter().zip(embeddings) {
            if let Some(expected) = expected {
                assert_close(&format!("{what}: embedding"), &unit(found), expected, 1e-4);
            }
        }
        let truncated = [
            (&run.pooled[1], &sequence.truncated_mean_embedding),
            (&run.pooled[2], &sequence.truncated_last_embedding),
        ];
        for (found, expected) in truncated {
            if let Some(expected) = expected {
                let found = embedding(found, true, golden.dimensions);
                assert_close(&format!("{what}: truncated"), &found, expected, 1e-4);
            }
        }
        if let Some(logits) = &sequence.logits {
            assert_close(&format!("{what}: logits"), &run.logits, logits, 1e-4);
        }
        assert_eq!(
            run.routing.len(),
            sequence.routing.len(),
            "{what}: expert layers"
        );
        for ((layer, routing), expected) in run.routing.iter().zip(&sequence.routing) {
            assert_eq!(*layer, expected.layer, "{what}");
            check_routing(&format!("{what}, layer {layer}"), routing, expected);
        }
    }
}

/// A dropped choice keeps its expert in the golden and has gate 0.
fn check_routing(what: &str, routing: &Routing, expected: &LayerRouting) {
    let gates = expected.gate_weight.concat();
    assert_close(
        &format!("{what}: gates"),
        &routing.gate_weight,
        &gates,
        1e-5,
    );
    for (slot, (&found, expected)) in routing
        .expert_idx
        .iter()
        .zip(expected.expert_idx.concat())
        .enumerate()
    {
        let dropped = gates[slot] == 0.0;
        let expected = if dropped { Routing::DROPPED } else { expected };
        assert_eq!(found, expected, "{what}: expert of slot {slot}");
    }
}

fn ids(golden: &Golden) -> Vec<Vec<u32>> {
    golden.sequences.iter().map(|s| s.ids.clone()).collect()
}

#[test]
fn every_family_matches_its_golden_on_every_layout_and_kernel_path() {
    for case in CASES {
        let (model, golden) = (open(case), golden::read(case, "golden.json"));
        for layout in layouts(&model) {
            let (runs, stats) = run(&model.spec, &model.checkpoint, layout, &ids(&golden));
            check(&format!("{case} ({layout:?})"), &golden, &runs);
            assert!(stats.iter().all(|s| s.n_dropped == 0));
        }
    }
}

#[test]
fn several_threads_match_the_goldens_on_every_kernel_path() {
    for isa in Isa::available() {
        for case in CASES {
            let (model, golden) = (open(case), golden::read(case, "golden.json"));
            let layout = Layout {
                isa,
                n_threads: 3,
                ..Layout::default()
            };
            let (runs, _) = run(&model.spec, &model.checkpoint, layout, &ids(&golden));
            check(&format!("{case} ({isa})"), &golden, &runs);
        }
    }
}

#[test]
fn the_reference_matches_the_goldens_too() {
    for case in CASES {
        let (model, golden) = (open(case), golden::read(case, "golden.json"));
        let reference = Reference::new(&model.spec, &model.checkpoint, None);
        for sequence in &golden.sequences {
            let types = vec![0; sequence.ids.len()];
            let output = reference.forward(&sequence.ids, &types).expect("reference");
            let pooling = model.settings.pooling;
            if let Some(hidden) = &sequence.hidden {
                assert_close(
                    &format!("{case}: hidden"),
                    &output.hidden,
                    &hidden.concat(),
                    1e-4,
                );
            }
            if let Some(logits) = &sequence.logits {
                let found = reference.logits(&output.hidden, pooling).expect("logits");
                assert_close(&format!("{case}: logits"), &found, logits, 1e-4);
            }
            for ((layer, routing), expected) in output.routing.iter().zip(&sequence.routing) {
                check_routing(&format!("{case}, layer {layer}"), routing, expected);
            }
        }
    }
}

#[test]
fn capacity_per_sequence_drops_what_transformers_drops() {
    let (model, golden) = (
        open("switch"),
        golden::read("switch", "golden_capacity.json"),
    );
    assert!(golden.n_dropped > 100, "the golden drops enough to tell");
    let layouts = layouts(&model);
    for layout in layouts {
        let layout = Layout {
            sequence_capacity: golden.expert_capacity,
            ..layout
        };
        let (runs, stats) = run(&model.spec, &model.checkpoint, layout, &ids(&golden));
        check(&format!("capacity ({layout:?})"), &golden, &runs);
        let n_dropped: u64 = stats.iter().map(|s| s.n_dropped).sum();
        assert_eq!(n_dropped, golden.n_dropped, "{layout:?}");
    }
}

#[test]
fn heads_give_the_probabilities_of_transformers() {
    let cases = [
        ("bert_classify", ProblemType::SingleLabel),
        ("bert_multi_label", ProblemType::MultiLabel),
        ("xlm_roberta_classify", ProblemType::SingleLabel),
        ("nomic_moe_classify", ProblemType::SingleLabel),
    ];
    for (case, problem_type) in cases {
        let (model, golden) = (open(case), golden::read(case, "golden.json"));
        let head = model.spec.head.as_ref().expect("a head");
        assert_eq!(head.problem_type, problem_type, "{case}");
        for isa in Isa::available() {
            let layout = Layout {
                isa,
                ..Layout::default()
            };
            let (runs, _) = run(&model.spec, &model.checkpoint, layout, &ids(&golden));
            for (run, sequence) in runs.iter().zip(&golden.sequences) {
                let found = probabilities(&run.logits, problem_type);
                let expected = sequence.probabilities.as_ref().expect("probabilities");
                assert_close(&format!("{case} ({isa})"), &found, expected, 1e-5);
            }
        }
    }
}

#[test]
fn half_precision_weights_that_are_exact_change_nothing() {
    // Every golden weight is a bf16 number, so bf16 storage is exact where activations stay f32;
    // tests/bf16.rs has the path that rounds them. f16 storage rounds only what is below its
    // normal range.
    for case in ["switch", "nomic_moe", "nllb_moe", "bert_cls"] {
        let (model, golden) = (open(case), golden::read(case, "golden.json"));
        for isa in Isa::available() {
            let of = |dtype| {
                let layout = Layout {
                    dtype,
                    isa,
                    n_ranks: 2,
                    ..Layout::default()
                };
                run(&model.spec, &model.checkpoint, layout, &ids(&golden)).0
            };
            if isa != Isa::Avx512Bf16 {
                check(&format!("{case} ({isa})"), &golden, &of(DType::BF16));
            }
            for (half, full) in of(DType::F16).iter().zip(&of(DType::F32)) {
                let cosine = cosine(&half.pooled[1], &full.pooled[1]);
                assert!(cosine > 0.9999, "{case} ({isa}): {cosine}");
            }
        }
    }
}

#[test]
fn all_minilm_l6_v2_gives_its_embeddings() {
    let Some(folder) = moeshard_tests::minilm_folder() else {
        return;
    };
    let model = Model::open(&folder).expect("MiniLM");
    assert_eq!(model.settings.max_length, 256);
    let golden = golden::read("minilm", "golden.json");
    for isa in Isa::available() {
        for n_ranks in [1, 2] {
            let layout = Layout {
                n_ranks,
                isa,
                n_threads: 2,
                ..Layout::default()
            };
            let (runs, _) = run(&model.spec, &model.checkpoint, layout, &ids(&golden));
            check(&format!("minilm ({isa})"), &golden, &runs);
        }
    }
}
