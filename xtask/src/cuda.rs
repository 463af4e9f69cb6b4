//! The CUDA compiler, without a GPU and without CUDA installed; and every kernel compiled with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};

use crate::{process, python};

/// nvcc, its device compiler, and the headers that it includes: the same version of CUDA.
const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// The GPUs that kernels must compile for: every one from Ampere on runs the first.
const ARCHITECTURES: [&str; 2] = ["80", "90a"];

/// What a kernel's file says after each kernel.
const MARK: &str = "\nKERNEL(";

/// Puts the compiler into `.cuda` unless it is there; returns its nvcc.
///
/// # Errors
/// If the packages cannot be fetched.
pub(crate) fn set_up(root: &Path) -> anyhow::Result<PathBuf> {
    let folder = root.join(".cuda");
    let nvcc = folder.join("nvidia/cu13/bin/nvcc");
    // Written last, so that an interrupted set-up is done again.
    let stamp = folder.join("packages.done");
    let wanted = PACKAGES.join("\n");
    let is_done = fs::read_to_string(&stamp).is_ok_and(|done| done == wanted);
    if is_done && process::output(Command::new(&nvcc).arg("--version")).is_ok() {
        return Ok(nvcc);
    }
    println!("fetching the CUDA compiler (104 MB)");
    let mut pip = Command::new(python::system());
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]);
    pip.arg("--target").arg(&folder).args(PACKAGES);
    process::output(&mut pip)?;
    process::output(Command::new(&nvcc).arg("--version"))?;
    fs::write(&stamp, wanted).with_context(|| stamp.display().to_string())?;
    // Cargo cannot watch a folder that is not there yet: from the file's time it sees that the kernels are
    // to be built, now that there is a compiler.
    let build = root.join("kernels/build.rs");
    let touched = fs::File::open(&build).and_then(|file| file.set_modified(SystemTime::now()));
    touched.with_context(|| build.display().to_string())?;
    Ok(nvcc)
}

/// Compiles every kernel for each of [`ARCHITECTURES`].
///
/// # Errors
/// If one does not compile, keeps registers in memory, has products wait for each other, or is not in what was compiled.
pub(crate) fn check_kernels(root: &Path) -> anyhow::Result<()> {
    let nvcc = set_up(root)?;
    let out = root.join("target/kernels");
    fs::create_dir_all(&out)?;
    for file in kernel_files(&root.join("kernels/cuda"))? {
        let text = fs::read_to_string(&file)?;
        let names = kernels_of(&text);
        ensure!(!names.is_empty(), "{}: no KERNEL(name)", file.display());
        for arch in ARCHITECTURES {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            let cubin = out.join(format!("{stem}.sm_{arch}.cubin"));
            compile(&nvcc, &file, arch, &cubin)?;
            check_symbols(&cubin, &names)?;
        }
        println!("{}: {}", file.display(), names.join(", "));
    }
    Ok(())
}

fn kernel_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let files = entries.flatten().map(|entry| entry.path());
    let mut files: Vec<_> = files
        .filter(|path| path.extension() == Some("cu".as_ref()))
        .collect();
    files.sort();
    Ok(files)
}

fn kernels_of(text: &str) -> Vec<&str> {
    let marked = text.split(MARK).skip(1);
    marked.filter_map(|rest| rest.split(')').next()).collect()
}

fn compile(nvcc: &Path, file: &Path, arch: &str, cubin: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(nvcc);
    command.args([
        "-cubin",
        "-std=c++17",
        "-O3",
        "-Werror",
        "all-warnings",
        "-Xptxas",
        "-v",
    ]);
    command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    command.arg("-o").arg(cubin).arg(file);
    let output = command
        .output()
        .with_context(|| process::cannot_start(&command))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{} for sm_{arch}:\n{said}", file.display());
    }
    match slow_line(&said) {
        Some(line) => bail!("{} for sm_{arch}: {line}", file.display()),
        None => Ok(()),
    }
}

/// The line of ptxas that says that registers were kept in memory, or that products wait for each other.
fn slow_line(said: &str) -> Option<&str> {
    let spills = |line: &str| {
        line.contains("spill stores")
            && !line.contains(" 0 bytes spill stores, 0 bytes spill loads")
    };
    said.lines()
        .find(|line| spills(line) || line.contains("Performance Loss"))
}

/// Every kernel is a section of what was compiled.
fn check_symbols(cubin: &Path, names: &[&str]) -> anyhow::Result<()> {
    let bytes = fs::read(cubin)?;
    for name in names {
        let section = format!(".text.{name}\0").into_bytes();
        let is_there = bytes.windows(section.len()).any(|window| window == section);
        ensure!(is_there, "{}: no kernel {name}", cubin.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_slow_is_found_in_what_ptxas_says() {
        let line =
            |n| format!("    8 bytes stack frame, {n} bytes spill stores, 0 bytes spill loads");
        assert_eq!(slow_line(&line(0)), None);
        let (none, some) = (line(0), line(4));
        let said = format!("ptxas info : Used 255 registers\n{none}\n{some}\n");
        assert_eq!(slow_line(&said), Some(some.as_str()));
        let loss = "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized";
        assert_eq!(slow_line(loss), Some(loss));
    }

    #[test]
    fn kernels_are_those_that_are_marked() {
        let text = "#define KERNEL(name)\nvoid f() {}\nKERNEL(f)\n\nvoid g() {}\nKERNEL(g)\n";
        assert_eq!(kernels_of(text), ["f", "g"]);
    }
}
