//! Compiles the kernels for every supported GPU, where nvcc is found: on the PATH, in `CUDA_HOME`, or in
//! `.cuda`, which `cargo xtask cuda` fills. Without it the package is built without kernels.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Machine code for these, and the first one's PTX for whatever comes after them.
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
    let mut list = String::from("&[\n");
    if let Some(nvcc) = nvcc {
        compile_all(&nvcc, &files, &out);
        for file in &files {
            let text = fs::read_to_string(file).expect("a kernel's file");
            let names: Vec<_> = text.split(MARK).skip(1).collect();
            let names: Vec<_> = names
                .iter()
                .filter_map(|rest| rest.split(')').next())
                .collect();
            let image = image_of(file, &out);
            let _ = writeln!(
                list,
                "Image {{ kernels: &{names:?}, bytes: include_bytes!({image:?}) }},"
            );
        }
    }
    list.push(']');
    fs::write(out.join("images.rs"), list).expect("a file in OUT_DIR");
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

/// Every file by itself, as many at once as cargo allows.
fn compile_all(nvcc: &Path, files: &[PathBuf], out: &Path) {
    let n_jobs = env::var("NUM_JOBS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..n_jobs {
            scope.spawn(|| {
                while let Some(file) =
                    files.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    compile(nvcc, file, &image_of(file, out));
                }
            });
        }
    });
}

fn compile(nvcc: &Path, file: &Path, image: &Path) {
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-std=c++17", "-O3", "-Xfatbin", "-compress-all"]);
    for arch in ARCHITECTURES {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    let first = ARCHITECTURES[0];
    command.arg(format!(
        "-gencode=arch=compute_{first},code=compute_{first}"
    ));
    command.arg("-o").arg(image).arg(file);
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", nvcc.display()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}: {} failed:\n{said}",
        nvcc.display(),
        file.display()
    );
}
