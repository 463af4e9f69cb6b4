//! The threads of the pool and the jobs they take turns at.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::oneshot;

use super::Encoder;
use crate::SubmitError;

/// Whether a job has something left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It goes to the end of the line.
    More,
    /// It is dropped.
    Done,
}

type Job = Box<dyn FnMut(&Encoder) -> Turn + Send>;

/// A pool of threads over one tokenizer. Dropping it lets the threads finish what they have.
pub struct TokenizerPool {
    line: Arc<Line>,
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
        let pool = Self {
            line: Arc::default(),
            encoder: Arc::new(Encoder::from_json(json)?),
            n_workers: n_workers.max(1),
        };
        for worker_idx in 0..pool.n_workers {
            let (encoder, line) = (Arc::clone(&pool.encoder), Arc::clone(&pool.line));
            thread::Builder::new()
                .name(format!("tokenizer-{worker_idx}"))
                .spawn(move || work(&encoder, &line))
                .map_err(|e| SubmitError::Tokenizer(format!("cannot start a thread: {e}")))?;
        }
        Ok(pool)
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

    /// Puts `job` at the end of the line. It is run on one of the threads, and put at the end of the
    /// line again as long as it has more to do, so that everybody who waits gets a turn.
    pub(crate) fn spawn(&self, job: impl FnMut(&Encoder) -> Turn + Send + 'static) {
        self.line.push(Box::new(job));
    }

    /// Runs `job` on one of the threads and waits for what it returns.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the job unless it already runs.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Encoder) -> Result<T, SubmitError> + Send + 'static,
    ) -> Result<T, SubmitError> {
        let (reply, answer) = oneshot::channel();
        let mut once = Some((reply, job));
        self.spawn(move |encoder| {
            if let Some((reply, job)) = once.take()
                && !reply.is_closed()
            {
                let _ = reply.send(job(encoder));
            }
            Turn::Done
        });
        answer
            .await
            .unwrap_or_else(|_| Err(SubmitError::Tokenizer("it panicked".to_owned())))
    }
}

impl Drop for TokenizerPool {
    fn drop(&mut self) {
        self.line.close();
    }
}

impl std::fmt::Debug for TokenizerPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenizerPool")
            .field("n_workers", &self.n_workers)
            .finish_non_exhaustive()
    }
}

/// The jobs that wait for a thread, first come first served.
#[derive(Default)]
struct Line {
    state: Mutex<LineState>,
    arrived: Condvar,
}

#[derive(Default)]
struct LineState {
    jobs: VecDeque<Job>,
    /// Set once the pool is gone: the threads end when no job is left.
    closed: bool,
}

impl Line {
    fn push(&self, job: Job) {
        self.lock().jobs.push_back(job);
        self.arrived.notify_one();
    }

    /// Waits for the next job; `None` once the line is closed and empty.
    fn pop(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            let waited = self.arrived.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, LineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs jobs until the pool is dropped.
fn work(encoder: &Encoder, line: &Line) {
    while let Some(mut job) = line.pop() {
        // A job that panics drops its reply channels, which is how its clients learn of it.
        match catch_unwind(AssertUnwindSafe(|| job(encoder))) {
            Ok(Turn::More) => line.push(job),
            Ok(Turn::Done) => {}
            Err(_) => tracing::error!("the tokenizer panicked; its texts get an error"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::task::Poll;

    use super::*;
    use crate::testing::{TOKENIZER, gate};

    /// Runs jobs with `n_turns` each on one thread, and returns who had a turn when.
    fn turns(n_turns: &[usize]) -> Receiver<usize> {
        let pool = TokenizerPool::from_json(TOKENIZER, 1).expect("the test's tokenizer");
        let open = gate(&pool);
        let (log, logged) = channel();
        for (job_idx, &n_turns) in n_turns.iter().enumerate() {
            let (log, mut left) = (log.clone(), n_turns);
            pool.spawn(move |_| {
                log.send(job_idx).expect("the test listens");
                left -= 1;
                if left > 0 { Turn::More } else { Turn::Done }
            });
        }
        open.send(()).expect("the gate waits");
        logged
    }

    #[test]
    fn jobs_take_turns() {
        let order: Vec<usize> = turns(&[5, 1, 2]).into_iter().collect();
        assert_eq!(order, [0, 1, 2, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn a_job_that_panics_ends_alone() {
        let pool = TokenizerPool::from_json(TOKENIZER, 1).expect("the test's tokenizer");
        pool.spawn(|_| panic!("on purpose"));
        let (done, waited) = channel();
        pool.spawn(move |_| {
            done.send(()).expect("the test listens");
            Turn::Done
        });
        waited.recv().expect("the thread goes on");
    }

    #[tokio::test]
    async fn a_call_whose_client_is_gone_is_skipped() {
        let pool = TokenizerPool::from_json(TOKENIZER, 1).expect("the test's tokenizer");
        let open = gate(&pool);
        let (log, logged) = channel();
        let job = |name: &'static str| {
            let log = log.clone();
            move |_: &Encoder| {
                log.send(name).expect("the test listens");
                Ok(())
            }
        };
        let mut gone = Box::pin(pool.call(job("gone")));
        let once = std::future::poll_fn(|cx| Poll::Ready(gone.as_mut().poll(cx)));
        assert!(once.await.is_pending());
        drop(gone);
        open.send(()).expect("the gate waits");
        pool.call(job("next")).await.expect("an answer");
        assert_eq!(logged.recv(), Ok("next"));
    }
}
