//! The conformance suite.

use moeshard_conformance::{Paths, Scale as Shapes, run as run_suite};
use moeshard_cuda::CudaDevice;
use moeshard_cuda::driver::Driver;
use moeshard_tensor::dtype::DType;

use crate::report::{Failure, Suite};
use crate::scale::Scale;

const SEED: u64 = 1;

/// Runs the suite in one dtype, and says on standard error how far it is.
pub(crate) fn run<R: Driver>(device: &CudaDevice<R>, dtype: DType, scale: &Scale) -> Suite {
    let shapes = match scale.is_conformance_large {
        true => vec![Shapes::Small, Shapes::Large],
        false => vec![Shapes::Small],
    };
    let mut suite = Suite::new(&dtype.to_string());
    for shapes in shapes {
        run_suite(device, dtype, (shapes, Paths::Several), SEED, &mut |case| {
            suite.n_cases += 1;
            if case.worst > suite.worst {
                suite.worst = case.worst;
                suite.worst_case.clone_from(&case.name);
            }
            if let Err(reason) = &case.outcome {
                eprintln!("{dtype}, {}: {reason}", case.name);
                suite.failures.push(Failure {
                    case: case.name.clone(),
                    reason: reason.clone(),
                });
            }
        });
    }
    let n_failed = suite.failures.len();
    eprintln!("{dtype}: {} cases, {n_failed} failed", suite.n_cases);
    suite
}
