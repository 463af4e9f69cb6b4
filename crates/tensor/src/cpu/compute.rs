//! What every operation of a rank computes with.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;

use super::CpuConfig;
use super::experts::Dispatch;
use super::gemm::Plan;
use super::gemm::rows::RowTiles;
use super::isa::Isa;
use super::pages::{Memory, zeroed};
use super::parallel::Parallel;
use super::positions::Positions;
use super::tensor::{Arena, Tensor};
use crate::device::{DeviceError, Routing};

/// Elements of a piece of elementwise work: a few µs.
const PIECE: usize = 8 << 10;

/// Instructions, threads and working memory.
pub(crate) struct Compute {
    pub(crate) isa: Isa,
    pub(crate) parallel: Parallel,
    pub(crate) arena: Arena,
    scratch: Mutex<Scratch>,
    routings: Mutex<Vec<Routing>>,
}

/// Working memory that lives from one operation to the next, so that none allocates.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) products: ProductScratch,
    /// Outputs of experts, in expert order.
    pub(crate) y: Buffer,
    /// The rows of each expert.
    pub(crate) groups: Vec<RowTiles>,
    pub(crate) dispatch: Dispatch,
    pub(crate) positions: Positions,
}

/// Working memory of one product, or of the two of an FFN.
#[derive(Default)]
pub(crate) struct ProductScratch {
    /// Packed rows.
    pub(crate) a: Buffer,
    /// Packed hidden units between the two products of an FFN.
    pub(crate) hidden: Buffer,
    /// Rows of each group that are multiplied at once.
    pub(crate) groups: Vec<RowTiles>,
    pub(crate) plan: Plan,
}

/// Memory that only grows.
#[derive(Default)]
pub(crate) struct Buffer(Memory<f32>);

impl Compute {
    pub(crate) fn new(config: &CpuConfig) -> Result<Self, DeviceError> {
        let parallel = Parallel::new(config.n_threads, config.first_core)?;
        Ok(Self {
            isa: config.isa,
            parallel,
            arena: Arena::default(),
            scratch: Mutex::default(),
            routings: Mutex::default(),
        })
    }

    /// Calls `f(i, row)` for each row of a tensor.
    pub(crate) fn for_each_row(&self, out: &mut Tensor, f: impl Fn(usize, &mut [f32]) + Sync) {
        let n_cols = out.n_cols.max(1);
        let n_rows = (PIECE / n_cols).max(1);
        let data = out.as_mut_slice();
        self.parallel
            .for_each_chunk(data, n_rows * n_cols, |piece, rows| {
                for (i, row) in rows.chunks_exact_mut(n_cols).enumerate() {
                    f(piece * n_rows + i, row);
                }
            });
    }

    /// Routings that nobody needs any more.
    pub(crate) fn routings(&self) -> MutexGuard<'_, Vec<Routing>> {
        self.routings.lock().unwrap_or_else(PoisonError::into_inner)
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
            // An eighth of room for growth: batches differ a little in size.
            self.0 = zeroed(n_floats + n_floats / 8);
        }
        bytemuck::cast_slice_mut(&mut self.0[..n_floats])
    }
}
