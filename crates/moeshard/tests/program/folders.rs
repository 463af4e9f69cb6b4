//! Folders of small models.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A tokenizer with a token a character, fewer than the golden models have rows for.
const TOKENIZER: &[u8] = include_bytes!("../../../batcher/tests/data/tokenizer.json");

/// A small golden model, with a tokenizer, in a folder of its own.
pub(crate) fn model(name: &str) -> TempDir {
    let dir = TempDir::new().expect("a folder");
    copy(&golden(name), dir.path());
    fs::write(dir.path().join("tokenizer.json"), TOKENIZER).expect("a tokenizer");
    dir
}

/// The folder of a golden model.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/goldens")
        .join(name)
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a golden") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).expect("a folder");
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}
