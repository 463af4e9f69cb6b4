//! What every [`Device`] must compute, against plain loops in f64.
//!
//! [`run`] takes any device through all of its operations and says of each case how far it was off.
//! It needs no test harness: a program can run it on the hardware that it finds.
//!
//! Inputs are random numbers that the device's dtype holds exactly, so a device may differ from the
//! loops only by the rounding of sums, of results, and of what it stores on the way to them. How
//! much that may be is derived element by element (`tolerance`), not guessed for an operation.
//!
//! Beside the numbers, the suite checks what the trait promises: the same bits for every run, rows that
//! do not depend on their neighbours, counts, and errors for arguments that do not fit. Collectives
//! have tests of their own.
//!
//! In reading order: `suite` runs cases; `inputs` makes weights and activations; `reference` has the
//! loops; `tolerance` compares; `cases` are the operations.

mod cases;
mod inputs;
mod reference;
mod suite;
mod tolerance;

use moeshard_tensor::device::Device;
use moeshard_tensor::dtype::DType;

use suite::Suite;

/// How large the shapes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Tens of tokens and widths up to 160: seconds even where a GPU is emulated.
    Small,
    /// Thousands of tokens, widths 768 and 3072, up to 128 experts: what models have.
    Large,
}

/// Whether a row goes through the same kernels whatever the size of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paths {
    /// Always: a sequence alone has the bits that it has among others.
    One,
    /// In float32 alone. In 16 bits kernels are chosen by the number of rows, and add up in orders of their
    /// own.
    Several,
}

/// What came of one case.
#[derive(Clone, Debug)]
pub struct Case {
    /// The operation and its shape.
    pub name: String,
    /// The largest error as a share of what is allowed; infinite if there is no number to compare.
    pub worst: f64,
    /// What was expected and what was found, where the case failed.
    pub outcome: Result<(), String>,
}

/// Checks everything that a device of this dtype must do, and shows each case as it ends.
///
/// `paths` says what the device promises of batches. The same seed gives the same inputs. Nothing here panics: an error of the device, and a panic of
/// it, is a failed case.
pub fn run<D: Device>(
    device: &D,
    dtype: DType,
    (scale, paths): (Scale, Paths),
    seed: u64,
    each: &mut dyn FnMut(&Case),
) -> Vec<Case> {
    let mut suite = Suite::new(device, dtype, (scale, paths), seed, each);
    cases::all(&mut suite);
    suite.into_cases()
}
