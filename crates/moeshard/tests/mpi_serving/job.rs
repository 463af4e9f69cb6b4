//! A server whose ranks are the processes of an MPI job.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::client::{kill, wait_for};

/// What every process runs: the program, and a line with its exit code. `mpirun` sends its signals to the
/// shell as well, which outlives them.
const WRAPPED: &str = r#"trap : TERM; "$0" "$@"; code=$?
echo "rank $OMPI_COMM_WORLD_RANK exits with $code" >&2; exit $code"#;

/// How long a job that is not needed any more may take to end by itself.
const LETS_GO: Duration = Duration::from_secs(10);

/// A job, or a single server. Ended when it is dropped.
pub(crate) struct Job {
    child: Child,
    folder: TempDir,
    pub(crate) n_ranks: usize,
}

impl Job {
    /// Starts so many processes.
    pub(crate) fn start(n_ranks: usize) -> Self {
        let mpirun = std::env::var_os("MOESHARD_MPIRUN").unwrap_or_else(|| "mpirun".into());
        let mut command = Command::new(mpirun);
        command.args([
            "--allow-run-as-root",
            "--oversubscribe",
            "--bind-to",
            "none",
        ]);
        command.args(["-n", &n_ranks.to_string(), "sh", "-c", WRAPPED]);
        // Containers often forbid reading another process' memory, and Open MPI then warns.
        command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
        command
            .arg(env!("CARGO_BIN_EXE_moeshard"))
            .args(["serve", "--device", "cpu"]);
        Self::spawn(command, n_ranks, &[])
    }

    /// Starts so many processes by the script of `deploy`.
    pub(crate) fn by_script(n_ranks: usize) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/mpirun.sh");
        let mut command = Command::new(script);
        let mpirun = std::env::var_os("MOESHARD_MPIRUN").unwrap_or_else(|| "mpirun".into());
        command
            .env("MPIRUN", mpirun)
            .env("MPIRUN_FLAGS", "--allow-run-as-root --oversubscribe")
            .env("OMPI_MCA_btl_vader_single_copy_mechanism", "none")
            .env("MOESHARD", env!("CARGO_BIN_EXE_moeshard"))
            .arg(n_ranks.to_string());
        Self::spawn(command, n_ranks, &[])
    }

    /// Starts one process with so many ranks.
    pub(crate) fn in_process(n_ranks: usize) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moeshard"));
        command.arg("serve");
        Self::spawn(command, n_ranks, &["--ranks", &n_ranks.to_string()])
    }

    fn spawn(mut command: Command, n_ranks: usize, more: &[&str]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let log = fs::File::create(folder.path().join("log")).expect("a file");
        command
            // Jobs that start and end at the same time trip over each other in a common place for `mpirun`'s
            // files (Open MPI 4.1.4).
            .env("TMPDIR", folder.path())
            .args(["--dtype", "f32", "--threads", "1"])
            .args(["--hostname", "127.0.0.1", "--port", "0"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log);
        let child = command.spawn().expect("the launcher");
        Self {
            child,
            folder,
            n_ranks,
        }
    }

    /// What all processes have said so far.
    pub(crate) fn log(&self) -> String {
        read(&self.path())
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The process of a rank, once it has said its number.
    pub(crate) fn process_of(&mut self, rank: usize) -> u32 {
        let n_ranks = self.n_ranks;
        self.wait_for(|log| {
            let start = format!("rank {rank} of {n_ranks} ");
            let line = &log[log.find(&start)?..];
            let line = line.split_once('\n')?.0;
            line.split_once("process ")?.1.trim().parse().ok()
        })
    }

    /// The port, once it is bound.
    pub(crate) fn port(&mut self) -> u16 {
        self.wait_for(|log| {
            let rest = log.split_once("listening on http://127.0.0.1:")?.1;
            rest.split_once(',')?.0.parse().ok()
        })
    }

    /// The port, once the model is loaded.
    pub(crate) fn ready(&mut self) -> u16 {
        self.wait_for(|log| log.contains("ready after").then_some(()));
        self.port()
    }

    fn wait_for<T>(&mut self, found: impl Fn(&str) -> Option<T>) -> T {
        let log = self.path();
        wait_for(&mut self.child, || read(&log), found)
    }

    /// Sends a signal to the job.
    pub(crate) fn signal(&self, signal: &str) {
        kill(signal, self.child.id());
    }

    /// Waits for the job's end: its exit code, and what all have said.
    pub(crate) fn end(mut self, within: Duration) -> (Option<i32>, String) {
        let ended = self.ends(within);
        assert!(ended, "it hangs: {}", self.state());
        (self.child.wait().expect("a process").code(), self.log())
    }

    /// As [`Job::end`] where a process was killed at the start. There is no code if `mpirun` hangs after all processes have
    /// ended, which is nothing that they can help: it then waits for ever for a lock of its own (Open MPI 4.1.4,
    /// `pmix_rte_finalize`).
    pub(crate) fn end_of_start(mut self, within: Duration) -> (Option<i32>, String) {
        if !self.ends(within) {
            assert!(self.all_have_ended(), "it hangs: {}", self.state());
            let _ = self.child.kill();
        }
        (self.child.wait().expect("a process").code(), self.log())
    }

    fn ends(&mut self, within: Duration) -> bool {
        let started = Instant::now();
        while self.child.try_wait().expect("a process").is_none() {
            if started.elapsed() > within {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Whether `mpirun` has no process left that runs.
    fn all_have_ended(&self) -> bool {
        let mut list = Command::new("ps");
        list.args(["--ppid", &self.child.id().to_string(), "-o", "stat="]);
        let states = list.output().expect("a list of processes").stdout;
        let states = String::from_utf8_lossy(&states).into_owned();
        states.lines().all(|state| state.starts_with('Z'))
    }

    /// What all have said, and which of their processes are there.
    fn state(&self) -> String {
        let mut list = Command::new("ps");
        list.args(["-eo", "pid,ppid,pgid,stat,wchan:32,etime,args"]);
        let processes = list
            .output()
            .map(|output| output.stdout)
            .unwrap_or_default();
        format!("{}\n{}", self.log(), String::from_utf8_lossy(&processes))
    }
}

fn read(log: &Path) -> String {
    String::from_utf8_lossy(&fs::read(log).expect("the log")).into_owned()
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // `mpirun` takes its processes with it, also where it is killed.
            self.signal("TERM");
            let started = Instant::now();
            while self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
                if started.elapsed() > LETS_GO {
                    let _ = self.child.kill();
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
    }
}
