//! What every operation of a rank computes with.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;

use super::attention::Positions;
use super::experts::Dispatch;
use super::gemm::Piece;
use super::gemm::rows::RowTiles;
use super::isa::Isa;
use super::parallel::Parallel;
use crate::device::DeviceError;

/// Instructions, threads and working memory.
pub(crate) struct Compute {
    pub(crate) isa: Isa,
    pub(crate) parallel: Parallel,
    scratch: Mutex<Scratch>,
}

/// Working memory that lives from one operation to the next, so that none allocates.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Packed rows of a product.
    pub(crate) a: Buffer,
    /// Packed hidden units between the two products of an FFN.
    pub(crate) hidden: Buffer,
    /// Outputs of experts, in expert order.
    pub(crate) y: Buffer,
    pub(crate) groups: Vec<RowTiles>,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) dispatch: Dispatch,
    pub(crate) positions: Positions,
}

/// Memory that only grows.
#[derive(Default)]
pub(crate) struct Buffer(Vec<f32>);

impl Compute {
    pub(crate) fn new(isa: Isa, n_threads: usize) -> Result<Self, DeviceError> {
        let parallel = Parallel::new(n_threads)?;
        Ok(Self {
            isa,
            parallel,
            scratch: Mutex::default(),
        })
    }

    /// The working memory, for one operation.
    pub(crate) fn scratch(&self) -> MutexGuard<'_, Scratch> {
        // What a panic left there is overwritten by the next operation.
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    /// Room for `n` values, of any content.
    pub(crate) fn room<A: Pod>(&mut self, n: usize) -> &mut [A] {
        let n_floats = (n * size_of::<A>()).div_ceil(size_of::<f32>());
        if self.0.len() < n_floats {
            self.0.resize(n_floats, 0.0);
        }
        bytemuck::cast_slice_mut(&mut self.0[..n_floats])
    }
}
