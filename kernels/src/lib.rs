//! The CUDA kernels of `kernels/cuda`, as machine code for every supported GPU. No logic: `moeshard-cuda`
//! loads and launches them.

/// One file's kernels.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Their names.
    pub kernels: &'static [&'static str],
    /// What `cuModuleLoadData` takes: code for several GPUs, of which the driver picks.
    pub bytes: &'static [u8],
}

/// All kernels; empty if there was no compiler when this package was built.
pub const IMAGES: &[Image] = include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// CUDA of the compiler, 13000 for 13.0; 0 if there was none.
pub const CUDA_VERSION: u32 = include!(concat!(env!("OUT_DIR"), "/version.rs"));
