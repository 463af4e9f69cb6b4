//! What this machine has, and where its user keeps things.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

/// Where the hub is unless `HF_ENDPOINT` says otherwise.
const HUB: &str = "https://huggingface.co";

/// Where distributions put the libraries of the NVIDIA driver and of CUDA.
const LIBRARY_DIRS: [&str; 9] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/compat",
    "/usr/lib/wsl/lib",
];

/// A shared library, found or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// What it is, for people.
    pub what: &'static str,
    /// Its file name.
    pub file: &'static str,
    /// Where it is.
    pub path: Option<PathBuf>,
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{} found: {}", self.what, path.display()),
            None => write!(
                f,
                "no {} found: {} is neither in LD_LIBRARY_PATH nor in {}",
                self.what,
                self.file,
                LIBRARY_DIRS.join(", ")
            ),
        }
    }
}

/// The driver of NVIDIA GPUs.
#[must_use]
pub fn nvidia_driver() -> Library {
    library("NVIDIA driver", "libcuda.so.1")
}

/// The library by which several GPUs talk.
#[must_use]
pub fn nccl() -> Library {
    library("NCCL", "libnccl.so.2")
}

/// Looks for a library by its file alone: loading it would run its code.
fn library(what: &'static str, file: &'static str) -> Library {
    let named = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let named: Vec<PathBuf> = env::split_paths(&named).collect();
    let dirs = named
        .iter()
        .map(PathBuf::as_path)
        .chain(LIBRARY_DIRS.map(Path::new));
    let path = dirs.map(|dir| dir.join(file)).find(|path| path.is_file());
    Library { what, file, path }
}

/// Version of the running NVIDIA kernel module, if there is one.
#[must_use]
pub fn nvidia_kernel_module() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    text.lines().next().map(str::to_owned)
}

/// Cores that this process may use.
#[must_use]
pub fn n_cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Memory of this machine and what of it is free, in bytes.
#[must_use]
pub fn memory() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kib * 1024)
    };
    Some((field("MemTotal:")?, field("MemAvailable:")?))
}

/// The processor's name.
#[must_use]
pub fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

/// Base address of the hub.
#[must_use]
pub fn hub_endpoint() -> String {
    let named = env::var("HF_ENDPOINT")
        .ok()
        .filter(|endpoint| !endpoint.is_empty());
    named.map_or(HUB.to_owned(), |endpoint| {
        endpoint.trim_end_matches('/').to_owned()
    })
}

/// Whether the hub must not be asked.
#[must_use]
pub fn is_offline() -> bool {
    let value = env::var("HF_HUB_OFFLINE").unwrap_or_default();
    matches!(
        value.to_ascii_lowercase().as_str(),
        "1" | "true" | "yes" | "on"
    )
}

/// Where `huggingface_hub` keeps models on this machine. Its old name comes first, because
/// text-embeddings-inference knows no other.
#[must_use]
pub fn hub_cache_dir() -> PathBuf {
    let dir = |name: &str| {
        env::var_os(name)
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from)
    };
    let cache = dir("XDG_CACHE_HOME").or_else(|| dir("HOME").map(|home| home.join(".cache")));
    dir("HUGGINGFACE_HUB_CACHE")
        .or_else(|| dir("HF_HUB_CACHE"))
        .or_else(|| dir("HF_HOME").map(|home| home.join("hub")))
        .unwrap_or_else(|| cache.unwrap_or_else(env::temp_dir).join("huggingface/hub"))
}
