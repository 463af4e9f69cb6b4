//! Serving with processes that a launcher has started: the first one answers requests, the others follow it.

use std::future::{Future, pending};
use std::io::{self, Write};
use std::process;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use moeshard_batcher::ModelSlot;
use moeshard_cuda::driver::gpu;
use moeshard_engine::processes::{FollowError, Missing};
use tokio::sync::{mpsc, oneshot};

use super::{ServeArgs, ServeConfig, checked, serve, signals};
use crate::arg_error::ArgError;
use crate::launch::{Launch, Transport};
use crate::machine;
use crate::model::{self, DeviceKind, Processes};
use crate::sentence::sentence;

/// How long refusals are answered before a process ends that cannot go on. Launchers kill what is left of a
/// job after a second.
const LAST_ANSWERS: Duration = Duration::from_millis(400);

/// How long a process that cannot go on waits to be met. Launchers start all at about the same time.
const MEETING: Duration = Duration::from_secs(2);

/// How long word of a loss may take that a launcher has noticed first.
const WORD_OF_LOSS: Duration = Duration::from_millis(300);

/// Serves as rank 0, or follows it.
///
/// # Errors
/// If an argument is impossible. Otherwise this ends the process, after a sentence if something has failed: the
/// rank's thread may hang in a collective.
pub(super) fn run(args: ServeArgs, launch: Launch) -> Result<()> {
    let (config, transport) = configured(args, &launch)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
    let (rank, n) = (launch.rank, launch.world_size);
    let job = Job { launch, transport };
    let role = if rank == 0 { "leads" } else { "follows" };
    tracing::info!("rank {rank} of {n} {role}, process {}", process::id());
    let result = match rank {
        0 => runtime.block_on(serve(config, Some(job))),
        _ => runtime.block_on(follow(config, job)),
    };
    let Err(error) = result else {
        moeshard_mpi::end_process(0);
    };
    // Rank 0 has said why; once is enough.
    if !matches!(error.downcast_ref(), Some(FollowError::Ended)) {
        let who = match rank {
            0 => String::new(),
            _ => format!("rank {rank}: "),
        };
        // In one piece: other processes may be writing as well.
        let line = format!("moeshard: {who}{}\n", sentence(&error));
        let _ = io::stderr().write_all(line.as_bytes());
    }
    moeshard_mpi::end_process(1)
}

/// The processes of a launch, and how they exchange.
pub(super) struct Job {
    launch: Launch,
    transport: Transport,
}

/// Every process is one rank, with its share of the machine's cores, or with one of its GPUs; `--threads` are those of
/// each process, `--gpus` those of each machine.
fn configured(mut args: ServeArgs, launch: &Launch) -> Result<(ServeConfig, Transport)> {
    let compute = &mut args.model.compute;
    let n = launch.world_size;
    ensure!(
        compute.ranks.is_none_or(|ranks| ranks == n),
        "--ranks {} in a job of {n} processes, each of which is one rank; leave it out",
        compute.ranks.unwrap_or(0)
    );
    let n_threads = match compute.threads {
        Some(_) => ArgError::threads("--threads", compute.threads)?,
        None => launch.n_threads(machine::n_cores()),
    };
    (compute.ranks, compute.threads) = (Some(n), None);
    let n_gpus = compute.gpus;
    // More than there are ranks are of no use.
    compute.gpus = n_gpus.map(|n_gpus| n_gpus.min(n));
    let mut config = checked(args)?;
    let transport = launch.transport(config.leader.as_ref())?;
    let compute = &mut config.model.compute;
    // The ranks of a world share the threads out among each other.
    compute.n_threads = n_threads * n;
    if compute.device != DeviceKind::Cpu {
        let n_here = n_gpus.map_or_else(|| gpu::count().ok(), |_| n_gpus);
        compute.own_gpu = Some(launch.gpu(n_here.unwrap_or(1)));
        // No process sees the others' GPUs: the layout follows from the flags alone, so that it is the same everywhere.
        compute.is_auto = false;
    }
    if let DeviceKind::Cuda { n_gpus } = &mut compute.device {
        *n_gpus = n;
    }
    Ok((config, transport))
}

/// The processes for the engine, and why they cannot go on together, which ends the wait if it happens.
/// Whoever asks for the model then hears the same.
///
/// # Errors
/// If there is no thread to find them.
pub(super) fn watched(
    job: Option<Job>,
    slot: &ModelSlot,
) -> Result<(Option<Processes>, impl Future<Output = String> + use<>)> {
    let (tell, told) = oneshot::channel();
    let (tell, slot) = (Mutex::new(Some(tell)), slot.clone());
    let on_lost = Arc::new(move |reason: &str| {
        slot.fail(reason);
        let tell = tell.lock().ok().and_then(|mut tell| tell.take());
        let _ = tell.map(|tell| tell.send(reason.to_owned()));
    });
    let begin = |Job { launch, transport }| -> Result<Processes> {
        let early = Arc::clone(&on_lost);
        let joining = launch.begin(
            transport,
            Arc::new(move |lost: FollowError| early(&lost.to_string())),
        )?;
        Ok(Processes {
            joining,
            on_lost: Box::new(move |reason| on_lost(reason)),
        })
    };
    let processes = job.map(begin).transpose()?;
    let lost = async {
        match told.await {
            Ok(reason) => reason,
            Err(_) => pending().await,
        }
    };
    Ok((processes, lost))
}

/// Why a process ends that is told to stop while the model is loaded: a launcher may say so because another one is
/// lost, of which there is word in a moment.
pub(super) async fn stopped_early(
    lost: impl Future<Output = String>,
    missing: Option<Missing>,
) -> String {
    if let Ok(reason) = tokio::time::timeout(WORD_OF_LOSS, lost).await {
        return reason;
    }
    let missing = missing.map(|missing| missing.ranks()).unwrap_or_default();
    let named: Vec<_> = missing.iter().map(ToString::to_string).collect();
    match named.as_slice() {
        [] => "told to stop before the model was loaded".to_owned(),
        [rank] => format!("told to stop before rank {rank} had come"),
        ranks => format!("told to stop before ranks {} had come", ranks.join(", ")),
    }
}

/// Launchers send the signal to stop also because a process is lost. That comes with the connection's end, and
/// must win: then nothing is finished, and probes are answered until the end.
pub(super) async fn hear_of_losses(is_launched: bool) {
    if is_launched {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Lets what is pending be refused, and fails.
pub(super) async fn give_up(reason: String) -> Result<()> {
    tokio::time::sleep(LAST_ANSWERS).await;
    bail!(reason)
}

/// Waits for a moment for those that have not come yet, before a process ends that cannot go on by itself: whoever
/// has met it hears at once that it is lost, and does not wait for it to come.
pub(super) async fn be_missed(missing: &Missing) {
    let started = Instant::now();
    while !missing.ranks().is_empty() && started.elapsed() < MEETING {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Follows rank 0 until that is done. Signals reach all processes of a job, and rank 0 has answers to
/// finish: it is waited for, for as long as it may take.
async fn follow(config: ServeConfig, job: Job) -> Result<()> {
    let shutdown = signals::shutdown()?;
    let patience = config.http.shutdown_timeout + Duration::from_secs(5);
    let (tell, mut lost) = mpsc::unbounded_channel();
    // Nobody listens any more once the process ends.
    let on_lost = Arc::new(move |lost| drop(tell.send(lost)));
    let joining = job.launch.begin(job.transport, on_lost)?;
    let missing = joining.missing();
    let (answer, mut ended) = oneshot::channel();
    let following = move || {
        let opened = model::open(&config.model);
        let compute = &config.model.compute;
        let followed = opened.and_then(|opened| model::follow(opened, compute, joining));
        let _ = answer.send(followed);
    };
    std::thread::Builder::new()
        .name("follower".to_owned())
        .spawn(following)?;
    let result = tokio::select! {
        biased;
        Some(lost) = lost.recv() => return Err(lost.into()),
        result = &mut ended => result,
        () = shutdown => {
            if !missing.ranks().is_empty() {
                bail!("told to stop before rank 0 had come");
            }
            tokio::select! {
                biased;
                Some(lost) = lost.recv() => return Err(lost.into()),
                result = ended => result,
                () = tokio::time::sleep(patience) => bail!("told to stop, and rank 0 goes on"),
            }
        }
    };
    let followed = result.context("the follower panicked")?;
    if followed.is_err() {
        be_missed(&missing).await;
    }
    Ok(followed??)
}
