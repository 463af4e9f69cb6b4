//! What the end-to-end tests share.

pub mod compare;
pub mod data;
pub mod golden;
pub mod http;
pub mod model_dir;
pub mod random_moe;
pub mod server;
pub mod service;
pub mod texts;
pub mod weights;
pub mod world;

use std::path::PathBuf;

/// The folder of all-MiniLM-L6-v2, which `cargo xtask test` unpacks and names in
/// `MOESHARD_MINILM`; without it a test says that it was skipped.
pub fn minilm_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("MOESHARD_MINILM").map(PathBuf::from);
    let folder = folder.filter(|f| f.join("config.json").is_file());
    if folder.is_none() {
        println!("skipped: no MiniLM at $MOESHARD_MINILM");
    }
    folder
}
