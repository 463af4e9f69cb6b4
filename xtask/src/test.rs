//! `cargo xtask test`.

use std::env;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf, absolute};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::args::TestOptions;
use crate::parts::Parts;
use crate::tally::Tally;
use crate::{minilm, mpi, process, python};

/// What the tests are told about this machine.
struct Resources {
    data: Option<PathBuf>,
    minilm: Option<PathBuf>,
    python: Option<PathBuf>,
    mpirun: Option<PathBuf>,
}

/// Sets everything up and runs all tests; whether all of them held.
pub(crate) fn run(root: &Path, options: &TestOptions) -> anyhow::Result<bool> {
    let mut parts = Parts::default();
    let resources = set_up(root, options, &mut parts)?;
    if !parts.time("build", || build(root))? {
        bail!("the build failed");
    }
    let mut tally = Tally::default();
    let command = &mut test_command(root, &options.cargo_args, &resources);
    let mut succeeded = parts.time("tests", || stream(command, &mut tally))?;
    if let Some(command) = &mut mpi_command(root, &options.cargo_args, &resources) {
        succeeded &= parts.time("tests under mpirun", || stream(command, &mut tally))?;
    }
    report(&tally);
    parts.print();
    if tally.is_empty() {
        // A filter that names nothing must not look like success.
        println!(
            "no test ran: nothing fits `{}`",
            options.cargo_args.join(" ")
        );
        println!("{}", tally.line());
        return Ok(false);
    }
    if !succeeded && tally.n_failed == 0 {
        // A test binary that crashed, or a documentation test that did not compile.
        println!("cargo test failed without naming a test; see above");
    }
    // Programs that were not even built cannot say that they were skipped.
    tally.n_skipped += usize::from(resources.mpirun.is_none());
    println!("{}", tally.line());
    Ok(succeeded && tally.n_failed == 0)
}

fn set_up(root: &Path, options: &TestOptions, parts: &mut Parts) -> anyhow::Result<Resources> {
    let data = data_folder(root, options)?;
    let venv = parts.time("python clients", || python::set_up(root));
    let python = or_skipped("the python clients", venv);
    let any_python = python.clone().unwrap_or_else(python::system);
    let folder = parts.time("all-MiniLM-L6-v2", || minilm::set_up(root, &any_python));
    let mpirun = parts.time("Open MPI", mpi::set_up);
    Ok(Resources {
        data,
        minilm: or_skipped("all-MiniLM-L6-v2", folder),
        python,
        mpirun: or_skipped("the jobs of Open MPI", mpirun),
    })
}

/// A part of the set-up that cannot be had skips its tests, and nothing else.
fn or_skipped(what: &str, found: anyhow::Result<PathBuf>) -> Option<PathBuf> {
    match found {
        Ok(path) => {
            println!("{what}: {}", path.display());
            Some(path)
        }
        Err(error) => {
            println!("skipped: {what}: {error:#}");
            None
        }
    }
}

/// `--data`, else `MOESHARD_DATA`, else a folder beside the checkout.
fn data_folder(root: &Path, options: &TestOptions) -> anyhow::Result<Option<PathBuf>> {
    let given = options.data.clone();
    let given = given.or_else(|| env::var_os("MOESHARD_DATA").map(PathBuf::from));
    if let Some(dir) = given {
        if !dir.is_dir() {
            bail!("no data at {}: it is no folder", dir.display());
        }
        return Ok(Some(absolute(dir)?));
    }
    let beside = root.join("../shared/data");
    Ok(beside.is_dir().then_some(beside))
}

/// Compiles the programs and the tests in one go. Apart, the programs would be built once without
/// and once with the features that the tests' dependencies add.
fn build(root: &Path) -> anyhow::Result<bool> {
    let mut command = process::cargo(root);
    command.args(["build", "--release", "--workspace", "--bins", "--tests"]);
    process::succeeds(&mut command)
}

fn test_command(root: &Path, cargo_args: &[String], resources: &Resources) -> Command {
    let mut command = process::cargo(root);
    command
        .args(["test", "--release", "--workspace", "--no-fail-fast"])
        .args(cargo_args);
    if !cargo_args.iter().any(|arg| arg == "--") {
        command.arg("--");
    }
    command.arg("--show-output");
    let variables = [
        ("MOESHARD_DATA", &resources.data),
        ("MOESHARD_MINILM", &resources.minilm),
        ("MOESHARD_PYTHON", &resources.python),
    ];
    for (name, value) in variables {
        match value {
            Some(path) => command.env(name, path),
            None => command.env_remove(name),
        };
    }
    command
}

/// The tests on jobs of several processes; none without MPI, or if the arguments choose among crates
/// or binaries. The whole workspace is named, though two crates have such tests: what they share with the
/// other tests is then built once.
fn mpi_command(root: &Path, cargo_args: &[String], resources: &Resources) -> Option<Command> {
    let mpirun = resources.mpirun.as_ref()?;
    if cargo_args.iter().any(|arg| arg.starts_with('-')) {
        return None;
    }
    let mut command = process::cargo(root);
    command
        .args(["test", "--release", "--workspace", "--no-fail-fast"])
        .args(["--features", mpi::FEATURES])
        .args(["--test", "job", "--test", "mpi_training"])
        .args(["--test", "mpi_serving"])
        .args(cargo_args)
        .env("MOESHARD_MPIRUN", mpirun);
    Some(command)
}

/// Shows the tests' output as it comes, and adds it up; whether the command succeeded.
fn stream(command: &mut Command, tally: &mut Tally) -> anyhow::Result<bool> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| process::cannot_start(command))?;
    let stdout = child.stdout.take().context("no output of cargo test")?;
    for line in BufReader::new(stdout).split(b'\n') {
        // A test may print anything, also what is not UTF-8.
        let line = String::from_utf8_lossy(&line?).into_owned();
        if tally.read(&line) {
            println!("{line}");
        }
    }
    Ok(child.wait()?.success())
}

fn report(tally: &Tally) {
    for reason in &tally.reasons {
        println!("skipped: {reason}");
    }
    for name in &tally.failed {
        println!("failed: {name}");
    }
    println!(
        "{} tests were skipped for want of data",
        tally.n_without_data
    );
}
