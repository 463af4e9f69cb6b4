//! Open MPI, on whose jobs the tests of `crates/mpi` run.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::{apt, process};

/// With these the workspace is built on MPI.
pub(crate) const FEATURES: &str = "moeshard-mpi/mpi,moeshard/mpi";

/// The launcher, the library with its headers, and what the crate `mpi` reads these headers with.
const PACKAGES: [&str; 3] = ["openmpi-bin", "libopenmpi-dev", "libclang-dev"];

/// Installs Open MPI unless it is there; returns its `mpirun`.
///
/// # Errors
/// If it is missing and cannot be installed, or if `mpirun` is another library's: the tests on jobs
/// are then skipped.
pub(crate) fn set_up() -> anyhow::Result<PathBuf> {
    if let Err(missing) = parts() {
        apt::install(&PACKAGES).with_context(|| missing.to_string())?;
        parts()?;
    }
    let mpirun = on_path("mpirun")?;
    let version = process::output(Command::new(&mpirun).arg("--version"))?;
    let first = version.lines().next().unwrap_or_default();
    if !first.contains("Open MPI") {
        bail!("{} is `{first}`, expected Open MPI's", mpirun.display());
    }
    Ok(mpirun)
}

/// Whether everything is there that a build and a job need.
fn parts() -> anyhow::Result<()> {
    on_path("mpirun")?;
    on_path("mpicc")?;
    if !has_libclang() {
        bail!("no libclang.so");
    }
    Ok(())
}

fn on_path(program: &str) -> anyhow::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut files = env::split_paths(&path).map(|folder| folder.join(program));
    let found = files.find(|file| file.is_file());
    found.with_context(|| format!("no {program}"))
}

/// Whether bindgen will find libclang. Only packages with clang's own headers, which it needs as
/// well, have the name without a version.
fn has_libclang() -> bool {
    let llvms = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let llvms = llvms.map(|entry| entry.path().join("lib"));
    let mut folders: Vec<PathBuf> = llvms.collect();
    folders.extend(env::var_os("LIBCLANG_PATH").map(PathBuf::from));
    folders.extend(["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from));
    let multiarch = format!("/usr/lib/{}-linux-gnu", env::consts::ARCH);
    folders.push(PathBuf::from(multiarch));
    folders.iter().any(|folder| holds_libclang(folder))
}

/// `LIBCLANG_PATH` may also name the file itself.
fn holds_libclang(place: &Path) -> bool {
    place.join("libclang.so").is_file() || place.is_file()
}
