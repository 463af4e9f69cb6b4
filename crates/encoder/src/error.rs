//! What can go wrong with an encoder.

use moeshard_tensor::checkpoint::CheckpointError;
use moeshard_tensor::device::{DeviceError, not_finite};
use moeshard_tensor::dtype::DType;

use crate::model_error::ModelError;

/// Why an encoder could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncoderError {
    /// The checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint is not what the spec says.
    #[error(transparent)]
    Spec(#[from] ModelError),
    /// A weight is NaN or infinite, or becomes so in the device's dtype.
    #[error("{file}: tensor `{tensor}` holds {}", not_finite(*.element_idx, *.dtype))]
    NotFinite {
        /// The file that it lies in.
        file: String,
        /// Its name.
        tensor: String,
        /// First such element, in row-major order of the part that was read; `None` if all are
        /// finite as stored but too large for `dtype`.
        element_idx: Option<usize>,
        /// The device's dtype.
        dtype: DType,
    },
    /// The experts cannot be laid out over the ranks.
    #[error("layer {layer_idx}: {reason}")]
    Layout {
        /// Which layer.
        layer_idx: usize,
        /// A sentence with both numbers.
        reason: String,
    },
    /// A token id is outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab_size}")]
    TokenId {
        /// The id.
        id: u32,
        /// Number of ids.
        vocab_size: usize,
    },
    /// The sequences of a batch do not cover its tokens.
    #[error("the sequences of a batch do not cover its {n_tokens} tokens in order")]
    Offsets {
        /// Tokens of the batch.
        n_tokens: usize,
    },
    /// A sequence is longer than positions allow.
    #[error("a sequence of {n_tokens} tokens is longer than the model's {max_length}")]
    TooLong {
        /// Its length.
        n_tokens: usize,
        /// The longest allowed.
        max_length: usize,
    },
    /// The model has no classification head.
    #[error("the model has no classification head")]
    NoHead,
    /// The device failed.
    #[error(transparent)]
    Device(DeviceError),
}
