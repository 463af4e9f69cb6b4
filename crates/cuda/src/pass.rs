//! A forward pass as a list: operations note what to launch, and all of it runs at once when its result is
//! wanted. A list that was seen before runs as a graph.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use moeshard_tensor::device::Result;

use crate::driver::nccl::Nccl;
use crate::driver::{Address, Driver, Launch, MOST_ARGS, N_STREAMS};
use crate::memory::{Heap, Piece, Region};

/// In front of what a kernel is handed: an address from the beginning of a stream's region of activations.
const IN_REGION: u64 = 1 << 63;
/// An address from the beginning of the pass's inputs.
const IN_INPUTS: u64 = 1 << 62;
/// Where an address in a region says whose it is.
const STREAM_SHIFT: u32 = 56;
const OFFSET: u64 = (1 << STREAM_SHIFT) - 1;
/// Where inputs begin.
const INPUT_ALIGNMENT: usize = 16;
/// Memory grows by this factor at least, so that it soon stops growing.
const GROWTH: f64 = 1.25;
/// Graphs that are kept.
const MOST_GRAPHS: usize = 64;

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(u64);

impl Word {
    pub(crate) const NULL: Self = Self(0);

    pub(crate) fn address(at: Address) -> Self {
        Self(at)
    }

    pub(crate) fn piece(piece: &Piece) -> Self {
        let piece = piece.used();
        Self(IN_REGION | (piece.stream() as u64) << STREAM_SHIFT | piece.start())
    }
}

impl From<u32> for Word {
    fn from(x: u32) -> Self {
        Self(x.into())
    }
}

impl From<f32> for Word {
    fn from(x: f32) -> Self {
        Self(x.to_bits().into())
    }
}

/// What operations have asked for and the device has not done yet, and what it takes to do it.
pub(crate) struct Pass<R: Driver> {
    driver: Rc<R>,
    heap: Rc<Heap<R>>,
    regions: Regions,
    /// In which what is noted is done.
    stream: usize,
    launches: Vec<Launch>,
    inputs: Inputs,
    activations: [Memory; N_STREAMS],
    input_memory: Memory,
    graphs: Graphs<R::Graph>,
}

/// That of each stream.
pub(crate) type Regions = [Rc<RefCell<Region>>; N_STREAMS];

/// Arrays that the host hands over to a pass.
#[derive(Default)]
struct Inputs {
    bytes: Vec<u8>,
    /// Where each begins, and its length in words.
    arrays: Vec<(usize, usize)>,
}

/// Memory that grows.
#[derive(Default)]
struct Memory {
    at: Address,
    n_bytes: usize,
}

/// Graphs by what they launch.
struct Graphs<G> {
    by_hash: HashMap<u64, Known<G>>,
    /// Lists that ran.
    n_runs: u64,
}

/// A list that was seen before.
struct Known<G> {
    /// Of all runs, the last that was of this list.
    last_run: u64,
    launches: Vec<Launch>,
    /// Not before the second time: most lists of a server that starts never come again.
    graph: Option<G>,
}

impl<R: Driver> Pass<R> {
    pub(crate) fn new(heap: Rc<Heap<R>>) -> Self {
        Self {
            driver: Rc::clone(&heap.driver),
            heap,
            regions: std::array::from_fn(Region::of_stream),
            stream: 0,
            launches: Vec::new(),
            inputs: Inputs::default(),
            activations: Default::default(),
            input_memory: Memory::default(),
            graphs: Graphs {
                by_hash: HashMap::new(),
                n_runs: 0,
            },
        }
    }

    /// Has what is noted from now on done in this stream.
    pub(crate) fn enter_stream(&mut self, stream: usize) {
        self.stream = stream;
    }

    /// In which what is noted is done.
    pub(crate) fn stream(&self) -> usize {
        self.stream
    }

    /// A piece of memory of the stream.
    pub(crate) fn piece(&self, n_bytes: usize) -> Piece {
        Piece::take(&self.regions[self.stream], n_bytes)
    }

    /// Notes a kernel; nothing if there is no block to run.
    pub(crate) fn launch(
        &mut self,
        kernel: &'static str,
        grid: [usize; 2],
        threads: u32,
        shared_bytes: usize,
        args: &[Word],
    ) {
        if grid.contains(&0) {
            return;
        }
        let mut words = [0; MOST_ARGS];
        for (word, arg) in words.iter_mut().zip(args) {
            *word = arg.0;
        }
        self.launches.push(Launch {
            kernel,
            stream: self.stream,
            grid: grid.map(|n| n as u32),
            threads,
            shared_bytes: shared_bytes as u32,
            args: words,
            n_args: args.len(),
        });
    }

    /// Hands an array over to the pass; one that it has got already is not copied again.
    pub(crate) fn input(&mut self, array: &[u32]) -> Word {
        let words: &[u8] = bytemuck::cast_slice(array);
        let Inputs { bytes, arrays } = &mut self.inputs;
        let is_same = |&&(at, len): &&(usize, usize)| {
            len == array.len() && bytes[at..at + words.len()] == *words
        };
        let at = match arrays.iter().find(is_same) {
            Some(&(at, _)) => at,
            None => {
                let at = bytes.len().next_multiple_of(INPUT_ALIGNMENT);
                bytes.resize(at, 0);
                bytes.extend_from_slice(words);
                arrays.push((at, array.len()));
                at
            }
        };
        Word(IN_INPUTS | at as u64)
    }

    /// Starts everything that was noted.
    pub(crate) fn run(&mut self) -> Result<()> {
        let result = match self.launches.is_empty() {
            true => Ok(()),
            false => self.try_run(),
        };
        // Also after an error: what was noted is not tried again.
        self.launches.clear();
        self.inputs.bytes.clear();
        self.inputs.arrays.clear();
        for region in &self.regions {
            region.borrow_mut().end_pass();
        }
        self.heap.give_back();
        result
    }

    /// Grows the memory to the size of the regions.
    pub(crate) fn make_room(&mut self) -> Result<()> {
        for (region, memory) in self.regions.iter().zip(&mut self.activations) {
            let needed = region.borrow().size() as usize;
            if memory.grow(&self.heap, needed, true)? {
                self.graphs.by_hash.clear();
            }
        }
        Ok(())
    }

    fn try_run(&mut self) -> Result<()> {
        self.make_room()?;
        let n_bytes = self.inputs.bytes.len();
        if self.input_memory.grow(&self.heap, n_bytes, false)? {
            self.graphs.by_hash.clear();
        }
        for launch in &mut self.launches {
            for word in &mut launch.args[..launch.n_args] {
                if *word & IN_REGION != 0 {
                    let stream = (*word & !IN_REGION) >> STREAM_SHIFT;
                    *word = self.activations[stream as usize].at + (*word & OFFSET);
                } else if *word & IN_INPUTS != 0 {
                    *word = self.input_memory.at + (*word & !IN_INPUTS);
                }
            }
        }
        // SAFETY: the memory is as large as the inputs.
        unsafe {
            self.driver
                .upload(&self.inputs.bytes, self.input_memory.at)?;
        };
        // SAFETY: operations hand kernels what they take, in pieces that are large enough; graphs of
        // memory that has moved are gone.
        unsafe { self.graphs.run(&*self.driver, &self.launches) }
    }

    /// Where a piece is, once what was noted runs.
    pub(crate) fn address(&self, piece: &Piece) -> Address {
        self.activations[piece.stream()].at + piece.start()
    }
}

impl<R: Driver> Drop for Pass<R> {
    fn drop(&mut self) {
        for memory in self.activations.iter().chain([&self.input_memory]) {
            if memory.n_bytes > 0 {
                // SAFETY: the device is gone, and with it whoever used the memory.
                unsafe { self.driver.free(memory.at) };
            }
        }
    }
}

impl Memory {
    /// Makes room; whether the memory has moved. What it held moves along if it `keeps` it.
    fn grow<R: Driver>(&mut self, heap: &Heap<R>, needed: usize, keeps: bool) -> Result<bool> {
        let driver = &*heap.driver;
        if needed <= self.n_bytes {
            return Ok(false);
        }
        let wanted = needed.max((self.n_bytes as f64 * GROWTH) as usize);
        let (at, n_bytes) = match driver.allocate(wanted) {
            Ok(at) => (at, wanted),
            Err(_) => (driver.allocate(needed)?, needed),
        };
        let old = std::mem::replace(self, Self { at, n_bytes });
        if old.n_bytes > 0 {
            heap.released.borrow_mut().push(old.at);
            if keeps {
                // SAFETY: both are as large.
                unsafe { driver.copy(old.at, at, old.n_bytes)? };
            }
        }
        Ok(true)
    }
}

impl<G> Graphs<G> {
    /// Runs a list: launch by launch the first time, as a graph from the second time on.
    ///
    /// # Safety
    /// As for [`Driver::launch`].
    unsafe fn run<R: Driver<Graph = G>>(&mut self, driver: &R, launches: &[Launch]) -> Result<()> {
        // Ranks would have to capture and replay alike, which each decides for itself.
        if launches.iter().any(Nccl::is_exchange) {
            // SAFETY: the caller's promise.
            return unsafe { driver.launch(launches) };
        }
        let hash = hash(launches);
        self.n_runs += 1;
        // SAFETY: the caller's promise.
        unsafe {
            match self.by_hash.get_mut(&hash) {
                Some(known) if known.launches == launches => {
                    known.last_run = self.n_runs;
                    if known.graph.is_none() {
                        known.graph = driver.capture(launches).ok();
                    }
                    match &known.graph {
                        Some(graph) => driver.replay(graph),
                        // No memory for a graph, say: it is slower without.
                        None => driver.launch(launches),
                    }
                }
                _ => {
                    self.make_room();
                    let known = Known {
                        last_run: self.n_runs,
                        launches: launches.to_vec(),
                        graph: None,
                    };
                    self.by_hash.insert(hash, known);
                    driver.launch(launches)
                }
            }
        }
    }

    /// Forgets the list that has not run for longest, if there are too many.
    fn make_room(&mut self) {
        if self.by_hash.len() < MOST_GRAPHS {
            return;
        }
        let oldest = self.by_hash.iter().min_by_key(|(_, known)| known.last_run);
        if let Some(hash) = oldest.map(|(&hash, _)| hash) {
            self.by_hash.remove(&hash);
        }
    }
}

fn hash(launches: &[Launch]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for launch in launches {
        launch.kernel.len().hash(&mut hasher);
        launch.stream.hash(&mut hasher);
        launch.grid.hash(&mut hasher);
        launch.args[..launch.n_args].hash(&mut hasher);
    }
    hasher.finish()
}
