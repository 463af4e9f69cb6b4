//! NCCL, where it is found: rows from every rank to every rank, between GPUs and machines.
//!
//! An exchange is a [`Launch`] of [`ALL_GATHER`] or [`ALL_TO_ALL`] with the arguments `from`, `to` and the number of
//! bytes of each rank's rows, the same for all: kernels before and after know which of them are there. Numbers are
//! summed by kernels of ours, in f32 and in the order of ranks.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::null_mut;
use std::time::Duration;

use moeshard_tensor::collective::CollectiveError;
use moeshard_tensor::device::{DeviceError, Result};

use super::Launch;
use super::library::{Loaded, functions, set_up};

/// `to[p] = from` of rank p.
pub const ALL_GATHER: &str = "nccl_all_gather";
/// `to[p]` = what rank p has for this one, `from[p]` = what this one has for rank p.
pub const ALL_TO_ALL: &str = "nccl_all_to_all";

/// For people.
const WHAT: &str = "NCCL";

/// `ncclUint8`
const BYTE: c_int = 1;
/// `ncclInProgress`
const IN_PROGRESS: c_int = 7;

type Handle = *mut c_void;
type Status = c_int;

/// By which the ranks of a world find each other: `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub struct WorldId(pub [u64; 16]);

functions! {
    new_id: "ncclGetUniqueId" (*mut WorldId) -> Status;
    join: "ncclCommInitRank" (*mut Handle, c_int, WorldId, c_int) -> Status;
    abort: "ncclCommAbort" (Handle) -> Status;
    async_error: "ncclCommGetAsyncError" (Handle, *mut Status) -> Status;
    describe: "ncclGetErrorString" (Status) -> *const c_char;
    begin_group: "ncclGroupStart" () -> Status;
    end_group: "ncclGroupEnd" () -> Status;
    send: "ncclSend" (*const c_void, usize, c_int, c_int, Handle, *mut c_void) -> Status;
    receive: "ncclRecv" (*mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> Status;
    all_gather: "ncclAllGather" (*const c_void, *mut c_void, usize, c_int, Handle, *mut c_void) -> Status;
}

/// The library, and a rank's end of a world once it has joined one.
pub struct Nccl {
    functions: Functions,
    world: Cell<Handle>,
    rank: Cell<usize>,
    n_ranks: Cell<usize>,
    /// The longest that is waited for other ranks.
    deadline: Cell<Duration>,
    /// Keeps the functions where they are.
    _library: Option<Loaded>,
}

impl Nccl {
    /// Loads a file.
    ///
    /// # Errors
    /// [`DeviceError::SetUp`] if it is no such library.
    pub fn open(path: &Path) -> Result<Self> {
        let library = Loaded::open(WHAT, path)?;
        // SAFETY: the file is called NCCL's.
        let functions = unsafe { Functions::load(|name| library.find(name)) };
        let functions = functions.map_err(|reason| set_up(WHAT, path, reason))?;
        Ok(Self {
            functions,
            world: Cell::new(null_mut()),
            rank: Cell::default(),
            n_ranks: Cell::default(),
            deadline: Cell::default(),
            _library: Some(library),
        })
    }

    /// The library that stands in for it on the CPU, for ranks that are threads.
    ///
    /// # Errors
    /// [`DeviceError::SetUp`] if it lacks a function.
    #[cfg(feature = "emulated")]
    pub fn emulated() -> Result<Self> {
        // SAFETY: they have the signatures of NCCL's.
        let functions = unsafe { Functions::load(moeshard_emulation::nccl_function) };
        Ok(Self {
            functions: functions.map_err(DeviceError::SetUp)?,
            world: Cell::new(null_mut()),
            rank: Cell::default(),
            n_ranks: Cell::default(),
            deadline: Cell::default(),
            _library: None,
        })
    }

    /// An id for a new world, to be handed to its ranks.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], in the library's words.
    pub fn new_id(&self) -> Result<WorldId> {
        let mut id = WorldId([0; 16]);
        // SAFETY: the id is written there.
        let status = unsafe { (self.functions.new_id)(&raw mut id) };
        self.check("nccl", status)?;
        Ok(id)
    }

    /// Joins a world, once all its ranks do; from then on exchanges take `deadline` at most. The device's context
    /// is current.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], in the library's words.
    pub fn join(
        &self,
        id: WorldId,
        (rank, n_ranks): (usize, usize),
        deadline: Duration,
    ) -> Result<()> {
        let mut world = null_mut();
        // SAFETY: the handle is written there.
        let status =
            unsafe { (self.functions.join)(&raw mut world, n_ranks as c_int, id, rank as c_int) };
        self.check("nccl", status)?;
        self.world.set(world);
        self.rank.set(rank);
        self.n_ranks.set(n_ranks);
        self.deadline.set(deadline);
        Ok(())
    }

    /// Whether a launch is one of the library's.
    pub fn is_exchange(launch: &Launch) -> bool {
        [ALL_GATHER, ALL_TO_ALL].contains(&launch.kernel)
    }

    /// Has rows exchanged on `stream`, if the launch says so.
    ///
    /// # Safety
    /// As for [`Driver::launch`](super::Driver::launch): `from` and `to` are as large as all ranks' rows, `from`
    /// of [`ALL_GATHER`] as one rank's.
    pub unsafe fn launch(&self, launch: &Launch, stream: *mut c_void) -> Option<Result<()>> {
        if !Self::is_exchange(launch) {
            return None;
        }
        let [from, to, n_bytes, ..] = launch.args;
        let (f, op) = (&self.functions, launch.kernel);
        if self.world.get().is_null() {
            return Some(Err(failed(op, "the world was not joined".to_owned())));
        }
        let (from, to, n) = (from as *const u8, to as *mut u8, n_bytes as usize);
        // SAFETY: the caller's promise; the world is joined.
        let status = unsafe {
            match op {
                ALL_GATHER => {
                    (f.all_gather)(from.cast(), to.cast(), n, BYTE, self.world.get(), stream)
                }
                _ => self.each_to_each(from, to, n, stream),
            }
        };
        Some(self.check(op, status))
    }

    /// # Safety
    /// As for [`Self::launch`].
    unsafe fn each_to_each(
        &self,
        from: *const u8,
        to: *mut u8,
        n: usize,
        stream: *mut c_void,
    ) -> Status {
        let f = &self.functions;
        // SAFETY: the caller's promise.
        unsafe {
            let mut status = (f.begin_group)();
            for peer in 0..self.n_ranks.get() {
                let (rank, at) = (peer as c_int, peer * n);
                let from = from.wrapping_add(at).cast();
                let to = to.wrapping_add(at).cast();
                for next in [
                    (f.send)(from, n, BYTE, rank, self.world.get(), stream),
                    (f.receive)(to, n, BYTE, rank, self.world.get(), stream),
                ] {
                    status = if status == 0 { next } else { status };
                }
            }
            // Ended in any case.
            let ended = (f.end_group)();
            if status == 0 { ended } else { status }
        }
    }

    /// That nothing has gone wrong since: another rank that is gone, say.
    ///
    /// # Errors
    /// [`CollectiveError::Poisoned`]: whoever failed knows why; [`DeviceError::Failed`] if the library does not say.
    pub fn look(&self) -> Result<()> {
        if self.world.get().is_null() {
            return Ok(());
        }
        let mut error = 0;
        // SAFETY: the world is joined; the error is written there.
        let status = unsafe { (self.functions.async_error)(self.world.get(), &raw mut error) };
        self.check("nccl", status)?;
        match error {
            0 | IN_PROGRESS => Ok(()),
            _ => Err(CollectiveError::Poisoned {
                op: "nccl",
                rank: self.rank.get(),
                world_size: self.n_ranks.get(),
            }
            .into()),
        }
    }

    /// Gives up whatever is under way: kernels that wait for other ranks end.
    pub fn abort(&self) {
        let world = self.world.replace(null_mut());
        if !world.is_null() {
            // SAFETY: the world was joined and is not used any more.
            unsafe { (self.functions.abort)(world) };
        }
    }

    /// The longest that other ranks are waited for; `None` before a world is joined.
    pub fn deadline(&self) -> Option<Duration> {
        (!self.world.get().is_null()).then(|| self.deadline.get())
    }

    fn check(&self, op: &'static str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the library's text for a status is constant.
        let text = unsafe {
            let text = (self.functions.describe)(status);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        Err(failed(
            op,
            text.unwrap_or_else(|| format!("status {status}")),
        ))
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // Not destroyed in order, which would wait for ranks that may be gone.
        self.abort();
    }
}

fn failed(op: &'static str, reason: String) -> DeviceError {
    DeviceError::Failed { op, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_library_is_named() {
        let error = Nccl::open(Path::new("/proc/version")).err();
        let error = error.expect("no library").to_string();
        assert!(error.contains("NCCL, /proc/version: "), "{error}");
    }
}
