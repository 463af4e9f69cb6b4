//! Which kernels products run on, and the tensor maps that those for Hopper need.

use std::env;
use std::rc::Rc;

use moeshard_tensor::device::{DeviceError, Result};
use moeshard_tensor::dtype::DType;

use crate::driver::{Driver, HOPPER};
use crate::memory::Heap;
use crate::pass::Word;
use crate::weights::Buffer;

/// Forces one of the kernels, to measure it.
const VARIABLE: &str = "MOESHARD_CUDA_GEMM";

/// Rows and columns of the boxes in which kernels for Hopper read a matrix.
const BOX: [u32; 2] = [128, 64];

/// Which kernels products in 16 bits run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gemm {
    /// What suits the device and the product, the library where there is one included.
    Fitting,
    /// What suits of the project's own.
    Own,
    /// The kernel for every GPU from Ampere on.
    Ampere,
    /// The kernels for Hopper, wherever the matrix is wide enough.
    Hopper,
}

impl Gemm {
    /// As `MOESHARD_CUDA_GEMM` says.
    ///
    /// # Errors
    /// If it says something else than `own`, `ampere` or `hopper`.
    pub(crate) fn from_env() -> Result<Self> {
        match env::var_os(VARIABLE) {
            None => Ok(Self::Fitting),
            Some(value) => Self::parse(&value.to_string_lossy()),
        }
    }

    fn parse(value: &str) -> Result<Self> {
        match value {
            "own" => Ok(Self::Own),
            "ampere" => Ok(Self::Ampere),
            "hopper" => Ok(Self::Hopper),
            _ => Err(DeviceError::SetUp(format!(
                "{VARIABLE} is own, ampere or hopper, found {value:?}"
            ))),
        }
    }
}

/// How a matrix that lies in a device's memory is read in boxes.
pub(crate) struct Map<R: Driver>(Option<Buffer<R>>);

impl<R: Driver> Map<R> {
    /// Of `[n_rows, n_cols]`; none if no kernel would use it.
    ///
    /// # Errors
    /// [`DeviceError::SetUp`] if kernels for Hopper are forced, and device or driver has no tensor maps.
    pub(crate) fn new(
        heap: &Rc<Heap<R>>,
        gemm: Gemm,
        buffer: &Buffer<R>,
        dtype: DType,
        [n_rows, n_cols]: [usize; 2],
    ) -> Result<Self> {
        let is_narrow = n_cols < BOX[1] as usize || n_rows == 0;
        let is_wanted = match gemm {
            Gemm::Fitting | Gemm::Own => heap.driver.properties().capability == HOPPER,
            Gemm::Ampere => false,
            Gemm::Hopper => true,
        };
        if !is_wanted || dtype == DType::F32 || is_narrow {
            return Ok(Self(None));
        }
        let shape = [n_rows as u64, n_cols as u64];
        // SAFETY: the buffer holds the matrix, and lives as long as its map is used.
        match unsafe { heap.driver.tensor_map(buffer.at(), dtype, shape, BOX)? } {
            Some(map) => Ok(Self(Some(Buffer::of(heap, &map)?))),
            None if gemm == Gemm::Hopper => Err(DeviceError::SetUp(format!(
                "{VARIABLE} is hopper, but {} has no tensor maps: they need compute capability 9.0 and a driver \
                 for CUDA 12 or later",
                heap.driver.properties().name
            ))),
            None => Ok(Self(None)),
        }
    }

    /// What a kernel is handed: null if there is none.
    pub(crate) fn word(&self) -> Word {
        self.0
            .as_ref()
            .map_or(Word::NULL, |map| Word::address(map.at()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_named_or_refused() {
        assert_eq!(Gemm::parse("own"), Ok(Gemm::Own));
        assert_eq!(Gemm::parse("ampere"), Ok(Gemm::Ampere));
        assert_eq!(Gemm::parse("hopper"), Ok(Gemm::Hopper));
        for other in ["", "Hopper", "volta"] {
            let error = Gemm::parse(other).expect_err("no such kernel");
            let expected = format!("{VARIABLE} is own, ampere or hopper, found {other:?}");
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }
}
