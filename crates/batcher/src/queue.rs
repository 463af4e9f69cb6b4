//! What handles, tokenizer threads and the worker share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::admission::{Gauge, Reservation};
use crate::handle::Answer;
use crate::pack::{Budget, Waiting, pack};
use crate::worker::BatchObserver;
use crate::{BatcherConfig, Engine, ModelInfo, SubmitError, Task};

/// Where the answer of one sequence goes; closed as soon as the client is gone.
pub(crate) type Reply = oneshot::Sender<Result<Answer, SubmitError>>;

/// How often the worker looks whether the last text has left the tokenizers, once it is closed.
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

#[derive(Default)]
struct Queue {
    /// In order of arrival.
    sequences: VecDeque<Sequence>,
    /// Set once: nothing new is accepted, and the worker ends when everything is answered.
    closed: bool,
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
    queue: Mutex<Queue>,
    arrived: Condvar,
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
            queue: Mutex::default(),
            arrived: Condvar::new(),
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

    /// Puts a sequence at the end of the queue; without a worker it is dropped, which its client
    /// sees as an error.
    pub(crate) fn push(&self, sequence: Sequence) {
        let mut queue = self.lock();
        if !queue.abandoned {
            queue.sequences.push_back(sequence);
            self.arrived.notify_one();
        }
    }

    /// Says that no worker will ever come back, and returns what it leaves behind.
    pub(crate) fn abandon(&self) -> VecDeque<Sequence> {
        let mut queue = self.lock();
        queue.closed = true;
        queue.abandoned = true;
        std::mem::take(&mut queue.sequences)
    }

    /// Stops accepting; the worker ends when everything accepted is answered.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Whether new work is refused.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits for work and takes the next batch; `None` once closed and everything is answered.
    pub(crate) fn next_batch(&self) -> Option<Vec<Sequence>> {
        let mut queue = self.lock();
        loop {
            let batch = self.take_batch(&mut queue);
            if !batch.is_empty() {
                return Some(batch);
            }
            if !queue.closed {
                queue = self
                    .arrived
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            } else if self.gauge.n_seqs() == 0 {
                return None;
            } else {
                let waited = self.arrived.wait_timeout(queue, CLOSING_POLL);
                queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Takes the next batch without waiting; empty if there is none.
    pub(crate) fn try_batch(&self) -> Vec<Sequence> {
        self.take_batch(&mut self.lock())
    }

    /// Drops the sequences whose client is gone and takes those that [`pack`] chooses.
    fn take_batch(&self, queue: &mut Queue) -> Vec<Sequence> {
        queue
            .sequences
            .retain(|sequence| !sequence.reply.is_closed());
        let now = Instant::now();
        let waiting = |sequence: &Sequence| Waiting {
            n_tokens: sequence.ids.len(),
            waited: now.saturating_duration_since(sequence.submitted),
        };
        let waiting: Vec<Waiting> = queue.sequences.iter().map(waiting).collect();
        let budget = Budget {
            max_tokens: self.config.max_batch_tokens,
            max_seqs: self.config.max_batch_requests.unwrap_or(usize::MAX),
        };
        let mut chosen = pack(&waiting, budget).into_iter().peekable();
        let all = std::mem::take(&mut queue.sequences);
        let mut batch = Vec::with_capacity(chosen.len());
        for (seq_idx, sequence) in all.into_iter().enumerate() {
            if chosen.next_if_eq(&seq_idx).is_some() {
                batch.push(sequence);
            } else {
                queue.sequences.push_back(sequence);
            }
        }
        batch
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
