//! Set-up and checks of the repository itself: `cargo xtask test` and its relatives.
//!
//! In reading order: [`args`] is the command line, [`python`] and [`minilm`] fetch what tests need
//! beyond the repository, [`test`] runs them and [`tally`] reads what they printed. Arguments are
//! parsed by hand: this program compiles before every test run and should take a second.
#![expect(clippy::print_stdout, reason = "printing is what this program is for")]

mod apt;
mod args;
mod cuda;
mod minilm;
mod mpi;
mod parts;
mod process;
mod python;
mod tally;
mod test;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use args::Task;

fn main() -> ExitCode {
    let task = match args::parse(std::env::args().skip(1)) {
        Ok(task) => task,
        Err(message) => {
            eprintln!("error: {message}\n\n{}", args::HELP);
            return ExitCode::from(2);
        }
    };
    match run(task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the task succeeded.
fn run(task: Task) -> anyhow::Result<bool> {
    let root = root();
    match task {
        Task::Help => {
            println!("{}", args::HELP);
            Ok(true)
        }
        Task::Test(options) => test::run(&root, &options),
        Task::Fmt => process::succeeds(process::cargo(&root).args(["fmt", "--all"])),
        Task::Clippy => clippy(&root),
        Task::Cuda => {
            println!("{}", cuda::set_up(&root)?.display());
            Ok(true)
        }
        Task::Kernels => cuda::check_kernels(&root).map(|()| true),
        Task::Ci => process::succeeds(&mut Command::new(root.join(".ci/run"))),
    }
}

/// Lints everything, and once more as it is with MPI where that can be had: a feature also takes code
/// away.
fn clippy(root: &Path) -> anyhow::Result<bool> {
    let lint = |features: &[&str]| {
        let mut command = process::cargo(root);
        // The same profile as the tests: build scripts and procedural macros are then compiled once.
        command.args([
            "clippy",
            "--locked",
            "--release",
            "--workspace",
            "--all-targets",
        ]);
        process::succeeds(command.args(features).args(["--", "-D", "warnings"]))
    };
    if !lint(&[])? {
        return Ok(false);
    }
    match mpi::set_up() {
        Ok(_) => lint(&["--features", mpi::FEATURES]),
        Err(error) => {
            println!("skipped: lints of what needs MPI: {error:#}");
            Ok(true)
        }
    }
}

/// The repository's folder: the parent of this crate's.
fn root() -> PathBuf {
    // At run time cargo says where the crate is now; the other is where it was compiled.
    let crate_dir = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    crate_dir
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}
