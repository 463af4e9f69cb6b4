//! The processes that a launcher has started this one with: how many, and which one this is.
//!
//! [`environment`] reads what launchers say in variables; [`Launch::check`] whether this program can do what
//! they ask for; [`Launch::join`] makes one world of the processes, by MPI.

pub mod environment;
mod join;

use anyhow::{Result, bail, ensure};

pub use environment::{EnvironmentError, Launcher};

use crate::model::DeviceKind;

/// This process among those of its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Who has started it.
    pub launcher: Launcher,
    /// This process, below `world_size`.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
    /// How many of them share this machine, if the launcher says so.
    pub n_local: Option<usize>,
    /// Names of the machine of rank 0, if the launcher says so.
    pub hosts: Vec<String>,
}

/// The job that this process was started in; `None` if it is alone, also in a job of one process.
///
/// # Errors
/// If the launcher's variables contradict each other.
pub fn of_process() -> Result<Option<Launch>, EnvironmentError> {
    let launch = environment::read(|name| std::env::var(name).ok())?;
    Ok(launch.filter(|launch| launch.world_size > 1))
}

/// Refuses to do as many times what one process does for itself.
///
/// # Errors
/// If a launcher has started several.
pub fn check_alone(command: &str) -> Result<()> {
    let Some(launch) = of_process()? else {
        return Ok(());
    };
    bail!(
        "{} has started {} processes, and `moeshard {command}` runs in one; start it without, and use --ranks \
         for several ranks",
        launch.launcher,
        launch.world_size
    )
}

impl Launch {
    /// That these processes can be ranks on the device.
    ///
    /// # Errors
    /// If something is missing: it is named, with what can be done.
    pub fn check(&self, device: DeviceKind) -> Result<()> {
        let (launcher, n) = (self.launcher, self.world_size);
        ensure!(
            device == DeviceKind::Cpu,
            "{launcher} has started {n} processes, which compute on the CPU alone: GPUs in several processes \
             need NCCL, which moeshard does not use yet; --gpus N runs on the GPUs of one machine, in one process"
        );
        ensure!(
            moeshard_mpi::IS_BUILT,
            "{launcher} has started {n} processes, and this program was built without MPI, over which they \
             exchange: build it with `--features mpi`, or start one process with --ranks {n}"
        );
        ensure!(
            self.launcher.may_bring_mpi(),
            "{launcher} has started {n} processes, which on the CPU exchange over MPI: start them with mpirun \
             (deploy/ has examples), or one process with --ranks {n}"
        );
        Ok(())
    }

    /// Threads of each process, unless the user says otherwise: processes share the cores of a machine. As if
    /// all were on one, where nobody says how many are; that does no harm but take longer.
    #[must_use]
    pub fn n_threads(&self, n_cores: usize) -> usize {
        (n_cores / self.n_local.unwrap_or(self.world_size)).max(1)
    }
}
