//! Ranks on the cores of this machine.

use moeshard_tensor::collective::Collective;
use moeshard_tensor::cpu::{CpuConfig, CpuDevice, Isa, cores};
use moeshard_tensor::device::DeviceError;
use moeshard_tensor::dtype::DType;

use crate::rank::DeviceMaker;

/// Makes CPU devices that share the threads of this machine.
#[derive(Clone, Copy, Debug)]
pub struct CpuRanks {
    /// In which weights are kept.
    pub dtype: DType,
    /// Threads of all ranks together.
    pub n_threads: usize,
    /// Whether threads that take every core are bound to one each. Several programs that do so on
    /// the same cores slow each other down.
    pub binds_threads: bool,
    /// Which kernels to use.
    pub isa: Isa,
}

impl CpuRanks {
    /// A rank's share of the threads; the first ranks take one more if they do not divide.
    ///
    /// # Panics
    /// If there are no ranks.
    pub fn config(&self, rank: usize, world_size: usize) -> CpuConfig {
        let (share, rest) = (self.n_threads / world_size, self.n_threads % world_size);
        // Threads are bound where they take every core: one rank's after the other's.
        let binds = self.binds_threads && share > 0 && cores::n_allowed() == Some(self.n_threads);
        CpuConfig {
            dtype: self.dtype,
            n_threads: (share + usize::from(rank < rest)).max(1),
            first_core: binds.then_some(rank * share + rank.min(rest)),
            isa: self.isa,
        }
    }
}

impl DeviceMaker for CpuRanks {
    type Device = CpuDevice;

    fn make(&self, collective: Box<dyn Collective>) -> Result<CpuDevice, DeviceError> {
        if self.n_threads == 0 {
            let message = "threads must be at least 1, got 0".to_owned();
            return Err(DeviceError::SetUp(message));
        }
        let config = self.config(collective.rank(), collective.world_size());
        CpuDevice::new(config, collective)
    }

    /// Binds the rank's own thread. Not before: the thread that reads the checkpoint ahead starts
    /// on the loader's cores.
    fn loaded(&self, device: &CpuDevice) {
        device.bind_caller();
    }
}

#[cfg(test)]
mod tests {
    use moeshard_tensor::collective::Solo;

    use super::*;

    fn ranks(n_threads: usize) -> CpuRanks {
        CpuRanks {
            dtype: DType::F32,
            n_threads,
            binds_threads: true,
            isa: Isa::Portable,
        }
    }

    #[test]
    fn threads_are_shared_as_evenly_as_can_be() {
        let shares = |n_ranks: usize, n_threads: usize| -> Vec<_> {
            (0..n_ranks)
                .map(|rank| ranks(n_threads).config(rank, n_ranks).n_threads)
                .collect()
        };
        assert_eq!(shares(1, 5), [5]);
        assert_eq!(shares(3, 8), [3, 3, 2]);
        assert_eq!(shares(3, 2), [1, 1, 1]);
    }

    #[test]
    fn threads_are_bound_where_they_take_every_core() {
        let Some(n_cores) = cores::n_allowed() else {
            return; // a system that cannot bind them
        };
        let first_cores = |n_ranks: usize, n_threads: usize| -> Vec<_> {
            (0..n_ranks)
                .map(|rank| ranks(n_threads).config(rank, n_ranks).first_core)
                .collect()
        };
        assert_eq!(first_cores(1, n_cores), [Some(0)]);
        let each: Vec<_> = (0..n_cores).map(Some).collect();
        assert_eq!(first_cores(n_cores, n_cores), each);
        assert_eq!(first_cores(1, n_cores + 1), [None]);
        assert_eq!(first_cores(n_cores + 1, n_cores), vec![None; n_cores + 1]);
    }

    #[test]
    fn no_threads_are_refused() {
        let error = ranks(0).make(Box::new(Solo)).err().expect("no threads");
        assert_eq!(
            error.to_string(),
            "cannot set up the device: threads must be at least 1, got 0"
        );
    }
}
