//! Ranks of one process that read each other's memory: on one GPU, or on GPUs that reach each other. The kernels are
//! in `kernels/cuda/exchange.cu`.
//!
//! Nothing is waited for on the host: meeting the others is a kernel like any other, and part of a graph.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moeshard_tensor::collective::CollectiveError;
use moeshard_tensor::device::Result;
use moeshard_tensor::dtype::DType;

use super::{ALIGNMENT, Part, Source, WORD, at, largest};
use crate::device::CudaDevice;
use crate::driver::{Address, Driver, N_STREAMS};
use crate::memory::{Heap, Piece};
use crate::operations::{named, words};
use crate::pass::Word;
use crate::tensor::{Tensor, padded};
use crate::weights::Buffer;

/// Ranks that a warp can wait for.
const MOST_RANKS: usize = 32;
/// Bytes of rows up to which one block does everything: what it cannot spread over the GPU it saves in launches. Not
/// measured yet.
const ONCE_BYTES: usize = 64 << 10;
const ONCE_THREADS: u32 = 1024;
/// Threads of a block that meets the others.
const WARP: u32 = 32;
/// Streams of ranks on one GPU that have a queue each: one that waits at the head of a shared queue would keep back
/// the one it waits for.
const MOST_ON_ONE_GPU: usize = 8;
/// How long a rank that leaves waits for those that may still read its memory.
const LEAVING: Duration = Duration::from_secs(1);
/// In the second word of a rank's state: whom it waited for has left.
const HAS_LEFT: u64 = 1 << 32;
const OP: &str = "meet";

/// The ranks of one process, which must not give memory back while others read it.
#[derive(Debug)]
pub struct PeerWorld {
    n_ranks: usize,
    deadline: Duration,
    n_here: Mutex<usize>,
    leaving: Condvar,
}

/// A rank that may read the others' memory.
struct Seat(Arc<PeerWorld>);

impl PeerWorld {
    /// A world of so many ranks; `deadline` is the longest that one waits for the others at a time.
    #[must_use]
    pub fn new(n_ranks: usize, deadline: Duration) -> Arc<Self> {
        Arc::new(Self {
            n_ranks,
            deadline,
            n_here: Mutex::default(),
            leaving: Condvar::new(),
        })
    }

    fn n_here(&self) -> MutexGuard<'_, usize> {
        self.n_here.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody reads any more; whether that was so in time.
    fn wait_until_empty(&self) -> bool {
        let until = Instant::now() + LEAVING;
        let mut n_here = self.n_here();
        while *n_here > 0 {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return false;
            };
            let waited = self.leaving.wait_timeout(n_here, left);
            n_here = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Seat {
    fn take(world: &Arc<PeerWorld>) -> Self {
        *world.n_here() += 1;
        Self(Arc::clone(world))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        *self.0.n_here() -= 1;
        self.0.leaving.notify_all();
    }
}

/// A rank's end of it.
pub(crate) struct Peers<R: Driver> {
    heap: Rc<Heap<R>>,
    world: Arc<PeerWorld>,
    seat: Option<Seat>,
    rank: usize,
    /// Each stream meets those of the same number.
    streams: Vec<Stream<R>>,
}

/// How a stream meets those of other ranks.
struct Stream<R: Driver> {
    /// u64 `[2]`
    state: Buffer<R>,
    /// u64 `[2, world]`, which the others write to.
    _inbox: Buffer<R>,
    /// u64 `[world]`: where each rank's is.
    inboxes: Buffer<R>,
    addresses: Vec<Address>,
    buffers: RefCell<Buffers<R>>,
    /// Whether the others were to be met since the state was looked at.
    has_met: Cell<bool>,
}

/// What ranks publish in.
struct Buffers<R: Driver> {
    /// `[2, half_bytes]`; none as long as nothing was published.
    own: Option<Buffer<R>>,
    /// u64 `[world]`: where each rank's is.
    all: Buffer<R>,
    half_bytes: usize,
}

impl<R: Driver> Peers<R> {
    /// This rank's end, if every rank reaches every other's memory.
    pub(super) fn of(device: &CudaDevice<R>, world: &Arc<PeerWorld>) -> Result<Option<Self>> {
        let (heap, collective) = (&device.heap, &device.collective);
        let n_ranks = collective.world_size();
        if n_ranks == 1 || n_ranks != world.n_ranks || n_ranks > MOST_RANKS {
            return Ok(None);
        }
        let ids = device.gather_words(device.driver.peer_id())?;
        let on_one = |id| ids.iter().filter(|&other| other == id).count();
        // The same everywhere: streams of one number meet each other.
        let most = ids.iter().map(on_one).max().unwrap_or(1);
        let n_streams = (MOST_ON_ONE_GPU / most).min(N_STREAMS);
        if n_streams == 0 {
            return Ok(None);
        }
        let mut reaches = true;
        for id in ids {
            reaches = reaches && device.driver.reach(id)?;
        }
        if device.gather_words(reaches.into())?.contains(&0) {
            return Ok(None);
        }
        // Before anybody knows where the others' memory is.
        let seat = Seat::take(world);
        let streams: Result<_> = (0..n_streams).map(|_| Stream::of(device)).collect();
        Ok(Some(Self {
            heap: Rc::clone(heap),
            world: Arc::clone(world),
            seat: Some(seat),
            rank: collective.rank(),
            streams: streams?,
        }))
    }

    /// Streams that may wait for other ranks at the same time.
    pub(super) fn n_streams(&self) -> usize {
        self.streams.len()
    }

    /// That in which operations are done now.
    fn stream(&self, device: &CudaDevice<R>) -> &Stream<R> {
        &self.streams[device.stream()]
    }

    /// Makes room for what a rank publishes at a time. Every rank calls it with the same number.
    fn make_room(&self, device: &CudaDevice<R>, n_bytes: usize) -> Result<()> {
        let mut buffers = self.stream(device).buffers.borrow_mut();
        if n_bytes <= buffers.half_bytes {
            return Ok(());
        }
        // What was noted names the old places, and others may still read them.
        device.run()?;
        device.driver.wait()?;
        let half_bytes = n_bytes.next_power_of_two();
        let own = Buffer::new(&self.heap, 2 * half_bytes)?;
        // Nobody reads old places any more once all are here.
        let all = device.gather_words(own.at())?;
        *buffers = Buffers {
            own: Some(own),
            all: Buffer::of(&self.heap, bytemuck::cast_slice(&all))?,
            half_bytes,
        };
        Ok(())
    }

    /// This rank's parts to whoever reads them.
    pub(super) fn give(
        &self,
        device: &CudaDevice<R>,
        parts: &[Part<'_>],
        slot: usize,
    ) -> Result<Source> {
        self.make_room(device, slot)?;
        let stream = self.stream(device);
        let buffers = stream.buffers.borrow();
        let (half_bytes, state) = (buffers.half_bytes, Word::address(stream.state.at()));
        for part in parts {
            device.publish(part, at(buffers.own.as_ref()), half_bytes, state);
        }
        stream.has_met.set(true);
        device.launch_with(
            "exchange_meet",
            [1, 1],
            WARP,
            0,
            &words![
                Word::address(stream.inboxes.at()),
                state,
                self.rank,
                self.world.n_ranks,
                Word::address(self.patience()),
            ],
        );
        Ok(Source {
            buffers: Word::address(buffers.all.at()),
            stride: 0,
            half_bytes,
            state,
        })
    }

    /// Gathers rows of `row_bytes` bytes, and others of the same size behind them if there are any, in one launch.
    /// `false` if they are too many for that.
    pub(super) fn gather_once(
        &self,
        device: &CudaDevice<R>,
        parts: &[Part<'_>],
        (n_rows, row_bytes, fill): (&[usize], usize, u32),
        outs: &[&Piece],
    ) -> Result<bool> {
        let n_padded = padded(n_rows.iter().sum());
        if n_padded * row_bytes * parts.len() > ONCE_BYTES {
            return Ok(false);
        }
        let slot = parts.len() * (largest(n_rows) * row_bytes).next_multiple_of(ALIGNMENT);
        self.make_room(device, slot)?;
        let second = parts.get(1);
        let mut args = words![
            Word::piece(parts[0].rows),
            second.map_or(Word::NULL, |part| Word::piece(part.rows)),
            Word::address((parts[0].n_bytes / WORD) as u64),
            Word::address(second.map_or(0, |part| part.offset) as u64),
        ]
        .to_vec();
        let stream = self.stream(device);
        args.extend(self.meeting(stream));
        args.extend(words![
            Word::address(stream.buffers.borrow().all.at()),
            device.ranks_starts(n_rows),
            row_bytes / WORD,
            n_padded,
            fill,
            Word::piece(outs[0]),
            outs.get(1).map_or(Word::NULL, |out| Word::piece(out)),
        ]);
        device.launch_with("exchange_gather_once", [1, 1], ONCE_THREADS, 0, &args);
        Ok(true)
    }

    /// Sums this rank's rows of `x` in one launch; `false` if they are too many for that.
    pub(super) fn sum_once(
        &self,
        device: &CudaDevice<R>,
        x: &Tensor,
        (n_rows, n_padded): (&[usize], usize),
        out: &Piece,
    ) -> Result<bool> {
        let n_bytes = x.n_padded * x.n_cols * x.dtype.size();
        if n_bytes > ONCE_BYTES {
            return Ok(false);
        }
        self.make_room(device, n_bytes)?;
        let rows = device.summed(x);
        let mut args = words![Word::piece(&rows), Word::address((n_bytes / WORD) as u64)].to_vec();
        let stream = self.stream(device);
        args.extend(self.meeting(stream));
        args.extend(words![
            Word::address(stream.buffers.borrow().all.at()),
            device.ranks_starts(n_rows),
            x.n_cols,
            n_padded,
            Word::piece(out),
        ]);
        let kernel = named!("exchange_sum_once", x.dtype);
        device.launch_with(kernel, [1, 1], ONCE_THREADS, 0, &args);
        Ok(true)
    }

    /// Where to publish, and how to meet the others.
    fn meeting(&self, stream: &Stream<R>) -> [Word; 7] {
        let buffers = stream.buffers.borrow();
        stream.has_met.set(true);
        [
            at(buffers.own.as_ref()),
            Word::address(buffers.half_bytes as u64),
            Word::address(stream.state.at()),
            Word::address(stream.inboxes.at()),
            self.rank.into(),
            self.world.n_ranks.into(),
            Word::address(self.patience()),
        ]
    }

    /// Nanoseconds.
    fn patience(&self) -> u64 {
        self.world.deadline.as_nanos().min(1 << 60) as u64
    }

    /// That the others have come whenever they were waited for. Everything that was started is done.
    pub(crate) fn check(&self) -> Result<()> {
        for stream in &self.streams {
            if !stream.has_met.replace(false) {
                continue;
            }
            let mut state = [0_u64; 2];
            stream.state.read(bytemuck::cast_slice_mut(&mut state))?;
            self.check_state(state[1])?;
        }
        Ok(())
    }

    /// That nobody was waited for in vain.
    fn check_state(&self, word: u64) -> Result<()> {
        let (rank, world_size) = (self.rank, self.world.n_ranks);
        match word {
            0 => Ok(()),
            word if word & HAS_LEFT != 0 => Err(CollectiveError::Poisoned {
                op: OP,
                rank,
                world_size,
            }
            .into()),
            _ => Err(CollectiveError::Deadline {
                op: OP,
                rank,
                world_size,
                waited: self.world.deadline,
            }
            .into()),
        }
    }
}

impl<R: Driver> Stream<R> {
    /// This rank's end of what streams of one number exchange. Every rank calls it.
    fn of(device: &CudaDevice<R>) -> Result<Self> {
        let (heap, n_ranks) = (&device.heap, device.collective.world_size());
        let inbox = Buffer::zeroed(heap, 2 * n_ranks * size_of::<u64>())?;
        // The zeroes are there before anybody else writes.
        device.driver.wait()?;
        let addresses = device.gather_words(inbox.at())?;
        Ok(Self {
            state: Buffer::zeroed(heap, 2 * size_of::<u64>())?,
            _inbox: inbox,
            inboxes: Buffer::of(heap, bytemuck::cast_slice(&addresses))?,
            addresses,
            buffers: RefCell::new(Buffers {
                own: None,
                all: Buffer::new(heap, n_ranks * size_of::<u64>())?,
                half_bytes: 0,
            }),
            has_met: Cell::new(false),
        })
    }
}

impl<R: Driver> Drop for Peers<R> {
    fn drop(&mut self) {
        let n_ranks = self.world.n_ranks;
        // Whoever waits for this rank from now on need not wait long.
        for at in self.streams.iter().flat_map(|stream| &stream.addresses) {
            let word = at + ((n_ranks + self.rank) * size_of::<u64>()) as u64;
            // SAFETY: inboxes are there until all ranks have left. A device that has failed cannot tell.
            let _ = unsafe { self.heap.driver.upload(&1_u64.to_ne_bytes(), word) };
        }
        // What this rank reads is read, or the device has failed and reads nothing.
        let _ = self.heap.driver.wait();
        self.seat = None;
        if !self.world.wait_until_empty() {
            // Somebody may still read what is here: it stays as long as the process.
            std::mem::forget(Rc::clone(&self.heap));
        }
    }
}
