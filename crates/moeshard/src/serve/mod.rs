//! `moeshard serve`: binds the port, loads the model, answers until a signal comes.
//!
//! The port is bound first, so that a port in use is known at once and probes are answered while
//! the model loads; it is loaded on a thread of its own and put into the server's slot.

mod args;
mod greeting;
mod signals;

use std::future::pending;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use moeshard_batcher::{ModelSlot, Readiness};
use moeshard_http::AppState;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinError;

pub use args::{DEFAULT_PORT, InfoOverrides, ServeArgs, ServeConfig, ServerArgs};

use crate::model;

/// How often the engine's health is looked at.
const WATCH: Duration = Duration::from_millis(50);

/// How long a server whose engine has failed says so before it ends: whoever sends it requests sees it.
const LINGER: Duration = Duration::from_secs(2);

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// If an argument is impossible, the port is taken, the model cannot be loaded, or the engine fails; one
/// sentence.
pub fn run(args: ServeArgs) -> Result<()> {
    if args.server.max_concurrent_requests.is_some() {
        tracing::warn!(
            "--max-concurrent-requests has no effect: work is limited by --max-queue-tokens"
        );
    }
    let config = ServeConfig::try_from(args)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
    let result = runtime.block_on(serve(config));
    // What hangs in a system call must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(config: ServeConfig) -> Result<()> {
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
    let loading = load(config, slot, address)?;
    tokio::pin!(shutdown);
    let worker = tokio::select! {
        // A signal during the load: nothing has been accepted, so nothing is waited for.
        () = &mut shutdown => return Ok(()),
        loaded = loading => loaded.context("loading was aborted")??,
    };
    let failure = tokio::select! {
        () = &mut shutdown => None,
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
    if let Some(reason) = failure {
        // What has failed may never end.
        bail!(reason);
    }
    finish(&worker, timeout).await;
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

/// Loads the model on a thread of its own, fills the slot and greets; answers with the batcher's
/// worker.
fn load(
    config: ServeConfig,
    slot: ModelSlot,
    address: SocketAddr,
) -> Result<oneshot::Receiver<Result<JoinHandle<()>>>> {
    let (answer, loaded) = oneshot::channel();
    let job = move || {
        let _ = answer.send(load_now(config, &slot, address));
    };
    std::thread::Builder::new()
        .name("loader".to_owned())
        .spawn(job)?;
    Ok(loaded)
}

fn load_now(config: ServeConfig, slot: &ModelSlot, address: SocketAddr) -> Result<JoinHandle<()>> {
    let started = Instant::now();
    let opened = model::open(&config.model)?;
    let overrides = config.overrides;
    let adjust = |info: &mut _| overrides.apply(info).map_err(Into::into);
    let loaded = model::load(opened, &config.model.compute, config.batcher, adjust)?;
    slot.fill(loaded.handle.clone());
    let (info, took) = (loaded.handle.info(), started.elapsed());
    greeting::greet(info, address, took, config.json_output);
    Ok(loaded.worker)
}

/// Waits until the worker has answered what was accepted.
async fn finish(worker: &JoinHandle<()>, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    while !worker.is_finished() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if !worker.is_finished() {
        tracing::warn!(
            timeout_s = timeout.as_secs(),
            "gave up on a batch that takes too long"
        );
    }
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
