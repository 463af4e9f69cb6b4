//! `moeshard serve`: binds the port, loads the model, answers until a signal comes.
//!
//! The port is bound first, so that a port in use is known at once and probes are answered while
//! the model loads; it is loaded on a thread of its own and put into the server's slot.
//!
//! Where a launcher has started several processes (`processes`), the first one serves and the others follow.

mod args;
mod greeting;
mod processes;
mod signals;

use std::future::pending;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use moeshard_batcher::{ModelSlot, Readiness};
use moeshard_engine::RankEngine;
use moeshard_http::AppState;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinError;

use processes::Job;

pub use args::{DEFAULT_PORT, InfoOverrides, ServeArgs, ServeConfig, ServerArgs};

use crate::launch;
use crate::model::{self, Processes};

/// How often the engine's health is looked at.
const WATCH: Duration = Duration::from_millis(50);

/// How long a server whose engine has failed says so before it ends: whoever sends it requests sees it.
const LINGER: Duration = Duration::from_secs(2);

/// Serves until SIGINT or SIGTERM. One of several processes ends here.
///
/// # Errors
/// If an argument is impossible, the port is taken, the model cannot be loaded, or the engine fails; one
/// sentence.
pub fn run(args: ServeArgs) -> Result<()> {
    match launch::of_process()? {
        None => run_alone(args),
        Some(launch) => processes::run(args, launch),
    }
}

fn run_alone(args: ServeArgs) -> Result<()> {
    let config = checked(args)?;
    if config.leader.is_some() {
        tracing::warn!("--leader has no effect: no launcher has started several processes");
    }
    let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
    let result = runtime.block_on(serve(config, None));
    // What hangs in a system call must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn checked(args: ServeArgs) -> Result<ServeConfig> {
    if args.server.max_concurrent_requests.is_some() {
        tracing::warn!(
            "--max-concurrent-requests has no effect: work is limited by --max-queue-tokens"
        );
    }
    Ok(ServeConfig::try_from(args)?)
}

/// Serves a model, whose ranks are the processes of a launch, if there is one.
async fn serve(config: ServeConfig, job: Option<Job>) -> Result<()> {
    let listener = bind(config.address).await?;
    let address = listener.local_addr()?;
    let shutdown = signals::shutdown()?;
    let timeout = config.http.shutdown_timeout;
    let slot = ModelSlot::new();
    let watched = slot.clone();
    let state = AppState::new(slot.clone(), config.http.clone());
    let (stop, stopped) = oneshot::channel::<()>();
    let mut server = tokio::spawn(moeshard_http::serve(listener, state, async {
        // Without a word: loading failed, and the program ends with its reason.
        if stopped.await.is_err() {
            pending::<()>().await;
        }
    }));
    tracing::info!("listening on http://{address}, loading the model");
    let is_launched = job.is_some();
    let (processes, lost) = processes::watched(job, &slot)?;
    let missing = processes.as_ref().map(|p| p.joining.missing());
    let loading = load(config, slot, address, processes)?;
    tokio::pin!(shutdown, lost);
    let loaded = tokio::select! {
        biased;
        reason = &mut lost => bail!(reason),
        // A signal during the load: nothing has been accepted, so nothing is waited for. A launcher may
        // have sent it because a process is lost.
        () = &mut shutdown => match is_launched {
            true => bail!(processes::stopped_early(lost, missing).await),
            false => return Ok(()),
        },
        loaded = loading => match (loaded.context("loading was aborted")?, &missing) {
            (Err(error), Some(missing)) => {
                processes::be_missed(missing).await;
                return Err(error);
            }
            (loaded, _) => loaded?,
        },
    };
    let until_stopped = async {
        let failure = tokio::select! {
            () = &mut shutdown => {
                processes::hear_of_losses(is_launched).await;
                None
            }
            reason = failure(&watched) => {
                tokio::time::sleep(LINGER).await;
                Some(reason)
            }
            ended = &mut server => {
                server_result(ended)?;
                bail!("the server stopped");
            }
        };
        let _ = stop.send(());
        server_result(server.await)?;
        match failure {
            // What has failed may never end.
            Some(reason) => bail!(reason),
            None => finish(loaded, timeout).await,
        }
    };
    tokio::select! {
        biased;
        reason = &mut lost => processes::give_up(reason).await?,
        result = until_stopped => result?,
    }
    tracing::info!("stopped");
    Ok(())
}

/// Waits until the engine has failed, which it does not come back from.
async fn failure(slot: &ModelSlot) -> String {
    loop {
        if let Readiness::Failed(reason) = slot.readiness() {
            return reason;
        }
        tokio::time::sleep(WATCH).await;
    }
}

fn server_result(ended: Result<io::Result<()>, JoinError>) -> Result<()> {
    ended
        .context("the server panicked")?
        .context("the server stopped")
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let (port, ip) = (address.port(), address.ip());
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => {
            anyhow!("port {port} of {ip} is in use by another program; choose another with --port")
        }
        ErrorKind::PermissionDenied => {
            anyhow!("port {port} of {ip} may not be used by this user; choose one above 1023 with --port")
        }
        ErrorKind::AddrNotAvailable => {
            anyhow!("{ip} is no address of this machine; choose another with --hostname")
        }
        _ => anyhow!("cannot listen on {address}: {error}"),
    })
}

/// Loads the model on a thread of its own, fills the slot and greets.
fn load(
    config: ServeConfig,
    slot: ModelSlot,
    address: SocketAddr,
    processes: Option<Processes>,
) -> Result<oneshot::Receiver<Result<Running>>> {
    let (answer, loaded) = oneshot::channel();
    let job = move || {
        let _ = answer.send(load_now(config, &slot, address, processes));
    };
    std::thread::Builder::new()
        .name("loader".to_owned())
        .spawn(job)?;
    Ok(loaded)
}

fn load_now(
    config: ServeConfig,
    slot: &ModelSlot,
    address: SocketAddr,
    processes: Option<Processes>,
) -> Result<Running> {
    let started = Instant::now();
    let opened = model::open(&config.model)?;
    let overrides = config.overrides;
    let adjust = |info: &mut _| overrides.apply(info).map_err(Into::into);
    let compute = &config.model.compute;
    let loaded = model::load_over(opened, compute, config.batcher, processes, adjust)?;
    slot.fill(loaded.handle.clone());
    let (info, took) = (loaded.handle.info(), started.elapsed());
    greeting::greet(info, address, took, config.json_output);
    Ok(Running {
        worker: loaded.worker,
        engine: loaded.engine,
    })
}

/// What is to be stopped in the end.
struct Running {
    worker: JoinHandle<()>,
    engine: Arc<RankEngine>,
}

/// Waits until the worker has answered what was accepted, then lets the ranks go; a rank may have been lost
/// all the same.
async fn finish(running: Running, timeout: Duration) -> Result<()> {
    let Running { worker, engine } = running;
    let deadline = Instant::now() + timeout;
    while !worker.is_finished() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if !worker.is_finished() {
        tracing::warn!(
            timeout_s = timeout.as_secs(),
            "gave up on a batch that takes too long"
        );
        return Ok(());
    }
    let stopped = tokio::task::spawn_blocking(move || engine.stop()).await;
    let stopped = stopped.context("the engine panicked")?;
    stopped.map_err(|reason| anyhow!(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_is_seen_and_nothing_else() {
        let slot = ModelSlot::new();
        let waited = tokio::time::timeout(3 * WATCH, failure(&slot)).await;
        assert!(waited.is_err(), "a model that loads has not failed");
        slot.fail("rank 1 is gone");
        let reason = tokio::time::timeout(20 * WATCH, failure(&slot)).await;
        assert_eq!(reason.expect("seen"), "rank 1 is gone");
    }
}
