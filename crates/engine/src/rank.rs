//! One rank: a thread that owns a device and its part of the model.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use moeshard_batcher::Task;
use moeshard_encoder::error::EncoderError;
use moeshard_encoder::forward::{Encoder, RankBatch};
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::ShardPlan;
use moeshard_encoder::spec::ProblemType;
use moeshard_tensor::collective::{Collective, CollectiveError};
use moeshard_tensor::device::{Device, DeviceError, DeviceStats, Pooling};

use crate::output::finish;
use crate::processes::{Link, Message};

/// One rank's share of a batch: its micro-batches, as many as every rank has.
pub(crate) type RankJob = Vec<MicroBatch>;

/// Some of a rank's sequences.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct MicroBatch {
    pub(crate) ids: Vec<u32>,
    pub(crate) type_ids: Vec<u32>,
    /// `[n_seqs + 1]`
    pub(crate) cu_seqlens: Vec<usize>,
    /// `[n_seqs]`
    pub(crate) tasks: Vec<Task>,
    /// `[world_size]`
    pub(crate) n_tokens_per_rank: Arc<[usize]>,
}

/// One row per sequence of the job, micro-batch after micro-batch.
pub(crate) type RankAnswer = Result<Vec<Vec<f32>>, EncoderError>;

/// Makes the device of each rank.
///
/// A device need not be [`Send`]: it is made, used and dropped on the thread of its rank.
pub trait DeviceMaker: Send + Sync + 'static {
    /// What a rank computes with.
    type Device: Device;

    /// Makes the device of the rank that `collective` is an end of. Called on the rank's thread.
    ///
    /// # Errors
    /// If there is no such device or it cannot be set up.
    fn make(&self, collective: Box<dyn Collective>) -> Result<Self::Device, DeviceError>;

    /// Called on the rank's thread when its part of the model is on the device.
    fn loaded(&self, _device: &Self::Device) {}
}

/// Makes a rank's end of its world, on the rank's thread: some libraries answer only the thread that
/// has set them up.
pub(crate) type Join = Box<dyn FnOnce() -> Result<Box<dyn Collective>, CollectiveError> + Send>;

/// The engine's end of a rank.
pub(crate) struct Rank {
    pub(crate) jobs: Jobs,
    pub(crate) answers: Receiver<RankAnswer>,
    /// What the device had counted when it last answered.
    pub(crate) stats: Arc<Mutex<DeviceStats>>,
    /// Of the device, once it has loaded; 0 of another process'.
    pub(crate) n_streams: Arc<AtomicUsize>,
    /// `None` if it is another process'.
    pub(crate) thread: Option<JoinHandle<()>>,
}

impl Rank {
    /// Streams of its device.
    pub(crate) fn n_streams(&self) -> usize {
        self.n_streams.load(Ordering::Relaxed)
    }
}

/// Where a rank's jobs go.
pub(crate) enum Jobs {
    /// To its thread.
    Thread(Sender<RankJob>),
    /// To its process.
    Process(Link),
}

impl Jobs {
    /// Whether it could be sent.
    pub(crate) fn send(&self, job: RankJob) -> bool {
        match self {
            Self::Thread(queue) => queue.send(job).is_ok(),
            Self::Process(link) => link.send(&Message::Job(job)).is_ok(),
        }
    }
}

/// What a rank needs to start.
pub(crate) struct RankSetUp<M> {
    pub(crate) model: Arc<Model>,
    pub(crate) plan: ShardPlan,
    pub(crate) sequence_capacity: Option<usize>,
    pub(crate) devices: Arc<M>,
    pub(crate) join: Join,
    pub(crate) progress: Arc<dyn Fn(u64) + Send + Sync>,
}

/// Starts a rank, which begins to load at once. Its first two answers are without rows: the first
/// says that it has a device, the second that it has loaded; either may be why it could not.
pub(crate) fn start<M: DeviceMaker>(
    set_up: RankSetUp<M>,
    (answer_queue, answers): (Sender<RankAnswer>, Receiver<RankAnswer>),
) -> Result<Rank, EncoderError> {
    let (jobs, job_queue) = channel();
    let stats = Arc::new(Mutex::default());
    let n_streams = Arc::new(AtomicUsize::new(1));
    let thread = std::thread::Builder::new()
        .name(format!("rank-{}", set_up.plan.rank))
        .spawn({
            let (stats, n_streams) = (Arc::clone(&stats), Arc::clone(&n_streams));
            move || run(set_up, &job_queue, &answer_queue, (&stats, &n_streams))
        })
        .map_err(|e| DeviceError::SetUp(e.to_string()))?;
    Ok(Rank {
        jobs: Jobs::Thread(jobs),
        answers,
        stats,
        n_streams,
        thread: Some(thread),
    })
}

/// Loads, then answers jobs until the engine hangs up or a pass fails.
fn run<M: DeviceMaker>(
    set_up: RankSetUp<M>,
    jobs: &Receiver<RankJob>,
    answers: &Sender<RankAnswer>,
    (stats, n_streams): (&Mutex<DeviceStats>, &AtomicUsize),
) {
    let pooling = set_up.model.settings.pooling;
    let encoder = match load(set_up, answers) {
        Ok(encoder) => encoder,
        Err(error) => {
            // The engine is gone if nobody listens.
            let _ = answers.send(Err(error));
            return;
        }
    };
    // Before each answer: whoever has it sees what it took.
    let publish = || {
        *stats.lock().unwrap_or_else(PoisonError::into_inner) = encoder.device().stats();
    };
    publish();
    n_streams.store(encoder.device().n_streams(), Ordering::Relaxed);
    if answers.send(Ok(Vec::new())).is_err() {
        return;
    }
    while let Ok(job) = jobs.recv() {
        let answer = answer(&encoder, pooling, &job);
        publish();
        let failed = answer.is_err();
        if answers.send(answer).is_err() || failed {
            return;
        }
    }
}

/// Makes the device, says so, and loads the rank's part of the model. The mapped checkpoint goes
/// with the last rank that has loaded.
fn load<M: DeviceMaker>(
    set_up: RankSetUp<M>,
    answers: &Sender<RankAnswer>,
) -> Result<Encoder<M::Device>, EncoderError> {
    let RankSetUp {
        model,
        plan,
        sequence_capacity,
        devices,
        join,
        progress,
    } = set_up;
    let device = devices.make(join().map_err(DeviceError::from)?)?;
    // The engine is gone if nobody listens; the answer after loading finds that out as well.
    let _ = answers.send(Ok(Vec::new()));
    let encoder = Encoder::load(
        device,
        &model.spec,
        &model.checkpoint,
        plan,
        sequence_capacity,
        &|n_bytes| progress(n_bytes),
    )?;
    devices.loaded(encoder.device());
    Ok(encoder)
}

fn answer<D: Device>(encoder: &Encoder<D>, pooling: Pooling, job: &RankJob) -> RankAnswer {
    let device = encoder.device();
    let batches: Vec<_> = job.iter().map(MicroBatch::as_batch).collect();
    let hidden = encoder.forward_in_turns(&batches)?;
    let wanted = (job.iter().zip(&hidden).enumerate())
        .map(|(i, (micro, hidden))| {
            device.enter_stream(i);
            Wanted::ask(encoder, pooling, micro, hidden)
        })
        // All is asked for before something is waited for.
        .collect::<Result<Vec<_>, _>>()?;
    let mut rows = Vec::new();
    for (micro, wanted) in job.iter().zip(&wanted) {
        rows.extend(wanted.rows(encoder, &micro.tasks)?);
    }
    Ok(rows)
}

impl MicroBatch {
    fn as_batch(&self) -> RankBatch<'_> {
        RankBatch {
            ids: &self.ids,
            type_ids: &self.type_ids,
            cu_seqlens: &self.cu_seqlens,
            n_tokens_per_rank: &self.n_tokens_per_rank,
        }
    }
}

/// What a micro-batch's tasks are answered from.
struct Wanted<T> {
    /// `[n_seqs, d_model]`
    pooled: Option<T>,
    /// `[n_seqs, n_labels]`
    logits: Option<T>,
}

impl<T> Wanted<T> {
    fn ask<D: Device<Tensor = T>>(
        encoder: &Encoder<D>,
        pooling: Pooling,
        micro: &MicroBatch,
        hidden: &T,
    ) -> Result<Self, EncoderError> {
        let MicroBatch {
            tasks, cu_seqlens, ..
        } = micro;
        let wants = |f: fn(&Task) -> bool| tasks.iter().any(f);
        // A rank without sequences asks as well, for nothing: a device may do its part only when it is asked.
        let pooled = match wants(|t| matches!(t, Task::Embed { .. })) || tasks.is_empty() {
            true => Some(encoder.device().pool(hidden, cu_seqlens, pooling)?),
            false => None,
        };
        let logits = match wants(|t| matches!(t, Task::Classify { .. })) {
            true => Some(encoder.classify(hidden, cu_seqlens, pooling)?),
            false => None,
        };
        Ok(Self { pooled, logits })
    }

    /// One row per task.
    fn rows<D: Device<Tensor = T>>(&self, encoder: &Encoder<D>, tasks: &[Task]) -> RankAnswer {
        let to_host = |x: &Option<T>| x.as_ref().map(|x| encoder.device().to_host(x)).transpose();
        let (pooled, logits) = (to_host(&self.pooled)?, to_host(&self.logits)?);
        let head = encoder.spec().head.as_ref();
        let problem_type = head.map_or(ProblemType::Regression, |h| h.problem_type);
        let n_labels = head.map_or(0, |h| h.out.n_out);
        let row = |rows: &Option<Vec<f32>>, seq: usize, n: usize| {
            rows.as_ref()
                .map(|rows| rows[seq * n..(seq + 1) * n].to_vec())
        };
        Ok((tasks.iter().enumerate())
            .map(|(seq, &task)| {
                let pooled = row(&pooled, seq, encoder.spec().d_model);
                let logits = row(&logits, seq, n_labels);
                finish(task, pooled.as_deref(), logits.as_deref(), problem_type)
            })
            .collect())
    }
}
