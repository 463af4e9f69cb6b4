//! A server whose ranks are processes, started with the variables of a launcher.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::client::{kill, wait_for};

/// Whose variables processes are started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Torchrun,
    Slurm,
    LeaderWorkerSet,
    /// `mpirun`, for a program without MPI that is told where rank 0 is.
    Mpirun,
}

pub(crate) const LAUNCHERS: [By; 4] = [By::Torchrun, By::Slurm, By::LeaderWorkerSet, By::Mpirun];

impl By {
    /// The variables of one process; rank 0 is to wait at `port`.
    fn variables(self, rank: usize, n_ranks: usize, port: u16) -> Vec<(&'static str, String)> {
        let (rank, n_ranks) = (rank.to_string(), n_ranks.to_string());
        let before = (port - 1).to_string();
        match self {
            Self::Torchrun => vec![
                ("RANK", rank.clone()),
                ("WORLD_SIZE", n_ranks.clone()),
                ("LOCAL_RANK", rank),
                ("LOCAL_WORLD_SIZE", n_ranks),
                ("MASTER_ADDR", "localhost".to_owned()),
                ("MASTER_PORT", before),
                ("TORCHELASTIC_RUN_ID", "none".to_owned()),
            ],
            Self::Slurm => vec![
                ("SLURM_PROCID", rank.clone()),
                ("SLURM_LOCALID", rank),
                ("SLURM_NTASKS", n_ranks.clone()),
                ("SLURM_STEP_NUM_TASKS", n_ranks),
                ("SLURM_STEP_NODELIST", "localhost".to_owned()),
                // From which the port follows.
                ("SLURM_JOB_ID", (1_000_000 + u32::from(port)).to_string()),
                ("SLURM_STEP_ID", "0".to_owned()),
            ],
            // Its own port is the same for all jobs of a machine.
            Self::LeaderWorkerSet => vec![
                ("LWS_WORKER_INDEX", rank),
                ("LWS_GROUP_SIZE", n_ranks),
                ("LWS_LEADER_ADDRESS", "localhost".to_owned()),
                ("MASTER_PORT", before),
            ],
            Self::Mpirun => vec![
                ("OMPI_COMM_WORLD_RANK", rank.clone()),
                ("OMPI_COMM_WORLD_SIZE", n_ranks),
                ("OMPI_COMM_WORLD_LOCAL_RANK", rank),
                ("MOESHARD_LEADER", format!("127.0.0.1:{port}")),
            ],
        }
    }
}

/// A free port between those that Slurm's jobs have here, and the one before it, which stays taken as that of an agent
/// of `torchrun` is.
fn ports() -> (u16, TcpListener) {
    static N_TAKEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let n = N_TAKEN.fetch_add(1, Ordering::Relaxed);
        let port = 20_001 + ((process::id() * 67 + 2 * n) % 9_990) as u16;
        let all = |port| TcpListener::bind(("0.0.0.0", port));
        if let (Ok(agent), Ok(_)) = (all(port - 1), all(port)) {
            return (port, agent);
        }
    }
}

/// One process.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

/// All processes of a job. Ended when it is dropped.
pub(crate) struct Job {
    pub(crate) processes: Vec<Process>,
    /// Where rank 0 waits for the others.
    pub(crate) meets_at: u16,
    _folder: TempDir,
    _agent: TcpListener,
}

/// The flags that every server of these tests has.
const FLAGS: [&str; 9] = [
    "serve",
    "--hostname",
    "127.0.0.1",
    "--port",
    "0",
    "--dtype",
    "f32",
    "--threads",
    "1",
];

impl Job {
    /// Starts so many processes.
    pub(crate) fn start(by: By, n_ranks: usize, args: &[&str]) -> Self {
        Self::each(by, n_ranks, |_| {
            args.iter().map(ToString::to_string).collect()
        })
    }

    /// Starts processes with arguments of their own.
    pub(crate) fn each(by: By, n_ranks: usize, args: impl Fn(usize) -> Vec<String>) -> Self {
        let (port, agent) = ports();
        let folder = TempDir::new().expect("a folder");
        let start = |rank| {
            let variables = by.variables(rank, n_ranks, port);
            Process::start(folder.path(), rank, &args(rank), &variables)
        };
        Self {
            processes: (0..n_ranks).map(start).collect(),
            meets_at: port,
            _folder: folder,
            _agent: agent,
        }
    }

    /// Starts one process with so many ranks.
    pub(crate) fn in_process(n_ranks: usize, args: &[&str]) -> Self {
        let (port, agent) = ports();
        let folder = TempDir::new().expect("a folder");
        let ranks = n_ranks.to_string();
        let args = [args, &["--ranks", &ranks]].concat();
        let args: Vec<_> = args.into_iter().map(str::to_owned).collect();
        Self {
            processes: vec![Process::start(folder.path(), 0, &args, &[])],
            meets_at: port,
            _folder: folder,
            _agent: agent,
        }
    }

    /// The port of HTTP, once it is bound.
    pub(crate) fn port(&mut self) -> u16 {
        self.processes[0].wait_for(|log| {
            let rest = log.split_once("listening on http://127.0.0.1:")?.1;
            rest.split_once(',')?.0.parse().ok()
        })
    }

    /// The port, once the model is loaded.
    pub(crate) fn ready(&mut self) -> u16 {
        self.processes[0].wait_for(|log| log.contains("ready after").then_some(()));
        self.port()
    }

    /// Waits until all have ended: how, and what each has said of an error.
    pub(crate) fn end(mut self, within: Duration) -> Vec<(ExitStatus, Vec<String>)> {
        let started = Instant::now();
        let ended = self.processes.iter_mut().map(|process| {
            loop {
                if let Some(status) = process.child.try_wait().expect("a process") {
                    return (status, process.complaints());
                }
                assert!(started.elapsed() < within, "it hangs: {}", process.log());
                thread::sleep(Duration::from_millis(2));
            }
        });
        ended.collect()
    }
}

impl Process {
    fn start(folder: &Path, rank: usize, args: &[String], env: &[(&str, String)]) -> Self {
        let log = folder.join(format!("log-{rank}"));
        let file = fs::File::create(&log).expect("a file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_moeshard"));
        let child = command
            .args(FLAGS)
            .args(args)
            .env_clear()
            .env("RUST_LOG", "info")
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file"))
            .stderr(file)
            .spawn();
        let child = child.expect("the program");
        Self { child, log }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub(crate) fn log(&self) -> String {
        read(&self.log)
    }

    fn complaints(&self) -> Vec<String> {
        let log = self.log();
        let lines = log.lines().filter(|line| line.starts_with("moeshard: "));
        lines.map(str::to_owned).collect()
    }

    pub(crate) fn wait_for<T>(&mut self, found: impl Fn(&str) -> Option<T>) -> T {
        let log = self.log.clone();
        wait_for(&mut self.child, || read(&log), found)
    }
}

fn read(log: &Path) -> String {
    String::from_utf8_lossy(&fs::read(log).expect("the log")).into_owned()
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            kill("KILL", self.child.id());
            let _ = self.child.wait();
        }
    }
}
