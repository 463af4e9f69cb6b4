//! The [`Device`](moeshard_tensor::device::Device) on NVIDIA GPUs.
//!
//! In reading order: [`driver`] is what is asked of a GPU; `memory` deals out one region to activations;
//! `pass` notes what operations want launched, and runs all of it at once, as a graph from the second time
//! on; `weights` and `experts` are what is loaded; [`CudaDevice`] turns each operation into launches of
//! the kernels in `kernels/cuda`.
//!
//! Nothing is linked against: the driver is found when the program runs, and no other library is needed;
//! [`libraries`] says which are used where they are found.

mod arguments;
mod attention;
mod device;
pub mod driver;
mod exchange;
mod experts;
mod gemm;
pub mod libraries;
mod memory;
mod moe;
mod operations;
mod pass;
pub mod peak;
mod product;
mod tensor;
mod weights;

pub use device::{CudaConfig, CudaDevice};
pub use exchange::PeerWorld;
pub use gemm::Gemm;
pub use tensor::{Routing, Tensor};
pub use weights::{Experts, Matrix, Table, Vector};
