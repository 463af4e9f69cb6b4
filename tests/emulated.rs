//! The device of GPUs, its kernels emulated on the CPU, gives the CPU device's numbers.

use std::sync::Arc;
use std::time::Duration;

use moeshard_batcher::{Engine, PackedBatch, Task};
use moeshard_cuda::driver::emulated::Emulated;
use moeshard_cuda::{CudaConfig, CudaDevice, PeerWorld};
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::Strategy;
use moeshard_engine::{DeviceMaker, Overlap, RankEngine};
use moeshard_tensor::collective::Collective;
use moeshard_tensor::device::DeviceError;
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

/// Ranks on emulated devices that exchange in one way.
struct EmulatedRanks {
    world: Arc<PeerWorld>,
    dtype: DType,
    exchange: &'static str,
}

impl EmulatedRanks {
    fn new(n_ranks: usize, dtype: DType, exchange: &'static str) -> Self {
        Self {
            world: PeerWorld::new(n_ranks, DEADLINE),
            dtype,
            exchange,
        }
    }
}

impl DeviceMaker for EmulatedRanks {
    type Device = CudaDevice<Emulated>;

    fn make(&self, end: Box<dyn Collective>) -> Result<Self::Device, DeviceError> {
        let config = CudaConfig { dtype: self.dtype };
        let device = CudaDevice::new(config, Emulated::with_nccl()?, end)?;
        match self.exchange {
            "peers" => device.meet_peers(&self.world),
            "nccl" => device.join_nccl(DEADLINE),
            _ => Ok(device),
        }
    }
}

fn check(case: &str, layout: Layout, exchange: &'static str) {
    let model = Model::open(&golden::folder(case)).unwrap_or_else(|e| panic!("{case}: {e}"));
    let ids: Vec<_> = golden::read(case, "golden.json")
        .sequences
        .into_iter()
        .map(|sequence| sequence.ids)
        .collect();
    let (spec, checkpoint) = (&model.spec, &model.checkpoint);
    let (expected, expected_stats) = run(spec, checkpoint, layout, &ids);
    let ranks = EmulatedRanks::new(layout.n_ranks, layout.dtype, exchange);
    let make = |end, _: &[usize]| ranks.make(end).expect("a device");
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

/// What an engine answers to batches of some of a model's sequences: of a small one, then of all again and
/// again, so that graphs are captured and run.
fn answers(
    case: &str,
    (n_ranks, strategy): (usize, Strategy),
    exchange: &'static str,
    overlap_from: Option<usize>,
) -> Vec<Vec<f32>> {
    let model = Arc::new(Model::open(&golden::folder(case)).expect("a model"));
    let sequences = golden::read(case, "golden.json").sequences;
    let layout = moeshard_engine::Layout {
        n_ranks,
        strategy,
        sequence_capacity: None,
        overlap: overlap_from.map(|n_tokens| Overlap {
            n_tokens,
            needs_streams: exchange != "host",
        }),
    };
    let progress = Arc::new(|_| {}) as _;
    let ranks = EmulatedRanks::new(n_ranks, DType::F32, exchange);
    let engine = RankEngine::start(&model, layout, ranks, &progress).expect("an engine");
    let n = sequences.len();
    [1, n, n, n]
        .map(|n| {
            let mut batch = PackedBatch::default();
            batch.cu_seqlens.push(0);
            // Each twice: there is something to share.
            for sequence in sequences[..n].iter().chain(&sequences[..n]) {
                batch.ids.extend(&sequence.ids);
                batch.cu_seqlens.push(batch.ids.len());
                batch.tasks.push(Task::Embed {
                    normalize: true,
                    dimensions: None,
                });
            }
            batch.type_ids = vec![0; batch.ids.len()];
            engine.run(&batch).expect("an answer")
        })
        .concat()
}

#[test]
fn micro_batches_beside_each_other_give_what_the_whole_batch_gives() {
    let (sharded, parallel) = (Strategy::Sharded, Strategy::Parallel);
    for (case, layout, exchange) in [
        ("nomic_moe", (2, sharded), "peers"),
        ("nomic_moe", (3, parallel), "nccl"),
        ("switch", (3, sharded), "peers"),
        ("switch", (2, sharded), "host"),
    ] {
        let of = |from| answers(case, layout, exchange, from);
        let (found, expected) = (of(Some(1)), of(None));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            let what = format!("{case}, {layout:?}, {exchange}");
            assert_close(&what, found, expected, 1e-5);
        }
    }
}
