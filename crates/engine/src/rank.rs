//! One rank: a thread that owns a device and its part of the model.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use moeshard_batcher::Task;
use moeshard_encoder::error::EncoderError;
use moeshard_encoder::forward::{Encoder, RankBatch};
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::ShardPlan;
use moeshard_encoder::spec::ProblemType;
use moeshard_tensor::collective::Collective;
use moeshard_tensor::cpu::{Counters, CpuConfig, CpuDevice};
use moeshard_tensor::device::Pooling;

use crate::output::finish;

/// One rank's share of a batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct RankJob {
    pub(crate) ids: Vec<u32>,
    pub(crate) type_ids: Vec<u32>,
    /// `[n_seqs + 1]`
    pub(crate) cu_seqlens: Vec<usize>,
    /// `[n_seqs]`
    pub(crate) tasks: Vec<Task>,
    /// `[world_size]`
    pub(crate) n_tokens_per_rank: Arc<[usize]>,
}

/// One row per sequence of the job.
pub(crate) type RankAnswer = Result<Vec<Vec<f32>>, EncoderError>;

/// The engine's end of a rank.
pub(crate) struct Rank {
    pub(crate) jobs: Sender<RankJob>,
    pub(crate) answers: Receiver<RankAnswer>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) thread: JoinHandle<()>,
}

/// What a rank needs to start.
pub(crate) struct RankSetUp {
    pub(crate) plan: ShardPlan,
    pub(crate) cpu: CpuConfig,
    pub(crate) sequence_capacity: Option<usize>,
    pub(crate) progress: Arc<dyn Fn(u64) + Send + Sync>,
}

/// Starts a rank, which begins to load at once; the first answer (without rows) says that it has
/// loaded or why it could not.
pub(crate) fn start(
    model: Arc<Model>,
    set_up: RankSetUp,
    collective: Box<dyn Collective>,
) -> Result<Rank, EncoderError> {
    let device = CpuDevice::new(set_up.cpu, collective)?;
    let counters = device.counters();
    let (jobs, job_queue) = channel();
    let (answer_queue, answers) = channel();
    let thread = std::thread::Builder::new()
        .name(format!("rank-{}", set_up.plan.rank))
        .spawn(move || run(model, device, &set_up, &job_queue, &answer_queue))
        .map_err(|e| {
            EncoderError::from(moeshard_tensor::device::DeviceError::SetUp(e.to_string()))
        })?;
    Ok(Rank {
        jobs,
        answers,
        counters,
        thread,
    })
}

/// Loads, then answers jobs until the engine hangs up or a pass fails.
fn run(
    model: Arc<Model>,
    device: CpuDevice,
    set_up: &RankSetUp,
    jobs: &Receiver<RankJob>,
    answers: &Sender<RankAnswer>,
) {
    let RankSetUp {
        plan,
        sequence_capacity,
        progress,
        ..
    } = set_up;
    let progress = |n_bytes| progress(n_bytes);
    let loaded = Encoder::load(
        device,
        &model.spec,
        &model.checkpoint,
        *plan,
        *sequence_capacity,
        &progress,
    );
    let encoder = match loaded {
        Ok(encoder) => encoder,
        Err(error) => {
            // The engine is gone if nobody listens.
            let _ = answers.send(Err(error));
            return;
        }
    };
    // Not before: the thread that reads the checkpoint ahead starts on the loader's cores.
    encoder.device().bind_caller();
    let pooling = model.settings.pooling;
    // The mapped checkpoint goes with the last rank that has loaded.
    drop(model);
    if answers.send(Ok(Vec::new())).is_err() {
        return;
    }
    while let Ok(job) = jobs.recv() {
        let answer = answer(&encoder, pooling, &job);
        let failed = answer.is_err();
        if answers.send(answer).is_err() || failed {
            return;
        }
    }
}

fn answer(encoder: &Encoder<CpuDevice>, pooling: Pooling, job: &RankJob) -> RankAnswer {
    let batch = RankBatch {
        ids: &job.ids,
        type_ids: &job.type_ids,
        cu_seqlens: &job.cu_seqlens,
        n_tokens_per_rank: &job.n_tokens_per_rank,
    };
    let hidden = encoder.forward(&batch)?;
    let wants = |f: fn(&Task) -> bool| job.tasks.iter().any(f);
    let pooled = match wants(|t| matches!(t, Task::Embed { .. })) {
        true => Some(encoder.pool(&hidden, &job.cu_seqlens, pooling)?),
        false => None,
    };
    let logits = match wants(|t| matches!(t, Task::Classify { .. })) {
        true => Some(encoder.logits(&hidden, &job.cu_seqlens, pooling)?),
        false => None,
    };
    let head = encoder.spec().head.as_ref();
    let problem_type = head.map_or(ProblemType::Regression, |h| h.problem_type);
    let n_labels = head.map_or(0, |h| h.out.n_out);
    let row = |rows: &Option<Vec<f32>>, seq: usize, n: usize| {
        rows.as_ref()
            .map(|rows| rows[seq * n..(seq + 1) * n].to_vec())
    };
    Ok(job
        .tasks
        .iter()
        .enumerate()
        .map(|(seq, &task)| {
            let pooled = row(&pooled, seq, encoder.spec().d_model);
            let logits = row(&logits, seq, n_labels);
            finish(task, pooled.as_deref(), logits.as_deref(), problem_type)
        })
        .collect())
}
