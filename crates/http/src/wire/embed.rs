//! `/embed`.

use moeshard_batcher::Direction;
use utoipa::ToSchema;

use super::Inputs;
use super::fields::{count, direction};

/// The body of `/embed`.
#[derive(Debug, serde::Deserialize, ToSchema)]
pub struct EmbedRequest {
    /// A text, a list of token ids, or a list of those.
    #[schema(schema_with = crate::openapi::inputs)]
    pub inputs: Inputs,
    /// Cut what is too long instead of refusing it; the server's `auto_truncate` if absent.
    pub truncate: Option<bool>,
    /// Which side is cut: `left` or `right` (the default).
    #[serde(default, deserialize_with = "direction")]
    #[schema(value_type = Option<String>, example = "right")]
    pub truncation_direction: Option<Direction>,
    /// The model's prompt that is put before each text; its default prompt, if it has one, if absent.
    pub prompt_name: Option<String>,
    /// Scale each embedding to unit length (true if absent).
    pub normalize: Option<bool>,
    /// Keep only the first so many dimensions; normalised after the cut.
    #[serde(default, deserialize_with = "count")]
    #[schema(minimum = 1)]
    pub dimensions: Option<usize>,
}
