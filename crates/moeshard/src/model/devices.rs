//! What the ranks compute on.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use moeshard_cuda::driver::gpu::{self, Gpu};
use moeshard_cuda::peak::{Effort, Peak};
use moeshard_cuda::{CudaConfig, CudaDevice, PeerWorld};
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::Shares;
use moeshard_engine::processes::{self, FollowError, JoinWorld, Leadership};
use moeshard_engine::{CpuRanks, DeviceMaker, Layout, RankEngine, StartError};
use moeshard_tensor::collective::{Collective, Solo};
use moeshard_tensor::cpu::Isa;
use moeshard_tensor::device::DeviceError;
use moeshard_tensor::dtype::DType;

use super::config::{ComputeConfig, CudaLibs, Overlap};
use super::load::dtype;

/// The longest that a rank on a GPU waits for the others at a time.
const DEADLINE: Duration = Duration::from_secs(60);

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The cores of this machine.
    Cpu,
    /// NVIDIA GPUs.
    Cuda {
        /// Ranks are dealt out to so many.
        n_gpus: usize,
    },
    /// The kernels of GPUs on the CPU, in builds for tests.
    #[cfg(feature = "emulated")]
    Emulated,
}

impl DeviceKind {
    /// Tokens of a batch that is run before the model answers, if the device's memory is taken by and by.
    pub(super) fn first_batch(self, max_batch_tokens: usize) -> Option<usize> {
        match self {
            Self::Cpu => None,
            Self::Cuda { .. } => Some(max_batch_tokens),
            // It is slow.
            #[cfg(feature = "emulated")]
            Self::Emulated => Some(max_batch_tokens.min(8)),
        }
    }

    /// The name of the kernels that run on it.
    #[must_use]
    pub fn kernels(self) -> String {
        match self {
            Self::Cpu => Isa::detect().to_string(),
            Self::Cuda { .. } => "CUDA".to_owned(),
            #[cfg(feature = "emulated")]
            Self::Emulated => "emulated CUDA".to_owned(),
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda { .. } => "cuda",
            #[cfg(feature = "emulated")]
            Self::Emulated => "emulated",
        })
    }
}

/// How the user wants a model laid out.
pub(super) fn layout(compute: &ComputeConfig) -> Layout {
    Layout {
        n_ranks: compute.n_ranks,
        strategy: compute.strategy,
        sequence_capacity: compute.sequence_capacity,
        overlap: match compute.overlap {
            Overlap::From {
                n_tokens,
                needs_streams,
            } => Some(moeshard_engine::Overlap {
                n_tokens,
                needs_streams,
            }),
            Overlap::Auto | Overlap::Off => None,
        },
    }
}

/// Starts the ranks of a model on the devices that the user chose; with a leadership, ranks that are
/// processes.
pub(super) fn start(
    model: &Arc<Model>,
    compute: &ComputeConfig,
    leadership: Option<Leadership>,
    progress: &Arc<dyn Fn(u64) + Send + Sync>,
) -> Result<RankEngine, StartError> {
    let layout = layout(compute);
    if let Some(leadership) = leadership {
        return lead(model, compute, leadership, progress);
    }
    match compute.device {
        DeviceKind::Cpu => {
            let cores = CpuRanks {
                binds_threads: !compute.shares_cores,
                ..cpu_ranks(model, compute)
            };
            RankEngine::start(model, layout, cores, progress)
        }
        DeviceKind::Cuda { n_gpus } => {
            let gpus = gpu_ranks(model, compute, n_gpus);
            RankEngine::start(model, layout, gpus, progress)
        }
        #[cfg(feature = "emulated")]
        DeviceKind::Emulated => {
            let ranks = emulated_ranks(model, compute);
            RankEngine::start(model, layout, ranks, progress)
        }
    }
}

/// Leads ranks that are processes, of which this is the first.
fn lead(
    model: &Arc<Model>,
    compute: &ComputeConfig,
    leadership: Leadership,
    progress: &Arc<dyn Fn(u64) + Send + Sync>,
) -> Result<RankEngine, StartError> {
    let layout = layout(compute);
    match compute.device {
        DeviceKind::Cpu => {
            let cores = cpu_ranks(model, compute);
            RankEngine::lead(model, layout, cores, leadership, progress)
        }
        DeviceKind::Cuda { n_gpus } => {
            let gpus = gpu_ranks(model, compute, n_gpus);
            RankEngine::lead(model, layout, gpus, leadership, progress)
        }
        #[cfg(feature = "emulated")]
        DeviceKind::Emulated => {
            let ranks = emulated_ranks(model, compute);
            RankEngine::lead(model, layout, ranks, leadership, progress)
        }
    }
}

/// Runs a rank of a model until the first process says that it is over.
pub(super) fn follow(
    model: Arc<Model>,
    compute: &ComputeConfig,
    rank: usize,
    join: JoinWorld,
) -> Result<(), FollowError> {
    let layout = layout(compute);
    match compute.device {
        DeviceKind::Cpu => {
            let cores = cpu_ranks(&model, compute);
            processes::follow(model, layout, cores, rank, join)
        }
        DeviceKind::Cuda { n_gpus } => {
            let gpus = gpu_ranks(&model, compute, n_gpus);
            processes::follow(model, layout, gpus, rank, join)
        }
        #[cfg(feature = "emulated")]
        DeviceKind::Emulated => {
            let ranks = emulated_ranks(&model, compute);
            processes::follow(model, layout, ranks, rank, join)
        }
    }
}

/// Ranks on GPUs, dealt out in turn, unless every rank is a process with a GPU of its own.
#[derive(Clone, Debug)]
pub(crate) struct GpuRanks {
    config: CudaConfig,
    n_gpus: usize,
    own_gpu: Option<usize>,
    libs: CudaLibs,
    world: Arc<PeerWorld>,
}

impl DeviceMaker for GpuRanks {
    type Device = CudaDevice<Gpu>;

    fn make(&self, collective: Box<dyn Collective>) -> Result<Self::Device, DeviceError> {
        let dealt = collective.rank() % self.n_gpus;
        let mut gpu = Gpu::open(self.own_gpu.unwrap_or(dealt))?;
        if let Some(path) = &self.libs.cublaslt {
            let loaded = gpu.use_cublaslt(path);
            self.libs
                .note(loaded, "cuBLASLt computes dense layers that it takes")?;
        }
        let is_alone = collective.world_size() == 1;
        if let Some(path) = &self.libs.nccl
            && !is_alone
        {
            let loaded = gpu.use_nccl(path);
            self.libs.note(loaded, "NCCL is there")?;
        }
        let device = CudaDevice::new(self.config, gpu, collective)?.meet_peers(&self.world)?;
        if is_alone {
            return Ok(device);
        }
        let device = device.join_nccl(DEADLINE)?;
        tracing::info!(
            exchange = device.exchange(),
            "how rows travel between ranks"
        );
        Ok(device)
    }
}

impl CudaLibs {
    /// A library that does not load is done without, unless the user named its folder.
    fn note(&self, loaded: Result<(), DeviceError>, what: &str) -> Result<(), DeviceError> {
        match loaded {
            Ok(()) => tracing::info!("{what}"),
            Err(error) if self.is_named => return Err(error),
            Err(error) => tracing::warn!("done without: {error}"),
        }
        Ok(())
    }
}

/// Ranks on emulated GPUs, one each.
#[cfg(feature = "emulated")]
#[derive(Clone, Debug)]
pub(crate) struct EmulatedRanks {
    config: CudaConfig,
    world: Arc<PeerWorld>,
}

#[cfg(feature = "emulated")]
impl DeviceMaker for EmulatedRanks {
    type Device = CudaDevice<moeshard_cuda::driver::emulated::Emulated>;

    fn make(&self, collective: Box<dyn Collective>) -> Result<Self::Device, DeviceError> {
        let driver = moeshard_cuda::driver::emulated::Emulated::new();
        CudaDevice::new(self.config, driver, collective)?.meet_peers(&self.world)
    }
}

/// What each rank gets of every expert where GPUs are of different kinds: by how fast each multiplies, measured now.
/// `None` where they are alike, or do not say.
pub(super) fn shares_of_unlike_gpus(compute: &ComputeConfig, dtype: DType) -> Option<Shares> {
    let DeviceKind::Cuda { n_gpus } = compute.device else {
        return None;
    };
    let gpus = gpu::list().ok()?;
    let gpus = gpus.get(..n_gpus)?;
    if gpus.iter().all(|gpu| gpu.name == gpus[0].name) {
        return None;
    }
    let speed = |idx| {
        let device = CudaDevice::new(CudaConfig { dtype }, Gpu::open(idx).ok()?, Box::new(Solo));
        let peak = Peak::measure(&device.ok()?, Effort::GPU).ok()?;
        Some(peak.weights_flops as f32)
    };
    let speeds = (0..n_gpus).map(speed).collect::<Option<Vec<_>>>()?;
    let of_ranks: Vec<_> = (0..compute.n_ranks)
        .map(|rank| speeds[rank % n_gpus])
        .collect();
    Shares::new(&of_ranks).ok()
}

/// Ranks on so many GPUs.
pub(crate) fn gpu_ranks(model: &Model, compute: &ComputeConfig, n_gpus: usize) -> GpuRanks {
    GpuRanks {
        config: cuda_config(model, compute),
        n_gpus,
        own_gpu: compute.own_gpu,
        libs: compute.cuda_libs.clone(),
        world: peers(compute),
    }
}

/// Ranks on as many emulated GPUs.
#[cfg(feature = "emulated")]
pub(crate) fn emulated_ranks(model: &Model, compute: &ComputeConfig) -> EmulatedRanks {
    EmulatedRanks {
        config: cuda_config(model, compute),
        world: peers(compute),
    }
}

/// The ranks of this process, which may read each other's memory.
fn peers(compute: &ComputeConfig) -> Arc<PeerWorld> {
    let n_here = match compute.own_gpu {
        Some(_) => 1,
        None => compute.n_ranks,
    };
    PeerWorld::new(n_here, DEADLINE)
}

/// What a model needs of a GPU.
fn cuda_config(model: &Model, compute: &ComputeConfig) -> CudaConfig {
    CudaConfig {
        dtype: dtype(model, compute),
    }
}

/// Ranks on the cores of this machine, on threads that the system places.
pub(crate) fn cpu_ranks(model: &Model, compute: &ComputeConfig) -> CpuRanks {
    CpuRanks {
        dtype: dtype(model, compute),
        n_threads: compute.n_threads,
        binds_threads: false,
        isa: Isa::detect(),
    }
}
