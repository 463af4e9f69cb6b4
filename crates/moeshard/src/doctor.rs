//! `moeshard doctor`: what this machine has to compute with, and what would be used.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use anyhow::Result;
use moeshard_cuda::driver::{Properties, gpu};
use moeshard_cuda::libraries::{self, Library, Missing};
use moeshard_tensor::cpu::Isa;

use crate::display::size;
use crate::machine;
use crate::serve::DEFAULT_PORT;

/// Flags of `moeshard doctor`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct DoctorArgs {
    /// Port that a server would use
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT)]
    pub port: u16,
}

/// Shows the machine.
///
/// # Errors
/// If standard output is closed.
pub fn run(args: DoctorArgs) -> Result<()> {
    let mut out = io::stdout().lock();
    let n_cores = machine::n_cores();
    let mut line = |key: &str, value: &str| writeln!(out, "{key:<14} {value}");
    line("moeshard", env!("CARGO_PKG_VERSION"))?;
    line(
        "processor",
        &machine::processor().unwrap_or_else(|| "unknown".to_owned()),
    )?;
    line("cores", &n_cores.to_string())?;
    line("memory", &memory())?;
    line("kernels", &kernels())?;
    let looked_for = [libraries::DRIVER, libraries::CUBLASLT, libraries::NCCL];
    let [driver, cublaslt, nccl] = looked_for.map(library);
    line("NVIDIA driver", &driver)?;
    if let Some(version) = machine::nvidia_kernel_module() {
        line("", &version)?;
    }
    line("cuBLASLt", &cublaslt)?;
    line("NCCL", &nccl)?;
    line("looked in", &Missing::places())?;
    line("CUDA kernels", &cuda_kernels())?;
    for gpu in gpus() {
        line("GPU", &gpu)?;
    }
    line("hub", &hub())?;
    line("hub cache", &cache(&machine::hub_cache_dir()))?;
    line("port", &port(args.port))?;
    line(
        "would use",
        &format!(
            "the CPU: 1 rank, {n_cores} threads, {} kernels",
            Isa::detect()
        ),
    )?;
    Ok(())
}

fn memory() -> String {
    match machine::memory() {
        Some((total, free)) => format!("{}, {} of it available", size(total), size(free)),
        None => "unknown".to_owned(),
    }
}

fn kernels() -> String {
    let available: Vec<String> = Isa::available().iter().map(ToString::to_string).collect();
    format!(
        "{} (this machine can run {})",
        Isa::detect(),
        available.join(", ")
    )
}

/// Where it is, or where it was looked for.
fn library(library: Library) -> String {
    match library.find(None) {
        Ok(path) => format!("found: {}", path.display()),
        Err(missing) => format!("no {} found", missing.files()),
    }
}

fn cuda_kernels() -> String {
    match gpu::check_kernels() {
        Ok(()) => "in this program, for compute capability 8.0 and above".to_owned(),
        Err(reason) => reason,
    }
}

/// One line each, or why there is none.
fn gpus() -> Vec<String> {
    let describe = |(idx, gpu): (usize, Properties)| {
        let (major, minor) = gpu.capability;
        let note = match (major < 8, idx) {
            (true, _) => ": too old",
            (false, 0) if gpu::check_kernels().is_ok() => ", to be used with --gpus 1",
            (false, _) => "",
        };
        let (name, memory) = (gpu.name, size(gpu.n_bytes));
        format!("{name}, {memory}, compute capability {major}.{minor}{note}")
    };
    match gpu::list() {
        Ok(gpus) => gpus.into_iter().enumerate().map(describe).collect(),
        Err(reason) => vec![reason],
    }
}

fn hub() -> String {
    let offline = if machine::is_offline() {
        ", not asked: HF_HUB_OFFLINE is set"
    } else {
        ""
    };
    format!("{}{offline}", machine::hub_endpoint())
}

fn cache(dir: &Path) -> String {
    let is_model = |name: &str| name.starts_with("models--");
    let state = match fs::read_dir(dir) {
        Ok(entries) => {
            let names = entries.flatten().map(|entry| entry.file_name());
            let n_models = names
                .filter(|name| is_model(&name.to_string_lossy()))
                .count();
            format!("{n_models} models")
        }
        Err(error) if error.kind() == ErrorKind::NotFound => "not there yet".to_owned(),
        Err(error) => format!("cannot be read: {error}"),
    };
    format!("{} ({state})", dir.display())
}

fn port(port: u16) -> String {
    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(_) => format!("{port} is free"),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            format!("{port} is in use by another program: choose another with --port")
        }
        Err(error) => format!("{port} cannot be used: {error}"),
    }
}
