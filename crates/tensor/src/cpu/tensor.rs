//! Activations, in memory that goes round.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::pages::{Memory, zeroed};

/// Activations in host memory, `[n_rows, n_cols]`.
pub struct Tensor {
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    /// At least `n_rows · n_cols` long.
    memory: Memory<f32>,
    /// Where the memory goes when the tensor is dropped.
    arena: Option<Arena>,
}

/// Memory of tensors that are gone, for those that come. After the largest batch has been seen, a
/// forward pass allocates nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arena(Arc<Mutex<Vec<Memory<f32>>>>);

impl Arena {
    /// A tensor of any content.
    pub(crate) fn tensor(&self, n_rows: usize, n_cols: usize) -> Tensor {
        Tensor {
            n_rows,
            n_cols,
            memory: self.take(n_rows * n_cols),
            arena: Some(self.clone()),
        }
    }

    /// The smallest memory that suffices; a new one replaces the largest that does not.
    fn take(&self, n: usize) -> Memory<f32> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = (0..free.len()).filter(|&i| free[i].len() >= n);
        if let Some(best) = fits.min_by_key(|&i| free[i].len()) {
            return free.swap_remove(best);
        }
        if let Some(largest) = (0..free.len()).max_by_key(|&i| free[i].len()) {
            free.swap_remove(largest);
        }
        drop(free);
        // An eighth of room for growth: batches differ a little in size.
        zeroed(n + n / 8)
    }
}

impl Tensor {
    /// A tensor of the given rows.
    ///
    /// # Panics
    /// If `data` is not `n_rows · n_cols` long.
    pub fn new(n_rows: usize, n_cols: usize, data: Vec<f32>) -> Self {
        assert_eq!(
            data.len(),
            n_rows * n_cols,
            "a tensor of {n_rows} × {n_cols}"
        );
        Self {
            n_rows,
            n_cols,
            memory: data.into(),
            arena: None,
        }
    }

    /// Its numbers, row by row.
    pub fn as_slice(&self) -> &[f32] {
        &self.memory[..self.n_rows * self.n_cols]
    }

    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.memory[row * self.n_cols..][..self.n_cols]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.memory[..self.n_rows * self.n_cols]
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        if let Some(arena) = &self.arena {
            let mut free = arena.0.lock().unwrap_or_else(PoisonError::into_inner);
            free.push(std::mem::take(&mut self.memory));
        }
    }
}

impl Clone for Tensor {
    fn clone(&self) -> Self {
        Self::new(self.n_rows, self.n_cols, self.as_slice().to_vec())
    }
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        (self.n_rows, self.n_cols) == (other.n_rows, other.n_cols)
            && self.as_slice() == other.as_slice()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Tensor {} × {} {:?}",
            self.n_rows,
            self.n_cols,
            self.as_slice()
        )
    }
}
