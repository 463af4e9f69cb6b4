//! Checks and measures the CUDA engine on a GPU: the conformance suite of every device, then a table of
//! benchmarks. Needs the NVIDIA driver alone; models are made here.

mod conform;
mod encoders;
mod experts;
pub mod models;
mod ranks;
mod report;
mod scale;
mod timing;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use moeshard_cuda::driver::Driver;
#[cfg(feature = "emulated")]
use moeshard_cuda::driver::emulated::Emulated;
use moeshard_cuda::driver::gpu::{self, Gpu};
use moeshard_cuda::libraries::{CUBLASLT, Library, NCCL};
use moeshard_cuda::peak::Peak;
use moeshard_cuda::{CudaConfig, CudaDevice};
use moeshard_encoder::model::Model;
use moeshard_tensor::collective::Solo;
use moeshard_tensor::device::Result as DeviceResult;
use moeshard_tensor::dtype::DType;

use ranks::{Place, Via};
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
        // As if there were two.
        return run(&args, &Scale::TINY, 2, |_| match args.cuda_libs {
            Some(_) => Emulated::with_libraries(),
            None => Ok(Emulated::new()),
        });
    }
    let find = |library: Library| match &args.cuda_libs {
        Some(dir) => library.find(Some(dir)).map(Some),
        None => Ok(None),
    };
    let (cublaslt, nccl) = match (find(CUBLASLT), find(NCCL)) {
        (Err(missing), Err(_)) => return Err(missing.into()),
        (cublaslt, nccl) => (cublaslt.unwrap_or(None), nccl.unwrap_or(None)),
    };
    // Without a driver the first device says so.
    let n_gpus = gpu::count().unwrap_or(1);
    run(&args, &Scale::GPU, n_gpus, |idx| {
        let mut gpu = Gpu::open(idx)?;
        if let Some(path) = &cublaslt {
            gpu.use_cublaslt(path)?;
        }
        if let Some(path) = &nccl {
            gpu.use_nccl(path)?;
        }
        Ok(gpu)
    })
}

fn run<R: Driver>(
    args: &Args,
    scale: &Scale,
    n_gpus: usize,
    open: impl Fn(usize) -> DeviceResult<R> + Sync,
) -> Result<()> {
    let device = |dtype| CudaDevice::new(CudaConfig { dtype }, open(args.gpu)?, Box::new(Solo));
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
        on_ranks(args, scale, (n_gpus, &folder), &open, &mut report)?;
        report.write(&args.out)?;
    }
    print!("{}", report.markdown());
    ensure!(report.n_failed() == 0, "{} cases failed", report.n_failed());
    Ok(())
}

/// The last model, which is the smallest and fits several times, on several ranks: on one GPU, and on each GPU that
/// there is.
fn on_ranks<R: Driver>(
    args: &Args,
    scale: &Scale,
    (n_gpus, folder): (usize, &Path),
    open: &(impl Fn(usize) -> DeviceResult<R> + Sync),
    report: &mut Report,
) -> Result<()> {
    let Some(shape) = scale.models.last() else {
        return Ok(());
    };
    let model = Model::open(&folder.join(shape.name))?;
    let work = (shape, &model);
    let has_nccl = open(args.gpu)?.nccl().is_some();
    let place = |n_ranks, via, name| Place {
        n_ranks,
        via,
        name,
        is_apart: false,
    };
    let mut here = vec![
        place(2, Via::Peers, "2 ranks on one GPU"),
        place(4, Via::Peers, "4 ranks on one GPU"),
    ];
    if has_nccl {
        here.push(place(1, Via::Nccl, "1 rank, NCCL"));
    }
    ranks::run(&|_| open(args.gpu), args.dtype, work, &here, scale, report)?;
    if n_gpus == 1 {
        return Ok(());
    }
    let names = ["memory", "NCCL"].map(|via| format!("{n_gpus} GPUs, {via}"));
    let mut apart = vec![Place {
        n_ranks: n_gpus,
        via: Via::Peers,
        name: &names[0],
        is_apart: true,
    }];
    if has_nccl {
        apart.push(Place {
            n_ranks: n_gpus,
            via: Via::Nccl,
            name: &names[1],
            is_apart: true,
        });
    }
    ranks::run(open, args.dtype, work, &apart, scale, report)
}
