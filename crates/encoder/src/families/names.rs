//! Finding the prefix under which a checkpoint keeps its encoder.

use moeshard_tensor::checkpoint::Checkpoint;

use crate::model_error::Result;

/// What stands before `probe` in this checkpoint: `""`, `"model."`, `"bert."` or any other prefix.
///
/// If there are several, the shortest.
///
/// # Errors
/// If no tensor is called so.
pub(super) fn prefix(checkpoint: &Checkpoint, probe: &str) -> Result<String> {
    match find_prefix(checkpoint, probe) {
        Some(prefix) => Ok(prefix),
        // Reading says best that there is no such tensor.
        None => checkpoint
            .read(probe, &[])
            .map(|_| String::new())
            .map_err(Into::into),
    }
}

/// As [`prefix`], if there is one.
pub(super) fn find_prefix(checkpoint: &Checkpoint, probe: &str) -> Option<String> {
    let prefixes = checkpoint
        .names()
        .filter_map(|name| name.strip_suffix(probe));
    let whole = prefixes.filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
    whole.min_by_key(|prefix| prefix.len()).map(str::to_owned)
}

/// The first of `names` that the checkpoint has, or the first of all if it has none.
pub(super) fn first_of<const N: usize>(checkpoint: &Checkpoint, names: [String; N]) -> String {
    let idx = names
        .iter()
        .position(|name| checkpoint.contains(name))
        .unwrap_or(0);
    names.into_iter().nth(idx).unwrap_or_default()
}
