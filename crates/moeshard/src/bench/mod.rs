//! `moeshard bench`: how fast a model runs here, operation by operation, beside what the machine
//! could do at most.

mod args;
mod measure;
mod report;

use std::io::{self, Write};

use anyhow::{Context, Result};

pub use args::{BenchArgs, BenchConfig, Shape, Until};

use moeshard_cuda::CudaDevice;
use moeshard_cuda::driver::Driver;
use moeshard_cuda::peak::{self, Effort};
use moeshard_engine::DeviceMaker;

use crate::machine;
#[cfg(feature = "emulated")]
use crate::model::emulated_ranks;
use crate::model::{DeviceKind, Opened, cpu_ranks, gpu_ranks, open};
use measure::{Bench, Measured};
use report::{Machine, Peak, Report};

/// What a model was run on, what that could do at most, and what each shape took.
type Found = (Machine, Peak, Vec<Measured>);

/// An emulated GPU takes a second for what a real one does in a microsecond.
#[cfg(feature = "emulated")]
const LITTLE: Effort = Effort {
    n_steps: 1,
    read_bytes: 1 << 12,
};

/// Benches a model.
///
/// # Errors
/// If an argument is impossible or the model cannot be run.
pub fn run(args: BenchArgs) -> Result<()> {
    let config = BenchConfig::try_from(args)?;
    let opened = open(&config.model)?;
    let (machine, peak, measured) = match config.model.compute.device {
        DeviceKind::Cpu => on_cpu(&config, &opened)?,
        DeviceKind::Cuda { n_gpus } => {
            let gpus = gpu_ranks(&opened.model, &config.model.compute, n_gpus);
            on_gpu(&config, &opened, &gpus, Effort::GPU)?
        }
        #[cfg(feature = "emulated")]
        DeviceKind::Emulated => {
            let ranks = emulated_ranks(&opened.model, &config.model.compute);
            on_gpu(&config, &opened, &ranks, LITTLE)?
        }
    };
    let report = Report::new(opened.name, machine, peak, &config.shapes, &measured);
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
fn on_cpu(config: &BenchConfig, opened: &Opened) -> Result<Found> {
    let (model, compute) = (&opened.model, &config.model.compute);
    let cores = cpu_ranks(model, compute);
    let bench = Bench::load(model, compute, &cores).with_context(|| opened.place.clone())?;
    // Before and after: what else runs may have slowed one of them down.
    let peak = Peak::measure(bench.device(), cores.dtype);
    let measured = bench.run_all(&config.shapes, config.until)?;
    let peak = peak.or_higher(&Peak::measure(bench.device(), cores.dtype));
    let machine = Machine {
        processor: machine::processor(),
        dtype: cores.dtype,
        kernels: cores.isa.to_string(),
        n_threads: Some(cores.n_threads),
    };
    Ok((machine, peak, measured))
}

/// On one GPU, beside what it could do at most.
fn on_gpu<R: Driver>(
    config: &BenchConfig,
    opened: &Opened,
    gpus: &impl DeviceMaker<Device = CudaDevice<R>>,
    effort: Effort,
) -> Result<Found> {
    let (model, compute) = (&opened.model, &config.model.compute);
    let bench = Bench::load(model, compute, gpus).with_context(|| opened.place.clone())?;
    let device = bench.device();
    let peak = Peak::of_gpu(peak::Peak::measure(device, effort)?);
    let mut measured = bench.run_all(&config.shapes, config.until)?;
    // By themselves, which takes longer than as a graph.
    device.set_eager(true);
    let operations = bench.run_all(&config.shapes, config.until)?;
    for (whole, parts) in measured.iter_mut().zip(operations) {
        whole.operations = parts.operations;
    }
    let machine = Machine {
        processor: Some(device.driver().properties().name.clone()),
        dtype: crate::model::dtype(model, compute),
        kernels: compute.device.kernels(),
        n_threads: None,
    };
    Ok((machine, peak, measured))
}
