//! What the ranks compute on.

use std::sync::Arc;
use std::time::Duration;

use moeshard_cuda::driver::Driver;
#[cfg(feature = "emulated")]
use moeshard_cuda::driver::emulated::Emulated;
use moeshard_cuda::driver::gpu::Gpu;
use moeshard_cuda::libraries::{CUBLASLT, NCCL};
use moeshard_cuda::{CudaConfig, CudaDevice, PeerWorld};
use moeshard_engine::{CpuRanks, DeviceMaker};
use moeshard_tensor::collective::Collective;
use moeshard_tensor::cpu::Isa;
use moeshard_tensor::device::DeviceError;

use crate::args::Args;

/// The longest that a rank on a GPU waits for the others at a time.
const DEADLINE: Duration = Duration::from_secs(60);

/// Ranks on the cores of this machine.
pub fn cpu(args: &Args, n_ranks: usize) -> CpuRanks {
    CpuRanks {
        dtype: args.dtype,
        n_threads: n_ranks * args.threads,
        binds_threads: !args.share_cores,
        isa: Isa::detect(),
    }
}

/// Ranks on GPUs.
pub struct CudaRanks<R> {
    config: CudaConfig,
    /// Opens the GPU of a rank.
    open: Box<dyn Fn(usize) -> Result<R, DeviceError> + Send + Sync>,
    world: Arc<PeerWorld>,
}

/// Ranks on as many GPUs as `args` says, dealt out in turn.
pub fn gpus(args: &Args, n_ranks: usize) -> CudaRanks<Gpu> {
    let n_gpus = args.gpus;
    CudaRanks {
        config: CudaConfig { dtype: args.dtype },
        open: Box::new(move |rank| open(rank % n_gpus)),
        world: PeerWorld::new(n_ranks, DEADLINE),
    }
}

/// A GPU with the libraries that are found.
fn open(idx: usize) -> Result<Gpu, DeviceError> {
    let mut gpu = Gpu::open(idx)?;
    if let Ok(path) = CUBLASLT.find(None) {
        gpu.use_cublaslt(&path)?;
    }
    if let Ok(path) = NCCL.find(None) {
        gpu.use_nccl(&path)?;
    }
    Ok(gpu)
}

/// Ranks on emulated GPUs, one each.
#[cfg(feature = "emulated")]
pub fn emulated(args: &Args, n_ranks: usize) -> CudaRanks<Emulated> {
    CudaRanks {
        config: CudaConfig { dtype: args.dtype },
        open: Box::new(|_| Ok(Emulated::new())),
        world: PeerWorld::new(n_ranks, DEADLINE),
    }
}

impl<R: Driver + 'static> DeviceMaker for CudaRanks<R> {
    type Device = CudaDevice<R>;

    fn make(&self, collective: Box<dyn Collective>) -> Result<Self::Device, DeviceError> {
        let driver = (self.open)(collective.rank())?;
        let is_alone = collective.world_size() == 1;
        let device = CudaDevice::new(self.config, driver, collective)?.meet_peers(&self.world)?;
        match is_alone {
            true => Ok(device),
            false => device.join_nccl(DEADLINE),
        }
    }
}
