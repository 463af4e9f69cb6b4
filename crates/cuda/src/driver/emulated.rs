//! Kernels on the CPU, thread by thread, in the process's own memory: everything but speed can be tested.

mod streams;

use std::alloc::{Layout, alloc, dealloc};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use moeshard_tensor::device::{DeviceError, Result};
use moeshard_tensor::dtype::DType;

use super::cublaslt::{CublasLt, WORKSPACE_BYTES};
use super::nccl::Nccl;
use super::{Address, Driver, Launch, Properties, TENSOR_MAP_BYTES};

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

const ALIGNMENT: usize = 256;

/// A device that exists in the process alone.
pub struct Emulated {
    /// As if each were a GPU of its own.
    id: u64,
    properties: Properties,
    layouts: RefCell<HashMap<Address, Layout>>,
    /// Bytes that may be taken altogether.
    most_bytes: Cell<usize>,
    counts: Cell<Counts>,
    cublaslt: Option<CublasLt>,
    nccl: Option<Nccl>,
}

/// What an emulated device was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Kernels that ran, in graphs or not.
    pub n_launches: u64,
    /// Those that a library did.
    pub n_library: u64,
    /// Graphs that ran.
    pub n_replays: u64,
    /// Graphs that were captured.
    pub n_captures: u64,
    /// Places in memory that were taken.
    pub n_allocations: u64,
    /// Times that the host waited for the device.
    pub n_waits: u64,
}

impl Default for Emulated {
    fn default() -> Self {
        Self::new()
    }
}

impl Emulated {
    /// A small one.
    pub fn new() -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            properties: Properties {
                name: "emulated".to_owned(),
                n_multiprocessors: 2,
                n_bytes: 0,
                // Of Hopper.
                shared_bytes: 227 << 10,
                capability: (8, 0),
            },
            layouts: RefCell::default(),
            most_bytes: Cell::new(usize::MAX),
            counts: Cell::default(),
            cublaslt: None,
            nccl: None,
        }
    }

    /// One that has a library for products.
    ///
    /// # Errors
    /// If it does not start.
    pub fn with_cublaslt() -> Result<Self> {
        let mut driver = Self::new();
        let workspace = driver.allocate(WORKSPACE_BYTES)?;
        driver.cublaslt = Some(CublasLt::emulated(workspace)?);
        Ok(driver)
    }

    /// One that has a library for exchanges between ranks of this process.
    ///
    /// # Errors
    /// If it does not load.
    pub fn with_nccl() -> Result<Self> {
        let mut driver = Self::new();
        driver.nccl = Some(Nccl::emulated()?);
        Ok(driver)
    }

    /// One that has both.
    ///
    /// # Errors
    /// If one does not load.
    pub fn with_libraries() -> Result<Self> {
        let mut driver = Self::with_cublaslt()?;
        driver.nccl = Some(Nccl::emulated()?);
        Ok(driver)
    }

    /// Lets no more than so many bytes be taken from now on, what is taken already included.
    pub fn limit_memory(&self, n_bytes: usize) {
        self.most_bytes.set(n_bytes);
    }

    /// Bytes that are taken.
    pub fn n_taken(&self) -> usize {
        self.layouts.borrow().values().map(Layout::size).sum()
    }

    /// What it was asked for so far.
    pub fn counts(&self) -> Counts {
        self.counts.get()
    }

    fn count(&self, more: impl Fn(&mut Counts)) {
        let mut counts = self.counts.get();
        more(&mut counts);
        self.counts.set(counts);
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        for (at, layout) in self.layouts.get_mut().drain() {
            // SAFETY: it was allocated with this layout, and the device is gone.
            unsafe { dealloc(at as *mut u8, layout) };
        }
    }
}

impl Driver for Emulated {
    type Graph = Vec<Launch>;

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn peer_id(&self) -> u64 {
        self.id
    }

    fn gpu_id(&self) -> Result<u64> {
        Ok(u64::from(std::process::id()) << 32 | self.id)
    }

    /// All are the memory of one process.
    fn reach(&self, _: u64) -> Result<bool> {
        Ok(true)
    }

    fn nccl(&self) -> Option<&Nccl> {
        self.nccl.as_ref()
    }

    fn cublaslt(&self) -> Option<&CublasLt> {
        self.cublaslt.as_ref()
    }

    fn allocate(&self, n_bytes: usize) -> Result<Address> {
        let failed = || DeviceError::Failed {
            op: "allocate",
            reason: format!("no {n_bytes} bytes of memory"),
        };
        let layout = Layout::from_size_align(n_bytes.max(1), ALIGNMENT).map_err(|_| failed())?;
        if self.n_taken().saturating_add(n_bytes) > self.most_bytes.get() {
            return Err(failed());
        }
        // SAFETY: the size is not zero.
        let at = unsafe { alloc(layout) };
        if at.is_null() {
            return Err(failed());
        }
        // Whatever nobody has written is not a number.
        // SAFETY: it was just allocated with this size.
        unsafe { at.write_bytes(0xff, layout.size()) };
        self.layouts.borrow_mut().insert(at as Address, layout);
        self.count(|counts| counts.n_allocations += 1);
        Ok(at as Address)
    }

    unsafe fn free(&self, at: Address) {
        if let Some(layout) = self.layouts.borrow_mut().remove(&at) {
            // SAFETY: it was allocated with this layout; the caller's promise.
            unsafe { dealloc(at as *mut u8, layout) };
        }
    }

    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<()> {
        self.count(|counts| counts.n_waits += 1);
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: Address, to: Address, n_bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, n_bytes) };
        Ok(())
    }

    unsafe fn clear(&self, at: Address, n_bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { (at as *mut u8).write_bytes(0, n_bytes) };
        Ok(())
    }

    unsafe fn launch(&self, launches: &[Launch]) -> Result<()> {
        let libraries = (self.cublaslt.as_ref(), self.nccl.as_ref());
        let first_seed = self.counts.get().n_launches;
        // SAFETY: the caller's promise.
        let done = unsafe { streams::run(launches, libraries, first_seed) };
        self.count(|counts| {
            counts.n_launches += done.n_launches;
            counts.n_library += done.n_library;
        });
        done.result
    }

    unsafe fn tensor_map(
        &self,
        at: Address,
        _dtype: DType,
        shape: [u64; 2],
        _box_shape: [u32; 2],
    ) -> Result<Option<[u8; TENSOR_MAP_BYTES]>> {
        // As `emulate.cpp` reads it, which knows one shape of boxes.
        let mut map = [0; TENSOR_MAP_BYTES];
        for (to, word) in map.chunks_exact_mut(8).zip([at, shape[0], shape[1]]) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(Some(map))
    }

    unsafe fn capture(&self, launches: &[Launch]) -> Result<Vec<Launch>> {
        self.count(|counts| counts.n_captures += 1);
        Ok(launches.to_vec())
    }

    unsafe fn replay(&self, graph: &Vec<Launch>) -> Result<()> {
        self.count(|counts| counts.n_replays += 1);
        // SAFETY: the caller's promise.
        unsafe { self.launch(graph) }
    }

    fn wait(&self) -> Result<()> {
        self.count(|counts| counts.n_waits += 1);
        Ok(())
    }
}
