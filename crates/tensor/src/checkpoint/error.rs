//! What can be wrong with a checkpoint.

use std::path::PathBuf;

/// Why a checkpoint, or one tensor of it, cannot be read.
///
/// Each message is one sentence that names the file, the tensor where there is one, what was
/// expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("{file}: cannot be read: {source}")]
    Io {
        /// The file or folder.
        file: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The folder holds no weights under any of the usual names.
    #[error(
        "{dir}: expected model.safetensors, model.safetensors.index.json, pytorch_model.bin or \
         pytorch_model.bin.index.json, found none of them"
    )]
    NoCheckpoint {
        /// The folder searched.
        dir: PathBuf,
    },
    /// The file as a whole is malformed.
    #[error("{file}: expected {expected}, found {found}")]
    File {
        /// The file.
        file: String,
        /// What a sound file has.
        expected: String,
        /// What this one has.
        found: String,
    },
    /// What the file says of one tensor is malformed or contradicts itself.
    #[error("{file}: tensor {tensor:?}: expected {expected}, found {found}")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What a sound file has.
        expected: String,
        /// What this one has.
        found: String,
    },
    /// No tensor has this name.
    #[error("{file}: expected a tensor {tensor:?}, found none of that name among {n_tensors}")]
    MissingTensor {
        /// The file or folder searched.
        file: String,
        /// The name asked for.
        tensor: String,
        /// How many tensors there are.
        n_tensors: usize,
    },
    /// The tensor exists, but not in a format that moeshard computes with.
    #[error("{file}: tensor {tensor:?}: expected float32, float16 or bfloat16, found {dtype}")]
    UnreadableDtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its format as the file spells it.
        dtype: String,
    },
    /// The slice has another number of axes than the tensor.
    #[error(
        "{file}: tensor {tensor:?}: expected {expected} ranges for shape {shape:?}, found {found}"
    )]
    SliceRank {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The tensor's shape.
        shape: Vec<usize>,
        /// Its number of axes.
        expected: usize,
        /// The number of ranges given.
        found: usize,
    },
    /// The slice leaves the tensor.
    #[error(
        "{file}: tensor {tensor:?}: expected a range within 0..{dim} on axis {axis}, found {start}..{end}"
    )]
    SliceRange {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The axis.
        axis: usize,
        /// The tensor's size on that axis.
        dim: usize,
        /// Where the range starts.
        start: usize,
        /// Where the range ends.
        end: usize,
    },
}

/// The result of everything in this module.
pub(crate) type Result<T, E = CheckpointError> = std::result::Result<T, E>;

/// A complaint about a whole file.
pub(crate) fn file_error(
    file: &str,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> CheckpointError {
    CheckpointError::File {
        file: file.into(),
        expected: expected.into(),
        found: found.into(),
    }
}

/// A complaint about one tensor.
pub(crate) fn tensor_error(
    file: &str,
    tensor: &str,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> CheckpointError {
    CheckpointError::Tensor {
        file: file.into(),
        tensor: tensor.into(),
        expected: expected.into(),
        found: found.into(),
    }
}
