//! The real program as a child process.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use crate::http::Client;

/// A model of the tests is ready within a second; a busy machine gets much more.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A server that ends with the value.
#[derive(Debug)]
pub struct Server {
    child: Child,
    addr: SocketAddr,
    stderr: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

/// How a program that was expected to end by itself did.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to its standard error.
    pub stderr: String,
    /// What it wrote to its standard output.
    pub stdout: String,
}

impl Server {
    /// Serves the built-in model, or what `args` say, and waits until it is ready.
    ///
    /// # Panics
    /// If it is not ready in time; the message has what it wrote to its standard error.
    #[must_use]
    pub fn start(args: &[&str]) -> Self {
        let mut server = Self::launch(args);
        server.wait_ready();
        server
    }

    /// Serves a model folder.
    #[must_use]
    pub fn of_model(folder: &Path, args: &[&str]) -> Self {
        let folder = folder.to_str().expect("a path in UTF-8");
        Self::start(&[&["--model", folder], args].concat())
    }

    /// Starts the program and does not wait.
    #[must_use]
    pub fn launch(args: &[&str]) -> Self {
        Self::launch_with(args, &[])
    }

    /// Starts the program with variables of its environment, and does not wait.
    #[must_use]
    pub fn launch_with(args: &[&str], variables: &[(&str, &str)]) -> Self {
        let addr = free_addr();
        let port = addr.port().to_string();
        let mut child = program()
            .args(["serve", "--hostname", "127.0.0.1", "--port", &port])
            .args(args)
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stderr = Arc::new(Mutex::new(String::new()));
        let pipe = child.stderr.take().expect("a piped stderr");
        let reader = spawn({
            let stderr = Arc::clone(&stderr);
            move || collect(pipe, &stderr)
        });
        Self {
            child,
            addr,
            stderr,
            reader: Some(reader),
        }
    }

    /// A client of this server.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.addr)
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// What it has written to its standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        let text = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone()
    }

    /// Asks it to end, as `docker stop` does, without waiting.
    pub fn terminate(&self) {
        let signal = format!("kill -TERM {}", self.child.id());
        let status = Command::new("sh").args(["-c", &signal]).status();
        assert!(status.expect("a shell").success(), "{signal}");
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// If it has not ended after `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let status = wait(&mut self.child, limit);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of stderr ends");
        }
        status.unwrap_or_else(|| panic!("still running after {limit:?}:\n{}", self.stderr()))
    }

    /// Waits until `/ready` says 200.
    ///
    /// # Panics
    /// If the program ends or is not ready in time.
    pub fn wait_ready(&mut self) {
        let deadline = Instant::now() + READY_WITHIN;
        while !self.is_ready() {
            let status = self.child.try_wait().expect("the child's status");
            assert!(status.is_none(), "ended {status:?}:\n{}", self.stderr());
            let late = Instant::now() > deadline;
            assert!(!late, "not ready in {READY_WITHIN:?}:\n{}", self.stderr());
            sleep(Duration::from_millis(10));
        }
    }

    fn is_ready(&self) -> bool {
        let answer = self.client().try_get("/ready");
        answer.is_ok_and(|answer| answer.status == 200)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the program until it ends by itself.
///
/// # Panics
/// If it is still running after a minute.
#[must_use]
pub fn run(args: &[&str]) -> Ended {
    run_within(args, READY_WITHIN)
}

/// As [`run`], for what takes longer.
///
/// # Panics
/// If it is still running after `limit`.
#[must_use]
pub fn run_within(args: &[&str], limit: Duration) -> Ended {
    let mut child = program()
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let stdout = read_all(child.stdout.take().expect("a piped stdout"));
    let stderr = read_all(child.stderr.take().expect("a piped stderr"));
    let status = wait(&mut child, limit);
    let _ = child.kill();
    let (stdout, stderr) = (stdout.join(), stderr.join());
    let stderr = stderr.expect("stderr is read");
    Ended {
        status: status.unwrap_or_else(|| panic!("{args:?} did not end:\n{stderr}")),
        stdout: stdout.expect("stdout is read"),
        stderr,
    }
}

/// The program without the settings of whoever runs the tests.
fn program() -> Command {
    let mut command = Command::new(program_path());
    // Every flag is a variable too, some under names as plain as PORT.
    command.env_clear();
    for name in ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    // A panic would show itself by its backtrace.
    command.env("RUST_BACKTRACE", "1").stdin(Stdio::null());
    command
}

/// `target/release/moeshard` of the build that made this test.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn program_path() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let name = format!("moeshard{}", std::env::consts::EXE_SUFFIX);
    let mut paths = test.ancestors().skip(1).map(|folder| folder.join(&name));
    let found = paths.find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "no program moeshard above {}: run `cargo xtask test`, which builds it",
            test.display()
        )
    })
}

fn free_addr() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait().expect("the child's status") {
            Some(status) => return Some(status),
            None if Instant::now() > deadline => return None,
            None => sleep(Duration::from_millis(10)),
        }
    }
}

fn collect(pipe: impl Read, text: &Mutex<String>) {
    for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
        let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
        text.push_str(&String::from_utf8_lossy(&line));
        text.push('\n');
    }
}

fn read_all(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
