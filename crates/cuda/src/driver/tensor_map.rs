//! Tensor maps: what the driver tells kernels of a matrix that they copy boxes of.

use std::ffi::c_void;

use cudarc::driver::result::DriverError;
use cudarc::driver::sys;

use super::{Address, TENSOR_MAP_BYTES};

/// Whether the driver is new enough: cudarc panics when a function that it lacks is called.
pub(super) fn is_known() -> bool {
    // SAFETY: the driver is loaded; the function is looked for and not called.
    unsafe { sys::culib().get::<*const c_void>(b"cuTensorMapEncodeTiled\0") }.is_ok()
}

/// Rows of 16-bit numbers in boxes whose rows are 128 bytes.
pub(super) fn encode(
    at: Address,
    dtype: sys::CUtensorMapDataType,
    [n_rows, n_cols]: [u64; 2],
    [box_rows, box_cols]: [u32; 2],
) -> std::result::Result<[u8; TENSOR_MAP_BYTES], DriverError> {
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // Columns come first, and the first stride is that of rows.
    let (shape, stride) = ([n_cols, n_rows], [2 * n_cols]);
    let (box_shape, step) = ([box_cols, box_rows], [1, 1]);
    // SAFETY: the arrays are as long as two dimensions need, and are only read during the call; the matrix is
    // not read at all.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            dtype,
            2,
            at as *mut c_void,
            shape.as_ptr(),
            stride.as_ptr(),
            box_shape.as_ptr(),
            step.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        .result()?;
    }
    Ok(bytemuck::cast(map.opaque))
}
