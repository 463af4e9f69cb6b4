//! Compiles the kernels with the C++ compiler of this machine.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=emulate.h");
    println!("cargo::rerun-if-changed=emulate.cpp");
    println!("cargo::rerun-if-changed=hopper_layout.cpp");
    println!("cargo::rerun-if-changed=cublaslt.cpp");
    println!("cargo::rerun-if-changed=nccl.cpp");
    println!("cargo::rerun-if-changed=../cuda");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).warnings(false);
    build.flag("-xc++").flag("-include").flag("emulate.h");
    build.include(".").include("../cuda").file("emulate.cpp");
    build
        .file("hopper_layout.cpp")
        .file("cublaslt.cpp")
        .file("nccl.cpp");
    let kernels = std::fs::read_dir("../cuda").expect("the kernels");
    let mut kernels: Vec<_> = kernels.flatten().map(|entry| entry.path()).collect();
    kernels.sort();
    let is_kernel = |path: &&PathBuf| path.extension() == Some("cu".as_ref());
    build.files(kernels.iter().filter(is_kernel));
    // Kernels make themselves known before `main`: without this the linker leaves them out.
    build.link_lib_modifier("+whole-archive");
    build.compile("emulated_kernels");
}
