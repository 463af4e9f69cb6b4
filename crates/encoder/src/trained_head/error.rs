//! What can be wrong with the folder of a head.

use std::path::PathBuf;

use moeshard_tensor::checkpoint::CheckpointError;

use super::{CARD, EncoderCard};
use crate::model_error::ModelError;

/// Why a head cannot be written or put on an encoder. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// No folder of a head.
    #[error("{dir}: expected the folder of a head with {CARD} in it, found none")]
    Missing {
        /// The folder named.
        dir: PathBuf,
    },
    /// The operating system refused.
    #[error("{file}: cannot be {done}: {source}")]
    Io {
        /// The file.
        file: PathBuf,
        /// `read` or `written`.
        done: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// No card.
    #[error("{file}: expected what is known of a head, found {source}")]
    Json {
        /// The file.
        file: PathBuf,
        /// Where and why it is none.
        source: serde_json::Error,
    },
    /// A value of the card that cannot be used.
    #[error("{file}: {key}: expected {expected}, found {found:?}")]
    Key {
        /// The file.
        file: PathBuf,
        /// Which value.
        key: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The head was trained on other vectors.
    #[error(
        "{dir}: the head belongs to the encoder {} ({}-dimensional, {}), which {} ({}-dimensional, {}) is not",
        .expected.name, .expected.d_model, .expected.fingerprint,
        .found.name, .found.d_model, .found.fingerprint
    )]
    OtherEncoder {
        /// The folder of the head.
        dir: PathBuf,
        /// The encoder that the head was trained on.
        expected: Box<EncoderCard>,
        /// The encoder at hand.
        found: Box<EncoderCard>,
    },
    /// Labels and scores do not correspond.
    #[error("{file}: expected a label for each of the head's {n_scores} scores, found {n_labels}")]
    Labels {
        /// The file of labels.
        file: PathBuf,
        /// Rows of the last matrix.
        n_scores: usize,
        /// Labels named.
        n_labels: usize,
    },
    /// The file lacks a tensor.
    #[error("{file}: expected a tensor {tensor:?}, found none of that name")]
    MissingTensor {
        /// The file of weights.
        file: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// The weights cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The weights are not those that the card describes.
    #[error(transparent)]
    Weights(#[from] ModelError),
}
