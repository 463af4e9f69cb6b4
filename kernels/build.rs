//! Compiles the kernels for every supported GPU, where nvcc is found: on the PATH, in `CUDA_HOME`, or in
//! `.cuda`, which `cargo xtask cuda` fills. Without it the package is built without kernels.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Machine code for these, as far as the compiler knows them, and the first one's PTX for whatever comes after
/// them.
const ARCHITECTURES: [&str; 5] = ["80", "86", "89", "90a", "100a"];

/// What a kernel's file says after each kernel.
const MARK: &str = "\nKERNEL(";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=cuda");
    // Not PATH: programs that cargo is started from change it, and the kernels take a minute.
    for name in ["CUDA_HOME", "MOESHARD_KERNELS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let files = kernel_files(Path::new("cuda"));
    // Checks that run nothing on a GPU need not wait for a compiler.
    let is_wanted = env::var_os("MOESHARD_KERNELS").is_none_or(|value| value != "none");
    let nvcc = is_wanted.then(find_nvcc).flatten();
    let (mut list, mut version) = (String::from("&[\n"), 0);
    if let Some(nvcc) = nvcc {
        match compile_all(&nvcc, &files, &out) {
            Ok(of_compiler) => {
                version = of_compiler;
                files
                    .iter()
                    .for_each(|file| list_image(file, &out, &mut list));
            }
            // Who wants the CPU need not have a compiler that works.
            Err(reason) => println!("cargo::warning=built without CUDA kernels: {reason}"),
        }
    }
    list.push(']');
    fs::write(out.join("images.rs"), list).expect("a file in OUT_DIR");
    fs::write(out.join("version.rs"), version.to_string()).expect("a file in OUT_DIR");
}

/// The source of an `Image`.
fn list_image(file: &Path, out: &Path, list: &mut String) {
    let text = fs::read_to_string(file).expect("a kernel's file");
    let marked = text.split(MARK).skip(1);
    let names: Vec<_> = marked.filter_map(|rest| rest.split(')').next()).collect();
    let image = image_of(file, out);
    let _ = writeln!(
        list,
        "Image {{ kernels: &{names:?}, bytes: include_bytes!({image:?}) }},"
    );
}

fn kernel_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the kernels");
    let files = entries.flatten().map(|entry| entry.path());
    let mut files: Vec<_> = files
        .filter(|path| path.extension() == Some("cu".as_ref()))
        .collect();
    files.sort();
    files
}

fn image_of(file: &Path, out: &Path) -> PathBuf {
    let stem = file.file_stem().expect("a file's name");
    out.join(stem).with_extension("fatbin")
}

fn find_nvcc() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let homes = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let fetched = Path::new("../.cuda/nvidia/cu13/bin").to_path_buf();
    let folders = env::split_paths(&path).chain(homes).chain([fetched]);
    let mut found = folders
        .map(|folder| folder.join("nvcc"))
        .filter(|nvcc| nvcc.is_file());
    found.next()
}

/// Every file by itself, as many at once as cargo allows; the compiler's version, 13000 for 13.0.
fn compile_all(nvcc: &Path, files: &[PathBuf], out: &Path) -> Result<u32, String> {
    let known = said_by(Command::new(nvcc).arg("--list-gpu-code"))?;
    let is_known = |arch: &&&str| {
        known
            .lines()
            .any(|line| line.trim() == format!("sm_{arch}"))
    };
    let architectures: Vec<&str> = ARCHITECTURES.iter().filter(is_known).copied().collect();
    let n_jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok());
    let next = AtomicUsize::new(0);
    let compile_some = || -> Result<(), String> {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            compile(nvcc, file, &architectures, &image_of(file, out))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..n_jobs.unwrap_or(1))
            .map(|_| scope.spawn(compile_some))
            .collect();
        let ended = jobs
            .into_iter()
            .map(|job| job.join().expect("a job that ends"));
        ended.collect::<Result<(), String>>()
    })?;
    version(&said_by(Command::new(nvcc).arg("--version"))?)
}

/// Of `… release 13.0, …`.
fn version(said: &str) -> Result<u32, String> {
    let release = said
        .split("release ")
        .nth(1)
        .and_then(|rest| rest.split(',').next());
    let parts = release.and_then(|release| release.split_once('.'));
    let number = parts.and_then(|(major, minor)| {
        Some(1000 * major.parse::<u32>().ok()? + 10 * minor.parse::<u32>().ok()?)
    });
    number.ok_or_else(|| format!("nvcc names no version: {said}"))
}

fn compile(nvcc: &Path, file: &Path, architectures: &[&str], image: &Path) -> Result<(), String> {
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-std=c++17", "-O3", "-Xfatbin", "-compress-all"]);
    for arch in architectures {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    let first = ARCHITECTURES[0];
    command.arg(format!(
        "-gencode=arch=compute_{first},code=compute_{first}"
    ));
    said_by(command.arg("-o").arg(image).arg(file)).map(drop)
}

/// What a command writes; its complaint if it fails, in one line.
fn said_by(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{program} failed: {}",
        complaint.lines().collect::<Vec<_>>().join("; ")
    ))
}
