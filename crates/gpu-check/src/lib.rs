//! Checks and measures the CUDA engine on a GPU: the conformance suite of every device, then a table of
//! benchmarks. Needs the NVIDIA driver alone; models are made here.

mod conform;
mod encoders;
mod experts;
pub mod models;
mod report;
mod scale;
mod timing;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use moeshard_cuda::driver::Driver;
#[cfg(feature = "emulated")]
use moeshard_cuda::driver::emulated::Emulated;
use moeshard_cuda::driver::gpu::Gpu;
use moeshard_cuda::libraries::CUBLASLT;
use moeshard_cuda::peak::Peak;
use moeshard_cuda::{CudaConfig, CudaDevice};
use moeshard_tensor::collective::Solo;
use moeshard_tensor::device::Result as DeviceResult;
use moeshard_tensor::dtype::DType;

use report::Report;
use scale::Scale;

/// Checks and measures the CUDA engine on a GPU.
#[derive(Debug, Parser)]
#[command(name = "gpu-check", version)]
struct Args {
    /// Which GPU
    #[arg(long, default_value_t = 0)]
    gpu: usize,

    /// Folder for gpu-check.json and gpu-check.md
    #[arg(long, default_value = ".")]
    out: PathBuf,

    /// Folder for models, some 8 GB [default: one for temporary files]
    #[arg(long)]
    models: Option<PathBuf>,

    /// Leave out the conformance suite
    #[arg(long)]
    no_conformance: bool,

    /// Leave out the benchmarks
    #[arg(long)]
    no_benchmarks: bool,

    /// In which type the benchmarks run: bf16 or f16
    #[arg(long, default_value = "bf16")]
    dtype: DType,

    /// Folder of cuBLASLt, to run dense layers on it [default: the driver alone is used]
    #[arg(long)]
    cuda_libs: Option<PathBuf>,

    /// Small shapes on an emulated GPU: whether the program works, not how fast
    #[cfg(feature = "emulated")]
    #[arg(long)]
    emulated: bool,
}

/// The program.
///
/// # Errors
/// If there is no GPU, something cannot be done, or a case of the suite failed.
pub fn main() -> Result<()> {
    let args = Args::parse();
    #[cfg(feature = "emulated")]
    if args.emulated {
        return run(&args, &Scale::TINY, || match args.cuda_libs {
            Some(_) => Emulated::with_cublaslt(),
            None => Ok(Emulated::new()),
        });
    }
    let library = match &args.cuda_libs {
        Some(dir) => Some(CUBLASLT.find(Some(dir))?),
        None => None,
    };
    run(&args, &Scale::GPU, || {
        let mut gpu = Gpu::open(args.gpu)?;
        if let Some(path) = &library {
            gpu.use_cublaslt(path)?;
        }
        Ok(gpu)
    })
}

fn run<R: Driver>(args: &Args, scale: &Scale, open: impl Fn() -> DeviceResult<R>) -> Result<()> {
    let device = |dtype| CudaDevice::new(CudaConfig { dtype }, open()?, Box::new(Solo));
    let first = device(args.dtype).context("there is nothing to check")?;
    let mut report = Report::new(first.driver());
    drop(first);
    if !args.no_conformance {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            report
                .suites
                .push(conform::run(&device(dtype)?, dtype, scale));
            // At once: a kernel that fails takes the rest with it.
            report.write(&args.out)?;
        }
    }
    if !args.no_benchmarks {
        let alone = device(args.dtype)?;
        report.peak = Some(Peak::measure(&alone, scale.effort)?.into());
        experts::run(&alone, scale, &mut report)?;
        let made = tempfile::tempdir()?;
        let folder = args
            .models
            .clone()
            .unwrap_or_else(|| made.path().to_owned());
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        drop(alone);
        for model in scale.models {
            let device = device(args.dtype)?;
            encoders::run(device, model, scale, &folder, &mut report)?;
        }
        report.write(&args.out)?;
    }
    print!("{}", report.markdown());
    ensure!(report.n_failed() == 0, "{} cases failed", report.n_failed());
    Ok(())
}
