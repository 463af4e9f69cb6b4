//! Running other programs.

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The cargo that runs this program, in the repository's folder.
pub(crate) fn cargo(root: &Path) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.current_dir(root).stdin(Stdio::null());
    for (name, _) in env::vars_os() {
        if tells_of_xtask(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether cargo set a variable for this program alone. Some build scripts (ring's) run again when
/// one of these changes: left in, `cargo xtask test` and `cargo test` would undo each other's work.
fn tells_of_xtask(name: &str) -> bool {
    let prefixes = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
    ];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) || name == "CARGO_PRIMARY_PACKAGE"
}

/// Runs a command whose output goes to the terminal; whether it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> anyhow::Result<bool> {
    let status = command.status().with_context(|| cannot_start(command))?;
    Ok(status.success())
}

/// Runs a command quietly and returns what it printed.
///
/// # Errors
/// If it cannot start or fails; the message ends with the last line of its standard error.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| cannot_start(command))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().rfind(|line| !line.trim().is_empty());
        bail!("{}: {}", shown(command), last.unwrap_or("failed silently"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What is said of a command that does not exist or may not be run.
pub(crate) fn cannot_start(command: &Command) -> String {
    format!("cannot start {}", command.get_program().display())
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy()));
    words.join(" ")
}
