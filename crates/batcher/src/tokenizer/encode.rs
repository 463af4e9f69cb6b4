//! From an input to token ids: prompt, truncation, special tokens.

use tokenizers::{Encoding, PostProcessor, Tokenizer, TruncationDirection, TruncationParams};

use super::cut::{MARGIN, pieces, shrink};
use crate::SubmitError;

/// What a client wants run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// One text.
    Text(String),
    /// Two texts in one sequence, told apart by their segment.
    Pair(String, String),
    /// Token ids, used as they are: nothing is added, too many are cut.
    Ids(Vec<u32>),
}

/// Which side is cut from an input that is too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// The beginning is cut.
    Left,
    /// The end is cut.
    #[default]
    Right,
}

/// One token of a text, as `/tokenize` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPiece {
    /// Its id.
    pub id: u32,
    /// How the vocabulary writes it.
    pub text: String,
    /// True for `[CLS]` and its like.
    pub special: bool,
    /// First byte in the text; `None` for a special token.
    pub start: Option<usize>,
    /// One past the last byte in the text; `None` for a special token.
    pub stop: Option<usize>,
}

/// How an input is fitted to the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    /// Longest sequence, special tokens counted.
    pub(crate) max_length: usize,
    /// Number of token ids.
    pub(crate) vocab_size: usize,
    /// Cut what is too long instead of refusing it.
    pub(crate) truncate: bool,
    /// Where to cut.
    pub(crate) direction: Direction,
}

/// `[n_tokens]` ids and segments of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    pub(crate) type_ids: Vec<u32>,
}

/// The tokens of one text without special tokens, of which some may not have been looked at.
struct Tokens {
    encoding: Encoding,
    whole: bool,
}

/// The tokenizer and the rules on top of it.
pub(crate) struct Encoder {
    tokenizer: Tokenizer,
    special_ids: (Vec<u32>, Vec<u32>),
}

impl Encoder {
    /// Parses a `tokenizer.json`, without its truncation and padding.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, SubmitError> {
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(failed)?;
        tokenizer.with_truncation(None).map_err(failed)?;
        tokenizer.with_padding(None);
        let special_ids = special_ids(&tokenizer)?;
        Ok(Self {
            tokenizer,
            special_ids,
        })
    }

    /// Ids put before and after every single text.
    pub(crate) fn special_ids(&self) -> (&[u32], &[u32]) {
        (&self.special_ids.0, &self.special_ids.1)
    }

    /// Turns one input into ids of the model's vocabulary; `prompt` is put before the (first) text.
    pub(crate) fn encode(
        &self,
        input: &Input,
        prompt: Option<&str>,
        rule: Rule,
    ) -> Result<Encoded, SubmitError> {
        match input {
            Input::Ids(ids) => fit_ids(ids, rule),
            Input::Text(text) => self.encode_texts(&prompted(prompt, text), None, rule),
            Input::Pair(a, b) => self.encode_texts(&prompted(prompt, a), Some(b), rule),
        }
    }

    /// The tokens of a text, with their place in it.
    pub(crate) fn tokenize(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<TokenPiece>, SubmitError> {
        let encoding = self
            .tokenizer
            .encode(text, add_special_tokens)
            .map_err(failed)?;
        let piece = |token_idx: usize| {
            let special = encoding.get_special_tokens_mask()[token_idx] == 1;
            let (start, stop) = encoding.get_offsets()[token_idx];
            TokenPiece {
                id: encoding.get_ids()[token_idx],
                text: encoding.get_tokens()[token_idx].clone(),
                special,
                start: (!special).then_some(start),
                stop: (!special).then_some(stop),
            }
        };
        Ok((0..encoding.len()).map(piece).collect())
    }

    /// The text of token ids.
    pub(crate) fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, SubmitError> {
        self.tokenizer.decode(ids, skip_special).map_err(failed)
    }

    fn encode_texts(&self, a: &str, b: Option<&str>, rule: Rule) -> Result<Encoded, SubmitError> {
        let processor = self.tokenizer.get_post_processor();
        let n_special = processor.map_or(0, |processor| processor.added_tokens(b.is_some()));
        let room = rule.max_length.saturating_sub(n_special);
        let encode = |piece: &str| self.tokenizer.encode_fast(piece, false).map_err(failed);
        let tokens = |text| first_tokens(text, room, rule.direction, encode);
        let a = tokens(a)?;
        let b = b.map(tokens).transpose()?;
        refuse_too_long(&a, b.as_ref(), n_special, rule)?;
        let (a, b) = truncate(a.encoding, b.map(|b| b.encoding), room, rule.direction)?;
        let sequence = self.tokenizer.post_process(a, b, true).map_err(failed)?;
        if sequence.is_empty() {
            return Err(SubmitError::Tokenizer("the text has no tokens".to_owned()));
        }
        // A tokenizer may know tokens that were added after the model was made. The engine would
        // refuse them too, but with the whole batch.
        check_ids(sequence.get_ids(), rule.vocab_size)?;
        Ok(Encoded {
            ids: sequence.get_ids().to_vec(),
            type_ids: sequence.get_type_ids().to_vec(),
        })
    }
}

/// The tokens of `text`, all of them or clearly more than `room`; `encode` turns a piece of text
/// into tokens.
fn first_tokens(
    text: &str,
    room: usize,
    side: Direction,
    mut encode: impl FnMut(&str) -> Result<Encoding, SubmitError>,
) -> Result<Tokens, SubmitError> {
    // The tokens of a piece, if it is the whole text or has clearly more than `room` of them.
    let mut enough_tokens = |piece: &str, text: &str| -> Result<Option<Tokens>, SubmitError> {
        let encoding = encode(piece)?;
        let whole = piece.len() == text.len();
        let enough = whole || encoding.len() > room + MARGIN;
        Ok(enough.then_some(Tokens { encoding, whole }))
    };
    let first = pieces(text, room, side).next().unwrap_or(text);
    if let Some(tokens) = enough_tokens(first, text)? {
        return Ok(tokens);
    }
    let shrunk = shrink(text, room, side);
    for piece in pieces(&shrunk, room, side) {
        if let Some(mut tokens) = enough_tokens(piece, &shrunk)? {
            tokens.whole &= shrunk.len() == text.len();
            return Ok(tokens);
        }
    }
    unreachable!("the last piece is the whole text")
}

/// Refuses token ids that the model does not know.
pub(crate) fn check_ids(ids: &[u32], vocab_size: usize) -> Result<(), SubmitError> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(SubmitError::TokenId { id, vocab_size }),
        None => Ok(()),
    }
}

/// The ids around an empty text, found by encoding one word with and without them.
fn special_ids(tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>), SubmitError> {
    let encoding = tokenizer.encode("a", true).map_err(failed)?;
    let special = |&(_, &mask): &(&u32, &u32)| mask == 1;
    let tokens = || {
        encoding
            .get_ids()
            .iter()
            .zip(encoding.get_special_tokens_mask())
    };
    let before = tokens().take_while(special).map(|(&id, _)| id).collect();
    let mut after: Vec<u32> = tokens()
        .rev()
        .take_while(special)
        .map(|(&id, _)| id)
        .collect();
    after.reverse();
    Ok((before, after))
}

fn prompted<'a>(prompt: Option<&str>, text: &'a str) -> std::borrow::Cow<'a, str> {
    match prompt {
        Some(prompt) => format!("{prompt}{text}").into(),
        None => text.into(),
    }
}

fn refuse_too_long(
    a: &Tokens,
    b: Option<&Tokens>,
    n_special: usize,
    rule: Rule,
) -> Result<(), SubmitError> {
    let n_tokens = a.encoding.len() + b.map_or(0, |b| b.encoding.len()) + n_special;
    if rule.truncate || n_tokens <= rule.max_length {
        return Ok(());
    }
    let exact = a.whole && b.is_none_or(|b| b.whole);
    Err(SubmitError::TooLong {
        n_tokens,
        exact,
        max_length: rule.max_length,
    })
}

/// Cuts to `room` tokens, from the longer of two texts first, as `transformers` does.
fn truncate(
    a: Encoding,
    b: Option<Encoding>,
    room: usize,
    direction: Direction,
) -> Result<(Encoding, Option<Encoding>), SubmitError> {
    let direction = match direction {
        Direction::Left => TruncationDirection::Left,
        Direction::Right => TruncationDirection::Right,
    };
    let params = TruncationParams {
        max_length: room,
        direction,
        ..TruncationParams::default()
    };
    let (mut a, mut b) = tokenizers::truncate_encodings(a, b, &params).map_err(failed)?;
    // What was cut off is kept as overflow, which the post-processor would work on in vain.
    a.take_overflowing();
    b.as_mut().map(Encoding::take_overflowing);
    Ok((a, b))
}

fn fit_ids(ids: &[u32], rule: Rule) -> Result<Encoded, SubmitError> {
    check_ids(ids, rule.vocab_size)?;
    let (n_tokens, max_length) = (ids.len(), rule.max_length);
    if n_tokens > max_length && !rule.truncate {
        return Err(SubmitError::TooLong {
            n_tokens,
            exact: true,
            max_length,
        });
    }
    let n_kept = n_tokens.min(max_length);
    let kept = match rule.direction {
        Direction::Right => &ids[..n_kept],
        Direction::Left => &ids[n_tokens - n_kept..],
    };
    Ok(Encoded {
        ids: kept.to_vec(),
        type_ids: vec![0; n_kept],
    })
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "used as a function in map_err"
)]
fn failed(error: tokenizers::Error) -> SubmitError {
    SubmitError::Tokenizer(error.to_string())
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
