//! Products of rows with matrices: one launch each.

use moeshard_tensor::device::Activation;
use moeshard_tensor::dtype::DType;

use crate::device::CudaDevice;
use crate::driver::Driver;
use crate::operations::{named, words};
use crate::pass::Word;

/// Rows and columns of a tile of a product, and the shared memory of its stages.
const TILE: usize = 128;
const TILE_BYTES: usize = 98_304;
/// The same of exact products.
const EXACT_TILE: usize = 64;
/// Blocks of a product that a multiprocessor runs at a time.
const BLOCKS_AT_ONCE: usize = 2;

/// A product of rows with one matrix, or of groups of rows with one each.
pub(crate) struct Product {
    pub(crate) dtype: DType,
    pub(crate) x: Word,
    pub(crate) weight: Word,
    pub(crate) bias: Word,
    /// Offsets of the groups, and which row each row comes from.
    pub(crate) groups: Option<Groups>,
    pub(crate) n_rows: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) activation: Activation,
    pub(crate) times: Word,
    pub(crate) plus: Word,
    pub(crate) out: Word,
}

pub(crate) struct Groups {
    pub(crate) offsets: Word,
    pub(crate) assignment: Word,
    pub(crate) n_groups: usize,
    pub(crate) top_k: usize,
}

impl<R: Driver> CudaDevice<R> {
    /// Notes a product.
    pub(crate) fn product(&self, product: &Product) {
        let Product {
            dtype,
            groups,
            n_rows,
            n,
            k,
            ..
        } = product;
        let (n_groups, top_k) = groups.as_ref().map_or((1, 1), |g| (g.n_groups, g.top_k));
        let (offsets, assignment) = groups
            .as_ref()
            .map_or((Word::NULL, Word::NULL), |g| (g.offsets, g.assignment));
        let (tile, shared_bytes) = match dtype {
            DType::F32 => (EXACT_TILE, 0),
            DType::BF16 | DType::F16 => (TILE, TILE_BYTES),
        };
        // Every group but one may end in a tile that is not full, and has a row at least.
        let row_tiles = n_rows.div_ceil(tile) + (n_groups - 1).min(*n_rows);
        let most = BLOCKS_AT_ONCE * self.driver.properties().n_multiprocessors as usize;
        let n_blocks = (row_tiles * n.div_ceil(tile)).min(most * (TILE / tile));
        self.launch(
            named!("grouped_gemm", dtype),
            [n_blocks, 1],
            shared_bytes,
            &words![
                product.x,
                product.weight,
                product.bias,
                offsets,
                assignment,
                *n_rows,
                n_groups,
                top_k,
                *n,
                *k,
                product.activation as u32,
                product.times,
                product.plus,
                product.out,
            ],
        );
    }
}
