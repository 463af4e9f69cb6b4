//! The driver of an NVIDIA GPU, found when the program runs.
//!
//! One thread makes, uses and drops it: the context is current there.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::{Duration, Instant};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use moeshard_kernels::IMAGES;
use moeshard_tensor::device::{DeviceError, Result};
use moeshard_tensor::dtype::DType;

use super::cublaslt::{CublasLt, WORKSPACE_BYTES};
use super::found::{properties, reason};
use super::nccl::Nccl;
use super::tensor_map;
use super::{Address, Driver, HOPPER, Launch, N_STREAMS, Properties, TENSOR_MAP_BYTES};

pub use super::found::{check_kernels, count, list};

/// Bytes of each of two pinned buffers: one is filled while the other is copied.
const STAGING_BYTES: usize = 4 << 20;

/// So long a stream is waited for without rest.
const SPIN: Duration = Duration::from_micros(200);

/// An NVIDIA GPU.
pub struct Gpu {
    properties: Properties,
    device: sys::CUdevice,
    /// In which everything is done.
    stream: sys::CUstream,
    /// In which launches may be done beside it; they begin and end together with it. None before it is used: the
    /// queues of a GPU are few.
    second: OnceCell<sys::CUstream>,
    /// When another stream may begin, and when it has ended.
    turns: [sys::CUevent; 2],
    modules: Vec<sys::CUmodule>,
    functions: RefCell<HashMap<&'static str, Function>>,
    staging: RefCell<Staging>,
    cublaslt: Option<CublasLt>,
    nccl: Option<Nccl>,
    /// Of the library; 0 without one.
    workspace: Address,
}

/// A kernel that is loaded.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that it has leave to use: with its static memory it may be more than the
    /// 48 KiB that need none.
    shared_bytes: u32,
}

/// Memory of the host that the GPU copies from and to.
struct Staging {
    buffers: [*mut u8; 2],
    /// When each was last read by the GPU.
    events: [sys::CUevent; 2],
    next: usize,
}

/// Launches that were captured.
pub struct Graph(sys::CUgraphExec);

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it was made by `capture` and is not used any more.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

impl Gpu {
    /// The GPU of this number. It belongs to the calling thread.
    ///
    /// # Errors
    /// [`DeviceError::SetUp`] if there is no driver, no such GPU, or no kernel for it.
    pub fn open(idx: usize) -> Result<Self> {
        check_kernels().map_err(DeviceError::SetUp)?;
        let n_gpus = count().map_err(DeviceError::SetUp)?;
        if idx >= n_gpus {
            return Err(DeviceError::SetUp(format!(
                "GPU {idx} is not there: the driver finds {n_gpus}"
            )));
        }
        let set_up = |e: DriverError| DeviceError::SetUp(format!("GPU {idx}: {}", reason(e)));
        let device = result::device::get(idx as i32).map_err(set_up)?;
        // SAFETY: the device exists; the context is released when this is dropped.
        unsafe {
            let context = result::primary_ctx::retain(device).map_err(set_up)?;
            result::ctx::set_current(context).map_err(set_up)?;
        }
        let properties = properties(device).map_err(set_up)?;
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let (modules, functions) = load_kernels(&properties)?;
        Ok(Self {
            properties,
            device,
            stream: stream().map_err(set_up)?,
            second: OnceCell::new(),
            turns: [event().map_err(set_up)?, event().map_err(set_up)?],
            modules,
            functions: RefCell::new(functions),
            staging: RefCell::new(Staging::new().map_err(set_up)?),
            cublaslt: None,
            nccl: None,
            workspace: 0,
        })
    }

    /// Has products of dense layers computed by the cuBLASLt of this file, where it is faster.
    ///
    /// # Errors
    /// [`DeviceError::SetUp`] if it does not load, [`DeviceError::Failed`] if there is no memory for it.
    pub fn use_cublaslt(&mut self, path: &Path) -> Result<()> {
        if self.workspace == 0 {
            self.workspace = self.allocate(N_STREAMS * WORKSPACE_BYTES)?;
        }
        self.cublaslt = Some(CublasLt::open(path, self.workspace)?);
        Ok(())
    }

    /// Has ranks exchange by the NCCL of this file, where they do not reach each other's memory.
    ///
    /// # Errors
    /// [`DeviceError::SetUp`] if it does not load.
    pub fn use_nccl(&mut self, path: &Path) -> Result<()> {
        self.nccl = Some(Nccl::open(path)?);
        Ok(())
    }

    /// A kernel's handle, with leave to use as much shared memory.
    fn function(&self, launch: &Launch) -> Result<sys::CUfunction> {
        let mut functions = self.functions.borrow_mut();
        let function = functions
            .get_mut(launch.kernel)
            .ok_or_else(|| DeviceError::Failed {
                op: launch.kernel,
                reason: "there is no such kernel".to_owned(),
            })?;
        if launch.shared_bytes > function.shared_bytes {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the handle is of a module that is loaded.
            let result = unsafe {
                result::function::set_function_attribute(
                    function.handle,
                    attribute,
                    launch.shared_bytes as i32,
                )
            };
            result.map_err(|e| failed(launch.kernel, e))?;
            function.shared_bytes = launch.shared_bytes;
        }
        Ok(function.handle)
    }

    fn synchronize(&self, op: &'static str) -> Result<()> {
        if let Some(waiting) = self.waiting() {
            // SAFETY: the stream lives as long as this.
            return self
                .wait_for_others(op, waiting, || unsafe { sys::cuStreamQuery(self.stream) });
        }
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|e| failed(op, e))
    }
}

impl Gpu {
    /// Waits until the GPU is done with something, whose kernels may wait for ranks that are gone.
    fn wait_for_others(
        &self,
        op: &'static str,
        (nccl, deadline): (&Nccl, Duration),
        asked: impl Fn() -> sys::CUresult,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            match asked() {
                sys::CUresult::CUDA_ERROR_NOT_READY => {}
                done => return done.result().map_err(|e| failed(op, e)),
            }
            let waited = start.elapsed();
            let looked = nccl.look();
            if looked.is_err() || waited > deadline {
                nccl.abort();
                looked?;
                return Err(DeviceError::Failed {
                    op,
                    reason: format!("other ranks did not come within {waited:?}"),
                });
            }
            // Short waits are the usual ones.
            match waited < SPIN {
                true => std::hint::spin_loop(),
                false => std::thread::sleep(SPIN),
            }
        }
    }

    /// The library that kernels may wait in, and for how long.
    fn waiting(&self) -> Option<(&Nccl, Duration)> {
        let nccl = self.nccl.as_ref()?;
        Some((nccl, nccl.deadline()?))
    }

    /// Waits until the GPU has read a pinned buffer.
    fn wait_for_event(&self, event: sys::CUevent) -> Result<()> {
        let Some(waiting) = self.waiting() else {
            // SAFETY: the event lives as long as this.
            let waited = unsafe { result::event::synchronize(event) };
            return waited.map_err(|e| failed("upload", e));
        };
        // SAFETY: the event lives as long as this.
        let query = || unsafe { sys::cuEventQuery(event) };
        self.wait_for_others("upload", waiting, query)
    }

    /// The stream of this number.
    fn stream(&self, idx: usize) -> Result<sys::CUstream> {
        if idx == 0 {
            return Ok(self.stream);
        }
        if let Some(&second) = self.second.get() {
            return Ok(second);
        }
        let second = stream().map_err(|e| failed("launch", e))?;
        Ok(*self.second.get_or_init(|| second))
    }

    /// Has one stream wait for all that was asked for in the other.
    fn hand_over(&self, from: usize, to: usize) -> Result<()> {
        let (event, flags) = (
            self.turns[from],
            sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT,
        );
        let (from, to) = (self.stream(from)?, self.stream(to)?);
        // SAFETY: streams and events live as long as this.
        unsafe {
            result::event::record(event, from)
                .and_then(|()| result::stream::wait_event(to, event, flags))
        }
        .map_err(|e| failed("launch", e))
    }

    /// # Safety
    /// As for [`Driver::launch`].
    unsafe fn launch_one(&self, launch: &Launch) -> Result<()> {
        let stream = self.stream(launch.stream)?;
        if let Some(library) = &self.cublaslt
            // SAFETY: the caller's promise.
            && let Some(done) = unsafe { library.launch(launch, stream.cast()) }
        {
            return done;
        }
        if let Some(library) = &self.nccl
            // SAFETY: the caller's promise.
            && let Some(done) = unsafe { library.launch(launch, stream.cast()) }
        {
            return done;
        }
        let function = self.function(launch)?;
        let mut words = launch.args;
        let mut args = words
            .each_mut()
            .map(|word| std::ptr::from_mut(word).cast::<c_void>());
        let [x, y] = launch.grid;
        // SAFETY: the caller's promise; numbers of four bytes are the lower half of little-endian words.
        let result = unsafe {
            result::launch_kernel(
                function,
                (x, y, 1),
                (launch.threads, 1, 1),
                launch.shared_bytes,
                stream,
                &mut args[..launch.n_args],
            )
        };
        result.map_err(|e| failed(launch.kernel, e))
    }
}

fn stream() -> std::result::Result<sys::CUstream, DriverError> {
    result::stream::create(result::stream::StreamKind::NonBlocking)
}

type Loaded = (Vec<sys::CUmodule>, HashMap<&'static str, Function>);

fn load_kernels(properties: &Properties) -> Result<Loaded> {
    let Properties {
        name, capability, ..
    } = properties;
    let set_up = |e: DriverError| {
        let (major, minor) = capability;
        let reason = reason(e);
        DeviceError::SetUp(format!(
            "the kernels do not load on {name} (compute capability {major}.{minor}; 8.0 and above are supported): \
             {reason}"
        ))
    };
    let mut modules = Vec::new();
    let mut functions = HashMap::new();
    for image in IMAGES {
        // The driver reads words of eight bytes.
        let mut aligned = vec![0_u64; image.bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut aligned)[..image.bytes.len()].copy_from_slice(image.bytes);
        // SAFETY: the image is what the compiler has made.
        let module =
            unsafe { result::module::load_data(aligned.as_ptr().cast()) }.map_err(set_up)?;
        modules.push(module);
        for &kernel in image.kernels {
            let c_name = CString::new(kernel).map_err(|e| DeviceError::SetUp(e.to_string()))?;
            // SAFETY: the module is loaded.
            let handle = unsafe { result::module::get_function(module, c_name) }.map_err(set_up)?;
            let function = Function {
                handle,
                shared_bytes: 0,
            };
            functions.insert(kernel, function);
        }
    }
    Ok((modules, functions))
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let staging = self.staging.get_mut();
        // SAFETY: nothing is used after this; errors of a driver that goes down have no one to go to.
        unsafe {
            self.nccl = None;
            let _ = result::stream::synchronize(self.stream);
            self.cublaslt = None;
            let _ = result::free_sync(self.workspace);
            for (buffer, event) in staging.buffers.iter().zip(staging.events) {
                let _ = result::free_host(buffer.cast());
                let _ = result::event::destroy(event);
            }
            for module in self.modules.drain(..) {
                let _ = result::module::unload(module);
            }
            for event in self.turns {
                let _ = result::event::destroy(event);
            }
            for stream in self.second.take().into_iter().chain([self.stream]) {
                let _ = result::stream::destroy(stream);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

impl Staging {
    fn new() -> std::result::Result<Self, DriverError> {
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        // Not write-combined: results are read there.
        // SAFETY: it is written before it is read.
        let buffer = || unsafe { result::malloc_host(STAGING_BYTES, 0) }.map(<*mut c_void>::cast);
        Ok(Self {
            buffers: [buffer()?, buffer()?],
            events: [event()?, event()?],
            next: 0,
        })
    }
}

impl Driver for Gpu {
    type Graph = Graph;

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn peer_id(&self) -> u64 {
        self.device as u64
    }

    fn gpu_id(&self) -> Result<u64> {
        let id = result::device::get_uuid(self.device).map_err(|e| failed("gpu_id", e))?;
        let mut hasher = DefaultHasher::new();
        id.bytes.hash(&mut hasher);
        Ok(hasher.finish())
    }

    fn reach(&self, peer_id: u64) -> Result<bool> {
        let peer = peer_id as sys::CUdevice;
        if peer == self.device {
            return Ok(true);
        }
        let mut can_reach = 0;
        // SAFETY: both devices exist; the answer is written there.
        let asked =
            unsafe { sys::cuDeviceCanAccessPeer(&raw mut can_reach, self.device, peer) }.result();
        if asked.is_err() || can_reach == 0 {
            return Ok(false);
        }
        // SAFETY: the other rank holds its context for as long as this one uses its memory.
        let enabled = unsafe {
            let Ok(context) = result::primary_ctx::retain(peer) else {
                return Ok(false);
            };
            let enabled = sys::cuCtxEnablePeerAccess(context, 0);
            let _ = result::primary_ctx::release(peer);
            enabled
        };
        // Whatever the reason of a refusal, there are other ways.
        let is_enabled = [
            sys::CUresult::CUDA_SUCCESS,
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED,
        ];
        Ok(is_enabled.contains(&enabled))
    }

    fn nccl(&self) -> Option<&Nccl> {
        self.nccl.as_ref()
    }

    fn cublaslt(&self) -> Option<&CublasLt> {
        self.cublaslt.as_ref()
    }

    fn allocate(&self, n_bytes: usize) -> Result<Address> {
        // SAFETY: whoever takes it writes before reading.
        unsafe { result::malloc_sync(n_bytes.max(1)) }.map_err(|e| DeviceError::Failed {
            op: "allocate",
            reason: match result::mem_get_info() {
                Ok((free, total)) => {
                    format!(
                        "{n_bytes} bytes wanted, {free} of {total} are free: {}",
                        reason(e)
                    )
                }
                Err(_) => format!("{n_bytes} bytes wanted: {}", reason(e)),
            },
        })
    }

    unsafe fn free(&self, at: Address) {
        // SAFETY: the caller's promise, once everything asked for is done. Errors come up again with whatever
        // is asked for next.
        unsafe {
            let _ = self.synchronize("free");
            let _ = result::free_sync(at);
        }
    }

    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<()> {
        let failed = |e| failed("upload", e);
        let mut staging = self.staging.borrow_mut();
        for (i, chunk) in from.chunks(STAGING_BYTES).enumerate() {
            let (buffer, event) = (staging.buffers[staging.next], staging.events[staging.next]);
            self.wait_for_event(event)?;
            // SAFETY: the buffer is as large, and the GPU has read what was there.
            unsafe {
                std::ptr::copy_nonoverlapping(chunk.as_ptr(), buffer, chunk.len());
                let pinned = std::slice::from_raw_parts(buffer, chunk.len());
                let to = to + (i * STAGING_BYTES) as u64;
                result::memcpy_htod_async(to, pinned, self.stream).map_err(failed)?;
                result::event::record(event, self.stream).map_err(failed)?;
            }
            staging.next = 1 - staging.next;
        }
        Ok(())
    }

    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<()> {
        let op = "download";
        let staging = self.staging.borrow_mut();
        let buffer = staging.buffers[staging.next];
        if to.is_empty() {
            return self.synchronize(op);
        }
        for (i, chunk) in to.chunks_mut(STAGING_BYTES).enumerate() {
            // SAFETY: the buffer is as large; the stream has read what uploads left there before it copies.
            unsafe {
                let pinned = std::slice::from_raw_parts_mut(buffer, chunk.len());
                let from = from + (i * STAGING_BYTES) as u64;
                result::memcpy_dtoh_async(pinned, from, self.stream).map_err(|e| failed(op, e))?;
                self.synchronize(op)?;
                chunk.copy_from_slice(pinned);
            }
        }
        Ok(())
    }

    unsafe fn copy(&self, from: Address, to: Address, n_bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_dtod_async(to, from, n_bytes, self.stream) }
            .map_err(|e| failed("copy", e))
    }

    unsafe fn clear(&self, at: Address, n_bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(at, 0, n_bytes, self.stream) }
            .map_err(|e| failed("clear", e))
    }

    unsafe fn launch(&self, launches: &[Launch]) -> Result<()> {
        let takes_turns = launches.iter().any(|launch| launch.stream != 0);
        if takes_turns {
            self.hand_over(0, 1)?;
        }
        // SAFETY: the caller's promise.
        let launched = (launches.iter()).try_for_each(|launch| unsafe { self.launch_one(launch) });
        if takes_turns {
            // In any case: a stream that is captured must end where it has begun.
            let ended = self.hand_over(1, 0);
            launched?;
            return ended;
        }
        launched
    }

    unsafe fn tensor_map(
        &self,
        at: Address,
        dtype: DType,
        shape: [u64; 2],
        box_shape: [u32; 2],
    ) -> Result<Option<[u8; TENSOR_MAP_BYTES]>> {
        if self.properties.capability != HOPPER || !tensor_map::is_known() {
            return Ok(None);
        }
        let dtype = match dtype {
            DType::BF16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::F32 => return Ok(None),
        };
        tensor_map::encode(at, dtype, shape, box_shape)
            .map(Some)
            .map_err(|e| failed("tensor_map", e))
    }

    unsafe fn capture(&self, launches: &[Launch]) -> Result<Graph> {
        let failed = |e| failed("capture", e);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as this; the caller's promise for the launches.
        unsafe {
            result::stream::begin_capture(self.stream, mode).map_err(failed)?;
            let launched = self.launch(launches);
            // Ended in any case: a stream that captures can do nothing else.
            let graph = result::stream::end_capture(self.stream);
            // What a launch said first: it may be why the capture did not end well.
            launched?;
            let graph = graph.map_err(failed)?;
            let exec =
                result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)).map_err(failed);
            let _ = result::graph::destroy(graph);
            exec.map(Graph)
        }
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { result::graph::launch(graph.0, self.stream) }.map_err(|e| failed("replay", e))
    }

    fn wait(&self) -> Result<()> {
        self.synchronize("wait")
    }
}

fn failed(op: &'static str, e: DriverError) -> DeviceError {
    DeviceError::Failed {
        op,
        reason: reason(e),
    }
}
