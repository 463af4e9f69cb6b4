//! `/similarity`, `/tokenize` and `/decode`.

use moeshard_batcher::Direction;
use utoipa::ToSchema;

use super::direction;

/// The body of `/similarity`.
#[derive(Debug, serde::Deserialize, ToSchema)]
pub struct SimilarityRequest {
    /// What is compared.
    pub inputs: SimilarityInputs,
    /// How the texts are embedded.
    #[serde(default)]
    pub parameters: SimilarityParameters,
}

/// One text and those it is compared with.
#[derive(Debug, serde::Deserialize, ToSchema)]
pub struct SimilarityInputs {
    /// The text that the others are compared with.
    pub source_sentence: String,
    /// The others.
    pub sentences: Vec<String>,
}

/// How texts are embedded for `/similarity`.
#[derive(Debug, Default, serde::Deserialize, ToSchema)]
pub struct SimilarityParameters {
    /// Cut what is too long instead of refusing it; the server's `auto_truncate` if absent.
    pub truncate: Option<bool>,
    /// Which side is cut: `left` or `right` (the default).
    #[serde(default, deserialize_with = "direction")]
    #[schema(value_type = Option<String>, example = "right")]
    pub truncation_direction: Option<Direction>,
    /// The model's prompt that is put before each text; its default prompt, if it has one, if absent.
    pub prompt_name: Option<String>,
}

/// The body of `/tokenize`.
#[derive(Debug, serde::Deserialize, ToSchema)]
pub struct TokenizeRequest {
    /// A text or a list of texts.
    pub inputs: Texts,
    /// Whether to show `[CLS]` and its like (true if absent).
    pub add_special_tokens: Option<bool>,
}

/// A text or a list of texts.
#[derive(Debug, serde::Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
pub enum Texts {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// One token.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct TokenInfo {
    /// Its id.
    pub id: u32,
    /// How the vocabulary writes it.
    pub text: String,
    /// True for `[CLS]` and its like.
    pub special: bool,
    /// First byte in the text; null for a special token.
    pub start: Option<usize>,
    /// One past the last byte in the text; null for a special token.
    pub stop: Option<usize>,
}

/// The body of `/decode`.
#[derive(Debug, serde::Deserialize, ToSchema)]
pub struct DecodeRequest {
    /// Token ids of one text or of several.
    pub ids: TokenIds,
    /// Whether to leave out `[CLS]` and its like (true if absent).
    pub skip_special_tokens: Option<bool>,
}

/// Token ids of one text or of several.
#[derive(Debug, serde::Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a list of token ids or a list of such lists"
)]
pub enum TokenIds {
    /// Of one text.
    One(Vec<u32>),
    /// Of several.
    Many(Vec<Vec<u32>>),
}
