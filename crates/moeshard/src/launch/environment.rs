//! What launchers tell the processes that they start, in variables.

use std::fmt;

use super::Launch;

/// Who starts processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// MPICH's or Intel's `mpirun`, or Slurm's `srun --mpi=pmi2`.
    Pmi,
    /// PyTorch's `torchrun`.
    Torchrun,
    /// Slurm's `srun`.
    Slurm,
    /// Kubernetes' LeaderWorkerSet.
    LeaderWorkerSet,
}

impl Launcher {
    /// Whether its processes may find each other by MPI.
    pub(super) fn may_bring_mpi(self) -> bool {
        matches!(self, Self::OpenMpi | Self::Pmi | Self::Slurm)
    }
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenMpi | Self::Pmi => "mpirun",
            Self::Torchrun => "torchrun",
            Self::Slurm => "srun",
            Self::LeaderWorkerSet => "a LeaderWorkerSet",
        })
    }
}

/// Variables that make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvironmentError {
    /// One of two that belong together is missing.
    #[error("{launcher} has set {set}, but not {missing}")]
    Missing {
        /// Whose variables.
        launcher: Launcher,
        /// The one that is there.
        set: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// A number was expected.
    #[error("{variable} must be {expected}, got `{found}`")]
    Number {
        /// The variable.
        variable: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The rank is not below the number of ranks.
    #[error("{rank_variable} is {rank} and {size_variable} {world_size}: ranks count from 0")]
    Rank {
        /// The variable of the rank.
        rank_variable: &'static str,
        /// Its value.
        rank: usize,
        /// The variable of the number of ranks.
        size_variable: &'static str,
        /// Its value.
        world_size: usize,
    },
}

/// The variables of one launcher.
struct Variables {
    launcher: Launcher,
    rank: &'static str,
    world_size: &'static str,
    /// How many processes share the machine.
    n_local: Option<&'static str>,
    /// Without it, the others may be somebody else's.
    only_with: Option<&'static str>,
}

/// From the inside out: a launcher may be started by another, as `mpirun` within an allocation of Slurm or in
/// the pods of a LeaderWorkerSet, and then counts.
const KNOWN: [Variables; 5] = [
    Variables {
        launcher: Launcher::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: "OMPI_COMM_WORLD_SIZE",
        n_local: Some("OMPI_COMM_WORLD_LOCAL_SIZE"),
        only_with: None,
    },
    Variables {
        launcher: Launcher::Pmi,
        rank: "PMI_RANK",
        world_size: "PMI_SIZE",
        n_local: Some("MPI_LOCALNRANKS"),
        only_with: None,
    },
    // Names as plain as RANK may mean anything.
    Variables {
        launcher: Launcher::Torchrun,
        rank: "RANK",
        world_size: "WORLD_SIZE",
        n_local: Some("LOCAL_WORLD_SIZE"),
        only_with: Some("MASTER_ADDR"),
    },
    // The step's, which `srun` sets; SLURM_NTASKS is there in a batch script as well, which is one process.
    Variables {
        launcher: Launcher::Slurm,
        rank: "SLURM_PROCID",
        world_size: "SLURM_STEP_NUM_TASKS",
        n_local: None,
        only_with: Some("SLURM_STEP_NUM_TASKS"),
    },
    Variables {
        launcher: Launcher::LeaderWorkerSet,
        rank: "LWS_WORKER_INDEX",
        world_size: "LWS_GROUP_SIZE",
        n_local: None,
        only_with: None,
    },
];

/// Where rank 0 runs, by those who say so.
const HOSTS: [&str; 2] = ["MASTER_ADDR", "LWS_LEADER_ADDRESS"];

/// What the variables say; `None` if there is no launcher.
///
/// # Errors
/// If those of a launcher are incomplete or contradict each other.
pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Launch>, EnvironmentError> {
    let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    for known in &KNOWN {
        if let Some(mut launch) = known.read(&variable)? {
            launch.hosts = HOSTS.iter().filter_map(|name| variable(name)).collect();
            return Ok(Some(launch));
        }
    }
    Ok(None)
}

impl Variables {
    fn read(
        &self,
        variable: &impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Launch>, EnvironmentError> {
        let launcher = self.launcher;
        if self.only_with.is_some_and(|name| variable(name).is_none()) {
            return Ok(None);
        }
        let missing = |set, missing| EnvironmentError::Missing {
            launcher,
            set,
            missing,
        };
        let (rank, world_size) = match (variable(self.rank), variable(self.world_size)) {
            (None, None) => return Ok(None),
            (Some(rank), Some(world_size)) => (rank, world_size),
            (Some(_), None) => return Err(missing(self.rank, self.world_size)),
            (None, Some(_)) => return Err(missing(self.world_size, self.rank)),
        };
        let rank = number(self.rank, "a number from 0", 0, rank)?;
        let world_size = number(self.world_size, "a number from 1", 1, world_size)?;
        if rank >= world_size {
            return Err(EnvironmentError::Rank {
                rank_variable: self.rank,
                rank,
                size_variable: self.world_size,
                world_size,
            });
        }
        let n_local = self.n_local.and_then(|name| Some((name, variable(name)?)));
        let n_local = n_local.map(|(name, value)| number(name, "a number from 1", 1, value));
        let n_local = match launcher {
            // A group has one pod on a machine, or limits of its own on each.
            Launcher::LeaderWorkerSet => Some(1),
            _ => n_local.transpose()?,
        };
        Ok(Some(Launch {
            launcher,
            rank,
            world_size,
            n_local,
            hosts: Vec::new(),
        }))
    }
}

fn number(
    variable: &'static str,
    expected: &'static str,
    least: usize,
    found: String,
) -> Result<usize, EnvironmentError> {
    match found.trim().parse() {
        Ok(n) if n >= least => Ok(n),
        _ => Err(EnvironmentError::Number {
            variable,
            expected,
            found,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(set: &[(&str, &str)]) -> Result<Option<Launch>, String> {
        let variable = |name: &str| {
            let found = set.iter().find(|(known, _)| *known == name)?;
            Some(found.1.to_owned())
        };
        read(variable).map_err(|error| error.to_string())
    }

    fn check(set: &[(&str, &str)], expect: (Launcher, usize, usize, Option<usize>, &[&str])) {
        let (launcher, rank, world_size, n_local, hosts) = expect;
        let expected = Launch {
            launcher,
            rank,
            world_size,
            n_local,
            hosts: hosts.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(of(set), Ok(Some(expected)), "{set:?}");
    }

    const OPEN_MPI: [(&str, &str); 3] = [
        ("OMPI_COMM_WORLD_RANK", "3"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
    ];
    const SLURM: [(&str, &str); 3] = [
        ("SLURM_PROCID", "1"),
        ("SLURM_NTASKS", "8"),
        ("SLURM_STEP_NUM_TASKS", "2"),
    ];
    const TORCHRUN: [(&str, &str); 4] = [
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_WORLD_SIZE", "1"),
        ("MASTER_ADDR", "node-a"),
    ];
    const LWS: [(&str, &str); 3] = [
        ("LWS_WORKER_INDEX", "0"),
        ("LWS_GROUP_SIZE", "2"),
        ("LWS_LEADER_ADDRESS", "moeshard-0.moeshard"),
    ];

    #[test]
    fn every_launcher_is_known() {
        check(&OPEN_MPI, (Launcher::OpenMpi, 3, 4, Some(2), &[]));
        let pmi = [("PMI_RANK", "0"), ("PMI_SIZE", " 2 ")];
        check(&pmi, (Launcher::Pmi, 0, 2, None, &[]));
        check(&SLURM, (Launcher::Slurm, 1, 2, None, &[]));
        check(&TORCHRUN, (Launcher::Torchrun, 1, 2, Some(1), &["node-a"]));
        let hosts = ["moeshard-0.moeshard"];
        check(&LWS, (Launcher::LeaderWorkerSet, 0, 2, Some(1), &hosts));
        assert_eq!(of(&[]), Ok(None));
    }

    #[test]
    fn the_innermost_launcher_counts() {
        let within = |outer: &[(&'static str, &'static str)]| [&OPEN_MPI[..], outer].concat();
        check(&within(&SLURM), (Launcher::OpenMpi, 3, 4, Some(2), &[]));
        let hosts = ["moeshard-0.moeshard"];
        check(&within(&LWS), (Launcher::OpenMpi, 3, 4, Some(2), &hosts));
        let both = [&SLURM[..], &TORCHRUN].concat();
        check(&both, (Launcher::Torchrun, 1, 2, Some(1), &["node-a"]));
    }

    #[test]
    fn what_is_set_for_other_reasons_is_no_launcher() {
        // A batch script of Slurm, before `srun`.
        assert_eq!(
            of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]),
            Ok(None)
        );
        assert_eq!(of(&[("RANK", "gold"), ("WORLD_SIZE", "9")]), Ok(None));
        assert_eq!(of(&[("PMI_RANK", ""), ("PMI_SIZE", "")]), Ok(None));
    }

    #[test]
    fn variables_without_sense_are_refused() {
        let refused = |set: &[(&str, &str)], expect: &str| {
            assert_eq!(of(set), Err(expect.to_owned()));
        };
        refused(
            &OPEN_MPI[..1],
            "mpirun has set OMPI_COMM_WORLD_RANK, but not OMPI_COMM_WORLD_SIZE",
        );
        refused(
            &SLURM[1..],
            "srun has set SLURM_STEP_NUM_TASKS, but not SLURM_PROCID",
        );
        refused(
            &LWS[1..],
            "a LeaderWorkerSet has set LWS_GROUP_SIZE, but not LWS_WORKER_INDEX",
        );
        refused(
            &[("PMI_RANK", "2"), ("PMI_SIZE", "2")],
            "PMI_RANK is 2 and PMI_SIZE 2: ranks count from 0",
        );
        refused(
            &[("PMI_RANK", "-1"), ("PMI_SIZE", "2")],
            "PMI_RANK must be a number from 0, got `-1`",
        );
        refused(
            &[("PMI_RANK", "0"), ("PMI_SIZE", "0")],
            "PMI_SIZE must be a number from 1, got `0`",
        );
        refused(
            &[&OPEN_MPI[..2], &[("OMPI_COMM_WORLD_LOCAL_SIZE", "x")]].concat(),
            "OMPI_COMM_WORLD_LOCAL_SIZE must be a number from 1, got `x`",
        );
    }
}
