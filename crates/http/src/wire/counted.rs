//! Lists that end with an error as soon as they hold more than the request may: a body of millions
//! of empty texts then takes no memory to refuse.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

thread_local! {
    /// Most inputs of the request that this thread is parsing.
    static MOST: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Runs `parse`, in which no list of inputs may be longer than `most`.
pub(crate) fn with_most_inputs<T>(most: usize, parse: impl FnOnce() -> T) -> T {
    /// Puts back what was, also after a panic.
    struct Before(usize);
    impl Drop for Before {
        fn drop(&mut self) {
            MOST.set(self.0);
        }
    }
    let _before = Before(MOST.replace(most));
    parse()
}

/// What a request with too many inputs is told.
pub(crate) fn too_many(most: usize) -> String {
    format!("at most {most} inputs a request, got more")
}

/// Adds an input to the list unless it is full.
pub(super) fn push<T, E: de::Error>(list: &mut Vec<T>, item: T) -> Result<(), E> {
    let most = MOST.get();
    if list.len() >= most {
        return Err(E::custom(too_many(most)));
    }
    list.push(item);
    Ok(())
}

/// The rest of a list that begins with `list`.
pub(super) fn rest<'de, T, A>(mut seq: A, mut list: Vec<T>) -> Result<Vec<T>, A::Error>
where
    T: Deserialize<'de>,
    A: SeqAccess<'de>,
{
    while let Some(item) = seq.next_element()? {
        push(&mut list, item)?;
    }
    Ok(list)
}

/// A list of texts.
pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct TextsVisitor;
    impl<'de> Visitor<'de> for TextsVisitor {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of texts")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Vec<String>, A::Error> {
            rest(seq, Vec::new())
        }
    }
    deserializer.deserialize_seq(TextsVisitor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{DecodeRequest, EmbedRequest, PredictRequest, TokenizeRequest};
    use crate::wire::{EmbeddingsRequest, SimilarityRequest};

    #[test]
    fn every_list_of_inputs_ends_at_the_limit() {
        fn check<T: for<'a> Deserialize<'a>>(before: &str, item: &str, after: &str) {
            let body = |n: usize, rest: &str| {
                let items = vec![item; n].join(",");
                format!("{before}[{items}{rest}")
            };
            let parse = |json: &str| with_most_inputs(3, || serde_json::from_str::<T>(json));
            assert!(parse(&body(3, &format!("]{after}"))).is_ok(), "{before}");
            // What follows the limit is not read, so it need not even be JSON.
            let error = parse(&body(4, ", oops")).err().expect("too many");
            assert!(error.to_string().contains("at most 3 inputs"), "{error}");
        }
        for item in [r#""""#, "[]", "[1]"] {
            check::<EmbedRequest>(r#"{"inputs":"#, item, "}");
            check::<EmbeddingsRequest>(r#"{"input":"#, item, "}");
        }
        check::<PredictRequest>(r#"{"inputs":"#, r#"["a"]"#, "}");
        check::<TokenizeRequest>(r#"{"inputs":"#, r#""""#, "}");
        check::<DecodeRequest>(r#"{"ids":"#, "[]", "}");
        let sentences = r#"{"inputs":{"source_sentence":"a","sentences":"#;
        check::<SimilarityRequest>(sentences, r#""""#, "}}");
    }
}
