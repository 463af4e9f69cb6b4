//! The emulated device computes what every device must.

use moeshard_conformance::{Paths, Scale, run};
use moeshard_cuda::driver::emulated::Emulated;
use moeshard_cuda::{CudaConfig, CudaDevice};
use moeshard_tensor::collective::Solo;
use moeshard_tensor::dtype::DType;

fn check(dtype: DType) {
    let config = CudaConfig { dtype };
    let device = CudaDevice::new(config, Emulated::new(), Box::new(Solo)).expect("a device");
    let mut failures = Vec::new();
    let cases = run(&device, dtype, (Scale::Small, Paths::One), 1, &mut |case| {
        if let Err(reason) = &case.outcome {
            failures.push(format!("{}: {reason}", case.name));
        }
    });
    assert!(cases.len() > 50, "{} cases", cases.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn in_float32() {
    check(DType::F32);
}

#[test]
fn in_bfloat16() {
    check(DType::BF16);
}

#[test]
fn in_float16() {
    check(DType::F16);
}
