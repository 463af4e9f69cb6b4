//! What the ranks compute on.

use std::sync::Arc;
use std::time::Duration;

use moeshard_cuda::driver::gpu::Gpu;
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

/// Ranks on GPUs, dealt out in turn.
pub struct GpuRanks {
    config: CudaConfig,
    n_gpus: usize,
    world: Arc<PeerWorld>,
}

/// Ranks on as many GPUs as `args` says.
pub fn gpus(args: &Args, n_ranks: usize) -> GpuRanks {
    GpuRanks {
        config: CudaConfig { dtype: args.dtype },
        n_gpus: args.gpus,
        world: PeerWorld::new(n_ranks, DEADLINE),
    }
}

impl DeviceMaker for GpuRanks {
    type Device = CudaDevice<Gpu>;

    fn make(&self, collective: Box<dyn Collective>) -> Result<Self::Device, DeviceError> {
        let gpu = Gpu::open(collective.rank() % self.n_gpus)?;
        CudaDevice::new(self.config, gpu, collective)?.meet_peers(&self.world)
    }
}

/// Ranks on emulated GPUs, one each.
#[cfg(feature = "emulated")]
pub struct EmulatedRanks {
    config: CudaConfig,
    world: Arc<PeerWorld>,
}

/// Ranks on emulated GPUs.
#[cfg(feature = "emulated")]
pub fn emulated(args: &Args, n_ranks: usize) -> EmulatedRanks {
    EmulatedRanks {
        config: CudaConfig { dtype: args.dtype },
        world: PeerWorld::new(n_ranks, DEADLINE),
    }
}

#[cfg(feature = "emulated")]
impl DeviceMaker for EmulatedRanks {
    type Device = CudaDevice<moeshard_cuda::driver::emulated::Emulated>;

    fn make(&self, collective: Box<dyn Collective>) -> Result<Self::Device, DeviceError> {
        let driver = moeshard_cuda::driver::emulated::Emulated::new();
        CudaDevice::new(self.config, driver, collective)?.meet_peers(&self.world)
    }
}
