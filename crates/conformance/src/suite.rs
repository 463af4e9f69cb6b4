//! Runs cases, each with random numbers of its own, and keeps what came of them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use moeshard_tensor::device::{Device, DeviceError};
use moeshard_tensor::dtype::DType;

use crate::inputs::Inputs;
use crate::{Case, Paths, Scale};

/// Why a case failed, in a sentence with what was expected and what was found.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Self(format!("expected a result, found an error: {error}"))
    }
}

/// The largest error as a share of what is allowed, or why there is none.
pub(crate) type Outcome = Result<f64, Failure>;

/// Fails unless two things that are counted or chosen are the same.
pub(crate) fn same<T: PartialEq + std::fmt::Debug + ?Sized>(
    what: &str,
    found: &T,
    expected: &T,
) -> Result<(), Failure> {
    if found == expected {
        return Ok(());
    }
    let message = format!("{what}: expected {expected:?}, found {found:?}");
    Err(Failure(message))
}

/// A device, and the cases that it went through so far.
pub(crate) struct Suite<'a, D> {
    device: &'a D,
    pub(crate) dtype: DType,
    pub(crate) scale: Scale,
    pub(crate) paths: Paths,
    seed: u64,
    each: &'a mut dyn FnMut(&Case),
    cases: Vec<Case>,
}

impl<'a, D: Device> Suite<'a, D> {
    pub(crate) fn new(
        device: &'a D,
        dtype: DType,
        (scale, paths): (Scale, Paths),
        seed: u64,
        each: &'a mut dyn FnMut(&Case),
    ) -> Self {
        Self {
            device,
            dtype,
            scale,
            paths,
            seed,
            each,
            cases: Vec::new(),
        }
    }

    /// Runs one case. Its random numbers follow from its name, so that they do not depend on which
    /// cases there are.
    pub(crate) fn case(
        &mut self,
        name: impl Into<String>,
        check: impl FnOnce(&mut Inputs<'_, D>) -> Outcome,
    ) {
        let name = name.into();
        let seed = self.seed ^ hash(&name);
        let mut inputs = Inputs::new(self.device, self.dtype, seed);
        // A device that panics must not take the program that checks it along.
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&mut inputs)));
        let outcome = outcome.unwrap_or_else(|panic| {
            let said = (panic.downcast_ref::<String>().map(String::as_str))
                .or(panic.downcast_ref::<&str>().copied());
            let said = said.unwrap_or("nothing");
            Err(Failure(format!(
                "expected a result or an error, found a panic that says: {said}"
            )))
        });
        let (worst, outcome) = match outcome {
            Ok(worst) => (worst, Ok(())),
            Err(Failure(why)) => (f64::INFINITY, Err(why)),
        };
        let case = Case {
            name,
            worst,
            outcome: outcome.and_then(|()| within(worst)),
        };
        (self.each)(&case);
        self.cases.push(case);
    }

    pub(crate) fn into_cases(self) -> Vec<Case> {
        self.cases
    }
}

/// A comparison fails where it happens; this is for a share that nothing looked at.
fn within(worst: f64) -> Result<(), String> {
    if worst <= 1.0 {
        return Ok(());
    }
    Err(format!(
        "expected an error of at most what is allowed, found {worst} of it"
    ))
}

/// FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
