//! The bytes of a checkpoint file, and reading them ahead.
//!
//! A page fault on a cold mapping reads a few hundred kilobytes and waits for them, which leaves
//! a disk idle most of the time. [`read_ahead`] therefore walks over the files in big windows
//! from a thread of its own. It uses `madvise` rather than `pread` into a scratch buffer: there
//! is no second copy of the bytes, and the pages are mapped by the time that a rank touches them.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use memmap2::{Advice, Mmap};

use super::error::{CheckpointError, Result};

/// How much the reader-ahead asks for at once.
///
/// Measured on a virtual disk of 1.2 GB/s with a file of 2 GiB: 4 to 64 MiB are equally fast.
const WINDOW: usize = 16 << 20;

/// One file of a checkpoint.
pub(crate) struct Source {
    /// What errors call it.
    pub(crate) name: String,
    bytes: Bytes,
    /// How far the reader-ahead has come.
    ahead: AtomicUsize,
}

enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
}

impl Source {
    /// Maps a file into memory; nothing of it is read yet.
    pub(crate) fn map(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let io = |source| CheckpointError::Io {
            file: name.clone(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the mapping is private and read-only, so this process never writes through it.
        // If another process changes the file underfoot, the numbers read change with it, which
        // no validated bound depends on: headers are parsed into owned values once. If it
        // truncates the file, touching a lost page ends this process with SIGBUS; checkpoints
        // are replaced by renaming, never in place, and after loading nothing is read any more.
        let mapped = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self::new(name, Bytes::Mapped(mapped)))
    }

    /// Bytes that are part of the program.
    pub(crate) fn from_static(name: &str, bytes: &'static [u8]) -> Self {
        Self::new(name.into(), Bytes::Static(bytes))
    }

    fn new(name: String, bytes: Bytes) -> Self {
        Self {
            name,
            bytes,
            ahead: AtomicUsize::new(0),
        }
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(mapped) => mapped,
            Bytes::Static(bytes) => bytes,
        }
    }

    /// Asks for a span that is about to be touched, unless the reader-ahead has passed it.
    pub(crate) fn will_need(&self, span: Range<usize>) {
        if let Bytes::Mapped(mapped) = &self.bytes
            && self.ahead.load(Ordering::Relaxed) < span.end
        {
            // Advice is free to be refused: the bytes then come in by page faults.
            let _ = mapped.advise_range(Advice::WillNeed, span.start, span.len());
        }
    }

    /// Reads the file ahead, window after window, until it ends or `stop` is set.
    fn read_ahead(&self, stop: &AtomicBool) {
        let Bytes::Mapped(mapped) = &self.bytes else {
            return;
        };
        let window = |start: usize| WINDOW.min(mapped.len().saturating_sub(start));
        for start in (0..mapped.len()).step_by(WINDOW) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            // The next window is on its way from the disk while this one is mapped.
            let next = start + window(start);
            let _ = mapped.advise_range(Advice::WillNeed, start, window(start) + window(next));
            populate(mapped, start, window(start));
            self.ahead.store(next, Ordering::Relaxed);
        }
    }
}

/// Waits for a window to be in memory and maps its pages.
///
/// A kernel before 5.14 refuses; pages are then mapped one fault at a time.
#[cfg(target_os = "linux")]
fn populate(mapped: &Mmap, start: usize, len: usize) {
    let _ = mapped.advise_range(Advice::PopulateRead, start, len);
}

/// Elsewhere there is no such advice, and pages are mapped one fault at a time.
#[cfg(not(target_os = "linux"))]
fn populate(_mapped: &Mmap, _start: usize, _len: usize) {}

/// A thread that reads files ahead, in order; dropping it stops the thread within a window.
pub(crate) struct ReadAhead {
    stop: Arc<AtomicBool>,
}

impl ReadAhead {
    /// Starts reading `sources` ahead.
    pub(crate) fn start(sources: Vec<Arc<Source>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        if sources.iter().all(|source| source.bytes().len() < WINDOW) {
            // Page faults fetch small files as fast as a thread starts.
            return Self { stop };
        }
        let stopped = Arc::clone(&stop);
        // If no thread can be had, loading is slower and still right.
        let _ = std::thread::Builder::new()
            .name("checkpoint-read-ahead".into())
            .spawn(move || sources.iter().for_each(|s| s.read_ahead(&stopped)));
        Self { stop }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
