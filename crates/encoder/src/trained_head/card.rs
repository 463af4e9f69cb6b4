//! What is known of a trained head beside its weights.

use moeshard_tensor::device::Pooling;
use serde::{Deserialize, Serialize};

use super::FORMAT;
use crate::model::Model;
use crate::model_error::ModelError;

/// Added to the mean square of an embedding before its root is divided by: what is shorter than this
/// has no direction.
pub const NORM_EPS: f32 = 1e-12;

/// `head.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadCard {
    /// The version of the format.
    pub format: String,
    /// Whose embeddings it was trained on.
    pub encoder: EncoderCard,
    /// What is done to an embedding first; `rms` alone: it is divided by the root of its mean square,
    /// which leaves its direction.
    pub normalization: String,
    /// Its layers.
    pub classifier: Layers,
    /// The names of its scores, in their order.
    pub labels: Vec<String>,
    /// How it came about, for people.
    pub origin: String,
}

/// An encoder, as far as a head must know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncoderCard {
    /// Its name, for people.
    pub name: String,
    /// [`Model::fingerprint`].
    pub fingerprint: String,
    /// Numbers of an embedding.
    pub d_model: usize,
    /// `cls`, `mean` or `lasttoken`.
    pub pooling: String,
}

/// The layers of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layers {
    /// One matrix.
    Linear,
    /// Two with a ReLU in between.
    Mlp,
}

impl EncoderCard {
    /// That of `model`, which is called `name`.
    ///
    /// # Errors
    /// If its weights cannot be read.
    pub fn of(model: &Model, name: &str) -> Result<Self, ModelError> {
        Ok(Self {
            name: name.to_owned(),
            fingerprint: model.fingerprint()?.to_string(),
            d_model: model.spec.d_model,
            pooling: pooling_name(model.settings.pooling).to_owned(),
        })
    }
}

impl HeadCard {
    /// The card of a head that is about to be written.
    #[must_use]
    pub fn new(
        encoder: EncoderCard,
        classifier: Layers,
        labels: Vec<String>,
        origin: String,
    ) -> Self {
        Self {
            format: FORMAT.to_owned(),
            encoder,
            normalization: "rms".to_owned(),
            classifier,
            labels,
            origin,
        }
    }
}

/// The name that files and clients know a pooling by.
#[must_use]
pub fn pooling_name(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::Cls => "cls",
        Pooling::Mean => "mean",
        Pooling::LastToken => "lasttoken",
    }
}
