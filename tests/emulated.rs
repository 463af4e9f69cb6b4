//! The device of GPUs, its kernels emulated on the CPU, gives the CPU device's numbers.

use std::time::Duration;

use moeshard_cuda::driver::emulated::Emulated;
use moeshard_cuda::{CudaConfig, CudaDevice, PeerWorld};
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::Strategy;
use moeshard_tensor::dtype::DType;
use moeshard_tests::compare::assert_close;
use moeshard_tests::golden;
use moeshard_tests::world::{Layout, ends, run, run_on};

/// A rank that does not come.
const DEADLINE: Duration = Duration::from_secs(60);

/// Goldens of every kind of layer: experts of every rule, dense with and without a gate, every position rule
/// and norm, heads.
const CASES: [&str; 9] = [
    "switch",
    "nomic_moe",
    "nomic_moe_top1",
    "nomic_moe_normalized",
    "nomic_moe_classify",
    "nomic_dense",
    "nllb_moe",
    "bert_classify",
    "xlm_roberta",
];

fn check(case: &str, layout: Layout, exchange: &str) {
    let model = Model::open(&golden::folder(case)).unwrap_or_else(|e| panic!("{case}: {e}"));
    let ids: Vec<_> = golden::read(case, "golden.json")
        .sequences
        .into_iter()
        .map(|sequence| sequence.ids)
        .collect();
    let (spec, checkpoint) = (&model.spec, &model.checkpoint);
    let (expected, expected_stats) = run(spec, checkpoint, layout, &ids);
    let config = CudaConfig {
        dtype: layout.dtype,
    };
    let world = PeerWorld::new(layout.n_ranks, DEADLINE);
    let make = |end, _: &[usize]| {
        let driver = Emulated::with_nccl().expect("a library");
        let device = CudaDevice::new(config, driver, end).expect("a device");
        match exchange {
            "peers" => device.meet_peers(&world).expect("peers"),
            "nccl" => device.join_nccl(DEADLINE).expect("a world"),
            _ => device,
        }
    };
    let ends = ends(layout.n_ranks);
    let (found, stats) = run_on(spec, checkpoint, layout, &ids, ends, &make);
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let what = |of: &str| format!("{case}, {layout:?}, sequence {i}: {of}");
        for ((layer, found), (_, expected)) in found.routing.iter().zip(&expected.routing) {
            let what = what(&format!("layer {layer}"));
            assert_eq!(found.expert_idx, expected.expert_idx, "{what}");
            assert_close(&what, &found.gate_weight, &expected.gate_weight, 1e-5);
        }
        assert_close(&what("hidden"), &found.hidden, &expected.hidden, 1e-4);
        for (found, expected) in found.pooled.iter().zip(&expected.pooled) {
            assert_close(&what("pooled"), found, expected, 1e-4);
        }
        assert_close(&what("logits"), &found.logits, &expected.logits, 1e-4);
    }
    for (found, expected) in stats.iter().zip(&expected_stats) {
        assert_eq!(found.expert_multiply_adds, expected.expert_multiply_adds);
        assert_eq!(found.n_dropped, expected.n_dropped);
    }
}

#[test]
fn every_family_on_one_rank() {
    for case in CASES {
        check(case, Layout::default(), "host");
    }
}

#[test]
fn every_strategy_on_some_ranks() {
    for (n_ranks, strategy) in [
        (2, Strategy::Sharded),
        (4, Strategy::Sharded),
        (3, Strategy::Parallel),
        (2, Strategy::Replicated),
        (2, Strategy::Capacity { factor: 1.0 }),
    ] {
        let layout = Layout {
            n_ranks,
            strategy,
            dtype: DType::F32,
            ..Layout::default()
        };
        for exchange in ["host", "peers", "nccl"] {
            check("nomic_moe", layout, exchange);
            check("switch", layout, exchange);
        }
    }
}
