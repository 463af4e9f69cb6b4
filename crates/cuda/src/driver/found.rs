//! Which GPUs there are, or what is missing.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use moeshard_kernels::{CUDA_VERSION, IMAGES};

use super::Properties;

/// Why there is no GPU, or how many there are.
///
/// # Errors
/// A sentence that says what is missing and where it was looked for.
pub fn count() -> std::result::Result<usize, String> {
    // SAFETY: loading the driver runs its initialisers, which is what it is for.
    if !unsafe { sys::is_culib_present() } {
        return Err(
            "there is no CUDA driver: libcuda.so is neither in LD_LIBRARY_PATH nor where the system looks"
                .to_owned(),
        );
    }
    let why = |e: DriverError| format!("the CUDA driver does not start: {}", reason(e));
    result::init().map_err(why)?;
    let mut version = 0;
    // SAFETY: the number is written there.
    let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    asked.result().map_err(why)?;
    // Drivers run what was compiled for their own major version, or an older one.
    let needed = CUDA_VERSION / 1000;
    if u32::try_from(version).is_ok_and(|version| version / 1000 < needed) {
        return Err(format!(
            "the driver knows CUDA {}.{}, and the kernels were compiled for {needed}: it must be newer (580 or \
             above for CUDA 13)",
            version / 1000,
            version % 1000 / 10,
        ));
    }
    let n = result::device::get_count().map_err(why)?;
    match usize::try_from(n) {
        Ok(0) | Err(_) => Err("the CUDA driver finds no GPU".to_owned()),
        Ok(n) => Ok(n),
    }
}

/// Every GPU that the driver finds.
///
/// # Errors
/// As [`count`].
pub fn list() -> std::result::Result<Vec<Properties>, String> {
    let of = |idx| {
        let device = result::device::get(idx as i32)?;
        properties(device)
    };
    (0..count()?)
        .map(|idx| of(idx).map_err(|e| format!("GPU {idx}: {}", reason(e))))
        .collect()
}

/// What the kernels were built without, if they were.
///
/// # Errors
/// A sentence that says what to do.
pub fn check_kernels() -> std::result::Result<(), String> {
    match IMAGES.is_empty() {
        true => Err(
            "this program was built without CUDA kernels: run `cargo xtask cuda`, which fetches a compiler, \
             and build it again"
                .to_owned(),
        ),
        false => Ok(()),
    }
}

pub(super) fn properties(device: sys::CUdevice) -> std::result::Result<Properties, DriverError> {
    use sys::CUdevice_attribute as Attribute;
    // SAFETY: the device exists.
    unsafe {
        let get = |attribute| result::device::get_attribute(device, attribute).map(|n| n as u32);
        Ok(Properties {
            name: result::device::get_name(device)?,
            n_multiprocessors: get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            n_bytes: result::device::total_mem(device)? as u64,
            shared_bytes: get(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            capability: (
                get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
        })
    }
}

/// In the driver's words.
pub(super) fn reason(e: DriverError) -> String {
    let text = |text: std::result::Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(
            |_| format!("{:?}", e.0),
            |text| text.to_string_lossy().into_owned(),
        )
    };
    format!("{} ({})", text(e.error_string()), text(e.error_name()))
}
