//! What unit tests of several modules need.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::admission::Gauge;
use crate::handle::Answer;
use crate::queue::Sequence;
use crate::tokenizer::Turn;
use crate::{Engine, EngineError, EngineStats, PackedBatch, SubmitError, Task, TokenizerPool};

/// The tokenizer of the tests.
pub(crate) const TOKENIZER: &[u8] = include_bytes!("../tests/data/tokenizer.json");

/// Keeps one thread of the pool busy until something is sent, so that a test decides what waits
/// behind it.
pub(crate) fn gate(pool: &TokenizerPool) -> Sender<()> {
    let (open, opened) = channel();
    pool.spawn(move |_| {
        let _ = opened.recv();
        Turn::Done
    });
    open
}

/// An engine that is there but never asked.
pub(crate) struct IdleEngine;

impl Engine for IdleEngine {
    fn run(&self, _: &PackedBatch) -> Result<Vec<Vec<f32>>, EngineError> {
        unreachable!("the test runs no batch")
    }

    fn stats(&self) -> EngineStats {
        EngineStats::default()
    }
}

/// A sequence that waits, and its client.
pub(crate) fn sequence(
    n_tokens: usize,
    submitted: Instant,
) -> (Sequence, oneshot::Receiver<Result<Answer, SubmitError>>) {
    let (reply, client) = oneshot::channel();
    let rooms = Arc::<Gauge>::default().admit(&[n_tokens], usize::MAX);
    let sequence = Sequence {
        ids: vec![0; n_tokens],
        type_ids: vec![0; n_tokens],
        task: Task::Classify { raw_scores: false },
        reply,
        room: rooms.expect("room").pop().expect("one"),
        submitted,
        tokenization: Duration::ZERO,
    };
    (sequence, client)
}
