//! Turns texts into packed batches for an engine and answers into futures.
//!
//! In reading order: [`port`] is what an engine implements.

pub mod port;

pub use port::{Engine, EngineError, EngineStats, ModelInfo, PackedBatch, Task};
