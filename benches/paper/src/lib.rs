//! The experiment of the MoEShard paper (arXiv:2503.08467): whole encoders under routers of rising skew, on
//! some ranks, every strategy of laying out experts in turn.
//!
//! In reading order: [`skew`] is the paper's router; [`work`] says in closed form what each rank has to do;
//! [`world`] is a model on ranks whose routing is imposed; [`measure`] counts and times; [`report`],
//! `tables` and `page` write what was found.

pub mod args;
pub mod devices;
pub mod measure;
mod page;
pub mod report;
pub mod skew;
mod tables;
pub mod work;
pub mod world;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use moeshard_cuda::driver::Driver;
use moeshard_cuda::driver::gpu::Gpu;
use moeshard_encoder::model::Model;
use moeshard_engine::DeviceMaker;
use moeshard_tensor::cpu::Isa;
use moeshard_tensor::dtype::DType;
use moeshard_tensor::imposed::TakesRouting;

use args::{Args, DeviceKind};
use measure::{Case, worlds};
use report::Report;

/// The program.
///
/// # Errors
/// If an argument is impossible, or something cannot be run or written.
pub fn main() -> Result<()> {
    let args = Args::parse();
    args.check()?;
    let report = run(&args)?;
    report.write(&args.out)?;
    print!("{}", report.markdown());
    eprintln!("{}", args.out.join("paper.html").display());
    Ok(())
}

/// Runs everything that `args` asks for.
///
/// # Errors
/// If a model cannot be made, laid out or run.
pub fn run(args: &Args) -> Result<Report> {
    match args.device {
        DeviceKind::Cpu => run_on(args, processor(args), devices::cpu),
        DeviceKind::Cuda => {
            let name = Gpu::open(0)?.properties().name.clone();
            run_on(args, format!("{} × {name}", args.gpus), devices::gpus)
        }
        #[cfg(feature = "emulated")]
        DeviceKind::Emulated => run_on(args, "emulated".to_owned(), devices::emulated),
    }
}

fn run_on<M: DeviceMaker<Device: TakesRouting>>(
    args: &Args,
    processor: String,
    devices: impl Fn(&Args, usize) -> M,
) -> Result<Report> {
    let mut report = Report::new(processor, description(args));
    for &n_experts in &args.experts {
        let model = made(args, n_experts)?;
        for &n_ranks in &args.ranks {
            let worlds = worlds(args, &model, (n_experts, n_ranks), &devices)?;
            for batch in args.batches() {
                eprintln!("E = {n_experts}, {n_ranks} ranks, {batch:?}");
                report
                    .rows
                    .extend(Case::new(args, (n_experts, n_ranks, batch), &worlds).run()?);
            }
        }
    }
    Ok(report)
}

/// A model of random weights. The checkpoint stays mapped when its folder is gone.
fn made(args: &Args, n_experts: usize) -> Result<Arc<Model>> {
    let folder = tempfile::tempdir().context("a folder for a model")?;
    let path: &Path = folder.path();
    args.model(n_experts).write(path)?;
    let model = Model::open(path).with_context(|| path.display().to_string())?;
    Ok(Arc::new(model))
}

fn description(args: &Args) -> String {
    format!(
        "Switch encoder of random weights in {}: {} layers, experts in every second, d_model {}, d_ff {}, {} heads",
        args.dtype, args.layers, args.d_model, args.d_ff, args.heads
    )
}

fn processor(args: &Args) -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':'));
    let name = name.map_or("CPU", |(_, name)| name.trim());
    let bound = match args.share_cores {
        true => "not bound to cores",
        false => "bound to cores where they take all",
    };
    format!(
        "{name}, {} kernels, threads a rank: {}, {bound}",
        Isa::detect(),
        args.threads
    )
}

impl Args {
    /// Bytes of an element of a hidden state on its way between ranks: a CPU computes in f32 whatever
    /// its weights are, a GPU in its dtype.
    fn element_bytes(&self) -> usize {
        match self.device {
            DeviceKind::Cpu => DType::F32.size(),
            _ => self.dtype.size(),
        }
    }
}
