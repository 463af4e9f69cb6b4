//! `moeshard bench`: how fast a model runs here, operation by operation, beside what the machine
//! could do at most.

mod args;
mod measure;
mod report;

use std::io::{self, Write};

use anyhow::{Context, Result};
use moeshard_tensor::cpu::CpuConfig;

pub use args::{BenchArgs, BenchConfig, Shape, Until};

use crate::model::{dtype, open};
use measure::Bench;
use report::{Peak, Report};

/// Benches a model.
///
/// # Errors
/// If an argument is impossible or the model cannot be run.
pub fn run(args: BenchArgs) -> Result<()> {
    let config = BenchConfig::try_from(args)?;
    let compute = &config.model.compute;
    let opened = open(&config.model)?;
    let model = &opened.model;
    let cpu = CpuConfig::new(dtype(model, compute), compute.n_threads);
    let bench = Bench::load(model, compute, cpu).with_context(|| opened.place.clone())?;
    // Before and after: what else runs may have slowed one of them down.
    let peak = Peak::measure(bench.device(), cpu.dtype);
    let run = |&shape| bench.run(shape, config.until);
    let measured = config
        .shapes
        .iter()
        .map(run)
        .collect::<Result<Vec<_>, _>>()?;
    let peak = peak.or_higher(&Peak::measure(bench.device(), cpu.dtype));
    let mut report = Report::new(opened.name, cpu, peak);
    for (&shape, measured) in config.shapes.iter().zip(&measured) {
        report.add(shape, measured);
    }
    let mut out = io::stdout().lock();
    if config.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        report.write(&mut out)?;
    }
    Ok(())
}
