//! The CPU device through the suite that every device goes through.

use std::time::Instant;

use moeshard_conformance::{Case, Paths, Scale, run};
use moeshard_tensor::collective::Solo;
use moeshard_tensor::cpu::{CpuConfig, CpuDevice, Isa};
use moeshard_tensor::dtype::DType;

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Runs the suite on one path and returns what failed.
fn failures(config: CpuConfig, scale: Scale) -> Vec<String> {
    let path = format!(
        "{}, {}, {} threads",
        config.isa, config.dtype, config.n_threads
    );
    let started = Instant::now();
    let device = CpuDevice::new(config, Box::new(Solo)).expect("device");
    let cases = run(&device, config.dtype, (scale, Paths::One), 1, &mut |_| ());
    let worst = cases.iter().max_by(|a, b| a.worst.total_cmp(&b.worst));
    let Case { name, worst, .. } = worst.expect("a suite has cases");
    println!(
        "{path}: {} cases in {:.1} s, at worst {worst:.2} of what is allowed in {name}",
        cases.len(),
        started.elapsed().as_secs_f64()
    );
    assert!(cases.len() > 100, "{path}: {} cases only", cases.len());
    let failed = cases.into_iter().filter_map(|case| {
        let why = case.outcome.err()?;
        Some(format!("{path}: {}: {why}", case.name))
    });
    failed.collect()
}

#[test]
fn every_path_computes_what_a_device_must() {
    let mut failed = Vec::new();
    for isa in Isa::available() {
        for dtype in DTYPES {
            for n_threads in [1, 3] {
                let config = CpuConfig {
                    isa,
                    ..CpuConfig::new(dtype, n_threads)
                };
                failed.extend(failures(config, Scale::Small));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn the_best_path_computes_it_at_the_size_of_models() {
    // What serves; float16 differs from them in how weights are widened, which is the same at any size.
    let failed: Vec<String> = ([DType::F32, DType::BF16].into_iter())
        .flat_map(|dtype| failures(CpuConfig::new(dtype, 2), Scale::Large))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
