//! Float32 math of training: what a simulator of many nodes, or one node, computes with.
//!
//! Nothing is prepacked, because weights change at every step. A product runs on one thread with
//! working memory that its caller keeps; [`Threads`] share a round's nodes. Every result is summed
//! in an order that depends on the shapes and the instruction set alone, so its bits never depend on
//! the number of threads.
//!
//! In reading order: [`Threads`] run pieces of work; [`MatRef`] and [`MatMut`] view slices as
//! matrices; [`Gemm`] multiplies them; [`Csr`] mixes the rows of a matrix by a sparse one;
//! [`Conv2d`], [`MaxPool2d`], [`GroupNorm`] and [`relu`] are the layers of a small convolutional
//! network, forward and backward; [`gather_rows`] collects a batch, [`softmax_cross_entropy`] is
//! what is learned from it.

mod conv;
mod csr;
mod error;
mod gather;
mod gemm;
mod group_norm;
mod lanes;
mod mat;
mod pool;
mod relu;
mod scratch;
mod softmax;
mod threads;

pub use conv::{Conv2d, ConvGradients, ConvShape, Update};
pub use csr::Csr;
pub use error::LinalgError;
pub use gather::gather_rows;
pub use gemm::{Gemm, GemmBatch};
pub use group_norm::{GroupNorm, GroupStats};
pub use mat::{MatMut, MatRef};
pub use pool::MaxPool2d;
pub use relu::{relu, relu_backward};
pub use scratch::Scratch;
pub use softmax::softmax_cross_entropy;
pub use threads::Threads;

/// Result of an operation on matrices.
pub type Result<T, E = LinalgError> = std::result::Result<T, E>;
