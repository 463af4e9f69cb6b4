//! Which files make up a checkpoint.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::error::{CheckpointError, Result, file_error, tensor_error};
use super::listing::{MAX_HEADER_BYTES, Pairs};

/// The usual names, in the order in which they are looked for.
const USUAL_NAMES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// The usual name under which `dir` holds weights.
pub(crate) fn find(dir: &Path) -> Result<&'static str> {
    // A folder that is not there deserves to be told apart from one without weights.
    std::fs::read_dir(dir).map_err(|source| CheckpointError::Io {
        file: dir.display().to_string(),
        source,
    })?;
    USUAL_NAMES
        .into_iter()
        .find(|name| dir.join(name).exists())
        .ok_or_else(|| CheckpointError::NoCheckpoint { dir: dir.into() })
}

/// `*.index.json`: which tensor is in which file.
#[derive(Deserialize)]
struct Index {
    weight_map: Pairs<String>,
}

/// Reads an index: pairs of a tensor and the file of the same folder that holds it.
pub(crate) fn read(path: &Path) -> Result<Vec<(String, String)>> {
    let file = path.display().to_string();
    let io = |source| CheckpointError::Io {
        file: file.clone(),
        source,
    };
    let n_bytes = std::fs::metadata(path).map_err(io)?.len();
    if n_bytes > MAX_HEADER_BYTES as u64 {
        let expected = format!("an index of at most {MAX_HEADER_BYTES} bytes");
        return Err(file_error(&file, expected, format!("{n_bytes}")));
    }
    let json = std::fs::read(path).map_err(io)?;
    let index: Index = serde_json::from_slice(&json).map_err(|e| {
        let expected = "JSON with a weight_map from tensor to file";
        file_error(&file, expected, format!("an error in it: {e}"))
    })?;
    let Pairs(weight_map) = index.weight_map;
    let mut seen = HashSet::with_capacity(weight_map.len());
    for (tensor, shard) in &weight_map {
        check_inside(&file, tensor, shard)?;
        if !seen.insert(tensor) {
            return Err(tensor_error(
                &file,
                tensor,
                "one entry in weight_map",
                "two",
            ));
        }
    }
    Ok(weight_map)
}

/// Refuses a shard outside the folder of the index.
///
/// Also refuses detours (`d//m`, `d/./m`): a file of many spellings would be listed for each.
fn check_inside(index: &str, tensor: &str, shard: &str) -> Result<()> {
    let mut parts = Path::new(shard).components();
    let is_inside = !shard.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)));
    let direct: PathBuf = Path::new(shard).components().collect();
    if is_inside && direct.as_os_str() == shard {
        return Ok(());
    }
    let expected = "a file within the folder of the index";
    Err(tensor_error(index, tensor, expected, format!("{shard:?}")))
}
