//! Accepted inputs on their way through the tokenizers.
//!
//! A bulk request must not keep the others waiting, so its inputs are not put in line all at once:
//! each thread takes a few at a time and goes to the end of the line with the rest.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use std::vec;

use crate::admission::{ByteReservation, Reservation};
use crate::queue::{Reply, Sequence, Shared};
use crate::tokenizer::{Encoder, Rule, Turn};
use crate::{Input, Task, TokenizerPool};

/// Most texts that a thread takes in one turn.
///
/// On two threads no number from 1 to 64 is faster than another: 65,536 texts of four words took
/// 0.44 to 0.83 s, without order. It is more than one only so that dozens of threads do not meet at
/// the lock of the line for every text.
pub(crate) const TEXTS_PER_TURN: usize = 16;

/// A turn ends with the text that brings it to this many bytes. It bounds how long somebody else
/// waits: running text takes 0.4 s a megabyte, so about 13 ms.
const BYTES_PER_TURN: usize = 32 * 1024;

/// One accepted input before it is tokenized.
pub(crate) struct Draft {
    pub(crate) input: Input,
    pub(crate) room: Reservation,
    pub(crate) bytes: ByteReservation,
    pub(crate) reply: Reply,
    pub(crate) submitted: Instant,
}

/// The accepted inputs of one request, and how they are tokenized.
pub(crate) struct Drafts {
    /// Those that no thread has taken.
    pub(crate) left: Mutex<vec::IntoIter<Draft>>,
    pub(crate) prompt: Option<Arc<str>>,
    pub(crate) rule: Rule,
    pub(crate) task: Task,
    /// Where the sequences go.
    pub(crate) shared: Arc<Shared>,
}

impl Drafts {
    /// Has the drafts tokenized: by all threads if there is enough to do, but never with more than
    /// one job for each thread in line.
    pub(crate) fn spawn(mut self, pool: &TokenizerPool) {
        let n_turns = self.n_turns();
        let drafts = Arc::new(self);
        for _ in 0..n_turns.min(pool.n_workers()) {
            let drafts = Arc::clone(&drafts);
            pool.spawn(move |encoder| drafts.turn(encoder));
        }
    }

    /// About how many turns the drafts take.
    fn n_turns(&mut self) -> usize {
        let left = self.left.get_mut().unwrap_or_else(PoisonError::into_inner);
        let drafts = left.as_slice();
        let n_bytes: usize = drafts.iter().map(|draft| draft.bytes.n_bytes()).sum();
        let by_texts = drafts.len().div_ceil(TEXTS_PER_TURN);
        by_texts.max(n_bytes / BYTES_PER_TURN).min(drafts.len())
    }

    /// Tokenizes the next few.
    fn turn(&self, encoder: &Encoder) -> Turn {
        let (drafts, turn) = self.take();
        for draft in drafts {
            draft.tokenize(encoder, self);
        }
        turn
    }

    /// Takes the next few; those whose client is gone are dropped and do not count.
    fn take(&self) -> (Vec<Draft>, Turn) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut taken, mut n_bytes) = (Vec::new(), 0);
        while taken.len() < TEXTS_PER_TURN && n_bytes < BYTES_PER_TURN {
            let Some(draft) = left.next() else {
                return (taken, Turn::Done);
            };
            if !draft.reply.is_closed() {
                n_bytes += draft.bytes.n_bytes();
                taken.push(draft);
            }
        }
        (taken, Turn::More)
    }
}

impl Draft {
    /// Turns the draft into a sequence in the queue, or answers it with what is wrong.
    fn tokenize(mut self, encoder: &Encoder, request: &Drafts) {
        if self.reply.is_closed() {
            return;
        }
        let started = Instant::now();
        let encoded = encoder.encode(&self.input, request.prompt.as_deref(), request.rule);
        drop(self.input);
        drop(self.bytes);
        match encoded {
            Ok(encoded) => {
                self.room.resize(encoded.ids.len());
                request.shared.push(Sequence {
                    ids: encoded.ids,
                    type_ids: encoded.type_ids,
                    task: request.task,
                    reply: self.reply,
                    room: self.room,
                    submitted: self.submitted,
                    tokenization: started.elapsed(),
                });
            }
            Err(error) => {
                drop(self.room);
                let _ = self.reply.send(Err(error));
            }
        }
    }
}
