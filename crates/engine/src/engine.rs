//! The engine: ranks as threads of this process, or as processes of which this is the first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use moeshard_batcher::{Engine, EngineError, EngineStats, PackedBatch, Task};
use moeshard_encoder::error::EncoderError;
use moeshard_encoder::forward::check_batch;
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::{ShardPlan, Strategy};
use moeshard_encoder::spec::EncoderSpec;
use moeshard_tensor::collective::{Collective, CollectiveError, Solo, in_process};
use moeshard_tensor::device::{DeviceError, DeviceStats};

use crate::placement::{micro_batches, place};
use crate::processes::{self, Crew, is_hearsay};
use crate::rank::{DeviceMaker, MicroBatch, Rank, RankSetUp, start};

/// The longest that a rank waits for the others in one collective. Ranks of one process wait for
/// each other's arithmetic only; a rank that dies is noticed at once, whatever this is.
pub(crate) const DEADLINE: Duration = Duration::from_secs(600);

/// Each rank is a thread with a copy of everything but the experts.
const MAX_RANKS: usize = 64;

/// How a model is laid out over ranks.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Ranks that share the experts.
    pub n_ranks: usize,
    /// How the experts are laid out.
    pub strategy: Strategy,
    /// Limit of an expert's tokens from one sequence.
    pub sequence_capacity: Option<usize>,
    /// When a batch is run as two micro-batches, so that a device that can hides the exchanges of one under the other's
    /// compute. A capacity of the whole batch keeps it whole.
    pub overlap: Option<Overlap>,
}

/// Which batches are run as two micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Those of so many tokens or more.
    pub n_tokens: usize,
    /// Only where a device has streams beside each other: elsewhere nothing is hidden.
    pub needs_streams: bool,
}

impl Layout {
    /// Whether a batch of so many tokens is run as micro-batches, on devices with so many streams.
    fn splits(&self, n_tokens: usize, n_streams: usize) -> bool {
        let is_limited = matches!(self.strategy, Strategy::Capacity { .. });
        let can_gain = self.strategy.communicates() && self.n_ranks > 1 && !is_limited;
        let wants = |overlap: Overlap| {
            n_tokens >= overlap.n_tokens && (n_streams > 1 || !overlap.needs_streams)
        };
        can_gain && self.overlap.is_some_and(wants)
    }

    pub(crate) fn plan(&self, rank: usize) -> ShardPlan {
        ShardPlan {
            strategy: self.strategy,
            rank,
            world_size: self.n_ranks,
        }
    }
}

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No ranks.
    #[error("the number of ranks must be at least 1, got 0")]
    NoRanks,
    /// More ranks than make sense in one process.
    #[error("{n_ranks} ranks in one process, expected at most {MAX_RANKS}")]
    TooManyRanks {
        /// What was asked for.
        n_ranks: usize,
    },
    /// A rank could not make its device or load its part.
    #[error(transparent)]
    Rank(#[from] EncoderError),
    /// A rank stopped without saying why.
    #[error("rank {rank} stopped while it was loading")]
    Stopped {
        /// Which one.
        rank: usize,
    },
    /// A rank of another process could not start, or is gone.
    #[error("{0}")]
    Processes(String),
}

/// A model on ranks.
pub struct RankEngine {
    spec: EncoderSpec,
    layout: Layout,
    ranks: Mutex<Vec<Rank>>,
    /// Apart from the ranks, which are locked while they work.
    stats: Vec<Arc<Mutex<DeviceStats>>>,
    n_tokens: AtomicU64,
    /// Why the first failed pass failed; the ranks are gone since.
    failure: Arc<OnceLock<String>>,
    /// The other processes, if there are any.
    crew: Option<Arc<Crew>>,
}

impl RankEngine {
    /// Starts the ranks on devices from `devices` and waits until all have loaded. `progress` is
    /// told the bytes of each tensor as some rank has read it.
    ///
    /// # Errors
    /// If the model cannot be laid out like this, a rank has no device, or the model's weights are
    /// not what they should be.
    pub fn start<M: DeviceMaker>(
        model: &Arc<Model>,
        layout: Layout,
        devices: M,
        progress: &Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Self, StartError> {
        let n_ranks = layout.n_ranks;
        if n_ranks == 0 {
            return Err(StartError::NoRanks);
        }
        check_layout(model, layout)?;
        if n_ranks > MAX_RANKS {
            return Err(StartError::TooManyRanks { n_ranks });
        }
        Self::start_over(model, layout, devices, collectives(n_ranks), progress)
    }

    /// Starts one rank for each end of a world.
    fn start_over<M: DeviceMaker>(
        model: &Arc<Model>,
        layout: Layout,
        devices: M,
        collectives: Vec<Box<dyn Collective>>,
        progress: &Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Self, StartError> {
        let devices = Arc::new(devices);
        let ranks = collectives
            .into_iter()
            .enumerate()
            .map(|(rank, collective)| {
                let set_up = RankSetUp {
                    model: Arc::clone(model),
                    plan: layout.plan(rank),
                    sequence_capacity: layout.sequence_capacity,
                    devices: Arc::clone(&devices),
                    join: Box::new(move || Ok(collective)),
                    progress: Arc::clone(progress),
                };
                start(set_up, channel())
            })
            .collect::<Result<Vec<_>, _>>()?;
        Self::of_ranks(model, layout, ranks, None)
    }

    /// Waits until all ranks have loaded.
    pub(crate) fn of_ranks(
        model: &Model,
        layout: Layout,
        ranks: Vec<Rank>,
        crew: Option<Arc<Crew>>,
    ) -> Result<Self, StartError> {
        // All devices before all weights: nobody waits for one rank to load, to hear that another
        // has no device.
        for _ in ["a device", "weights"] {
            for (rank, r) in ranks.iter().enumerate() {
                let heard = r.answers.recv();
                let heard = heard.map_err(|_| StartError::Stopped { rank });
                if let Err(error) = heard.and_then(|answer| Ok(answer.map(drop)?)) {
                    return Err(match &crew {
                        None => error,
                        Some(crew) => {
                            let reason = format!("rank {rank}: {error}");
                            let by_hearsay = matches!(&error, StartError::Rank(e) if is_hearsay(e));
                            StartError::Processes(match by_hearsay {
                                true => crew.fail_by_hearsay(&reason),
                                false => crew.fail(&reason),
                            })
                        }
                    });
                }
            }
        }
        let stats = ranks.iter().map(|r| Arc::clone(&r.stats)).collect();
        Ok(Self {
            spec: model.spec.clone(),
            layout,
            ranks: Mutex::new(ranks),
            stats,
            n_tokens: AtomicU64::new(0),
            failure: crew.as_ref().map_or_else(Arc::default, |c| c.failure()),
            crew,
        })
    }

    /// Ends the ranks, once the batch that they may be working on is done; no batch can be run any more.
    ///
    /// # Errors
    /// If a process was lost before: why.
    pub fn stop(&self) -> Result<(), String> {
        let mut ranks = self.ranks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(crew) = &self.crew {
            crew.dismiss();
        }
        let stopped = self.failure.set("it has been stopped".to_owned());
        // A rank ends when nobody can send it jobs. All are told before one is waited for: they may wait for each
        // other.
        let threads: Vec<_> = ranks.drain(..).filter_map(|rank| rank.thread).collect();
        match (&self.crew, stopped) {
            (None, _) => threads.into_iter().for_each(|thread| {
                // A rank that panicked has been reported already.
                let _ = thread.join();
            }),
            (Some(_), Ok(())) => processes::leave(threads),
            // This rank may hang in a collective, which nobody will come to.
            (Some(_), Err(_)) => return Err(self.failure.get().cloned().unwrap_or_default()),
        }
        Ok(())
    }

    /// Refuses what a rank could not run, before any rank starts.
    fn check(&self, batch: &PackedBatch) -> Result<(), EngineError> {
        let input = |error: EncoderError| EngineError::Input(error.to_string());
        let PackedBatch {
            ids,
            type_ids,
            cu_seqlens,
            tasks,
        } = batch;
        if type_ids.len() != ids.len() || tasks.len() + 1 != cu_seqlens.len() {
            return Err(EngineError::Input(format!(
                "a batch of {} ids, {} type ids, {} offsets and {} tasks, which do not belong together",
                ids.len(),
                type_ids.len(),
                cu_seqlens.len(),
                tasks.len()
            )));
        }
        check_batch(&self.spec, ids, cu_seqlens).map_err(input)?;
        let classifies = tasks.iter().any(|t| matches!(t, Task::Classify { .. }));
        match classifies && self.spec.head.is_none() {
            true => Err(input(EncoderError::NoHead)),
            false => Ok(()),
        }
    }

    /// Sends each rank its sequences and waits for all of them.
    fn run_on(&self, ranks: &[Rank], batch: &PackedBatch) -> Result<Vec<Vec<f32>>, EngineError> {
        let lengths: Vec<_> = batch.cu_seqlens.windows(2).map(|w| w[1] - w[0]).collect();
        // All ranks have devices of a kind.
        let n_streams = ranks.first().map_or(1, Rank::n_streams);
        let splits = self.layout.splits(batch.ids.len(), n_streams);
        let placed = micro_batches(&lengths, place(&lengths, ranks.len()), splits);
        let counts = tokens_per_rank(&lengths, &placed);
        let mut failures = Vec::new();
        for (rank, (r, seqs)) in ranks.iter().zip(&placed).enumerate() {
            let job = (seqs.iter().zip(&counts))
                .map(|(seqs, counts)| micro_batch(batch, seqs, Arc::clone(counts)))
                .collect();
            if !r.jobs.send(job) {
                failures.push((rank, None));
            }
        }
        let mut rows = vec![Vec::new(); lengths.len()];
        for (rank, (r, seqs)) in ranks.iter().zip(&placed).enumerate() {
            match r.answers.recv() {
                Ok(Ok(answers)) => {
                    for (&seq, row) in seqs.iter().flatten().zip(answers) {
                        rows[seq] = row;
                    }
                }
                Ok(Err(error)) => failures.push((rank, Some(error))),
                Err(_) => failures.push((rank, None)),
            }
            if let (Some(crew), Some(failure)) = (&self.crew, failures.last()) {
                // The others may wait for this rank for ever: nobody waits for them.
                match failure {
                    (_, Some(error)) if is_hearsay(error) => {
                        crew.fail_by_hearsay(&reason_of(failure))
                    }
                    _ => crew.fail(&reason_of(failure)),
                };
            }
        }
        match cause(failures) {
            Some(reason) => {
                self.failure.get_or_init(|| reason);
                self.check_health().map(|()| rows)
            }
            None => Ok(rows),
        }
    }

    /// That no pass has failed and no rank is gone.
    fn check_health(&self) -> Result<(), EngineError> {
        match self.failure.get() {
            None => Ok(()),
            Some(reason) => Err(EngineError::Failed(reason.clone())),
        }
    }
}

/// Whether the experts can be laid out at all, before anything is loaded.
pub(crate) fn check_layout(model: &Model, layout: Layout) -> Result<(), StartError> {
    for (layer_idx, experts) in model.spec.expert_layers() {
        let plan = layout.plan(0);
        let checked = plan.check(experts.experts.len(), experts.d_ff);
        checked.map_err(|reason| EncoderError::Layout { layer_idx, reason })?;
    }
    Ok(())
}

/// Why a pass failed: not that a rank noticed another one's failure, if there is a better answer.
fn cause(mut failures: Vec<(usize, Option<EncoderError>)>) -> Option<String> {
    failures.sort_by_key(|(_, error)| match error {
        Some(EncoderError::Device(DeviceError::Collective(CollectiveError::Poisoned {
            ..
        }))) => 2,
        // A panic: the rank could not say why.
        None => 1,
        Some(_) => 0,
    });
    failures.first().map(reason_of)
}

fn reason_of((rank, error): &(usize, Option<EncoderError>)) -> String {
    match error {
        Some(error) => format!("rank {rank}: {error}"),
        None => format!("rank {rank} has stopped"),
    }
}

impl Engine for RankEngine {
    fn run(&self, batch: &PackedBatch) -> Result<Vec<Vec<f32>>, EngineError> {
        self.check(batch)?;
        self.check_health()?;
        let ranks = self.ranks.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = self.run_on(&ranks, batch)?;
        let n_tokens = batch.ids.len() as u64;
        self.n_tokens.fetch_add(n_tokens, Ordering::Relaxed);
        Ok(rows)
    }

    fn stats(&self) -> EngineStats {
        let read =
            |stats: &Arc<Mutex<DeviceStats>>| *stats.lock().unwrap_or_else(PoisonError::into_inner);
        let stats: Vec<_> = self.stats.iter().map(read).collect();
        EngineStats {
            expert_bytes: stats.iter().map(|s| s.expert_bytes).collect(),
            expert_multiply_adds: stats.iter().map(|s| s.expert_multiply_adds).collect(),
            n_dropped: stats.iter().map(|s| s.n_dropped).sum(),
            n_tokens: self.n_tokens.load(Ordering::Relaxed),
        }
    }
}

impl Drop for RankEngine {
    fn drop(&mut self) {
        // A failure was an answer of `run`; after a stop there is nothing to do.
        let _ = self.stop();
    }
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

/// Of each micro-batch, the tokens of every rank.
fn tokens_per_rank(lengths: &[usize], placed: &[Vec<Vec<usize>>]) -> Vec<Arc<[usize]>> {
    let n_tokens = |seqs: &[usize]| seqs.iter().map(|&seq| lengths[seq]).sum();
    let of_micro = |i: usize| placed.iter().map(|micro| n_tokens(&micro[i])).collect();
    let n_micro = placed.first().map_or(0, Vec::len);
    (0..n_micro).map(of_micro).collect()
}

/// The sequences `seqs` of `batch`, packed for one rank.
fn micro_batch(batch: &PackedBatch, seqs: &[usize], n_tokens_per_rank: Arc<[usize]>) -> MicroBatch {
    let mut micro = MicroBatch {
        cu_seqlens: vec![0],
        n_tokens_per_rank,
        ..MicroBatch::default()
    };
    for &seq in seqs {
        let tokens = batch.cu_seqlens[seq]..batch.cu_seqlens[seq + 1];
        micro.ids.extend_from_slice(&batch.ids[tokens.clone()]);
        micro.type_ids.extend_from_slice(&batch.type_ids[tokens]);
        micro.cu_seqlens.push(micro.ids.len());
        micro.tasks.push(batch.tasks[seq]);
    }
    micro
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
