//! Streams of an emulated device: each that has something to do is a thread.

use std::ffi::c_void;
use std::ptr;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use moeshard_emulation as emulation;
use moeshard_tensor::device::{DeviceError, Result};

use crate::driver::cublaslt::CublasLt;
use crate::driver::nccl::Nccl;
use crate::driver::{Launch, N_STREAMS};

/// What became of some launches.
pub(super) struct Done {
    /// Those that ran.
    pub(super) n_launches: u64,
    /// Those of them that a library did.
    pub(super) n_library: u64,
    pub(super) result: Result<()>,
}

/// Runs launches, each stream's in their order.
///
/// # Safety
/// As for [`Driver::launch`](crate::driver::Driver::launch).
pub(super) unsafe fn run(
    launches: &[Launch],
    (cublaslt, nccl): (Option<&CublasLt>, Option<&Nccl>),
    first_seed: u64,
) -> Done {
    let work = Work {
        launches,
        first_seed,
        libraries: Libraries { cublaslt, nccl },
        multiplying: Mutex::new(()),
        next_exchange: Mutex::new(0),
        has_exchanged: Condvar::new(),
    };
    // SAFETY: the caller's promise.
    let run = |stream| unsafe { work.run_stream(stream) };
    let is_used = |stream: &usize| launches.iter().any(|launch| launch.stream == *stream);
    thread::scope(|scope| {
        let others: Vec<_> = (1..N_STREAMS)
            .filter(is_used)
            .map(|stream| scope.spawn(move || run(stream)))
            .collect();
        others.into_iter().fold(run(0), |done, other| {
            let other = other.join().unwrap_or_else(|_| Done {
                n_launches: 0,
                n_library: 0,
                result: Err(failed("launch", "a stream has panicked".to_owned())),
            });
            Done {
                n_launches: done.n_launches + other.n_launches,
                n_library: done.n_library + other.n_library,
                result: done.result.and(other.result),
            }
        })
    })
}

/// What streams share.
struct Work<'a> {
    launches: &'a [Launch],
    /// From which the order of a kernel's threads is drawn: another for each launch.
    first_seed: u64,
    libraries: Libraries<'a>,
    /// One product at a time: the library is told of its bias beforehand.
    multiplying: Mutex<()>,
    /// Of the list, which exchange of a library may begin.
    next_exchange: Mutex<usize>,
    has_exchanged: Condvar,
}

struct Libraries<'a> {
    cublaslt: Option<&'a CublasLt>,
    nccl: Option<&'a Nccl>,
}

// SAFETY: products run one at a time, behind a lock; exchanges only read what the library holds, and begin one after
// the other.
unsafe impl Sync for Libraries<'_> {}

impl Work<'_> {
    /// # Safety
    /// As for [`run`].
    unsafe fn run_stream(&self, stream: usize) -> Done {
        let mut done = Done {
            n_launches: 0,
            n_library: 0,
            result: Ok(()),
        };
        let mine = |(_, launch): &(usize, &Launch)| launch.stream == stream;
        for (i, launch) in self.launches.iter().enumerate().filter(mine) {
            done.n_launches += 1;
            // SAFETY: the caller's promise.
            match unsafe { self.run_one(i, launch) } {
                Ok(is_of_library) => done.n_library += u64::from(is_of_library),
                Err(error) => {
                    // The other stream must not wait for what will never be.
                    self.pass_on(usize::MAX);
                    done.result = Err(error);
                    break;
                }
            }
        }
        done
    }

    /// Whether a library did it.
    ///
    /// # Safety
    /// As for [`run`].
    unsafe fn run_one(&self, i: usize, launch: &Launch) -> Result<bool> {
        if let Some(library) = self.libraries.cublaslt {
            let _alone = (self.multiplying.lock()).unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the caller's promise.
            if let Some(done) = unsafe { library.launch(launch, ptr::null_mut()) } {
                return done.map(|()| true);
            }
        }
        if let Some(library) = self.libraries.nccl
            && Nccl::is_exchange(launch)
        {
            let exchanges = |launches: &[Launch]| {
                let exchanges = launches.iter().filter(|launch| Nccl::is_exchange(launch));
                exchanges.count()
            };
            let turn = exchanges(&self.launches[..i]);
            self.wait_for_turn(turn);
            // SAFETY: the caller's promise.
            if let Some(done) = unsafe { library.launch(launch, ptr::null_mut()) } {
                self.pass_on(turn + 1);
                return done.map(|()| true);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { run_kernel(launch, self.first_seed + i as u64) }.map(|()| false)
    }

    fn wait_for_turn(&self, turn: usize) {
        let next = (self.next_exchange.lock()).unwrap_or_else(PoisonError::into_inner);
        drop(self.has_exchanged.wait_while(next, |next| *next < turn));
    }

    fn pass_on(&self, turn: usize) {
        let mut next = (self.next_exchange.lock()).unwrap_or_else(PoisonError::into_inner);
        *next = turn.max(*next);
        self.has_exchanged.notify_all();
    }
}

/// # Safety
/// As for [`run`].
unsafe fn run_kernel(launch: &Launch, seed: u64) -> Result<()> {
    let [x, y] = launch.grid;
    let shape = emulation::Launch {
        grid: [x, y, 1],
        block: [launch.threads, 1, 1],
        shared_bytes: launch.shared_bytes as usize,
        seed,
    };
    let mut args = launch.args;
    let mut args: Vec<*mut c_void> = args[..launch.n_args]
        .iter_mut()
        .map(|arg| ptr::from_mut(arg).cast())
        .collect();
    // SAFETY: the caller's promise; numbers of four bytes are the lower half of little-endian words.
    let result = unsafe { emulation::launch(launch.kernel, &shape, &mut args) };
    result.map_err(|error| failed(launch.kernel, error.to_string()))
}

fn failed(op: &'static str, reason: String) -> DeviceError {
    DeviceError::Failed { op, reason }
}
