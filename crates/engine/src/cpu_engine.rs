//! Ranks as threads of this process, on its cores.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use moeshard_batcher::{Engine, EngineError, EngineStats, PackedBatch, Task};
use moeshard_encoder::error::EncoderError;
use moeshard_encoder::forward::check_batch;
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::{ShardPlan, Strategy};
use moeshard_encoder::spec::EncoderSpec;
use moeshard_tensor::collective::{Collective, CollectiveError, Solo, in_process};
use moeshard_tensor::cpu::{CpuConfig, Isa, cores};
use moeshard_tensor::device::DeviceError;
use moeshard_tensor::dtype::DType;

use crate::placement::place;
use crate::rank::{Rank, RankJob, RankSetUp, start};

/// The longest that a rank waits for the others in one collective. Ranks of one process wait for
/// each other's arithmetic only; a rank that dies is noticed at once, whatever this is.
const DEADLINE: Duration = Duration::from_secs(3600);

/// Each rank is a thread with a copy of everything but the experts.
const MAX_RANKS: usize = 64;

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
    /// Whether threads that take every core are bound to one each. Several programs that do so on
    /// the same cores slow each other down.
    pub binds_threads: bool,
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
    /// More ranks than make sense in one process.
    #[error("{n_ranks} ranks in one process, expected at most {MAX_RANKS}")]
    TooManyRanks {
        /// What was asked for.
        n_ranks: usize,
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
    spec: EncoderSpec,
    ranks: Mutex<Vec<Rank>>,
    counters: Vec<Arc<moeshard_tensor::cpu::Counters>>,
    n_tokens: AtomicU64,
    /// Why the first failed pass failed; the ranks are gone since.
    failure: OnceLock<String>,
}

impl CpuEngine {
    /// Starts the ranks and waits until all have loaded. `progress` is told the bytes of each
    /// tensor as some rank has read it.
    ///
    /// # Errors
    /// If the model cannot be laid out as configured, or its weights are not what they should be.
    pub fn start(
        model: &Arc<Model>,
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
        if config.n_ranks > MAX_RANKS {
            let n_ranks = config.n_ranks;
            return Err(StartError::TooManyRanks { n_ranks });
        }
        Self::start_over(model, config, collectives(config.n_ranks), progress)
    }

    /// Starts one rank for each end of a world.
    fn start_over(
        model: &Arc<Model>,
        config: EngineConfig,
        collectives: Vec<Box<dyn Collective>>,
        progress: &Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Self, StartError> {
        let ranks = collectives
            .into_iter()
            .enumerate()
            .map(|(rank, collective)| {
                let set_up = RankSetUp {
                    plan: plan(&config, rank),
                    cpu: cpu_config(&config, rank),
                    sequence_capacity: config.sequence_capacity,
                    progress: Arc::clone(progress),
                };
                start(Arc::clone(model), set_up, collective)
            })
            .collect::<Result<Vec<_>, _>>()?;
        for (rank, r) in ranks.iter().enumerate() {
            r.answers
                .recv()
                .map_err(|_| StartError::Stopped { rank })??;
        }
        let counters = ranks.iter().map(|r| Arc::clone(&r.counters)).collect();
        Ok(Self {
            spec: model.spec.clone(),
            ranks: Mutex::new(ranks),
            counters,
            n_tokens: AtomicU64::new(0),
            failure: OnceLock::new(),
        })
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
        let placed = place(&lengths, ranks.len());
        let n_tokens_per_rank: Arc<[usize]> = placed
            .iter()
            .map(|seqs| seqs.iter().map(|&s| lengths[s]).sum())
            .collect();
        let mut failures = Vec::new();
        for (rank, (r, seqs)) in ranks.iter().zip(&placed).enumerate() {
            let job = rank_job(batch, seqs, Arc::clone(&n_tokens_per_rank));
            if r.jobs.send(job).is_err() {
                failures.push((rank, None));
            }
        }
        let mut rows = vec![Vec::new(); lengths.len()];
        for (rank, (r, seqs)) in ranks.iter().zip(&placed).enumerate() {
            match r.answers.recv() {
                Ok(Ok(answers)) => {
                    for (&seq, row) in seqs.iter().zip(answers) {
                        rows[seq] = row;
                    }
                }
                Ok(Err(error)) => failures.push((rank, Some(error))),
                Err(_) => failures.push((rank, None)),
            }
        }
        match cause(failures) {
            Some(reason) => {
                let reason = self.failure.get_or_init(|| reason);
                Err(EngineError::Failed(reason.clone()))
            }
            None => Ok(rows),
        }
    }
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
    let reason = |(rank, error): &(usize, Option<EncoderError>)| match error {
        Some(error) => format!("rank {rank}: {error}"),
        None => format!("rank {rank} has stopped"),
    };
    failures.first().map(reason)
}

impl Engine for CpuEngine {
    fn run(&self, batch: &PackedBatch) -> Result<Vec<Vec<f32>>, EngineError> {
        self.check(batch)?;
        if let Some(reason) = self.failure.get() {
            return Err(EngineError::Failed(reason.clone()));
        }
        let ranks = self.ranks.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = self.run_on(&ranks, batch)?;
        let n_tokens = batch.ids.len() as u64;
        self.n_tokens.fetch_add(n_tokens, Ordering::Relaxed);
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

/// A rank's share of the threads; the first ranks take one more if they do not divide.
fn cpu_config(config: &EngineConfig, rank: usize) -> CpuConfig {
    let (share, rest) = (
        config.n_threads / config.n_ranks,
        config.n_threads % config.n_ranks,
    );
    // Threads are bound where they take every core: one rank's after the other's.
    let binds = config.binds_threads && share > 0 && cores::n_allowed() == Some(config.n_threads);
    CpuConfig {
        dtype: config.dtype,
        n_threads: (share + usize::from(rank < rest)).max(1),
        first_core: binds.then_some(rank * share + rank.min(rest)),
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn threads_are_bound_where_they_take_every_core() {
        let Some(n_cores) = cores::n_allowed() else {
            return; // a system that cannot bind them
        };
        let first_cores = |n_ranks: usize, n_threads: usize| -> Vec<_> {
            let config = EngineConfig {
                n_ranks,
                strategy: Strategy::Sharded,
                dtype: DType::F32,
                n_threads,
                binds_threads: true,
                sequence_capacity: None,
                isa: Isa::Portable,
            };
            (0..n_ranks)
                .map(|rank| cpu_config(&config, rank).first_core)
                .collect()
        };
        assert_eq!(first_cores(1, n_cores), [Some(0)]);
        let each: Vec<_> = (0..n_cores).map(Some).collect();
        assert_eq!(first_cores(n_cores, n_cores), each);
        assert_eq!(first_cores(1, n_cores + 1), [None]);
        assert_eq!(first_cores(n_cores + 1, n_cores), vec![None; n_cores + 1]);
    }

    /// A world in which one rank's first reduction fails, or panics.
    struct Breaking {
        end: Box<dyn Collective>,
        breaks: bool,
        panics: bool,
    }

    impl Collective for Breaking {
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
            self.end.all_gather(send, counts, recv)
        }
        fn reduce_scatter(
            &self,
            send: &[f32],
            counts: &[usize],
            recv: &mut [f32],
        ) -> Result<(), CollectiveError> {
            if !self.breaks {
                return self.end.reduce_scatter(send, counts, recv);
            }
            assert!(!self.panics, "a rank panics on purpose");
            Err(CollectiveError::Deadline {
                op: "reduce_scatter",
                rank: self.rank(),
                world_size: self.world_size(),
                waited: Duration::from_secs(1),
            })
        }
        fn all_reduce(&self, data: &mut [f32]) -> Result<(), CollectiveError> {
            self.end.all_reduce(data)
        }
        fn broadcast(&self, data: &mut [f32], root: usize) -> Result<(), CollectiveError> {
            self.end.broadcast(data, root)
        }
    }

    fn model() -> Arc<Model> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/nomic_moe");
        Arc::new(Model::open(&folder).expect("nomic_moe"))
    }

    fn config(n_ranks: usize) -> EngineConfig {
        EngineConfig {
            n_ranks,
            strategy: Strategy::Sharded,
            dtype: DType::F32,
            n_threads: 3,
            binds_threads: false,
            sequence_capacity: None,
            isa: Isa::detect(),
        }
    }

    fn told() -> Arc<dyn Fn(u64) + Send + Sync> {
        Arc::new(|_| {})
    }

    fn batch() -> PackedBatch {
        let task = Task::Embed {
            normalize: true,
            dimensions: None,
        };
        PackedBatch {
            ids: vec![1, 2, 3, 4, 5],
            type_ids: vec![0; 5],
            cu_seqlens: vec![0, 2, 5],
            tasks: vec![task; 2],
        }
    }

    #[test]
    fn a_rank_that_fails_or_panics_ends_the_pass_with_its_own_reason() {
        for (panics, reason) in [
            (false, "rank 1: reduce_scatter"),
            (true, "rank 1 has stopped"),
        ] {
            let ends = collectives(3).into_iter().enumerate().map(|(rank, end)| {
                let breaks = rank == 1;
                Box::new(Breaking {
                    end,
                    breaks,
                    panics,
                }) as Box<dyn Collective>
            });
            let engine = CpuEngine::start_over(&model(), config(3), ends.collect(), &told());
            let engine = engine.expect("it loads");
            // The second time nobody is left to ask; the reason stays.
            for _ in 0..2 {
                let error = engine.run(&batch()).expect_err("a rank is broken");
                let EngineError::Failed(message) = error else {
                    panic!("{error:?}")
                };
                assert!(message.starts_with(reason), "{message}");
            }
        }
    }

    #[test]
    fn a_batch_that_does_not_fit_is_an_input_error_and_the_engine_goes_on() {
        let engine = CpuEngine::start(&model(), config(2), &told()).expect("engine");
        let whole = batch();
        let classify = Task::Classify { raw_scores: false };
        let bad = [
            PackedBatch {
                ids: vec![1, 2, 3, 4, 9999],
                ..whole.clone()
            },
            PackedBatch {
                type_ids: vec![],
                ..whole.clone()
            },
            PackedBatch {
                tasks: vec![],
                ..whole.clone()
            },
            PackedBatch {
                cu_seqlens: vec![0, 5, 2],
                ..whole.clone()
            },
            PackedBatch {
                cu_seqlens: vec![0, 2, 4],
                ..whole.clone()
            },
            PackedBatch {
                tasks: vec![classify; 2],
                ..whole.clone()
            },
        ];
        for batch in bad {
            let error = engine.run(&batch).expect_err("not a batch");
            assert!(matches!(error, EngineError::Input(_)), "{error:?}");
        }
        assert_eq!(engine.run(&whole).expect("a batch").len(), 2);
        assert_eq!(engine.stats().n_tokens, 5);
        let empty = PackedBatch {
            cu_seqlens: vec![0],
            ..PackedBatch::default()
        };
        assert_eq!(engine.run(&empty).expect("nothing"), Vec::<Vec<f32>>::new());
    }

    #[test]
    fn impossible_layouts_are_refused_before_loading() {
        let n_read = AtomicBool::new(false);
        let told: Arc<dyn Fn(u64) + Send + Sync> = {
            let n_read = Arc::new(n_read);
            Arc::new(move |_| n_read.store(true, Ordering::Relaxed))
        };
        let refused = |config| match CpuEngine::start(&model(), config, &told) {
            Ok(_) => panic!("{config:?} was accepted"),
            Err(error) => error.to_string(),
        };
        assert_eq!(
            refused(config(41)),
            "layer 1: d_ff 40 cannot be split over 41 ranks"
        );
        assert!(refused(config(0)).contains("at least 1"));
        let replicated = EngineConfig {
            strategy: Strategy::Replicated,
            ..config(65)
        };
        assert_eq!(
            refused(replicated),
            "65 ranks in one process, expected at most 64"
        );
    }
}
