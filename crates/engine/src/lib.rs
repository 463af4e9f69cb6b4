//! Runs packed batches on one or more ranks.
//!
//! In reading order: [`placement`] deals sequences out to ranks; `rank` is a thread that owns a
//! device and its part of the model; [`RankEngine`] starts the ranks and implements the batcher's
//! port; [`processes`] has ranks that are processes, the first of which leads the others;
//! [`output`] makes answers of pooled vectors and logits. Nothing of this knows which device
//! a rank has: a [`DeviceMaker`] makes it, [`CpuRanks`] on the cores of this machine.

mod cpu;
mod engine;
pub mod output;
pub mod placement;
pub mod processes;
mod rank;
#[cfg(test)]
mod testing;

pub use cpu::CpuRanks;
pub use engine::{Layout, Overlap, RankEngine, StartError};
pub use rank::DeviceMaker;
