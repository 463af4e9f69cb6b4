//! Products of rows with matrices: one launch each, of a kernel of ours or, where there is one, of the library.

use moeshard_tensor::device::Activation;
use moeshard_tensor::dtype::DType;

use crate::device::CudaDevice;
use crate::driver::Driver;
use crate::driver::cublaslt::{self, Dense};
use crate::gemm::Gemm;
use crate::operations::{named, words};
use crate::pass::Word;
use crate::weights::{COLS, Vector};

/// How a kernel of products is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    kernel: &'static str,
    /// Of a tile.
    n_rows: usize,
    n_cols: usize,
    threads: u32,
    shared_bytes: usize,
    /// Blocks that a multiprocessor runs at a time.
    n_at_once: usize,
    /// Whether it takes a tensor map, too.
    takes_map: bool,
}

/// Rows above which kernels for Hopper are used: up to it, their tiles would be half empty. Not measured yet.
const FEW_ROWS: usize = 64;

/// A product of rows with one matrix, or of groups of rows with one each.
pub(crate) struct Product {
    pub(crate) dtype: DType,
    pub(crate) x: Word,
    pub(crate) weight: Word,
    /// The weight's tensor map; null if there is none.
    pub(crate) map: Word,
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
        let n_multiprocessors = self.driver.properties().n_multiprocessors as usize;
        let shape = shape_of(product, self.gemm, n_multiprocessors);
        let groups = product.groups.as_ref();
        let (n_groups, top_k) = groups.map_or((1, 1), |g| (g.n_groups, g.top_k));
        let (offsets, assignment) =
            groups.map_or((Word::NULL, Word::NULL), |g| (g.offsets, g.assignment));
        // Every group but one may end in a tile that is not full, and has a row at least.
        let row_tiles = product.n_rows.div_ceil(shape.n_rows) + (n_groups - 1).min(product.n_rows);
        let n_tiles = row_tiles * product.n.div_ceil(shape.n_cols);
        let args = words![
            product.x,
            product.weight,
            product.bias,
            offsets,
            assignment,
            product.n_rows,
            n_groups,
            top_k,
            product.n,
            product.k,
            product.activation as u32,
            product.times,
            product.plus,
            product.out,
            product.map,
        ];
        self.launch_with(
            shape.kernel,
            [n_tiles.min(shape.n_at_once * n_multiprocessors), 1],
            shape.threads,
            shape.shared_bytes,
            &args[..args.len() - usize::from(!shape.takes_map)],
        );
    }

    /// Notes a product of the library, if there is one that takes it.
    pub(crate) fn product_of_library(&self, product: &Product, bias: Option<&Vector<R>>) -> bool {
        let Some(library) = self.driver.cublaslt() else {
            return false;
        };
        let Some(kernel) = cublaslt::kernel(product.dtype) else {
            return false;
        };
        let Some(bias) = bias.map_or(Some(0), Vector::in_dtype) else {
            return false;
        };
        let Some(dense) = suits_library(product, self.gemm) else {
            return false;
        };
        if !library.takes(&dense, bias) {
            return false;
        }
        let args = words![
            product.x,
            product.weight,
            Word::address(bias),
            product.plus,
            product.out,
            product.n_rows,
            product.n,
            product.k,
            product.activation as u32,
        ];
        self.launch_with(kernel, [1, 1], 1, 0, &args);
        true
    }
}

/// What to ask the library for. Few rows are about reading weights, which a kernel of ours does.
fn suits_library(product: &Product, gemm: Gemm) -> Option<Dense> {
    let has_plus = product.plus != Word::NULL;
    // Rows that begin at multiples of 16 bytes, which every algorithm takes.
    let is_aligned = product.n.is_multiple_of(COLS) && product.k.is_multiple_of(COLS);
    let suits = gemm == Gemm::Fitting
        && product.groups.is_none()
        && product.times == Word::NULL
        && product.n_rows > FEWEST_ROWS
        && is_aligned
        && cublaslt::ACTIVATIONS.contains(&product.activation)
        // The library adds before the activation, our kernels after it.
        && (product.activation == Activation::Identity || !has_plus);
    suits.then_some(Dense {
        dtype: product.dtype,
        n_rows: product.n_rows,
        n: product.n,
        k: product.k,
        has_bias: product.bias != Word::NULL,
        activation: product.activation,
        has_plus,
    })
}

/// Rows up to which a product is about reading weights. Not measured yet.
const FEWEST_ROWS: usize = 16;

/// Rows of an expert, on average, up to which tiles have 32 of them. Not measured yet.
const FEW_ROWS_EACH: usize = 32;

/// The kernel for a product.
fn shape_of(product: &Product, gemm: Gemm, n_multiprocessors: usize) -> Shape {
    let Product {
        dtype, n_rows, n, ..
    } = *product;
    let n_groups = product.groups.as_ref().map_or(1, |groups| groups.n_groups);
    let is_fitting = matches!(gemm, Gemm::Fitting | Gemm::Own);
    let is_short = is_fitting && n_rows <= FEW_ROWS_EACH * n_groups;
    let is_large = (n_rows > FEW_ROWS && !is_short) || gemm == Gemm::Hopper;
    if dtype != DType::F32 && product.map != Word::NULL && is_large {
        // Wide tiles where there are enough of them for every multiprocessor, and the last one is not half empty.
        let n_wide = n_rows.div_ceil(128) * n.div_ceil(256);
        let is_wide = n_wide >= n_multiprocessors && (n % 256 == 0 || n % 256 > 128);
        return Shape {
            kernel: match is_wide {
                true => named!("grouped_gemm_hopper", dtype),
                false => named!("grouped_gemm_hopper_narrow", dtype),
            },
            n_rows: 128,
            n_cols: if is_wide { 256 } else { 128 },
            threads: 384,
            shared_bytes: 216_192,
            n_at_once: 1,
            takes_map: true,
        };
    }
    let thin = Shape {
        kernel: named!("grouped_gemm_thin", dtype),
        n_rows: 16,
        n_cols: 16,
        threads: 256,
        shared_bytes: 81_920,
        n_at_once: 2,
        takes_map: false,
    };
    if dtype != DType::F32 && n_rows <= FEWEST_ROWS && is_fitting {
        return thin;
    }
    if dtype != DType::F32 && is_short {
        return Shape {
            kernel: named!("grouped_gemm_short", dtype),
            n_rows: 32,
            n_cols: 128,
            ..thin
        };
    }
    let tile = match dtype {
        DType::F32 => 64,
        DType::BF16 | DType::F16 => 128,
    };
    Shape {
        kernel: named!("grouped_gemm", dtype),
        n_rows: tile,
        n_cols: tile,
        threads: 256,
        shared_bytes: if dtype == DType::F32 { 0 } else { 98_304 },
        n_at_once: if dtype == DType::F32 { 4 } else { 2 },
        takes_map: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(dtype: DType, gemm: Gemm, has_map: bool, n_rows: usize, n: usize) -> &'static str {
        kernel_of_groups(1, dtype, gemm, has_map, n_rows, n)
    }

    fn kernel_of_groups(
        n_groups: usize,
        dtype: DType,
        gemm: Gemm,
        has_map: bool,
        n_rows: usize,
        n: usize,
    ) -> &'static str {
        let groups = Groups {
            offsets: Word::NULL,
            assignment: Word::NULL,
            n_groups,
            top_k: 1,
        };
        let product = Product {
            dtype,
            x: Word::NULL,
            weight: Word::NULL,
            map: if has_map {
                Word::address(64)
            } else {
                Word::NULL
            },
            bias: Word::NULL,
            groups: (n_groups > 1).then_some(groups),
            n_rows,
            n,
            k: 64,
            activation: Activation::Identity,
            times: Word::NULL,
            plus: Word::NULL,
            out: Word::NULL,
        };
        shape_of(&product, gemm, 132).kernel
    }

    #[test]
    fn a_product_runs_on_the_kernel_that_suits_it() {
        use DType::{BF16, F16, F32};
        let fitting = |dtype, has_map, n_rows, n| kernel(dtype, Gemm::Fitting, has_map, n_rows, n);
        assert_eq!(fitting(F32, false, 9000, 768), "grouped_gemm_f32");
        assert_eq!(fitting(F16, false, 9000, 768), "grouped_gemm_f16");
        assert_eq!(fitting(BF16, true, 64, 768), "grouped_gemm_bf16");
        assert_eq!(fitting(BF16, true, 16, 768), "grouped_gemm_thin_bf16");
        assert_eq!(fitting(F16, false, 17, 768), "grouped_gemm_short_f16");
        assert_eq!(fitting(F16, false, 33, 768), "grouped_gemm_f16");
        assert_eq!(fitting(F32, false, 16, 768), "grouped_gemm_f32");
        assert_eq!(
            fitting(BF16, true, 65, 768),
            "grouped_gemm_hopper_narrow_bf16"
        );
        // Many experts with a few rows each, and with more.
        let of_128 = |n_rows| kernel_of_groups(128, BF16, Gemm::Own, true, n_rows, 3072);
        assert_eq!(of_128(128 * 32), "grouped_gemm_short_bf16");
        assert_eq!(of_128(128 * 32 + 1), "grouped_gemm_hopper_bf16");
        // 44 rows of tiles, three in each.
        let n_rows = 44 * 128;
        assert_eq!(fitting(F16, true, n_rows, 768), "grouped_gemm_hopper_f16");
        let narrow = "grouped_gemm_hopper_narrow_f16";
        assert_eq!(fitting(F16, true, n_rows - 128, 768), narrow);
        // The second of two wide tiles would be half empty.
        assert_eq!(fitting(F16, true, 9000, 384), narrow);
        let forced = kernel(BF16, Gemm::Hopper, true, 1, 8);
        assert_eq!(forced, "grouped_gemm_hopper_narrow_bf16");
        assert_eq!(
            kernel(BF16, Gemm::Ampere, false, 9000, 768),
            "grouped_gemm_bf16"
        );
    }
}
