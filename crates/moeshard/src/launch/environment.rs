//! What launchers tell the processes that they start, in variables.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use super::Launch;
use super::leader::{LEADER_PORT, first_host};

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
    /// Whether it is there for MPI alone.
    pub(super) fn is_mpirun(self) -> bool {
        matches!(self, Self::OpenMpi | Self::Pmi)
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
    local_rank: Option<&'static str>,
    /// How many processes share the machine.
    n_local: Option<&'static str>,
    /// Without it, the others may be somebody else's.
    only_with: Option<&'static str>,
    /// What it calls the job, the same for all its processes.
    job: &'static [&'static str],
}

/// From the inside out: a launcher may be started by another, as `mpirun` within an allocation of Slurm or in
/// the pods of a LeaderWorkerSet, and then counts.
const KNOWN: [Variables; 5] = [
    Variables {
        launcher: Launcher::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: "OMPI_COMM_WORLD_SIZE",
        local_rank: Some("OMPI_COMM_WORLD_LOCAL_RANK"),
        n_local: Some("OMPI_COMM_WORLD_LOCAL_SIZE"),
        only_with: None,
        job: &[],
    },
    Variables {
        launcher: Launcher::Pmi,
        rank: "PMI_RANK",
        world_size: "PMI_SIZE",
        local_rank: Some("MPI_LOCALRANKID"),
        n_local: Some("MPI_LOCALNRANKS"),
        only_with: None,
        job: &["SLURM_JOB_ID", "SLURM_STEP_ID"],
    },
    // Names as plain as RANK may mean anything.
    Variables {
        launcher: Launcher::Torchrun,
        rank: "RANK",
        world_size: "WORLD_SIZE",
        local_rank: Some("LOCAL_RANK"),
        n_local: Some("LOCAL_WORLD_SIZE"),
        only_with: Some("MASTER_ADDR"),
        job: &["TORCHELASTIC_RUN_ID"],
    },
    // The step's, which `srun` sets; SLURM_NTASKS is there in a batch script as well, which is one process.
    Variables {
        launcher: Launcher::Slurm,
        rank: "SLURM_PROCID",
        world_size: "SLURM_STEP_NUM_TASKS",
        local_rank: Some("SLURM_LOCALID"),
        n_local: None,
        only_with: Some("SLURM_STEP_NUM_TASKS"),
        job: &["SLURM_JOB_ID", "SLURM_STEP_ID"],
    },
    Variables {
        launcher: Launcher::LeaderWorkerSet,
        rank: "LWS_WORKER_INDEX",
        world_size: "LWS_GROUP_SIZE",
        local_rank: None,
        n_local: None,
        only_with: None,
        job: &["LWS_LEADER_ADDRESS"],
    },
];

/// Where rank 0 runs, by those who say so.
const HOSTS: [&str; 2] = ["MASTER_ADDR", "LWS_LEADER_ADDRESS"];

/// The machines of a step of Slurm, of which the first has rank 0; where `srun` was called, if that is not there.
const SLURM_HOSTS: [&str; 2] = ["SLURM_STEP_NODELIST", "SLURM_LAUNCH_NODE_IPADDR"];

/// A step of Slurm has a port of these by the number of its job: below those that the system gives out.
const SLURM_PORTS: Range<u16> = 20_000..30_000;

/// What the variables say; `None` if there is no launcher.
///
/// # Errors
/// If those of a launcher are incomplete or contradict each other.
pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Launch>, EnvironmentError> {
    let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    for known in &KNOWN {
        if let Some(mut launch) = known.read(&variable)? {
            launch.hosts = hosts(launch.launcher, &variable);
            launch.port = port(launch.launcher, &variable)?;
            return Ok(Some(launch));
        }
    }
    Ok(None)
}

/// Names of the machine of rank 0.
fn hosts(launcher: Launcher, variable: &impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut hosts: Vec<_> = HOSTS.iter().filter_map(|name| variable(name)).collect();
    // `mpirun` within a step may have begun anywhere.
    if matches!(launcher, Launcher::Slurm | Launcher::Pmi) {
        let of_step = SLURM_HOSTS.iter().filter_map(|name| variable(name));
        hosts.extend(of_step.filter_map(|list| first_host(&list)));
    }
    hosts
}

/// Where rank 0 waits for the others. At `MASTER_PORT` itself the agent of `torchrun` listens.
fn port(
    launcher: Launcher,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<u16, EnvironmentError> {
    let name = "MASTER_PORT";
    if let Some(found) = variable(name) {
        return match found.trim().parse() {
            Ok(u16::MAX) => Ok(u16::MAX - 1),
            Ok(port) if port > 0 => Ok(port + 1),
            _ => Err(EnvironmentError::Number {
                variable: name,
                expected: "a port",
                found,
            }),
        };
    }
    let job: Option<u64> = variable("SLURM_JOB_ID").and_then(|job| job.trim().parse().ok());
    let n_ports = u64::from(SLURM_PORTS.end - SLURM_PORTS.start);
    Ok(match (launcher, job) {
        (Launcher::Slurm | Launcher::Pmi, Some(job)) => SLURM_PORTS.start + (job % n_ports) as u16,
        _ => LEADER_PORT,
    })
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
        let of = |name: Option<&'static str>, expected, least| {
            let found = name.and_then(|name| Some((name, variable(name)?)));
            let n = found.map(|(name, found)| number(name, expected, least, found));
            n.transpose()
        };
        let (local_rank, n_local) = match launcher {
            // A group has one pod on a machine, or limits of its own on each.
            Launcher::LeaderWorkerSet => (Some(0), Some(1)),
            _ => (
                of(self.local_rank, "a number from 0", 0)?,
                of(self.n_local, "a number from 1", 1)?,
            ),
        };
        Ok(Some(Launch {
            launcher,
            rank,
            world_size,
            local_rank,
            n_local,
            hosts: Vec::new(),
            port: LEADER_PORT,
            // `srun` does where it was told to by --mpi=pmix.
            brings_mpi: launcher.is_mpirun()
                || launcher == Launcher::Slurm && variable("PMIX_RANK").is_some(),
            job: self.job(world_size, variable),
        }))
    }

    /// A number that processes of other jobs and of other versions do not have.
    fn job(&self, world_size: usize, variable: &impl Fn(&str) -> Option<String>) -> u64 {
        let names: Vec<_> = self.job.iter().map(|name| variable(name)).collect();
        let version = env!("CARGO_PKG_VERSION");
        let mut hasher = DefaultHasher::new();
        format!("{version} {} {world_size} {names:?}", self.launcher).hash(&mut hasher);
        hasher.finish()
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

    fn launch(set: &[(&str, &str)]) -> Launch {
        of(set).expect("variables that fit").expect("a launcher")
    }

    fn check(set: &[(&str, &str)], expect: (Launcher, usize, usize, Option<usize>, &[&str])) {
        let found = launch(set);
        let hosts: Vec<_> = found.hosts.iter().map(String::as_str).collect();
        let found = (
            found.launcher,
            found.rank,
            found.world_size,
            found.n_local,
            hosts.as_slice(),
        );
        assert_eq!(found, expect, "{set:?}");
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
    fn rank_0_is_found_next_to_what_the_launcher_names() {
        let with = |launcher: &[(&'static str, &'static str)],
                    more: &[(&'static str, &'static str)]| {
            let launch = launch(&[launcher, more].concat());
            (launch.hosts.first().cloned(), launch.port)
        };
        let at = |host: &str, port: u16| (Some(host.to_owned()), port);
        let port = |port| [("MASTER_PORT", port)];
        assert_eq!(with(&TORCHRUN, &port("29500")), at("node-a", 29501));
        assert_eq!(with(&TORCHRUN, &port("65535")), at("node-a", 65534));
        assert_eq!(with(&TORCHRUN, &[]), at("node-a", LEADER_PORT));
        assert_eq!(with(&LWS, &[]), at("moeshard-0.moeshard", LEADER_PORT));
        let nodes = ("SLURM_STEP_NODELIST", "node[07-09]");
        let login = ("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.9");
        let job = ("SLURM_JOB_ID", "1230042");
        assert_eq!(with(&SLURM, &[login, nodes, job]), at("node07", 20042));
        assert_eq!(with(&SLURM, &[login]), at("10.0.0.9", LEADER_PORT));
        assert_eq!(with(&SLURM, &[]), (None, LEADER_PORT));
        assert_eq!(with(&OPEN_MPI, &[nodes]), (None, LEADER_PORT));
        let named = ("MASTER_ADDR", "node-b");
        assert_eq!(with(&SLURM, &[nodes, named, job]), at("node-b", 20042));
        assert_eq!(with(&OPEN_MPI, &[named]), at("node-b", LEADER_PORT));
    }

    #[test]
    fn processes_of_one_machine_have_numbers_of_their_own() {
        let local = |launcher: &[(&'static str, &'static str)], name| {
            let launch = launch(&[launcher, &[(name, "3")]].concat());
            (launch.local_rank, launch.gpu(4), launch.gpu(2))
        };
        for (launcher, name) in [
            (&OPEN_MPI[..], "OMPI_COMM_WORLD_LOCAL_RANK"),
            (&SLURM, "SLURM_LOCALID"),
            (&TORCHRUN, "LOCAL_RANK"),
        ] {
            assert_eq!(local(launcher, name), (Some(3), 3, 1), "{name}");
        }
        assert_eq!(local(&LWS, "x"), (Some(0), 0, 0));
        // Without a word all may be on one machine.
        assert_eq!(local(&SLURM, "x"), (None, 1, 1));
    }

    #[test]
    fn jobs_are_told_apart() {
        let job = |more: (&'static str, &'static str)| launch(&[&SLURM[..], &[more]].concat()).job;
        let (one, other) = (("SLURM_JOB_ID", "1"), ("SLURM_JOB_ID", "2"));
        assert_eq!(job(one), job(one));
        assert_ne!(job(one), job(other));
        assert_ne!(launch(&TORCHRUN).job, launch(&SLURM).job);
    }

    #[test]
    fn mpi_is_used_where_the_launcher_brings_it() {
        assert!(launch(&OPEN_MPI).brings_mpi);
        assert!(!launch(&TORCHRUN).brings_mpi);
        assert!(!launch(&SLURM).brings_mpi);
        assert!(launch(&[&SLURM[..], &[("PMIX_RANK", "1")]].concat()).brings_mpi);
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
            &[&TORCHRUN[..], &[("MASTER_PORT", "0")]].concat(),
            "MASTER_PORT must be a port, got `0`",
        );
        refused(
            &[&OPEN_MPI[..2], &[("OMPI_COMM_WORLD_LOCAL_SIZE", "x")]].concat(),
            "OMPI_COMM_WORLD_LOCAL_SIZE must be a number from 1, got `x`",
        );
    }
}
