//! `/similarity`, `/tokenize` and `/decode`.

use std::fmt;

use moeshard_batcher::Direction;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use utoipa::ToSchema;

use super::counted::{rest, texts};
use super::fields::{direction, object, object_or_default};
use super::inputs::{rest_of_ids, token_id};

/// The body of `/similarity`.
#[derive(Debug, serde::Deserialize, ToSchema)]
pub struct SimilarityRequest {
    /// What is compared.
    #[serde(deserialize_with = "object")]
    pub inputs: SimilarityInputs,
    /// How the texts are embedded.
    #[serde(default, deserialize_with = "object_or_default")]
    #[schema(value_type = Option<SimilarityParameters>)]
    pub parameters: SimilarityParameters,
}

/// One text and those it is compared with.
#[derive(Debug, serde::Deserialize, ToSchema)]
pub struct SimilarityInputs {
    /// The text that the others are compared with.
    pub source_sentence: String,
    /// The others.
    #[serde(deserialize_with = "texts")]
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
    #[schema(schema_with = crate::openapi::texts)]
    pub inputs: Texts,
    /// Whether to show `[CLS]` and its like (true if absent).
    pub add_special_tokens: Option<bool>,
}

/// A text or a list of texts.
#[derive(Debug)]
pub enum Texts {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor;
        impl<'de> Visitor<'de> for TextsVisitor {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Texts, A::Error> {
                rest(seq, Vec::new()).map(Texts::Many)
            }
        }
        deserializer.deserialize_any(TextsVisitor)
    }
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
    #[schema(schema_with = crate::openapi::token_ids)]
    pub ids: TokenIds,
    /// Whether to leave out `[CLS]` and its like (true if absent).
    pub skip_special_tokens: Option<bool>,
}

/// Token ids of one text or of several.
#[derive(Debug)]
pub enum TokenIds {
    /// Of one text.
    One(Vec<u32>),
    /// Of several.
    Many(Vec<Vec<u32>>),
}

impl<'de> Deserialize<'de> for TokenIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TokenIdsVisitor;
        impl<'de> Visitor<'de> for TokenIdsVisitor {
            type Value = TokenIds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of token ids or a list of such lists")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TokenIds, A::Error> {
                match seq.next_element::<IdOrList>()? {
                    None => Ok(TokenIds::One(Vec::new())),
                    Some(IdOrList::Id(first)) => rest_of_ids(seq, vec![first]).map(TokenIds::One),
                    Some(IdOrList::List(first)) => rest(seq, vec![first]).map(TokenIds::Many),
                }
            }
        }
        deserializer.deserialize_seq(TokenIdsVisitor)
    }
}

/// The first element of a list.
enum IdOrList {
    Id(u32),
    List(Vec<u32>),
}

impl<'de> Deserialize<'de> for IdOrList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FirstVisitor;
        impl<'de> Visitor<'de> for FirstVisitor {
            type Value = IdOrList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token id or a list of token ids")
            }

            fn visit_u64<E: de::Error>(self, id: u64) -> Result<IdOrList, E> {
                token_id(id).map(IdOrList::Id)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<IdOrList, A::Error> {
                rest_of_ids(seq, Vec::new()).map(IdOrList::List)
            }
        }
        deserializer.deserialize_any(FirstVisitor)
    }
}
