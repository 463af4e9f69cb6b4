//! What a model is verified with.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use moeshard_encoder::model::Model;
use tokenizers::{Tokenizer, TruncationParams};

use crate::random::RandomIds;

/// Texts of several lengths, languages and signs.
const TEXTS: [&str; 6] = [
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "My card has not arrived yet, and the bank says that it was sent two weeks ago.",
    "Größe, naïve, 東京, Москва, ½ µm, 12,345.67 €",
    "fn main() { let x: Vec<f32> = vec![0.0; 16]; println!(\"{:?}\", x); }",
    "A router sends every token to a few experts; each expert is a small network of its own. \
     What they return is weighted by the gate and added up, so that a model can be large while \
     each token pays for little of it.",
];

/// Lengths of the sequences of a model without tokenizer.
const LENGTHS: [usize; 6] = [1, 2, 3, 7, 16, 33];

/// Token ids of each sequence, from a file, the built-in texts, or by chance.
pub(super) fn sequences(model: &Model, texts: Option<&Path>) -> Result<Vec<Vec<u32>>> {
    let Some(json) = &model.tokenizer_json else {
        ensure!(
            texts.is_none(),
            "--texts needs a tokenizer, and the model has no tokenizer.json"
        );
        return Ok(random(model));
    };
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(|e| anyhow!("tokenizer.json: {e}"))?;
    let max_length = model.settings.max_length;
    let truncation = TruncationParams {
        max_length,
        ..TruncationParams::default()
    };
    let truncated = tokenizer.with_truncation(Some(truncation));
    truncated.map_err(|e| anyhow!("sequences cannot be cut to {max_length} tokens: {e}"))?;
    tokenizer.with_padding(None);
    let texts = match texts {
        None => TEXTS.map(str::to_owned).to_vec(),
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            text.lines()
                .filter(|line| !line.is_empty())
                .map(str::to_owned)
                .collect()
        }
    };
    ensure!(!texts.is_empty(), "there is no text to verify with");
    let encode = |text: String| {
        let encoding = tokenizer.encode_fast(text, true);
        encoding
            .map(|e| e.get_ids().to_vec())
            .map_err(|e| anyhow!("the tokenizer failed: {e}"))
    };
    texts.into_iter().map(encode).collect()
}

/// The same ids in every run.
fn random(model: &Model) -> Vec<Vec<u32>> {
    let mut ids = RandomIds::new(model.spec.embedding.vocab_size);
    let lengths = LENGTHS.map(|length| length.min(model.settings.max_length));
    lengths.map(|length| ids.take(length)).to_vec()
}
