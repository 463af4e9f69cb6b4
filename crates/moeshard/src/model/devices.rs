//! What the ranks compute on.

use std::fmt;
use std::sync::Arc;

use moeshard_encoder::model::Model;
use moeshard_engine::{CpuRanks, Layout, RankEngine, StartError};
use moeshard_tensor::cpu::Isa;

use super::config::ComputeConfig;
use super::load::dtype;

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The cores of this machine.
    Cpu,
}

impl DeviceKind {
    /// The name of the kernels that run on it.
    #[must_use]
    pub fn kernels(self) -> String {
        match self {
            Self::Cpu => Isa::detect().to_string(),
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
        })
    }
}

/// Starts the ranks of a model on the devices that the user chose.
pub(super) fn start(
    model: &Arc<Model>,
    compute: &ComputeConfig,
    progress: &Arc<dyn Fn(u64) + Send + Sync>,
) -> Result<RankEngine, StartError> {
    let layout = Layout {
        n_ranks: compute.n_ranks,
        strategy: compute.strategy,
        sequence_capacity: compute.sequence_capacity,
    };
    match compute.device {
        DeviceKind::Cpu => {
            let cores = CpuRanks {
                binds_threads: !compute.shares_cores,
                ..cpu_ranks(model, compute)
            };
            RankEngine::start(model, layout, cores, progress)
        }
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
