//! The threads of one rank.

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::device::DeviceError;

/// Runs independent pieces of an operation on a rank's threads. Which thread runs a piece never
/// changes its result.
#[derive(Debug)]
pub(crate) struct Parallel {
    /// `None` for a single thread, which needs no pool.
    pool: Option<ThreadPool>,
}

impl Parallel {
    pub(crate) fn new(n_threads: usize) -> Result<Self, DeviceError> {
        if n_threads <= 1 {
            return Ok(Self { pool: None });
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|i| format!("compute-{i}"))
            .build()
            .map_err(|e| DeviceError::SetUp(format!("{n_threads} compute threads: {e}")))?;
        Ok(Self { pool: Some(pool) })
    }

    pub(crate) fn n_threads(&self) -> usize {
        self.pool
            .as_ref()
            .map_or(1, ThreadPool::current_num_threads)
    }

    /// Calls `f(0) .. f(n - 1)`.
    pub(crate) fn for_each(&self, n: usize, f: impl Fn(usize) + Sync + Send) {
        match &self.pool {
            Some(pool) if n > 1 => pool.install(|| (0..n).into_par_iter().for_each(f)),
            _ => (0..n).for_each(f),
        }
    }

    /// Calls `f(i, chunk)` for each chunk of `size` elements.
    pub(crate) fn for_each_chunk<T: Send>(
        &self,
        data: &mut [T],
        size: usize,
        f: impl Fn(usize, &mut [T]) + Sync + Send,
    ) {
        match &self.pool {
            Some(pool) if data.len() > size => pool.install(|| {
                data.par_chunks_mut(size)
                    .enumerate()
                    .for_each(|(i, c)| f(i, c));
            }),
            _ => data.chunks_mut(size).enumerate().for_each(|(i, c)| f(i, c)),
        }
    }
}

/// A pointer into a buffer of which every piece of an operation writes its own part.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut(*mut f32);

// SAFETY: whoever uses the pointer promises (at the place of use) that pieces which run at the
// same time write disjoint elements and that nobody reads them meanwhile.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    pub(crate) fn new(data: &mut [f32]) -> Self {
        Self(data.as_mut_ptr())
    }

    pub(crate) fn ptr(self) -> *mut f32 {
        self.0
    }
}
