//! Serving with processes that a launcher has started: the first one answers requests, the others follow it.

use std::future::{Future, pending};
use std::io::{self, Write};
use std::process;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use moeshard_batcher::ModelSlot;
use moeshard_engine::processes::FollowError;
use tokio::sync::oneshot;

use super::{ServeArgs, ServeConfig, checked, serve, signals};
use crate::arg_error::ArgError;
use crate::launch::Launch;
use crate::machine;
use crate::model::{self, Processes};
use crate::sentence::sentence;

/// How long refusals are answered before a process ends that cannot go on. Launchers kill what is left of a
/// job after a second.
const LAST_ANSWERS: Duration = Duration::from_millis(400);

/// Serves as rank 0, or follows it.
///
/// # Errors
/// If an argument is impossible. Otherwise this ends the process, after a sentence if something has failed: the
/// rank's thread may hang in a collective.
pub(super) fn run(args: ServeArgs, launch: Launch) -> Result<()> {
    let config = configured(args, &launch)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
    let (rank, n) = (launch.rank, launch.world_size);
    let role = if rank == 0 { "leads" } else { "follows" };
    tracing::info!("rank {rank} of {n} {role}, process {}", process::id());
    let result = match rank {
        0 => runtime.block_on(serve(config, Some(launch))),
        _ => runtime.block_on(follow(config, launch)),
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

/// Every process is one rank, with its share of the machine's cores; `--threads` are those of each process.
fn configured(mut args: ServeArgs, launch: &Launch) -> Result<ServeConfig> {
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
    let mut config = checked(args)?;
    let compute = &mut config.model.compute;
    launch.check(compute.device)?;
    // The ranks of a world share the threads out among each other.
    compute.n_threads = n_threads * n;
    Ok(config)
}

/// The processes for the engine, and why they cannot go on together, which ends the wait if it happens.
/// Whoever asks for the model then hears the same.
pub(super) fn watched(
    launch: Option<Launch>,
    slot: &ModelSlot,
) -> (Option<Processes>, impl Future<Output = String> + use<>) {
    let (tell, told) = oneshot::channel();
    let (tell, slot) = (Mutex::new(Some(tell)), slot.clone());
    let on_lost = move |reason: &str| {
        slot.fail(reason);
        let tell = tell.lock().ok().and_then(|mut tell| tell.take());
        let _ = tell.map(|tell| tell.send(reason.to_owned()));
    };
    let processes = launch.map(|launch| Processes {
        launch,
        on_lost: Box::new(on_lost),
    });
    let lost = async {
        match told.await {
            Ok(reason) => reason,
            Err(_) => pending().await,
        }
    };
    (processes, lost)
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

/// Follows rank 0 until that is done. Signals reach all processes of a job, and rank 0 has answers to
/// finish: it is waited for, for as long as it may take.
async fn follow(config: ServeConfig, launch: Launch) -> Result<()> {
    let shutdown = signals::shutdown()?;
    let patience = config.http.shutdown_timeout + Duration::from_secs(5);
    let (answer, mut ended) = oneshot::channel();
    let job = move || {
        let opened = model::open(&config.model);
        let compute = &config.model.compute;
        let followed = opened.and_then(|opened| model::follow(opened, compute, &launch));
        let _ = answer.send(followed);
    };
    std::thread::Builder::new()
        .name("follower".to_owned())
        .spawn(job)?;
    let result = tokio::select! {
        result = &mut ended => result,
        () = shutdown => match tokio::time::timeout(patience, ended).await {
            Ok(result) => result,
            Err(_) => bail!("told to stop, and rank 0 goes on"),
        },
    };
    Ok(result.context("the follower panicked")???)
}
