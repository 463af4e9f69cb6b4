//! Runs packed batches on one or more ranks.
//!
//! In reading order: [`placement`] deals sequences out to ranks; `rank` is a thread that owns a
//! device and its part of the model; [`CpuEngine`] starts the ranks and implements the batcher's
//! port; [`output`] makes answers of pooled vectors and logits.

mod cpu_engine;
pub mod output;
pub mod placement;
mod rank;

pub use cpu_engine::{CpuEngine, EngineConfig, StartError};
