//! Jobs of several processes on this machine, and what they say.

use std::env;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use moeshard_tests::http::Client;
use moeshard_tests::server::program_path;
use serde_json::json;
use tempfile::TempDir;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A search path on which stand-ins for launchers are the first to be found.
pub(crate) fn stand_ins() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let rest = env::var("PATH").unwrap_or_default();
    format!("{}:{rest}", folder.display())
}

/// A port that is free, as is the one before it, between those that jobs of Slurm have.
fn free_port() -> u16 {
    static N_TAKEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let n = N_TAKEN.fetch_add(1, Ordering::Relaxed);
        let port = 20_001 + ((process::id() * 67 + 2 * n) % 9_990) as u16;
        let taken = [port - 1, port].map(|port| TcpListener::bind(("0.0.0.0", port)));
        if taken.iter().all(Result::is_ok) {
            return port;
        }
    }
}

/// A launcher, or the processes themselves. Ended when it is dropped.
pub(crate) struct Job {
    children: Vec<Child>,
    folder: TempDir,
}

impl Job {
    /// Runs a script of `deploy`, with the program and the built-in model. `adjust` gives the command what it needs to
    /// have rank 0 wait for the others at a port.
    pub(crate) fn of_script(script: &Path, adjust: impl FnOnce(&mut Command, u16)) -> Self {
        let mut command = Command::new("bash");
        command.arg(script).env_clear();
        adjust(&mut command, free_port());
        command.args(["--hostname", "127.0.0.1", "--port", "0"]);
        Self::start(vec![command])
    }

    /// Runs so many processes of the program.
    pub(crate) fn of_processes(n: usize, adjust: impl Fn(usize, &mut Command, u16)) -> Self {
        let port = free_port();
        let command = |rank| {
            let mut command = Command::new(program_path());
            command.env_clear().env("MOESHARD_PORT", "0");
            command.env("MOESHARD_HOSTNAME", "127.0.0.1");
            adjust(rank, &mut command, port);
            command
        };
        Self::start((0..n).map(command).collect())
    }

    fn start(commands: Vec<Command>) -> Self {
        let folder = TempDir::new().expect("a folder");
        let log = File::create(folder.path().join("log")).expect("a file");
        let start = |mut command: Command| {
            let stream = || Stdio::from(log.try_clone().expect("a file"));
            command
                .env("MOESHARD", program_path())
                .env("RUST_LOG", "info")
                .stdin(Stdio::null())
                .stdout(stream())
                .stderr(stream());
            command.spawn().expect("a process")
        };
        Self {
            children: commands.into_iter().map(start).collect(),
            folder,
        }
    }

    fn log(&self) -> String {
        let path: PathBuf = self.folder.path().join("log");
        String::from_utf8_lossy(&fs::read(path).expect("the log")).into_owned()
    }

    fn wait_for<T>(&mut self, found: impl Fn(&str) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            let log = self.log();
            if let Some(found) = found(&log) {
                return found;
            }
            let ended = self.children[0].try_wait().expect("a process");
            assert!(ended.is_none(), "{ended:?}: {log}");
            assert!(started.elapsed() < PATIENCE, "it hangs: {log}");
            sleep(Duration::from_millis(5));
        }
    }

    /// That the job says something and answers a request.
    pub(crate) fn answers(&mut self, expect: &str) {
        self.wait_for(|log| log.contains(expect).then_some(()));
        self.wait_for(|log| log.contains("ready after").then_some(()));
        let port = self.wait_for(|log| {
            let rest = log.split_once("listening on http://127.0.0.1:")?.1;
            rest.split_once(',')?.0.parse::<u16>().ok()
        });
        let client = Client::new(([127, 0, 0, 1], port).into());
        let rows = client
            .post("/embed", json!({"inputs": ["hello", "world"]}))
            .ok();
        assert_eq!(rows.as_array().map(Vec::len), Some(2), "{rows}");
    }

    /// That a signal to the launcher, or to rank 0, ends all well.
    pub(crate) fn ends_well(mut self) {
        signal("TERM", self.children[0].id());
        for status in self.end() {
            assert!(status.success(), "{status}: {}", self.log());
        }
        assert!(!self.log().contains("moeshard: "), "{}", self.log());
    }

    /// That the launcher fails and the loss is named when rank 1 is killed.
    pub(crate) fn ends_by_a_kill(mut self) {
        let process = self.wait_for(|log| {
            let line = log.lines().find(|line| line.contains("rank 1 of "))?;
            line.rsplit_once("process ")?.1.trim().parse().ok()
        });
        signal("KILL", process);
        for status in self.end() {
            assert!(!status.success(), "{}", self.log());
        }
        let log = self.log();
        let said = log.lines().filter(|line| line.starts_with("moeshard: "));
        let said: Vec<_> = said.collect();
        assert_eq!(
            said,
            ["moeshard: rank 1 is lost: its process is gone"],
            "{log}"
        );
    }

    fn end(&mut self) -> Vec<ExitStatus> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let ended = self.children.iter_mut().map(Child::try_wait);
            let ended: Option<Vec<_>> = ended.map(|ended| ended.expect("a process")).collect();
            if let Some(ended) = ended {
                return ended;
            }
            sleep(Duration::from_millis(5));
        }
        panic!("it hangs: {}", self.log())
    }
}

fn signal(name: &str, process: u32) {
    let sent = Command::new("kill")
        .args(["-s", name, &process.to_string()])
        .status();
    assert!(sent.expect("kill").success());
}

impl Drop for Job {
    fn drop(&mut self) {
        for child in &mut self.children {
            if child.try_wait().is_ok_and(|ended| ended.is_none()) {
                // A launcher takes its processes with it.
                signal("TERM", child.id());
                let _ = child.wait();
            }
        }
    }
}
