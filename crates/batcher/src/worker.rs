//! The thread that packs, runs the engine and hands out answers.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::handle::{Answer, Timings};
use crate::queue::{Sequence, Shared};
use crate::{EngineError, PackedBatch, SubmitError};

/// Told of every batch after it ran.
pub type BatchObserver = Arc<dyn Fn(&BatchReport) + Send + Sync>;

/// One batch after it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchReport {
    /// Sequences of the batch.
    pub n_seqs: usize,
    /// Tokens of the batch.
    pub n_tokens: usize,
    /// Time in the engine.
    pub inference: Duration,
}

/// Runs batches until every handle is gone or closed.
pub struct Worker {
    shared: Arc<Shared>,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Runs on a thread of its own.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn spawn(self) -> io::Result<JoinHandle<()>> {
        thread::Builder::new()
            .name("batcher".to_owned())
            .spawn(move || self.run())
    }

    /// Blocks until the handles are closed or dropped and everything accepted is answered.
    pub fn run(&self) {
        while let Some(batch) = self.shared.next_batch() {
            self.answer(batch);
        }
    }

    /// Runs one batch of what is waiting, and returns its number of sequences (0 if none waits).
    #[must_use]
    pub fn step(&self) -> usize {
        let batch = self.shared.try_batch();
        let n_seqs = batch.len();
        if n_seqs > 0 {
            self.answer(batch);
        }
        n_seqs
    }

    /// Runs a batch and answers each of its sequences.
    fn answer(&self, batch: Vec<Sequence>) {
        if let Some(reason) = self.shared.failure.get() {
            return refuse_all(batch, &SubmitError::Unhealthy(reason.clone()));
        }
        let started = Instant::now();
        match self.run_engine(&packed(&batch)) {
            Ok(rows) => hand_out(batch, rows, started, started.elapsed()),
            Err(EngineError::Input(reason)) if batch.len() == 1 => {
                refuse_all(batch, &SubmitError::Input(reason));
            }
            // One sequence is at fault: alone, each is answered or refused for itself.
            Err(EngineError::Input(_)) => batch.into_iter().for_each(|one| self.answer(vec![one])),
            // Clients may try again elsewhere.
            Err(EngineError::Failed(reason)) => self.poison(batch, &reason),
        }
    }

    /// Tells the observer, whose panic is not the engine's.
    fn report(&self, report: &BatchReport) {
        let Some(observe) = self.shared.observer.get() else {
            return;
        };
        if catch_unwind(AssertUnwindSafe(|| observe(report))).is_err() {
            tracing::error!("the observer of a batch panicked; batches go on");
        }
    }

    /// Calls the engine; a panic and a wrong number of rows are failures of the engine.
    fn run_engine(&self, batch: &PackedBatch) -> Result<Vec<Vec<f32>>, EngineError> {
        let started = Instant::now();
        let run = AssertUnwindSafe(|| self.shared.engine.run(batch));
        let rows = catch_unwind(run)
            .unwrap_or_else(|panic| Err(EngineError::Failed(panic_message(panic.as_ref()))))?;
        let (n_seqs, n_tokens) = (batch.tasks.len(), batch.ids.len());
        if rows.len() != n_seqs {
            let reason = format!("it returned {} rows for {n_seqs} sequences", rows.len());
            return Err(EngineError::Failed(reason));
        }
        let inference = started.elapsed();
        self.shared.measure(n_tokens, inference);
        tracing::debug!(
            n_seqs,
            n_tokens,
            inference_ms = inference.as_millis() as u64,
            "batch"
        );
        self.report(&BatchReport {
            n_seqs,
            n_tokens,
            inference,
        });
        Ok(rows)
    }

    /// Marks the engine as broken: this batch and everything that still waits gets an error.
    fn poison(&self, batch: Vec<Sequence>, reason: &str) {
        tracing::error!(reason, "the engine failed and is taken out of service");
        let reason = format!("the engine failed: {reason}");
        // First, so that a client that has its error already sees the server unhealthy.
        let _ = self.shared.failure.set(reason.clone());
        refuse_all(batch, &SubmitError::Unhealthy(reason));
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

/// A worker that is dropped, or whose thread dies, must not leave clients waiting.
impl Drop for Worker {
    fn drop(&mut self) {
        if thread::panicking() {
            let reason = "the batcher's thread panicked".to_owned();
            let _ = self.shared.failure.set(reason);
        }
        self.shared.abandon();
    }
}

/// Lays the sequences one after the other.
fn packed(batch: &[Sequence]) -> PackedBatch {
    let mut packed = PackedBatch {
        cu_seqlens: vec![0],
        ..PackedBatch::default()
    };
    for sequence in batch {
        packed.ids.extend_from_slice(&sequence.ids);
        packed.type_ids.extend_from_slice(&sequence.type_ids);
        packed.cu_seqlens.push(packed.ids.len());
        packed.tasks.push(sequence.task);
    }
    packed
}

fn hand_out(batch: Vec<Sequence>, rows: Vec<Vec<f32>>, started: Instant, inference: Duration) {
    for (sequence, values) in batch.into_iter().zip(rows) {
        let waited = started.saturating_duration_since(sequence.submitted);
        let timings = Timings {
            tokenization: sequence.tokenization,
            queue: waited.saturating_sub(sequence.tokenization),
            inference,
        };
        let answer = if values.iter().all(|value| value.is_finite()) {
            Ok(Answer {
                values,
                n_tokens: sequence.ids.len(),
                timings,
            })
        } else {
            Err(SubmitError::Backend(
                "the model returned a value that is not finite".to_owned(),
            ))
        };
        sequence.answer(answer);
    }
}

fn refuse_all(batch: Vec<Sequence>, error: &SubmitError) {
    for sequence in batch {
        sequence.answer(Err(error.clone()));
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
    format!(
        "it panicked: {}",
        message.as_deref().unwrap_or("no message")
    )
}
