//! Checks of what operations are handed, beyond those that every device makes.

use moeshard_tensor::checks::check;
use moeshard_tensor::device::{DeviceError, LinearWeights, Result};
use moeshard_tensor::dtype::DType;

use crate::driver::Driver;
use crate::tensor::Tensor;
use crate::weights::{Matrix, Vector};

/// A kernel reads weights and rows of one dtype.
pub(crate) fn check_dtype(op: &'static str, expected: DType, got: DType) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(DeviceError::Failed {
        op,
        reason: format!("{got} in place of {expected}"),
    })
}

/// That a block of some kernel has enough shared memory for so many of something.
pub(crate) fn check_shared<R: Driver>(
    driver: &R,
    op: &'static str,
    what: &str,
    (n, n_bytes): (usize, usize),
) -> Result<()> {
    let most = driver.properties().shared_bytes as usize;
    if n_bytes <= most {
        return Ok(());
    }
    Err(DeviceError::SetUp(format!(
        "{op}: {what} {n} needs {n_bytes} bytes of shared memory, and the GPU has {most}"
    )))
}

pub(crate) fn check_linear<R: Driver>(
    op: &'static str,
    x: &Tensor,
    linear: &LinearWeights<'_, Matrix<R>, Vector<R>>,
) -> Result<()> {
    check(op, "n_in", linear.weight.n_in, x.n_cols)?;
    check_bias(op, "bias", linear)?;
    check_dtype(op, linear.weight.dtype, x.dtype)
}

pub(crate) fn check_bias<R: Driver>(
    op: &'static str,
    dim: &'static str,
    linear: &LinearWeights<'_, Matrix<R>, Vector<R>>,
) -> Result<()> {
    let n_out = linear.weight.n_out;
    check(op, dim, n_out, linear.bias.map_or(n_out, Vector::len))
}
