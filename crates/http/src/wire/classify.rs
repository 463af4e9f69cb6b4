//! `/classify` and `/predict`.

use std::fmt;

use moeshard_batcher::{Direction, Input};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use utoipa::ToSchema;

use super::{Inputs, direction};

/// The body of `/classify`.
#[derive(Debug, serde::Deserialize, ToSchema)]
pub struct ClassifyRequest {
    /// A text, a list of token ids, or a list of those.
    #[schema(schema_with = crate::openapi::inputs)]
    pub inputs: Inputs,
    /// Answer logits instead of probabilities.
    pub raw_scores: Option<bool>,
    /// Answer only the highest so many labels.
    #[schema(minimum = 1)]
    pub top_k: Option<usize>,
    /// The same wishes as Hugging Face's clients send them; these win.
    pub parameters: Option<ClassifyParameters>,
    /// Cut what is too long instead of refusing it; the server's `auto_truncate` if absent.
    pub truncate: Option<bool>,
    /// Which side is cut: `left` or `right` (the default).
    #[serde(default, deserialize_with = "direction")]
    #[schema(value_type = Option<String>, example = "right")]
    pub truncation_direction: Option<Direction>,
    /// The model's prompt that is put before each text; none if absent, since a model's default
    /// prompt is for embeddings.
    pub prompt_name: Option<String>,
}

/// `parameters` of Hugging Face's text classification.
#[derive(Debug, Default, serde::Deserialize, ToSchema)]
pub struct ClassifyParameters {
    /// What turns logits into scores; the model's own function if absent.
    pub function_to_apply: Option<FunctionToApply>,
    /// Answer only the highest so many labels.
    #[schema(minimum = 1)]
    pub top_k: Option<usize>,
}

/// What turns logits into scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FunctionToApply {
    /// Each label by itself.
    Sigmoid,
    /// All labels sum to one.
    Softmax,
    /// The logits as they are.
    None,
}

/// One label of an answer.
#[derive(Clone, Debug, PartialEq, serde::Serialize, ToSchema)]
pub struct Score {
    /// The label.
    pub label: String,
    /// Its probability, or its logit if `raw_scores`.
    pub score: f32,
}

/// The body of `/predict`.
#[derive(Debug, serde::Deserialize, ToSchema)]
pub struct PredictRequest {
    /// A text, a pair of texts `["a", "b"]`, or a batch `[["a"], ["a", "b"], …]`.
    #[schema(schema_with = crate::openapi::predict_inputs)]
    pub inputs: PredictInputs,
    /// Answer logits instead of probabilities.
    pub raw_scores: Option<bool>,
    /// Cut what is too long instead of refusing it; the server's `auto_truncate` if absent.
    pub truncate: Option<bool>,
    /// Which side is cut: `left` or `right` (the default).
    #[serde(default, deserialize_with = "direction")]
    #[schema(value_type = Option<String>, example = "right")]
    pub truncation_direction: Option<Direction>,
}

/// A text, a pair, or a batch of those in lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PredictInputs {
    /// In the order of the request.
    pub list: Vec<Input>,
    /// False for one text or pair.
    pub is_batch: bool,
}

impl<'de> Deserialize<'de> for PredictInputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PredictVisitor)
    }
}

struct PredictVisitor;

impl<'de> Visitor<'de> for PredictVisitor {
    type Value = PredictInputs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"a text, a pair ["a", "b"], or a batch [["a"], ["a", "b"], …]"#)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<PredictInputs, E> {
        Ok(PredictInputs {
            list: vec![Input::Text(text.to_owned())],
            is_batch: false,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<PredictInputs, A::Error> {
        match seq.next_element::<TextOrList>()? {
            None => Ok(PredictInputs {
                list: Vec::new(),
                is_batch: true,
            }),
            Some(TextOrList::Text(first)) => {
                let mut texts = vec![first];
                while let Some(text) = seq.next_element()? {
                    texts.push(text);
                }
                Ok(PredictInputs {
                    list: vec![sequence(texts)?],
                    is_batch: false,
                })
            }
            Some(TextOrList::List(first)) => {
                let mut list = vec![sequence(first)?];
                while let Some(texts) = seq.next_element()? {
                    list.push(sequence(texts)?);
                }
                Ok(PredictInputs {
                    list,
                    is_batch: true,
                })
            }
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of one or two texts")]
enum TextOrList {
    Text(String),
    List(Vec<String>),
}

/// One text, or a pair.
fn sequence<E: de::Error>(texts: Vec<String>) -> Result<Input, E> {
    let n_texts = texts.len();
    let mut texts = texts.into_iter();
    match (n_texts, texts.next(), texts.next()) {
        (1, Some(text), None) => Ok(Input::Text(text)),
        (2, Some(a), Some(b)) => Ok(Input::Pair(a, b)),
        _ => Err(E::custom(format!(
            "an input is one text or a pair of texts, got a list of {n_texts}; \
             a batch is a list of lists"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        let text = |text: &str| Input::Text(text.to_owned());
        let pair = || Input::Pair("a".to_owned(), "b".to_owned());
        let check = |json: &str, list: Vec<Input>, is_batch| {
            let inputs: PredictInputs = serde_json::from_str(json).expect(json);
            assert_eq!(inputs, PredictInputs { list, is_batch });
        };
        check(r#""a""#, vec![text("a")], false);
        check(r#"["a"]"#, vec![text("a")], false);
        check(r#"["a","b"]"#, vec![pair()], false);
        check(r#"[["a"],["a","b"]]"#, vec![text("a"), pair()], true);
        check("[]", vec![], true);
        for json in [
            r#"["a","b","c"]"#,
            "[[]]",
            "[1]",
            "1",
            r#"["a",["b"]]"#,
            r#"[["a"],"b"]"#,
        ] {
            assert!(
                serde_json::from_str::<PredictInputs>(json).is_err(),
                "{json}"
            );
        }
    }
}
