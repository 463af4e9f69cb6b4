//! A model on some ranks, with everything that a test wants to look at.

use std::sync::Arc;
use std::time::Duration;

use moeshard_encoder::forward::{Encoder, RankBatch};
use moeshard_encoder::shard::{ShardPlan, Strategy};
use moeshard_encoder::spec::EncoderSpec;
use moeshard_engine::placement::place;
use moeshard_tensor::checkpoint::Checkpoint;
use moeshard_tensor::collective::{Collective, Solo, in_process};
use moeshard_tensor::cpu::{CpuConfig, CpuDevice, Isa};
use moeshard_tensor::device::{Device, DeviceStats, Pooling, Routing};
use moeshard_tensor::dtype::DType;
use moeshard_tensor::imposed::Imposed;

/// How a model is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Number of ranks.
    pub n_ranks: usize,
    /// How experts are laid out.
    pub strategy: Strategy,
    /// Which kernels of the CPU.
    pub isa: Isa,
    /// In which weights are kept.
    pub dtype: DType,
    /// Threads of each rank, on the CPU.
    pub n_threads: usize,
    /// Tokens that an expert takes from a sequence.
    pub sequence_capacity: Option<usize>,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            n_ranks: 1,
            strategy: Strategy::Sharded,
            isa: Isa::detect(),
            dtype: DType::F32,
            n_threads: 1,
            sequence_capacity: None,
        }
    }
}

/// Everything computed for one sequence.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// `[n_tokens · d_model]`
    pub hidden: Vec<f32>,
    /// Layer and routing of each layer of experts.
    pub routing: Vec<(usize, Routing)>,
    /// Pooled by cls, mean, last token; not normalised.
    pub pooled: [Vec<f32>; 3],
    /// `[n_labels]`; empty without a head.
    pub logits: Vec<f32>,
}

/// Runs `sequences` as one batch; returns them in order, and what each rank counted.
///
/// # Panics
/// If a rank fails.
pub fn run(
    spec: &EncoderSpec,
    checkpoint: &Checkpoint,
    layout: Layout,
    sequences: &[Vec<u32>],
) -> (Vec<Run>, Vec<DeviceStats>) {
    run_over(spec, checkpoint, layout, sequences, ends(layout.n_ranks))
}

/// As [`run`], with the experts of every token decided beforehand: `routings[s]` is one routing for
/// each layer of experts, of sequence `s`.
///
/// # Panics
/// If a rank fails, or a routing is of another model or sequence.
pub fn run_imposed(
    spec: &EncoderSpec,
    checkpoint: &Checkpoint,
    layout: Layout,
    sequences: &[Vec<u32>],
    routings: &[Vec<Routing>],
) -> (Vec<Run>, Vec<DeviceStats>) {
    let impose = |end, seqs: &[usize]| {
        let mine: Vec<_> = seqs.iter().map(|&s| routings[s].as_slice()).collect();
        Imposed::always(cpu(layout, end), &mine)
    };
    let ends = ends(layout.n_ranks);
    run_on(spec, checkpoint, layout, sequences, ends, &impose)
}

/// As [`run`], over collectives of the caller's.
///
/// # Panics
/// If a rank fails.
pub fn run_over(
    spec: &EncoderSpec,
    checkpoint: &Checkpoint,
    layout: Layout,
    sequences: &[Vec<u32>],
    ends: Vec<Box<dyn Collective>>,
) -> (Vec<Run>, Vec<DeviceStats>) {
    let make = |end, _: &[usize]| cpu(layout, end);
    run_on(spec, checkpoint, layout, sequences, ends, &make)
}

/// One end for each rank of a world of threads.
pub fn ends(n_ranks: usize) -> Vec<Box<dyn Collective>> {
    match n_ranks {
        1 => vec![Box::new(Solo)],
        n => in_process(n, Duration::from_secs(300))
            .into_iter()
            .map(|e| Box::new(e) as _)
            .collect(),
    }
}

/// As [`run_over`], on devices that `make` makes of a rank's end and the sequences that the rank
/// gets. A device stays on the thread that it was made on.
///
/// # Panics
/// If a rank fails.
pub fn run_on<D: Device>(
    spec: &EncoderSpec,
    checkpoint: &Checkpoint,
    layout: Layout,
    sequences: &[Vec<u32>],
    ends: Vec<Box<dyn Collective>>,
    make: &(impl Fn(Box<dyn Collective>, &[usize]) -> D + Sync),
) -> (Vec<Run>, Vec<DeviceStats>) {
    let lengths: Vec<_> = sequences.iter().map(Vec::len).collect();
    let placed = place(&lengths, layout.n_ranks);
    let counts: Arc<[usize]> = placed
        .iter()
        .map(|seqs| seqs.iter().map(|&s| lengths[s]).sum())
        .collect();
    let mut runs = vec![Run::default(); sequences.len()];
    let mut stats = Vec::new();
    let of_ranks: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = ends
            .into_iter()
            .zip(&placed)
            .map(|(end, seqs)| {
                let mine: Vec<_> = seqs.iter().map(|&s| sequences[s].clone()).collect();
                let counts = Arc::clone(&counts);
                scope.spawn(move || {
                    let plan = ShardPlan {
                        strategy: layout.strategy,
                        rank: end.rank(),
                        world_size: layout.n_ranks,
                    };
                    let device = make(end, seqs);
                    let capacity = layout.sequence_capacity;
                    let encoder = Encoder::load(device, spec, checkpoint, plan, capacity, &|_| {});
                    let encoder = encoder.unwrap_or_else(|e| panic!("cannot load: {e}"));
                    rank(&encoder, &mine, &counts)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("a rank failed"))
            .collect()
    });
    for (seqs, (of_rank, stat)) in placed.iter().zip(of_ranks) {
        for (&seq, run) in seqs.iter().zip(of_rank) {
            runs[seq] = run;
        }
        stats.push(stat);
    }
    (runs, stats)
}

fn cpu(layout: Layout, end: Box<dyn Collective>) -> CpuDevice {
    let config = CpuConfig {
        isa: layout.isa,
        ..CpuConfig::new(layout.dtype, layout.n_threads)
    };
    CpuDevice::new(config, end).expect("device")
}

fn rank<D: Device>(
    encoder: &Encoder<D>,
    sequences: &[Vec<u32>],
    n_tokens_per_rank: &[usize],
) -> (Vec<Run>, DeviceStats) {
    let spec = encoder.spec();
    let ids = sequences.concat();
    let mut cu_seqlens = vec![0];
    for sequence in sequences {
        cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + sequence.len());
    }
    let type_ids = vec![0; ids.len()];
    let batch = RankBatch {
        ids: &ids,
        type_ids: &type_ids,
        cu_seqlens: &cu_seqlens,
        n_tokens_per_rank,
    };
    let mut routing = Vec::new();
    let hidden = encoder
        .forward_traced(&batch, &mut |step| {
            if let (Some(layer), Some(r)) = (step.layer_idx, step.routing) {
                routing.push((layer, encoder.device().routing_to_host(r)?));
            }
            Ok(())
        })
        .unwrap_or_else(|e| panic!("cannot run: {e}"));
    let pooled = [Pooling::Cls, Pooling::Mean, Pooling::LastToken]
        .map(|p| encoder.pool(&hidden, &cu_seqlens, p).expect("pool"));
    let logits = match spec.head {
        Some(_) => encoder
            .logits(&hidden, &cu_seqlens, Pooling::Mean)
            .expect("logits"),
        None => Vec::new(),
    };
    let hidden = encoder.device().to_host(&hidden).expect("to_host");
    let (d, n_labels) = (spec.d_model, spec.head.as_ref().map_or(0, |h| h.out.n_out));
    let runs = cu_seqlens.windows(2).enumerate().map(|(seq, w)| Run {
        hidden: hidden[w[0] * d..w[1] * d].to_vec(),
        routing: routing
            .iter()
            .map(|(layer, r)| (*layer, part(r, w[0], w[1])))
            .collect(),
        pooled: pooled
            .each_ref()
            .map(|p| p[seq * d..(seq + 1) * d].to_vec()),
        logits: logits[seq * n_labels..(seq + 1) * n_labels].to_vec(),
    });
    (runs.collect(), encoder.device().stats())
}

/// The routing of tokens `from..to`.
fn part(routing: &Routing, from: usize, to: usize) -> Routing {
    let slots = from * routing.top_k..to * routing.top_k;
    Routing {
        top_k: routing.top_k,
        expert_idx: routing.expert_idx[slots.clone()].to_vec(),
        gate_weight: routing.gate_weight[slots].to_vec(),
    }
}
