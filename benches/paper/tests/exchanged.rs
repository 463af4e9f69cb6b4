//! The bytes that collectives carry are those of the closed form.

use std::sync::{Arc, Mutex, PoisonError};

use moeshard_encoder::model::Model;
use moeshard_encoder::shard::Strategy;
use moeshard_engine::placement::place;
use moeshard_engine::{CpuRanks, DeviceMaker};
use moeshard_gpu_check::models::ModelShape;
use moeshard_paper::work::{Exchanged, Pass};
use moeshard_paper::world::{Batch, World};
use moeshard_tensor::collective::{Collective, CollectiveError};
use moeshard_tensor::cpu::{CpuDevice, Isa};
use moeshard_tensor::device::DeviceError;
use moeshard_tensor::dtype::DType;

const SHAPE: ModelShape = ModelShape {
    d_model: 32,
    d_ff: 64,
    n_heads: 2,
    n_layers: 4,
    n_experts: 8,
    vocab_size: 50,
    block: 1 << 12,
    ..ModelShape::BASE
};

type Totals = Arc<Vec<Mutex<Exchanged>>>;

/// Ranks on the CPU that count what they exchange.
struct CountingRanks {
    cores: CpuRanks,
    totals: Totals,
}

impl DeviceMaker for CountingRanks {
    type Device = CpuDevice;

    fn make(&self, end: Box<dyn Collective>) -> Result<CpuDevice, DeviceError> {
        let totals = Arc::clone(&self.totals);
        self.cores.make(Box::new(Counting { end, totals }))
    }
}

struct Counting {
    end: Box<dyn Collective>,
    totals: Totals,
}

impl Counting {
    /// Each rank's part goes to every other one, or every part of one's own to its owner.
    fn add(&self, counts: &[usize], is_gather: bool) {
        let own = counts[self.rank()];
        let (spread, rest) = (
            own * (self.world_size() - 1),
            counts.iter().sum::<usize>() - own,
        );
        let (sent, received) = if is_gather {
            (spread, rest)
        } else {
            (rest, spread)
        };
        let mut total = self.totals[self.rank()]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        total.sent += (sent * size_of::<f32>()) as u64;
        total.received += (received * size_of::<f32>()) as u64;
    }
}

impl Collective for Counting {
    fn rank(&self) -> usize {
        self.end.rank()
    }
    fn world_size(&self) -> usize {
        self.end.world_size()
    }
    fn all_gather(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.add(counts, true);
        self.end.all_gather(send, counts, recv)
    }
    fn reduce_scatter(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.add(counts, false);
        self.end.reduce_scatter(send, counts, recv)
    }
    fn all_reduce(&self, _: &mut [f32]) -> Result<(), CollectiveError> {
        unreachable!("an encoder has no all-reduce")
    }
    fn broadcast(&self, _: &mut [f32], _: usize) -> Result<(), CollectiveError> {
        unreachable!("an encoder has no broadcast")
    }
}

#[test]
fn collectives_carry_what_the_closed_form_says() {
    let folder = tempfile::tempdir().expect("a folder");
    SHAPE.write(folder.path()).expect("a model");
    let model = Arc::new(Model::open(folder.path()).expect("a model"));
    // Sequences of four lengths: ranks have different numbers of tokens.
    let cu_seqlens = vec![0, 3, 10, 11, 30];
    let lengths: Vec<usize> = cu_seqlens.windows(2).map(|w| w[1] - w[0]).collect();
    let batch = Batch {
        per_rank: 4,
        length: 8,
    };
    let mut packed = batch.pack(1, SHAPE.vocab_size, 1);
    packed.ids.truncate(30);
    packed.type_ids.truncate(30);
    packed.cu_seqlens = cu_seqlens;
    for n_ranks in 1..=4 {
        for strategy in [
            Strategy::Sharded,
            Strategy::Parallel,
            Strategy::Capacity { factor: 1.0 },
            Strategy::Replicated,
        ] {
            let totals: Totals = Arc::new((0..n_ranks).map(|_| Mutex::default()).collect());
            let cores = CpuRanks {
                dtype: DType::BF16,
                n_threads: n_ranks,
                binds_threads: false,
                isa: Isa::detect(),
            };
            let ranks = CountingRanks {
                cores,
                totals: Arc::clone(&totals),
            };
            let world = World::start(&model, (n_ranks, strategy), ranks).expect("a world");
            world.run(&packed).expect("a pass");
            drop(world);
            let found: Vec<Exchanged> = totals
                .iter()
                .map(|total| *total.lock().unwrap_or_else(PoisonError::into_inner))
                .collect();
            let of_rank = |seqs: &Vec<usize>| seqs.iter().map(|&s| lengths[s]).sum();
            let pass = Pass {
                strategy,
                n_layers: SHAPE.n_layers / 2,
                d_model: SHAPE.d_model,
                d_ff: SHAPE.d_ff,
                element_bytes: 4,
                n_tokens: place(&lengths, n_ranks).iter().map(of_rank).collect(),
            };
            assert_eq!(found, pass.exchanged(), "{strategy} on {n_ranks} ranks");
        }
    }
}
