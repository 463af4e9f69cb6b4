//! What this machine has, and where its user keeps things.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::thread::available_parallelism;

/// Where the hub is unless `HF_ENDPOINT` says otherwise.
const HUB: &str = "https://huggingface.co";

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
