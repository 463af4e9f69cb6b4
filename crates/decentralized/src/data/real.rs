//! Real data of tests.

use std::path::PathBuf;

/// The folder of real data, if `file` is in it; without it a test says that it was skipped.
pub(super) fn folder(file: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("MOESHARD_DATA").map_or("$MOESHARD_DATA".into(), PathBuf::from);
    let file = folder.join(file);
    if file.is_file() {
        return Some(folder);
    }
    println!("skipped: no data at {}", file.display());
    None
}
