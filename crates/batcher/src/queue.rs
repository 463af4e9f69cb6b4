//! What handles, tokenizer threads and the worker share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::admission::{Gauge, Reservation};
use crate::backlog::Backlog;
use crate::handle::Answer;
use crate::pack::Budget;
use crate::worker::BatchObserver;
use crate::{BatcherConfig, Engine, ModelInfo, SubmitError, Task};

/// Where the answer of one sequence goes; closed as soon as the client is gone.
pub(crate) type Reply = oneshot::Sender<Result<Answer, SubmitError>>;

/// How often the worker looks whether the last text has left the tokenizers, once it is closed.
///
/// Not measured: it matters once in a process, where it delays the end by at most this long, and
/// looking costs about a microsecond.
const CLOSING_POLL: Duration = Duration::from_millis(5);

/// One tokenized sequence that waits for its batch.
pub(crate) struct Sequence {
    pub(crate) ids: Vec<u32>,
    pub(crate) type_ids: Vec<u32>,
    pub(crate) task: Task,
    pub(crate) reply: Reply,
    /// Gives its tokens back to admission when the sequence is answered or dropped.
    pub(crate) room: Reservation,
    pub(crate) submitted: Instant,
    pub(crate) tokenization: Duration,
}

impl Sequence {
    /// Tells the client. The room is given back before: who has its answer holds nothing.
    pub(crate) fn answer(self, answer: Result<Answer, SubmitError>) {
        drop(self.room);
        let _ = self.reply.send(answer);
    }
}

/// Where tokenizer threads put sequences until the worker comes to look.
#[derive(Default)]
struct Inbox {
    /// In order of arrival.
    sequences: Vec<Sequence>,
    /// Set once the worker is gone: nobody will answer what is still pushed.
    abandoned: bool,
}

/// What handles, tokenizer threads and the worker share.
pub(crate) struct Shared {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) info: ModelInfo,
    pub(crate) config: BatcherConfig,
    pub(crate) gauge: Arc<Gauge>,
    /// Why the engine is of no further use; set at most once.
    pub(crate) failure: OnceLock<String>,
    /// Told of every batch; set at most once.
    pub(crate) observer: OnceLock<BatchObserver>,
    /// Set once: nothing new is accepted, and the worker ends when everything is answered. Set
    /// under the lock of `inbox`, which the worker holds between looking and waiting; read without,
    /// so that no request or probe waits for a lock.
    closed: AtomicBool,
    inbox: Mutex<Inbox>,
    /// Told of every change of `inbox` and of `closed`.
    arrived: Condvar,
    /// What the worker took from the inbox and has not run. Locked while a batch is chosen, so
    /// that tokenizer threads, which lock the inbox, need not wait for that.
    backlog: Mutex<Backlog>,
    /// Tokens per second as the bits of an `f64`; zero until the first batch.
    rate: AtomicU64,
}

impl Shared {
    pub(crate) fn new(engine: Arc<dyn Engine>, info: ModelInfo, config: BatcherConfig) -> Self {
        Self {
            engine,
            info,
            config,
            gauge: Arc::default(),
            failure: OnceLock::new(),
            observer: OnceLock::new(),
            closed: AtomicBool::new(false),
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            backlog: Mutex::default(),
            rate: AtomicU64::new(0),
        }
    }

    /// Measured tokens per second; zero as long as nothing was measured.
    pub(crate) fn tokens_per_second(&self) -> f64 {
        f64::from_bits(self.rate.load(Ordering::Relaxed))
    }

    /// Takes a batch into the measured rate: a moving average over the last ten or so.
    pub(crate) fn measure(&self, n_tokens: usize, took: Duration) {
        let now = n_tokens as f64 / took.as_secs_f64().max(1e-6);
        let before = self.tokens_per_second();
        let rate = if before > 0.0 {
            before + 0.1 * (now - before)
        } else {
            now
        };
        self.rate.store(rate.to_bits(), Ordering::Relaxed);
    }

    /// Puts a sequence at the end of the queue; without a worker it is refused at once.
    pub(crate) fn push(&self, sequence: Sequence) {
        let mut inbox = lock(&self.inbox);
        if inbox.abandoned {
            drop(inbox);
            return sequence.answer(Err(self.refusal()));
        }
        inbox.sequences.push(sequence);
        self.arrived.notify_one();
    }

    /// Says that no worker will ever come back, and refuses what it leaves behind.
    pub(crate) fn abandon(&self) {
        let left = {
            let mut inbox = lock(&self.inbox);
            inbox.abandoned = true;
            self.closed.store(true, Ordering::Release);
            std::mem::take(&mut inbox.sequences)
        };
        let waiting = lock(&self.backlog).take_all();
        for sequence in waiting.chain(left) {
            sequence.answer(Err(self.refusal()));
        }
    }

    /// Stops accepting; the worker ends when everything accepted is answered.
    pub(crate) fn close(&self) {
        let _inbox = lock(&self.inbox);
        self.closed.store(true, Ordering::Release);
        self.arrived.notify_all();
    }

    /// Whether new work is refused.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// What a client hears whose input nobody will run.
    pub(crate) fn refusal(&self) -> SubmitError {
        match self.failure.get() {
            Some(reason) => SubmitError::Unhealthy(reason.clone()),
            None => SubmitError::Closed,
        }
    }

    /// Sequences that are tokenized and wait for their batch.
    pub(crate) fn n_queued(&self) -> usize {
        // In the order of `try_batch`, so that none is missed on its way.
        let backlog = lock(&self.backlog);
        backlog.n_seqs() + lock(&self.inbox).sequences.len()
    }

    /// Waits for work and takes the next batch; `None` once closed and everything is answered.
    pub(crate) fn next_batch(&self) -> Option<Vec<Sequence>> {
        loop {
            let batch = self.try_batch();
            if !batch.is_empty() {
                return Some(batch);
            }
            if !self.wait() {
                return None;
            }
        }
    }

    /// Waits until something may have arrived; false if nothing ever will.
    fn wait(&self) -> bool {
        let inbox = lock(&self.inbox);
        if !inbox.sequences.is_empty() {
            return true;
        }
        if !self.is_closed() {
            drop(self.arrived.wait(inbox));
            return true;
        }
        if self.gauge.n_seqs() == 0 {
            return false;
        }
        drop(self.arrived.wait_timeout(inbox, CLOSING_POLL));
        true
    }

    /// Empties the inbox, in order of arrival.
    pub(crate) fn arrivals(&self) -> Vec<Sequence> {
        std::mem::take(&mut lock(&self.inbox).sequences)
    }

    /// Takes the next batch without waiting; empty if there is none. Sequences whose client is gone
    /// are dropped.
    pub(crate) fn try_batch(&self) -> Vec<Sequence> {
        let mut backlog = lock(&self.backlog);
        for sequence in self.arrivals() {
            backlog.push(sequence);
        }
        let budget = Budget {
            max_tokens: self.config.max_batch_tokens,
            max_seqs: self.config.max_batch_requests.unwrap_or(usize::MAX),
        };
        backlog.take_batch(budget, Instant::now())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;
    use crate::testing::IdleEngine;

    #[test]
    fn readiness_and_arrivals_wait_for_no_lock_of_the_worker() {
        let (engine, info) = (Arc::new(IdleEngine), ModelInfo::default());
        let shared = Arc::new(Shared::new(engine, info, BatcherConfig::default()));
        let _packing = lock(&shared.backlog);
        let (done, waited) = channel();
        let other = Arc::clone(&shared);
        thread::spawn(move || {
            other.close();
            done.send(other.is_closed())
        });
        assert_eq!(waited.recv_timeout(Duration::from_secs(60)), Ok(true));
        let _arriving = lock(&shared.inbox);
        assert!(shared.is_closed(), "answered although everything is locked");
    }
}
