//! Turns texts into packed batches for an engine and answers into futures.
//!
//! A text goes through four stations, one module each:
//!
//! 1. [`handle`]: what a client holds. It checks the input against the model, asks [`admission`]
//!    whether there is room, and waits for the answers.
//! 2. [`tokenizer`]: a pool of threads that turns text into token ids and truncates; requests take
//!    turns.
//! 3. [`pack`]: the rule that chooses the sequences of the next batch; a pure function.
//! 4. [`worker`]: the thread that packs, runs the engine and hands out answers.
//!
//! [`port`] is what an engine implements, [`slot`] is where a server finds a model that may still be
//! loading. Nothing in this crate knows HTTP, tensors or devices.
//!
//! ```text
//! let tokenizers = TokenizerPool::from_json(&bytes, config.tokenization_workers)?;
//! let (handle, worker) = pair(engine, tokenizers, info, config);
//! let thread = worker.spawn()?;              // or worker.step() in a test
//! let answer = handle.submit(Input::Text("hello".into()), &options).await?;
//! ```

pub mod admission;
mod backlog;
mod check;
pub mod config;
mod draft;
pub mod error;
pub mod handle;
pub mod pack;
pub mod port;
mod queue;
pub mod slot;
#[cfg(test)]
mod testing;
pub mod tokenizer;
pub mod worker;

pub use config::BatcherConfig;
pub use error::SubmitError;
pub use handle::{Answer, Handle, Load, Options, Timings, pair};
pub use port::{Engine, EngineError, EngineStats, ModelInfo, PackedBatch, Task};
pub use slot::{ModelSlot, Readiness};
pub use tokenizer::{Direction, Input, TokenPiece, TokenizerPool};
pub use worker::{BatchObserver, BatchReport, Worker};
