//! The numbers that an operator may set.

use std::thread::available_parallelism;

/// Limits of the batcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatcherConfig {
    /// Most tokens of one forward pass; a longer sequence runs alone.
    pub max_batch_tokens: usize,
    /// Most sequences of one forward pass; `None` leaves it to the tokens.
    pub max_batch_requests: Option<usize>,
    /// New work is refused while this many tokens are accepted and not answered.
    pub max_queue_tokens: usize,
    /// New work is refused while this many bytes of text are accepted and not tokenized. Tokens do
    /// not bound memory: a text of 32 MB counts as the few hundred tokens that are kept of it.
    pub max_queue_bytes: usize,
    /// Threads that tokenize.
    pub tokenization_workers: usize,
}

impl Default for BatcherConfig {
    fn default() -> Self {
        Self {
            max_batch_tokens: 16_384,
            max_batch_requests: None,
            max_queue_tokens: 262_144,
            // Sixteen requests as long as the server takes by default (32 MB).
            max_queue_bytes: 512 * 1024 * 1024,
            tokenization_workers: available_parallelism().map_or(1, usize::from),
        }
    }
}
