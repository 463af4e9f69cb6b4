//! `moeshard bench`: how fast a model runs here, operation by operation, beside what the machine
//! could do at most.

mod args;
mod measure;
mod report;

use std::io::{self, Write};

use anyhow::{Context, Result, bail};

pub use args::{BenchArgs, BenchConfig, Shape, Until};

use crate::model::{DeviceKind, Opened, cpu_ranks, open};
use measure::Bench;
use report::{Peak, Report};

/// Benches a model.
///
/// # Errors
/// If an argument is impossible or the model cannot be run.
pub fn run(args: BenchArgs) -> Result<()> {
    let config = BenchConfig::try_from(args)?;
    let opened = open(&config.model)?;
    let report = match config.model.compute.device {
        DeviceKind::Cpu => on_cpu(&config, opened)?,
        device => bail!("bench measures on the CPU alone so far, not on {device}"),
    };
    let mut out = io::stdout().lock();
    if config.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        report.write(&mut out)?;
    }
    Ok(())
}

/// On the cores of this machine, beside what they could do at most.
fn on_cpu(config: &BenchConfig, opened: Opened) -> Result<Report> {
    let (model, compute) = (&opened.model, &config.model.compute);
    let cores = cpu_ranks(model, compute);
    let bench = Bench::load(model, compute, &cores).with_context(|| opened.place.clone())?;
    // Before and after: what else runs may have slowed one of them down.
    let peak = Peak::measure(bench.device(), cores.dtype);
    let measured = bench.run_all(&config.shapes, config.until)?;
    let peak = peak.or_higher(&Peak::measure(bench.device(), cores.dtype));
    let mut report = Report::new(opened.name, cores, peak);
    for (&shape, measured) in config.shapes.iter().zip(&measured) {
        report.add(shape, measured);
    }
    Ok(report)
}
