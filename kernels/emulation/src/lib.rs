//! The CUDA kernels of `kernels/cuda` on a CPU: the same sources behind a header that stands in for
//! CUDA (`emulate.h`), a fiber for each thread. For tests: it checks what a kernel computes, its barriers
//! and its bounds, not its speed.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory.
    pub shared_bytes: usize,
    /// From which the order of a block's threads is drawn; with odd ones warps run one after another, each
    /// as far as it gets alone, and with 3, 7, … asynchronous copies happen at once instead of as late as
    /// they may.
    pub seed: u64,
}

/// Why a kernel did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EmulationError {
    /// There is no kernel of the name.
    NoSuchKernel(String),
    /// Threads wait at barriers that others never reach.
    Deadlock(String),
    /// The kernel takes another number of arguments.
    Arguments {
        /// Its name.
        kernel: String,
        /// How many it was given.
        n_args: usize,
    },
    /// More threads arrived at a barrier than it waits for, copies were left unfinished, or an operand of a
    /// product is not where it can be.
    Misuse(String),
}

impl std::fmt::Display for EmulationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoSuchKernel(name) => write!(f, "there is no kernel {name}"),
            Self::Arguments { kernel, n_args } => {
                write!(
                    f,
                    "{kernel} takes another number of arguments than {n_args}"
                )
            }
            Self::Deadlock(name) => write!(f, "threads of {name} wait for one another for ever"),
            Self::Misuse(name) => write!(
                f,
                "{name} uses a barrier, a copy or an operand of a product as it must not"
            ),
        }
    }
}

impl std::error::Error for EmulationError {}

unsafe extern "C" {
    fn moeshard_emulate(
        name: *const c_char,
        grid: *const c_uint,
        block: *const c_uint,
        shared_bytes: usize,
        seed: u64,
        args: *mut *mut c_void,
        n_args: usize,
    ) -> c_int;

    fn moeshard_emulated_cublaslt(name: *const c_char) -> *const c_void;

    fn moeshard_emulated_nccl(name: *const c_char) -> *const c_void;
}

/// A function that stands in for NCCL's of that name, with its signature, for ranks that are threads.
#[must_use]
pub fn nccl_function(name: &str) -> Option<*const c_void> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name ends with zero.
    let function = unsafe { moeshard_emulated_nccl(name.as_ptr()) };
    (!function.is_null()).then_some(function)
}

/// A function that stands in for cuBLASLt's of that name, with its signature, on memory of the process.
#[must_use]
pub fn cublaslt_function(name: &str) -> Option<*const c_void> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name ends with zero.
    let function = unsafe { moeshard_emulated_cublaslt(name.as_ptr()) };
    (!function.is_null()).then_some(function)
}

/// Runs a kernel; `args` point to its arguments in order, as for `cuLaunchKernel`.
///
/// # Errors
/// [`EmulationError`] if there is no such kernel, or it does not end.
///
/// # Safety
/// The arguments are of the number and the types that the kernel takes, and memory that they point to
/// is as large as the kernel says and not used by anybody else meanwhile.
pub unsafe fn launch(
    name: &str,
    launch: &Launch,
    args: &mut [*mut c_void],
) -> Result<(), EmulationError> {
    let missing = || EmulationError::NoSuchKernel(name.to_owned());
    let c_name = CString::new(name).map_err(|_| missing())?;
    // SAFETY: the caller's promise; the name ends with zero, and both sizes are of three numbers.
    let code = unsafe {
        moeshard_emulate(
            c_name.as_ptr(),
            launch.grid.as_ptr(),
            launch.block.as_ptr(),
            launch.shared_bytes,
            launch.seed,
            args.as_mut_ptr(),
            args.len(),
        )
    };
    match code {
        0 => Ok(()),
        1 => Err(EmulationError::Deadlock(name.to_owned())),
        4 => Err(EmulationError::Arguments {
            kernel: name.to_owned(),
            n_args: args.len(),
        }),
        3 => Err(EmulationError::Misuse(name.to_owned())),
        _ => Err(missing()),
    }
}
