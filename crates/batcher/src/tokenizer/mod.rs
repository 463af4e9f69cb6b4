//! A pool of threads over one tokenizer.
//!
//! Tokenizing is plain CPU work of 10 µs to several ms, too long for the threads that serve
//! connections. The threads share one tokenizer: encoding takes `&self`, and only the memory of a
//! large vocabulary would grow with copies.

mod cut;
mod encode;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::oneshot;

use crate::SubmitError;
pub use encode::{Direction, Input, TokenPiece};
pub(crate) use encode::{Encoder, Rule};

type Job = Box<dyn FnOnce(&Encoder) + Send>;

/// A pool of threads over one tokenizer. Dropping it lets the threads finish what they have.
pub struct TokenizerPool {
    jobs: Sender<Job>,
    encoder: Arc<Encoder>,
    n_workers: usize,
}

impl TokenizerPool {
    /// Parses a `tokenizer.json` and starts `n_workers` threads (at least one).
    ///
    /// The file's own truncation and padding are discarded: the request decides on the first, and
    /// nothing is ever padded.
    ///
    /// # Errors
    /// [`SubmitError::Tokenizer`] if the file is not a tokenizer or a thread cannot be started.
    pub fn from_json(json: &[u8], n_workers: usize) -> Result<Self, SubmitError> {
        let encoder = Arc::new(Encoder::from_json(json)?);
        let n_workers = n_workers.max(1);
        let (jobs, waiting) = channel::<Job>();
        let waiting = Arc::new(Mutex::new(waiting));
        for worker_idx in 0..n_workers {
            let (encoder, waiting) = (Arc::clone(&encoder), Arc::clone(&waiting));
            thread::Builder::new()
                .name(format!("tokenizer-{worker_idx}"))
                .spawn(move || work(&encoder, &waiting))
                .map_err(|e| SubmitError::Tokenizer(format!("cannot start a thread: {e}")))?;
        }
        Ok(Self {
            jobs,
            encoder,
            n_workers,
        })
    }

    /// Threads of the pool.
    #[must_use]
    pub fn n_workers(&self) -> usize {
        self.n_workers
    }

    /// Ids that the tokenizer puts before and after every single text.
    #[must_use]
    pub fn special_ids(&self) -> (&[u32], &[u32]) {
        self.encoder.special_ids()
    }

    /// Runs `job` on one of the threads, in order of arrival.
    pub(crate) fn spawn(&self, job: impl FnOnce(&Encoder) + Send + 'static) {
        // The threads live as long as `jobs`, and a panicking job does not end one.
        let _ = self.jobs.send(Box::new(job));
    }

    /// Runs `job` on one of the threads and waits for what it returns.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Encoder) -> Result<T, SubmitError> + Send + 'static,
    ) -> Result<T, SubmitError> {
        let (reply, answer) = oneshot::channel();
        self.spawn(move |encoder| {
            let _ = reply.send(job(encoder));
        });
        answer
            .await
            .unwrap_or_else(|_| Err(SubmitError::Tokenizer("it panicked".to_owned())))
    }
}

impl std::fmt::Debug for TokenizerPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenizerPool")
            .field("n_workers", &self.n_workers)
            .finish_non_exhaustive()
    }
}

/// Runs jobs until the pool is dropped.
fn work(encoder: &Encoder, waiting: &Mutex<Receiver<Job>>) {
    loop {
        let next = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(job) = next else { return };
        // A job that panics drops its reply channels, which is how its clients learn of it.
        if catch_unwind(AssertUnwindSafe(|| job(encoder))).is_err() {
            tracing::error!("the tokenizer panicked; its texts get an error");
        }
    }
}
