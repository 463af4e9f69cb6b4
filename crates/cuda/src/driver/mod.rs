//! What is asked of a GPU's driver: memory, copies, launches, graphs.
//!
//! Two implement it: [`gpu`], the real one, and `emulated`, whose kernels run on the CPU.

pub mod cublaslt;
#[cfg(feature = "emulated")]
pub mod emulated;
mod found;
pub mod gpu;
mod library;
pub mod nccl;
mod tensor_map;

use moeshard_tensor::device::Result;
use moeshard_tensor::dtype::DType;

use cublaslt::CublasLt;
use nccl::Nccl;

/// A place in the memory of a device.
pub type Address = u64;

/// The most arguments that a kernel takes.
pub const MOST_ARGS: usize = 24;

/// Streams of a device.
pub const N_STREAMS: usize = 2;

/// The compute capability of the GPUs whose kernels use tensor maps.
pub const HOPPER: (u32, u32) = (9, 0);

/// Bytes of a tensor map.
pub const TENSOR_MAP_BYTES: usize = 128;

/// A kernel with everything that it is launched with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Its name.
    pub kernel: &'static str,
    /// In which it is done, of [`N_STREAMS`].
    pub stream: usize,
    /// Blocks along x and y.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Bits of the arguments: an address, or a number of four bytes in the lower half.
    pub args: [u64; MOST_ARGS],
    /// How many of them there are.
    pub n_args: usize,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// As the driver calls it.
    pub name: String,
    /// Multiprocessors, each of which runs some blocks at a time.
    pub n_multiprocessors: u32,
    /// Bytes of memory.
    pub n_bytes: u64,
    /// Bytes of shared memory that a block may have.
    pub shared_bytes: u32,
    /// Compute capability.
    pub capability: (u32, u32),
}

/// One device: everything happens in the order in which it was asked for, but for launches that are asked for
/// together, in streams of their own.
///
/// # Safety
/// Of every `unsafe` function: addresses come from [`Driver::allocate`] and are valid for as many bytes as are
/// read or written there, by copies and by kernels.
pub trait Driver {
    /// Launches that were captured, to be repeated at once.
    type Graph;

    /// What the device is.
    fn properties(&self) -> &Properties;

    /// The library for products, if there is one.
    fn cublaslt(&self) -> Option<&CublasLt>;

    /// The library for exchanges with other ranks, if there is one.
    fn nccl(&self) -> Option<&Nccl>;

    /// What other ranks of this process know this device by.
    fn peer_id(&self) -> u64;

    /// What ranks of any process, on any machine, know the GPU by.
    ///
    /// # Errors
    /// If the driver does not say.
    fn gpu_id(&self) -> Result<u64>;

    /// Whether kernels of this device can use the memory of that one, from now on.
    ///
    /// # Errors
    /// If they should, and the driver refuses.
    fn reach(&self, peer_id: u64) -> Result<bool>;

    /// Takes memory, at least 256 bytes aligned, with arbitrary contents.
    ///
    /// # Errors
    /// If there is not as much.
    fn allocate(&self, n_bytes: usize) -> Result<Address>;

    /// Gives memory back, once everything asked for has been done.
    ///
    /// # Safety
    /// As for the trait; nobody uses it any more.
    unsafe fn free(&self, at: Address);

    /// Copies to the device; `from` may be reused at once.
    ///
    /// # Safety
    /// As for the trait.
    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<()>;

    /// Copies from the device, and waits until it is done.
    ///
    /// # Safety
    /// As for the trait.
    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<()>;

    /// Copies within the device; the places do not overlap.
    ///
    /// # Safety
    /// As for the trait.
    unsafe fn copy(&self, from: Address, to: Address, n_bytes: usize) -> Result<()>;

    /// Sets bytes to zero.
    ///
    /// # Safety
    /// As for the trait.
    unsafe fn clear(&self, at: Address, n_bytes: usize) -> Result<()>;

    /// Launches kernels, or what libraries do: those of a stream one after the other, streams beside each other, all of
    /// them after what was asked for before. Exchanges of a library begin in the order in which they are listed.
    ///
    /// # Safety
    /// As for the trait; arguments are those that the kernels take; nothing that one stream writes is used in another.
    unsafe fn launch(&self, launches: &[Launch]) -> Result<()>;

    /// Describes rows of 16-bit numbers for kernels that copy boxes of them, rows and columns, to shared memory
    /// with 128-byte swizzle; zeroes beyond the matrix. `None` if device or driver cannot. Kernels take it from
    /// the device's memory, at a multiple of 64 bytes.
    ///
    /// # Safety
    /// As for the trait, whenever a kernel uses it.
    unsafe fn tensor_map(
        &self,
        at: Address,
        dtype: DType,
        shape: [u64; 2],
        box_shape: [u32; 2],
    ) -> Result<Option<[u8; TENSOR_MAP_BYTES]>>;

    /// Captures launches without running them.
    ///
    /// # Safety
    /// As for [`Driver::launch`], whenever the graph is run.
    unsafe fn capture(&self, launches: &[Launch]) -> Result<Self::Graph>;

    /// Runs what was captured.
    ///
    /// # Safety
    /// As for [`Driver::capture`].
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()>;

    /// Waits until everything asked for has been done.
    ///
    /// # Errors
    /// If a kernel failed.
    fn wait(&self) -> Result<()>;
}
