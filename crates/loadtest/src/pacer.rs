use std::io;
use std::thread;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::arrivals::Arrivals;
use crate::plan::Extent;
use crate::workload::Bodies;

/// Arrivals handed over but not yet taken. A full queue only delays the hand-over: `due` stands.
const QUEUE_LEN: usize = 1024;
/// Longest sleep, so that the thread ends soon after its receiver is gone.
const MAX_SLEEP: Duration = Duration::from_millis(50);

/// A request that is due.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Its scheduled send, from which its latency counts.
    pub(crate) due: Instant,
    pub(crate) body: Bytes,
}

/// Starts a thread that hands over each arrival at its instant, counted from `start`.
///
/// A thread of its own because the runtime's timer has a resolution of a millisecond, which every
/// latency would carry; a sleeping thread wakes within about 0.15 ms and, unlike a spinning one,
/// leaves the cores to a server on the same machine. Bodies are made before the sleep.
pub(crate) fn spawn(
    start: Instant,
    extent: Extent,
    arrivals: Arrivals,
    bodies: Bodies,
) -> io::Result<Receiver<Arrival>> {
    let (tx, rx) = mpsc::channel(QUEUE_LEN);
    let pace = move || {
        for (idx, (offset, body)) in (0..).zip(arrivals.zip(bodies)) {
            if !extent.holds(idx, offset) {
                return;
            }
            // Beyond what the clock can express: the request never falls due.
            let Some(due) = start.checked_add(offset) else {
                return;
            };
            if !sleep_until(due, &tx) || tx.blocking_send(Arrival { due, body }).is_err() {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("pacer".to_owned())
        .spawn(pace)?;
    Ok(rx)
}

/// False if nobody waits for the arrivals any more.
fn sleep_until(due: Instant, tx: &Sender<Arrival>) -> bool {
    while !tx.is_closed() {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        thread::sleep(left.min(MAX_SLEEP));
    }
    false
}
