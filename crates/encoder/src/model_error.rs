//! What can be wrong with a model as it lies in a folder.

use moeshard_tensor::checkpoint::CheckpointError;

/// Why a folder cannot be served as a model.
///
/// Each message is one sentence that names the file, the key or the tensor, what was expected and
/// what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The operating system refused.
    #[error("{file}: cannot be read: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file that every model has is not there.
    #[error("{file}: expected a file of this name, found none")]
    MissingFile {
        /// The file.
        file: String,
    },
    /// A file is no JSON.
    #[error("{file}: expected JSON, found {source}")]
    Json {
        /// The file.
        file: String,
        /// Where and why it is none.
        source: serde_json::Error,
    },
    /// A value in a JSON file cannot be used.
    #[error("{file}: {key}: expected {expected}, found {found}")]
    Key {
        /// The file.
        file: String,
        /// The key, with those around it.
        key: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// No family of this name.
    #[error("{file}: model_type: expected one of {known}, found {found}")]
    UnknownFamily {
        /// The file.
        file: String,
        /// What the file names.
        found: String,
        /// What could be served, separated by commas.
        known: String,
    },
    /// A tensor has another shape than the config says.
    #[error("{file}: tensor {tensor:?}: expected shape {expected:?}, found {found:?}")]
    TensorShape {
        /// The file that the tensor lies in.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shape that follows from the config.
        expected: Vec<usize>,
        /// Its shape.
        found: Vec<usize>,
    },
    /// The checkpoint is malformed or lacks a tensor.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl ModelError {
    /// The same complaint about a file in the folder `dir`.
    pub(crate) fn within(mut self, dir: &str) -> Self {
        match &mut self {
            Self::Io { file, .. }
            | Self::MissingFile { file }
            | Self::Json { file, .. }
            | Self::Key { file, .. }
            | Self::UnknownFamily { file, .. } => *file = format!("{dir}/{file}"),
            // These know the whole path already.
            Self::TensorShape { .. } | Self::Checkpoint(_) => {}
        }
        self
    }
}

/// The result of everything that reads a model.
pub(crate) type Result<T, E = ModelError> = std::result::Result<T, E>;
