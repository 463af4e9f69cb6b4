//! Working memory that only grows.

use std::ops::{Deref, DerefMut};

use crate::cpu::pages::{Memory, zeroed};

/// Working memory of a caller, aligned to cache lines: after the first call of the largest shape
/// nothing is allocated any more.
#[derive(Debug, Default)]
pub struct Scratch(Memory<f32>);

impl Scratch {
    /// Zeroes, beginning where a cache line does: kernels load whole lines fastest from there.
    pub fn zeroed(n: usize) -> Self {
        Self(zeroed(n))
    }

    /// Room for `n` values, of any content.
    pub fn room(&mut self, n: usize) -> &mut [f32] {
        if self.0.len() < n {
            self.0 = zeroed(n);
        }
        &mut self.0[..n]
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}
