//! A Python environment with the clients that the tests try.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::{apt, process};

const REQUIREMENTS: &str = "tests/clients/requirements.txt";

/// The system's Python.
pub(crate) fn system() -> PathBuf {
    std::env::var_os("PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from)
}

/// Makes `target/venv` unless it is there with the requirements of today; returns its Python.
///
/// # Errors
/// If there is no usable Python or the packages cannot be fetched: the client tests are then
/// skipped.
pub(crate) fn set_up(root: &Path) -> anyhow::Result<PathBuf> {
    let requirements = fs::read_to_string(root.join(REQUIREMENTS)).context(REQUIREMENTS)?;
    let venv = root.join("target/venv");
    let python = venv.join("bin/python");
    // Written last, so that an interrupted set-up is done again.
    let stamp = venv.join("requirements.done");
    let is_done = fs::read_to_string(&stamp).is_ok_and(|done| done == requirements);
    if is_done && process::output(Command::new(&python).arg("--version")).is_ok() {
        return Ok(python);
    }
    create(&venv)?;
    install(&python, &root.join(REQUIREMENTS))?;
    fs::write(&stamp, requirements).with_context(|| stamp.display().to_string())?;
    Ok(python)
}

fn create(venv: &Path) -> anyhow::Result<()> {
    let has_venv =
        || process::output(Command::new(system()).args(["-c", "import venv, ensurepip"]));
    if let Err(error) = has_venv() {
        // Debian and Ubuntu ship `venv` apart from Python.
        apt::install(&["python3-venv"]).with_context(|| error.to_string())?;
        has_venv()?;
    }
    let mut command = Command::new(system());
    command.args(["-m", "venv", "--clear"]).arg(venv);
    process::output(&mut command).map(drop)
}

fn install(python: &Path, requirements: &Path) -> anyhow::Result<()> {
    println!("fetching the packages of {REQUIREMENTS}");
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--requirement"]);
    process::output(pip.arg(requirements)).map(drop)
}
