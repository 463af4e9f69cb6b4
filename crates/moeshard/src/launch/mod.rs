//! The processes that a launcher has started this one with: how many, and which one this is.
//!
//! [`environment`] reads what launchers say in variables; [`Launch::transport`] says by what the processes
//! exchange; [`Joining`] makes one world of them, by MPI or over TCP.

pub mod environment;
mod join;
mod leader;

use anyhow::{Result, bail, ensure};
use moeshard_engine::processes::Rendezvous;

pub use environment::{EnvironmentError, Launcher};
pub use join::{Joining, OnLost};
pub use leader::{LEADER_PORT, Leader};

/// This process among those of its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Who has started it.
    pub launcher: Launcher,
    /// This process, below `world_size`.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
    /// Which of those on this machine it is, if the launcher says so.
    pub local_rank: Option<usize>,
    /// How many of them share this machine, if the launcher says so.
    pub n_local: Option<usize>,
    /// Names of the machine of rank 0, if the launcher says so.
    pub hosts: Vec<String>,
    /// Where rank 0 waits for the others, unless the user says so.
    pub port: u16,
    /// Whether the launcher lets its processes meet by MPI.
    pub brings_mpi: bool,
    /// A number made of what the launcher calls the job.
    pub job: u64,
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

/// By what processes exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The launcher's MPI.
    Mpi,
    /// TCP, from where rank 0 is.
    Tcp(Rendezvous),
}

impl Launch {
    /// By what these processes exchange: MPI where the launcher brings it and the program has it, unless the user
    /// names a leader; else TCP.
    ///
    /// # Errors
    /// If nothing says where rank 0 is; with what can be done.
    pub fn transport(&self, leader: Option<&Leader>) -> Result<Transport> {
        if moeshard_mpi::IS_BUILT && self.brings_mpi && leader.is_none() {
            return Ok(Transport::Mpi);
        }
        let (launcher, n) = (self.launcher, self.world_size);
        let named = leader.map(|leader| &leader.host);
        let Some(host) = named.or(self.hosts.first()) else {
            ensure!(
                !self.launcher.is_mpirun(),
                "{launcher} has started {n} processes, and this program was built without MPI, over which they \
                 exchange: build it with `--features mpi`, or start one process with --ranks {n}"
            );
            bail!(
                "{launcher} has started {n} processes, and nothing says where the first one is: name its machine \
                 with --leader HOST:PORT"
            );
        };
        Ok(Transport::Tcp(Rendezvous {
            rank: self.rank,
            world_size: self.world_size,
            host: host.clone(),
            port: leader.and_then(|leader| leader.port).unwrap_or(self.port),
            job: self.job,
        }))
    }

    /// Which of `n_gpus` GPUs of this machine is this process'.
    #[must_use]
    pub fn gpu(&self, n_gpus: usize) -> usize {
        self.local_rank.unwrap_or(self.rank) % n_gpus.max(1)
    }

    /// Threads of each process, unless the user says otherwise: processes share the cores of a machine. As if
    /// all were on one, where nobody says how many are; that does no harm but take longer.
    #[must_use]
    pub fn n_threads(&self, n_cores: usize) -> usize {
        (n_cores / self.n_local.unwrap_or(self.world_size)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Launch {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name)?;
            Some(found.1.to_owned())
        };
        let read = environment::read(variable).expect("variables that fit");
        read.expect("a launcher")
    }

    const MPIRUN: [(&str, &str); 2] =
        [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")];

    #[test]
    fn processes_exchange_over_tcp_where_an_address_is_known() {
        let check = |launch: &Launch, leader: Option<&str>, host: &str, port: u16| {
            let leader = leader.map(|text| Leader::read(text).expect("a leader"));
            let expected = Transport::Tcp(Rendezvous {
                rank: 1,
                world_size: 2,
                host: host.to_owned(),
                port,
                job: launch.job,
            });
            let found = launch.transport(leader.as_ref()).expect("an address");
            assert_eq!(found, expected);
        };
        let torchrun = launch(&[
            ("RANK", "1"),
            ("WORLD_SIZE", "2"),
            ("MASTER_ADDR", "node-a"),
            ("MASTER_PORT", "29500"),
        ]);
        check(&torchrun, None, "node-a", 29501);
        check(&torchrun, Some("node-b"), "node-b", 29501);
        check(&torchrun, Some("node-b:77"), "node-b", 77);
        // Also where MPI would be there.
        check(&launch(&MPIRUN), Some("node-b"), "node-b", LEADER_PORT);
    }

    #[test]
    fn what_is_missing_is_said() {
        let slurm = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
        let refused = |set: &[(&str, &str)]| {
            let error = launch(set).transport(None).expect_err("no address");
            error.to_string()
        };
        let said = refused(&slurm);
        assert!(
            said.ends_with("name its machine with --leader HOST:PORT"),
            "{said}"
        );
        if moeshard_mpi::IS_BUILT {
            assert_eq!(launch(&MPIRUN).transport(None).ok(), Some(Transport::Mpi));
        } else {
            let expected = "mpirun has started 2 processes, and this program was built without MPI, over which they \
                            exchange: build it with `--features mpi`, or start one process with --ranks 2";
            assert_eq!(refused(&MPIRUN), expected);
        }
    }
}
