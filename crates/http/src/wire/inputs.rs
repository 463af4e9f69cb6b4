//! `inputs`: a text, token ids, or a list of those.

use std::fmt;

use moeshard_batcher::Input;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use super::counted::push;

/// One or several inputs, in the order of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs(pub Vec<Input>);

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputsVisitor)
    }
}

struct InputsVisitor;

impl<'de> Visitor<'de> for InputsVisitor {
    type Value = Inputs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a list of token ids, or a list of those")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Inputs, E> {
        Ok(Inputs(vec![Input::Text(text.to_owned())]))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Inputs, E> {
        Ok(Inputs(vec![Input::Text(text)]))
    }

    /// The first element tells token ids from a list of inputs.
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Inputs, A::Error> {
        match seq.next_element::<Element>()? {
            None => Ok(Inputs(Vec::new())),
            Some(Element::Id(first)) => {
                let ids = rest_of_ids(seq, vec![first])?;
                Ok(Inputs(vec![Input::Ids(ids)]))
            }
            Some(Element::Input(first)) => {
                let mut list = vec![first];
                while let Some(OneInput(input)) = seq.next_element()? {
                    push(&mut list, input)?;
                }
                Ok(Inputs(list))
            }
        }
    }
}

/// The first element of a list.
enum Element {
    Id(u32),
    Input(Input),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor { ids_too: true })
    }
}

/// A text or a list of token ids.
struct OneInput(Input);

impl<'de> Deserialize<'de> for OneInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(ElementVisitor { ids_too: false })? {
            Element::Input(input) => Ok(Self(input)),
            Element::Id(_) => unreachable!("the visitor refuses ids"),
        }
    }
}

struct ElementVisitor {
    ids_too: bool,
}

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.ids_too {
            "a text, a token id, or a list of token ids"
        } else {
            "a text or a list of token ids"
        })
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Element, E> {
        if self.ids_too {
            token_id(id).map(Element::Id)
        } else {
            Err(E::invalid_type(de::Unexpected::Unsigned(id), &self))
        }
    }

    fn visit_i64<E: de::Error>(self, id: i64) -> Result<Element, E> {
        Err(E::invalid_value(de::Unexpected::Signed(id), &TOKEN_ID))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Input(Input::Text(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Element, A::Error> {
        rest_of_ids(seq, Vec::new()).map(|ids| Element::Input(Input::Ids(ids)))
    }
}

const TOKEN_ID: &str = "a token id (an integer from 0 to 4294967295)";

struct TokenId(u32);

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = TokenId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(TOKEN_ID)
            }

            fn visit_u64<E: de::Error>(self, id: u64) -> Result<TokenId, E> {
                token_id(id).map(TokenId)
            }

            fn visit_i64<E: de::Error>(self, id: i64) -> Result<TokenId, E> {
                Err(E::invalid_value(de::Unexpected::Signed(id), &self))
            }
        }
        deserializer.deserialize_any(IdVisitor)
    }
}

/// The token ids of one text, of which `ids` are read already.
pub(super) fn rest_of_ids<'de, A: SeqAccess<'de>>(
    mut seq: A,
    mut ids: Vec<u32>,
) -> Result<Vec<u32>, A::Error> {
    while let Some(TokenId(id)) = seq.next_element()? {
        ids.push(id);
    }
    Ok(ids)
}

pub(super) fn token_id<E: de::Error>(id: u64) -> Result<u32, E> {
    u32::try_from(id).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(id), &TOKEN_ID))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        let check = |json: &str, list: Vec<Input>| {
            let inputs: Inputs = serde_json::from_str(json).expect(json);
            assert_eq!(inputs, Inputs(list));
        };
        let text = |text: &str| Input::Text(text.to_owned());
        check(r#""a\nb""#, vec![text("a\nb")]);
        check("[1,2]", vec![Input::Ids(vec![1, 2])]);
        check(r#"["a"]"#, vec![text("a")]);
        check(
            r#"["a",[3],"b"]"#,
            vec![text("a"), Input::Ids(vec![3]), text("b")],
        );
        check("[[3,4]]", vec![Input::Ids(vec![3, 4])]);
        check("[[]]", vec![Input::Ids(vec![])]);
        check("[]", vec![]);
    }

    #[test]
    fn every_other_form_is_refused() {
        for json in [
            "1",
            "null",
            "true",
            "[1,\"a\"]",
            "[\"a\",1]",
            "[[\"a\"]]",
            "[1.5]",
            "[null]",
        ] {
            assert!(serde_json::from_str::<Inputs>(json).is_err(), "{json}");
        }
        assert!(serde_json::from_str::<Inputs>("[4294967296]").is_err());
    }
}
