//! Ranks as threads of this process, on its cores.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moeshard_batcher::{Engine, EngineError, EngineStats, PackedBatch, Task};
use moeshard_encoder::error::EncoderError;
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::{ShardPlan, Strategy};
use moeshard_tensor::collective::{Collective, Solo, in_process};
use moeshard_tensor::cpu::{CpuConfig, Isa};
use moeshard_tensor::dtype::DType;

use crate::placement::place;
use crate::rank::{Rank, RankJob, RankSetUp, start};

/// The longest that a rank waits for the others in one collective. Ranks of one process wait for
/// each other's arithmetic only; a rank that dies is noticed at once, whatever this is.
const DEADLINE: Duration = Duration::from_secs(600);

/// How an engine is set up.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// Ranks that share the experts.
    pub n_ranks: usize,
    /// How the experts are laid out.
    pub strategy: Strategy,
    /// In which weights are kept.
    pub dtype: DType,
    /// Threads of all ranks together.
    pub n_threads: usize,
    /// Limit of an expert's tokens from one sequence.
    pub sequence_capacity: Option<usize>,
    /// Which kernels to use.
    pub isa: Isa,
}

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No ranks, or no threads.
    #[error("{what} must be at least 1, got 0")]
    Zero {
        /// Which setting.
        what: &'static str,
    },
    /// A rank could not load its part.
    #[error(transparent)]
    Rank(#[from] EncoderError),
    /// A rank stopped without saying why.
    #[error("rank {rank} stopped while it was loading")]
    Stopped {
        /// Which one.
        rank: usize,
    },
}

/// A model on the ranks of this process.
pub struct CpuEngine {
    model: Arc<Model>,
    ranks: Mutex<Vec<Rank>>,
    counters: Vec<Arc<moeshard_tensor::cpu::Counters>>,
    n_tokens: AtomicU64,
}

impl CpuEngine {
    /// Starts the ranks and waits until all have loaded. `progress` is told the bytes of each
    /// tensor as some rank has read it.
    ///
    /// # Errors
    /// If the model cannot be laid out as configured, or its weights are not what they should be.
    pub fn start(
        model: Arc<Model>,
        config: EngineConfig,
        progress: &Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Self, StartError> {
        for (what, n) in [
            ("the number of ranks", config.n_ranks),
            ("threads", config.n_threads),
        ] {
            if n == 0 {
                return Err(StartError::Zero { what });
            }
        }
        // Before anything is loaded: can the experts be laid out at all?
        for (layer_idx, experts) in model.spec.expert_layers() {
            plan(&config, 0)
                .check(experts.experts.len(), experts.d_ff)
                .map_err(|reason| EncoderError::Layout { layer_idx, reason })?;
        }
        let ranks = collectives(config.n_ranks)
            .into_iter()
            .enumerate()
            .map(|(rank, collective)| {
                let set_up = RankSetUp {
                    plan: plan(&config, rank),
                    cpu: cpu_config(&config),
                    sequence_capacity: config.sequence_capacity,
                    progress: Arc::clone(progress),
                };
                start(Arc::clone(&model), set_up, collective)
            })
            .collect::<Result<Vec<_>, _>>()?;
        for (rank, r) in ranks.iter().enumerate() {
            r.answers
                .recv()
                .map_err(|_| StartError::Stopped { rank })??;
        }
        let counters = ranks.iter().map(|r| Arc::clone(&r.counters)).collect();
        Ok(Self {
            model,
            ranks: Mutex::new(ranks),
            counters,
            n_tokens: AtomicU64::new(0),
        })
    }

    /// Refuses what a rank could not run, before any rank starts.
    fn check(&self, batch: &PackedBatch) -> Result<(), EngineError> {
        let spec = &self.model.spec;
        let vocab_size = spec.embedding.vocab_size;
        if let Some(&id) = batch.ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(EngineError::Input(
                EncoderError::TokenId { id, vocab_size }.to_string(),
            ));
        }
        let longest = batch
            .cu_seqlens
            .windows(2)
            .map(|w| w[1] - w[0])
            .max()
            .unwrap_or(0);
        if let Some(max_length) = spec.max_positions.filter(|&max| longest > max) {
            let error = EncoderError::TooLong {
                n_tokens: longest,
                max_length,
            };
            return Err(EngineError::Input(error.to_string()));
        }
        let classifies = batch
            .tasks
            .iter()
            .any(|t| matches!(t, Task::Classify { .. }));
        if classifies && spec.head.is_none() {
            return Err(EngineError::Input(EncoderError::NoHead.to_string()));
        }
        Ok(())
    }
}

impl Engine for CpuEngine {
    fn run(&self, batch: &PackedBatch) -> Result<Vec<Vec<f32>>, EngineError> {
        self.check(batch)?;
        let ranks = self.ranks.lock().unwrap_or_else(PoisonError::into_inner);
        let lengths: Vec<_> = batch.cu_seqlens.windows(2).map(|w| w[1] - w[0]).collect();
        let placed = place(&lengths, ranks.len());
        let n_tokens_per_rank: Arc<[usize]> = placed
            .iter()
            .map(|seqs| seqs.iter().map(|&s| lengths[s]).sum())
            .collect();
        let stopped = |rank| EngineError::Failed(format!("rank {rank} has stopped"));
        for (rank, (r, seqs)) in ranks.iter().zip(&placed).enumerate() {
            let job = rank_job(batch, seqs, Arc::clone(&n_tokens_per_rank));
            r.jobs.send(job).map_err(|_| stopped(rank))?;
        }
        let mut rows = vec![Vec::new(); lengths.len()];
        let mut failure = None;
        for (rank, (r, seqs)) in ranks.iter().zip(&placed).enumerate() {
            match r.answers.recv() {
                Ok(Ok(answers)) => {
                    for (&seq, row) in seqs.iter().zip(answers) {
                        rows[seq] = row;
                    }
                }
                Ok(Err(error)) => {
                    failure.get_or_insert(EngineError::Failed(format!("rank {rank}: {error}")));
                }
                Err(_) => {
                    failure.get_or_insert(stopped(rank));
                }
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        self.n_tokens
            .fetch_add(batch.ids.len() as u64, Ordering::Relaxed);
        Ok(rows)
    }

    fn stats(&self) -> EngineStats {
        let stats: Vec<_> = self.counters.iter().map(|c| c.read()).collect();
        EngineStats {
            expert_bytes: stats.iter().map(|s| s.expert_bytes).collect(),
            expert_multiply_adds: stats.iter().map(|s| s.expert_multiply_adds).collect(),
            n_dropped: stats.iter().map(|s| s.n_dropped).sum(),
            n_tokens: self.n_tokens.load(Ordering::Relaxed),
        }
    }
}

impl Drop for CpuEngine {
    fn drop(&mut self) {
        let ranks = self.ranks.get_mut().unwrap_or_else(PoisonError::into_inner);
        for Rank {
            jobs,
            answers,
            thread,
            ..
        } in ranks.drain(..)
        {
            // A rank ends when nobody can send it jobs.
            drop((jobs, answers));
            // A rank that panicked has been reported already.
            let _ = thread.join();
        }
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

fn plan(config: &EngineConfig, rank: usize) -> ShardPlan {
    ShardPlan {
        strategy: config.strategy,
        rank,
        world_size: config.n_ranks,
    }
}

fn cpu_config(config: &EngineConfig) -> CpuConfig {
    CpuConfig {
        dtype: config.dtype,
        n_threads: (config.n_threads / config.n_ranks).max(1),
        isa: config.isa,
    }
}

/// The sequences `seqs` of `batch`, packed for one rank.
fn rank_job(batch: &PackedBatch, seqs: &[usize], n_tokens_per_rank: Arc<[usize]>) -> RankJob {
    let mut job = RankJob {
        cu_seqlens: vec![0],
        n_tokens_per_rank,
        ..RankJob::default()
    };
    for &seq in seqs {
        let tokens = batch.cu_seqlens[seq]..batch.cu_seqlens[seq + 1];
        job.ids.extend_from_slice(&batch.ids[tokens.clone()]);
        job.type_ids.extend_from_slice(&batch.type_ids[tokens]);
        job.cu_seqlens.push(job.ids.len());
        job.tasks.push(batch.tasks[seq]);
    }
    job
}
