//! `/classify` and `/predict`.

use std::fmt;

use moeshard_batcher::{Direction, Input};
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use utoipa::ToSchema;

use super::Inputs;
use super::counted::push;
use super::fields::{choose, count, direction, object_or_default};

/// The body of `/classify`.
#[derive(Debug, serde::Deserialize, ToSchema)]
pub struct ClassifyRequest {
    /// A text, a list of token ids, or a list of those.
    #[schema(schema_with = crate::openapi::inputs)]
    pub inputs: Inputs,
    /// Answer logits instead of probabilities.
    pub raw_scores: Option<bool>,
    /// Answer only the highest so many labels.
    #[serde(default, deserialize_with = "count")]
    #[schema(minimum = 1)]
    pub top_k: Option<usize>,
    /// The same wishes as Hugging Face's clients send them; these win.
    #[serde(default, deserialize_with = "object_or_default")]
    #[schema(value_type = Option<ClassifyParameters>)]
    pub parameters: ClassifyParameters,
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
    #[serde(default, deserialize_with = "count")]
    #[schema(minimum = 1)]
    pub top_k: Option<usize>,
}

/// What turns logits into scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum FunctionToApply {
    /// Each label by itself.
    Sigmoid,
    /// All labels sum to one.
    Softmax,
    /// The logits as they are.
    None,
}

impl<'de> Deserialize<'de> for FunctionToApply {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let functions = [
            ("sigmoid", Self::Sigmoid),
            ("softmax", Self::Softmax),
            ("none", Self::None),
        ];
        choose(&String::deserialize(deserializer)?, &functions)
    }
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

    /// The first element tells a pair from a batch.
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<PredictInputs, A::Error> {
        let (list, is_batch) = match seq.next_element::<Element>()? {
            None => (Vec::new(), true),
            Some(Element::Text(first)) => (vec![sequence(seq, Some(first))?], false),
            Some(Element::List(first)) => {
                let mut list = vec![first];
                while let Some(Sequence(input)) = seq.next_element()? {
                    push(&mut list, input)?;
                }
                (list, true)
            }
        };
        Ok(PredictInputs { list, is_batch })
    }
}

/// The first element of a list.
enum Element {
    Text(String),
    List(Input),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list of one or two texts")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Element, A::Error> {
        sequence(seq, None).map(Element::List)
    }
}

/// A list of one or two texts.
struct Sequence(Input);

impl<'de> Deserialize<'de> for Sequence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SequenceVisitor;
        impl<'de> Visitor<'de> for SequenceVisitor {
            type Value = Sequence;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of one or two texts")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Sequence, A::Error> {
                sequence(seq, None).map(Sequence)
            }
        }
        deserializer.deserialize_seq(SequenceVisitor)
    }
}

/// One text, or a pair; what follows a pair is counted, not kept.
fn sequence<'de, A: SeqAccess<'de>>(
    mut seq: A,
    mut first: Option<String>,
) -> Result<Input, A::Error> {
    if first.is_none() {
        first = seq.next_element()?;
    }
    let Some(first) = first else {
        return Err(not_a_sequence(0));
    };
    let Some(second) = seq.next_element()? else {
        return Ok(Input::Text(first));
    };
    let mut n_texts = 2;
    while seq.next_element::<IgnoredAny>()?.is_some() {
        n_texts += 1;
    }
    if n_texts > 2 {
        return Err(not_a_sequence(n_texts));
    }
    Ok(Input::Pair(first, second))
}

fn not_a_sequence<E: de::Error>(n_texts: usize) -> E {
    E::custom(format!(
        "an input is one text or a pair of texts, got a list of {n_texts}; \
         a batch is a list of lists"
    ))
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
