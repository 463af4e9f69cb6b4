//! Launching a kernel on slices.

use std::ffi::c_void;
use std::ptr::null;

use half::{bf16, f16};
use moeshard_emulation::{Launch, launch};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// Pointers to arguments, which are variables.
macro_rules! args {
    ($($arg:expr),* $(,)?) => {
        [$(std::ptr::from_mut(&mut $arg).cast::<std::ffi::c_void>()),*]
    };
}
pub(crate) use args;

/// What activations are kept in.
pub(crate) trait Element: Copy {
    /// At the end of a kernel's name.
    const NAME: &'static str;
    /// The largest relative error of rounding to it.
    const ROUNDING: f64;
    fn of(x: f64) -> Self;
    fn value(self) -> f64;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const ROUNDING: f64 = 6e-8;
    fn of(x: f64) -> Self {
        x as f32
    }
    fn value(self) -> f64 {
        self.into()
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    const ROUNDING: f64 = 3.91e-3;
    fn of(x: f64) -> Self {
        bf16::from_f64(x)
    }
    fn value(self) -> f64 {
        self.into()
    }
}

impl Element for f16 {
    const NAME: &'static str = "f16";
    const ROUNDING: f64 = 4.89e-4;
    fn of(x: f64) -> Self {
        f16::from_f64(x)
    }
    fn value(self) -> f64 {
        self.into()
    }
}

pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Numbers in −2..2.
pub(crate) fn numbers<T: Element>(n: usize, rng: &mut ChaCha8Rng) -> Vec<T> {
    (0..n).map(|_| T::of(rng.random_range(-2.0..2.0))).collect()
}

/// A pointer to numbers, or none.
pub(crate) fn pointer<T>(is_there: bool, to: &[T]) -> *const T {
    if is_there { to.as_ptr() } else { null() }
}

/// Warps abreast; one after another, copies as late as they may; the same, copies at once.
pub(crate) const SEEDS: [u64; 3] = [2, 1, 3];

/// Runs a kernel once.
pub(crate) fn run(
    name: &str,
    [x, y]: [usize; 2],
    threads: u32,
    shared_words: usize,
    seed: u64,
    args: &mut [*mut c_void],
) {
    let shape = Launch {
        grid: [x as u32, y as u32, 1],
        block: [threads, 1, 1],
        shared_bytes: 4 * shared_words,
        seed,
    };
    // SAFETY: each test hands over what the kernel's file says.
    unsafe { launch(name, &shape, args) }.expect("a kernel that ends");
}

/// That a result is what it should be, but for the rounding of its type and of sums in f32 of values up
/// to `size`.
#[track_caller]
pub(crate) fn assert_near<T: Element>(found: &[T], expected: &[f64], size: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let most = T::ROUNDING * expected.abs() + 1e-5 * size;
        let found = found.value();
        assert!(
            (found - expected).abs() <= most,
            "{what}, {i}: {found}, expected {expected}"
        );
    }
}
