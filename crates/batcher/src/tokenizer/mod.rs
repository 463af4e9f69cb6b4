//! A pool of threads over one tokenizer.
//!
//! Tokenizing is plain CPU work of 10 µs to several ms, too long for the threads that serve
//! connections. The threads share one tokenizer: encoding takes `&self`, and only the memory of a
//! large vocabulary would grow with copies.

mod cut;
mod encode;
mod pool;

pub use encode::{Direction, Input, TokenPiece};
pub(crate) use encode::{Encoder, Rule, check_ids};
pub use pool::TokenizerPool;
pub(crate) use pool::Turn;
