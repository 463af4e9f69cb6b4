//! Why an input got no answer.

use std::time::Duration;

/// Why an input got no answer.
///
/// Deliberately exhaustive: the server maps every variant to a status in one `match`, and a new
/// variant must not compile before it has one.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// There is nothing to run.
    #[error("{what} cannot be empty")]
    Empty {
        /// The part that was empty.
        what: &'static str,
    },
    /// The input has more tokens than the model takes and truncation was not allowed.
    #[error(
        "the input has {}{n_tokens} tokens, the model takes at most {max_length}; \
         shorten it or set `truncate`",
        if *.exact { "" } else { "at least " }
    )]
    TooLong {
        /// Tokens of the input, special tokens counted.
        n_tokens: usize,
        /// False if counting stopped early because the text is far too long.
        exact: bool,
        /// Longest sequence of the model.
        max_length: usize,
    },
    /// A token id is not in the vocabulary.
    #[error("token id {id} is outside the model's vocabulary of {vocab_size} tokens")]
    TokenId {
        /// The offending id.
        id: u32,
        /// Ids run from 0 to one less than this.
        vocab_size: usize,
    },
    /// The model has no prompt of this name.
    #[error("unknown prompt name `{name}`; the model has {}", list(.known))]
    UnknownPrompt {
        /// The name asked for.
        name: String,
        /// The names of the model's prompts.
        known: Vec<String>,
    },
    /// A prompt is text and cannot be put before token ids.
    #[error("`prompt_name` needs text: a prompt cannot be put before token ids")]
    PromptBeforeIds,
    /// The embedding cannot be cut to this many dimensions.
    #[error("`dimensions` must be between 1 and {d_model}, got {dimensions}")]
    Dimensions {
        /// Dimensions asked for.
        dimensions: usize,
        /// Dimensions of a whole embedding.
        d_model: usize,
    },
    /// The model cannot classify.
    #[error("the model has no classification head: it can embed but not classify")]
    NoHead,
    /// The tokenizer refused the text.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// The engine refused the sequence.
    #[error("{0}")]
    Input(String),
    /// The engine gave an unusable answer.
    #[error("{0}")]
    Backend(String),
    /// There is too much accepted work.
    #[error(
        "the server is overloaded: {n_tokens} tokens are waiting, the limit is {max_tokens}; \
         try again in {} s", .retry_after.as_secs()
    )]
    Overloaded {
        /// Tokens accepted and not answered.
        n_tokens: usize,
        /// The configured limit.
        max_tokens: usize,
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// There is too much accepted text that is not tokenized yet.
    #[error(
        "the server is overloaded: {n_bytes} bytes of text are waiting, the limit is {max_bytes}; \
         try again in {} s", .retry_after.as_secs()
    )]
    TooManyBytes {
        /// Bytes accepted and not tokenized.
        n_bytes: usize,
        /// The configured limit.
        max_bytes: usize,
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// The model is still loading.
    #[error("the model is not loaded yet")]
    Starting,
    /// The model could not be loaded, or the engine broke: while it held the sequence, or before.
    #[error("the model cannot answer: {0}")]
    Unhealthy(String),
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Closed,
    /// One input of several is at fault.
    #[error("input {input_idx}: {source}")]
    At {
        /// Its position in the request, from 0.
        input_idx: usize,
        /// What is wrong with it; never itself `At`.
        source: Box<SubmitError>,
    },
}

impl SubmitError {
    /// Says which input is at fault, where there are several.
    pub(crate) fn at(self, input_idx: usize, n_inputs: usize) -> Self {
        let about_one_input = !matches!(
            self,
            Self::Overloaded { .. }
                | Self::TooManyBytes { .. }
                | Self::Starting
                | Self::Unhealthy(_)
                | Self::Closed
        );
        if n_inputs > 1 && about_one_input {
            Self::At {
                input_idx,
                source: Box::new(self),
            }
        } else {
            self
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "no prompts".to_owned();
    }
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_both_numbers() {
        let check = |error: SubmitError, expect: &str| assert_eq!(error.to_string(), expect);
        check(
            SubmitError::TooLong {
                n_tokens: 600,
                exact: true,
                max_length: 512,
            },
            "the input has 600 tokens, the model takes at most 512; shorten it or set `truncate`",
        );
        check(
            SubmitError::TooLong {
                n_tokens: 900,
                exact: false,
                max_length: 512,
            },
            "the input has at least 900 tokens, the model takes at most 512; \
             shorten it or set `truncate`",
        );
        check(
            SubmitError::UnknownPrompt {
                name: "q".into(),
                known: vec!["query".into()],
            },
            "unknown prompt name `q`; the model has `query`",
        );
        check(
            SubmitError::Empty { what: "`inputs`" }.at(3, 5),
            "input 3: `inputs` cannot be empty",
        );
        check(
            SubmitError::Starting.at(3, 5),
            "the model is not loaded yet",
        );
    }
}
