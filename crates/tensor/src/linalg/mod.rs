//! Float32 math of training: what a simulator of many nodes, or one node, computes with.
//!
//! Nothing is prepacked, because weights change at every step. A product runs on one thread with
//! working memory that its caller keeps; [`Threads`] share a round's nodes. Every result is summed
//! in an order that depends on the shapes and the instruction set alone, so its bits never depend on
//! the number of threads.
//!
//! In reading order: [`Threads`] run pieces of work; [`MatRef`] and [`MatMut`] view slices as
//! matrices; [`Gemm`] multiplies them; [`Csr`] mixes the rows of a matrix by a sparse one.

mod csr;
mod error;
mod gemm;
mod lanes;
mod mat;
mod scratch;
mod threads;

pub use csr::Csr;
pub use error::LinalgError;
pub use gemm::{Gemm, GemmBatch};
pub use mat::{MatMut, MatRef};
pub use scratch::Scratch;
pub use threads::Threads;

/// Result of an operation on matrices.
pub type Result<T, E = LinalgError> = std::result::Result<T, E>;
