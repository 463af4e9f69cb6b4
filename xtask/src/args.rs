//! The command line.

use std::path::PathBuf;

/// What `--help` prints.
pub(crate) const HELP: &str = "\
Set-up and checks of this repository.

Usage: cargo xtask <COMMAND>

Commands:
  test [--data DIR] [-- ARGS]  set up what the tests need under target/, then run all of them
  fmt                          format every file
  clippy                       lint everything, warnings denied
  cuda                         put the CUDA compiler into .cuda (104 MB; no GPU needed)
  kernels                      compile every CUDA kernel with it, and look for spilled registers
  ci                           what CI runs: formatting, lints, kernels and tests (.ci/run)
  help                         this text

Options of `test`:
  --data DIR   real data for the tests that need some; else MOESHARD_DATA, else ../shared/data
               where that exists; without any, those tests are skipped and counted
  -- ARGS      handed on to `cargo test`, for example a part of a test's name

`test` fetches, once, a Python environment with the clients in tests/clients/requirements.txt
(target/venv) and all-MiniLM-L6-v2 (target/minilm), and on Debian and Ubuntu installs Open MPI. What
cannot be had is said, and its tests are skipped. Its last line is `N passed, N failed, N skipped`; it fails if a test does.";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Explain.
    Help,
    /// Run the tests.
    Test(TestOptions),
    /// Format.
    Fmt,
    /// Lint.
    Clippy,
    /// Fetch the CUDA compiler.
    Cuda,
    /// Compile the CUDA kernels.
    Kernels,
    /// All checks.
    Ci,
}

/// How the tests are run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TestOptions {
    /// Folder with real data, as given on the command line.
    pub(crate) data: Option<PathBuf>,
    /// Arguments for `cargo test`.
    pub(crate) cargo_args: Vec<String>,
}

/// Reads the arguments that follow `cargo xtask`.
pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Task, String> {
    let mut args = args.into_iter();
    let command = args.next().unwrap_or_default();
    let task = match command.as_str() {
        "test" => return parse_test(args),
        "fmt" => Task::Fmt,
        "clippy" => Task::Clippy,
        "cuda" => Task::Cuda,
        "kernels" => Task::Kernels,
        "ci" => Task::Ci,
        "help" | "-h" | "--help" | "" => return Ok(Task::Help),
        _ => return Err(format!("there is no command `{command}`")),
    };
    match args.next().as_deref() {
        None => Ok(task),
        Some("-h" | "--help") => Ok(Task::Help),
        Some(extra) => Err(format!("`{command}` takes no arguments, got `{extra}`")),
    }
}

fn parse_test(mut args: impl Iterator<Item = String>) -> Result<Task, String> {
    let mut options = TestOptions::default();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-h" | "--help" => return Ok(Task::Help),
            "--" => options.cargo_args = args.by_ref().collect(),
            "--data" => {
                let dir = args.next().ok_or("`--data` needs a folder after it")?;
                options.data = Some(dir.into());
            }
            _ => match arg.strip_prefix("--data=") {
                Some(dir) => options.data = Some(dir.into()),
                None => return Err(format!("`test` has no option `{arg}`")),
            },
        }
    }
    Ok(Task::Test(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Task, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn every_form_is_understood() {
        let test = |data: Option<&str>, cargo_args: &[&str]| {
            Ok(Task::Test(TestOptions {
                data: data.map(PathBuf::from),
                cargo_args: cargo_args.iter().map(ToString::to_string).collect(),
            }))
        };
        let check = |line: &str, expect| assert_eq!(parse_line(line), expect, "{line}");
        check("", Ok(Task::Help));
        check("fmt", Ok(Task::Fmt));
        check("kernels", Ok(Task::Kernels));
        check("ci --help", Ok(Task::Help));
        check("test", test(None, &[]));
        check("test --data d", test(Some("d"), &[]));
        check(
            "test --data=d -- -p x name",
            test(Some("d"), &["-p", "x", "name"]),
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |line: &str, expect: &str| {
            assert_eq!(parse_line(line), Err(expect.to_owned()), "{line}");
        };
        check("tets", "there is no command `tets`");
        check("fmt now", "`fmt` takes no arguments, got `now`");
        check("test --data", "`--data` needs a folder after it");
        check("test --fast", "`test` has no option `--fast`");
    }
}
