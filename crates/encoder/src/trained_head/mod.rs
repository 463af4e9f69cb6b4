//! Classification heads that were trained apart from their encoder, on its embeddings.
//!
//! Such a head is a folder of two files. `head.json` ([`HeadCard`]) says of which encoder's vectors it
//! is, what is done to them first, and what its scores are called; `head.safetensors` has the tensors.
//! [`write`] makes the folder, [`attach`] puts the head in place of a model's own.

mod attach;
mod card;
mod error;
mod write;

pub use attach::attach;
pub use card::{EncoderCard, HeadCard, Layers, NORM_EPS, pooling_name};
pub use error::HeadError;
pub use write::{DenseLayer, write};

/// Says what the head is.
const CARD: &str = "head.json";

/// Has its tensors.
const WEIGHTS: &str = "head.safetensors";

/// Names the version of the format.
const FORMAT: &str = "moeshard-head-1";

/// Names of its tensors; a layer has `.weight` and `.bias`.
const NORM: &str = "head.norm.weight";
const DENSE: &str = "head.dense";
const OUT: &str = "head.out";
