//! OpenAI's `/v1/embeddings` and `/v1/models`.

use serde::de::{Deserialize, Deserializer};
use utoipa::ToSchema;

use super::Inputs;
use super::fields::{choose, count};

/// The body of `/v1/embeddings`.
#[derive(Debug, serde::Deserialize, ToSchema)]
pub struct EmbeddingsRequest {
    /// A text, a list of token ids of this model, or a list of those.
    #[schema(schema_with = crate::openapi::inputs)]
    pub input: Inputs,
    /// How each embedding is written (`float` if absent).
    pub encoding_format: Option<EncodingFormat>,
    /// Keep only the first so many dimensions; normalised after the cut.
    #[serde(default, deserialize_with = "count")]
    #[schema(minimum = 1)]
    pub dimensions: Option<usize>,
}

/// How an embedding is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// The little-endian `f32` values in Base64.
    Base64,
}

impl<'de> Deserialize<'de> for EncodingFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let formats = [("float", Self::Float), ("base64", Self::Base64)];
        choose(&String::deserialize(deserializer)?, &formats)
    }
}

/// The answer of `/v1/embeddings`.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct EmbeddingsResponse {
    /// `list`.
    pub object: &'static str,
    /// One entry per input, in order.
    pub data: Vec<Embedding>,
    /// The model that answered.
    pub model: String,
    /// What it took.
    pub usage: Usage,
}

/// One embedding.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct Embedding {
    /// `embedding`.
    pub object: &'static str,
    /// The values.
    #[schema(schema_with = crate::openapi::embedding_values)]
    pub embedding: EmbeddingValues,
    /// Position of its input.
    pub index: usize,
}

/// The values of an embedding.
#[derive(Debug, serde::Serialize)]
#[serde(untagged)]
pub enum EmbeddingValues {
    /// As numbers.
    Float(Vec<f32>),
    /// The little-endian `f32` values in Base64.
    Base64(String),
}

/// What a request took.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of all inputs.
    pub prompt_tokens: usize,
    /// The same: an encoder generates nothing.
    pub total_tokens: usize,
}

/// The answer of `/v1/models`.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct Models {
    /// `list`.
    pub object: &'static str,
    /// The one model of this server.
    pub data: Vec<Model>,
}

/// A model, as OpenAI's clients list it.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct Model {
    /// Name under which it is served.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// Start of the server in seconds since 1970.
    pub created: u64,
    /// `moeshard`.
    pub owned_by: &'static str,
}
