//! Runs sequences on the ranks and keeps what every layer gives.

use std::ops::Range;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};
use moeshard_encoder::error::EncoderError;
use moeshard_encoder::forward::{Encoder, RankBatch};
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::ShardPlan;
use moeshard_engine::DeviceMaker;
use moeshard_engine::placement::place;
use moeshard_tensor::collective::{Collective, Solo, in_process};
use moeshard_tensor::device::{Device, Routing};

#[cfg(feature = "emulated")]
use crate::model::emulated_ranks;
use crate::model::{ComputeConfig, DeviceKind, cpu_ranks, gpu_ranks};

/// The longest that a rank waits for the others.
const DEADLINE: Duration = Duration::from_secs(600);

/// What a run gives for one sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace {
    /// `[n_tokens · d_model]` after the embedding and after each layer.
    pub(super) layers: Vec<Vec<f32>>,
    /// `[n_tokens · d_model]` after the final norm.
    pub(super) hidden: Vec<f32>,
    /// `[d_model]`
    pub(super) pooled: Vec<f32>,
    /// `[n_labels]`
    pub(super) logits: Option<Vec<f32>>,
    /// Layer index and routing of every layer of experts.
    pub(super) routing: Vec<(usize, Routing)>,
}

/// Runs all sequences in one batch, placed on ranks as the engine does.
pub(super) fn run(
    model: &Model,
    compute: &ComputeConfig,
    sequences: &[Vec<u32>],
) -> Result<Vec<Trace>> {
    match compute.device {
        DeviceKind::Cpu => run_on(&cpu_ranks(model, compute), model, compute, sequences),
        DeviceKind::Cuda { n_gpus } => {
            let gpus = gpu_ranks(model, compute, n_gpus);
            run_on(&gpus, model, compute, sequences)
        }
        #[cfg(feature = "emulated")]
        DeviceKind::Emulated => {
            let ranks = emulated_ranks(model, compute);
            run_on(&ranks, model, compute, sequences)
        }
    }
}

fn run_on<M: DeviceMaker>(
    devices: &M,
    model: &Model,
    compute: &ComputeConfig,
    sequences: &[Vec<u32>],
) -> Result<Vec<Trace>> {
    let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
    let placed = place(&lengths, compute.n_ranks);
    let n_tokens = |seqs: &Vec<usize>| seqs.iter().map(|&seq| lengths[seq]).sum();
    let n_tokens_per_rank: Vec<usize> = placed.iter().map(n_tokens).collect();
    let results: Vec<thread::Result<_>> = thread::scope(|scope| {
        let start = |(collective, seqs): (Box<dyn Collective>, &Vec<usize>)| {
            let sequences: Vec<&[u32]> = seqs.iter().map(|&s| sequences[s].as_slice()).collect();
            let counts = &n_tokens_per_rank;
            scope.spawn(move || on_rank(devices, model, compute, collective, &sequences, counts))
        };
        let ranks: Vec<_> = collectives(compute.n_ranks)
            .into_iter()
            .zip(&placed)
            .map(start)
            .collect();
        ranks.into_iter().map(ScopedJoinHandle::join).collect()
    });
    let mut traces = vec![Trace::default(); sequences.len()];
    for (rank, (seqs, result)) in placed.iter().zip(results).enumerate() {
        let result = result.map_err(|_| anyhow!("rank {rank} panicked"))?;
        let of_rank = result.map_err(|error| anyhow!("rank {rank}: {error}"))?;
        for (&seq, trace) in seqs.iter().zip(of_rank) {
            traces[seq] = trace;
        }
    }
    Ok(traces)
}

fn collectives(n_ranks: usize) -> Vec<Box<dyn Collective>> {
    if n_ranks == 1 {
        return vec![Box::new(Solo)];
    }
    in_process(n_ranks, DEADLINE)
        .into_iter()
        .map(|end| Box::new(end) as Box<_>)
        .collect()
}

/// Loads one rank's part and runs its sequences.
fn on_rank<M: DeviceMaker>(
    devices: &M,
    model: &Model,
    compute: &ComputeConfig,
    collective: Box<dyn Collective>,
    sequences: &[&[u32]],
    n_tokens_per_rank: &[usize],
) -> Result<Vec<Trace>, EncoderError> {
    let plan = ShardPlan {
        strategy: compute.strategy,
        rank: collective.rank(),
        world_size: compute.n_ranks,
    };
    let device = devices.make(collective)?;
    let (spec, checkpoint, capacity) = (&model.spec, &model.checkpoint, compute.sequence_capacity);
    let encoder = Encoder::load(device, spec, checkpoint, plan, capacity, &|_| {})?;
    devices.loaded(encoder.device());
    let ids = sequences.concat();
    let cu_seqlens = cu_seqlens(sequences);
    let type_ids = vec![0; ids.len()];
    let batch = RankBatch {
        ids: &ids,
        type_ids: &type_ids,
        cu_seqlens: &cu_seqlens,
        n_tokens_per_rank,
    };
    trace(&encoder, model, &batch)
}

fn cu_seqlens(sequences: &[&[u32]]) -> Vec<usize> {
    let mut ends = vec![0];
    for sequence in sequences {
        ends.push(ends[ends.len() - 1] + sequence.len());
    }
    ends
}

fn trace<D: Device>(
    encoder: &Encoder<D>,
    model: &Model,
    batch: &RankBatch<'_>,
) -> Result<Vec<Trace>, EncoderError> {
    let d_model = model.spec.d_model;
    let rows: Vec<Range<usize>> = batch.cu_seqlens.windows(2).map(|w| w[0]..w[1]).collect();
    let mut traces = vec![Trace::default(); rows.len()];
    let device = encoder.device();
    let hidden = encoder.forward_traced(batch, &mut |step| {
        let values = device.to_host(step.hidden)?;
        let routing = step
            .routing
            .map(|routing| device.routing_to_host(routing))
            .transpose()?;
        for (trace, rows) in traces.iter_mut().zip(&rows) {
            trace.layers.push(part(&values, rows, d_model));
            if let (Some(layer_idx), Some(routing)) = (step.layer_idx, &routing) {
                trace.routing.push((layer_idx, routing_of(routing, rows)));
            }
        }
        Ok(())
    })?;
    let pooling = model.settings.pooling;
    let pooled = encoder.pool(&hidden, batch.cu_seqlens, pooling)?;
    let logits = match &model.spec.head {
        Some(head) => Some((
            encoder.logits(&hidden, batch.cu_seqlens, pooling)?,
            head.out.n_out,
        )),
        None => None,
    };
    let hidden = device.to_host(&hidden)?;
    for (seq, (trace, rows)) in traces.iter_mut().zip(&rows).enumerate() {
        trace.hidden = part(&hidden, rows, d_model);
        trace.pooled = part(&pooled, &(seq..seq + 1), d_model);
        trace.logits = logits
            .as_ref()
            .map(|(all, n)| part(all, &(seq..seq + 1), *n));
    }
    Ok(traces)
}

fn part(values: &[f32], rows: &Range<usize>, width: usize) -> Vec<f32> {
    values[rows.start * width..rows.end * width].to_vec()
}

fn routing_of(routing: &Routing, rows: &Range<usize>) -> Routing {
    let top_k = routing.top_k;
    let slots = rows.start * top_k..rows.end * top_k;
    Routing {
        top_k,
        expert_idx: routing.expert_idx[slots.clone()].to_vec(),
        gate_weight: routing.gate_weight[slots].to_vec(),
    }
}
