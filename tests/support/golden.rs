//! What an independent implementation answered; the schema is in `tests/goldens/README.md`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A golden file.
#[derive(Debug, Deserialize)]
pub struct Golden {
    /// `mean`, `cls`, `last` or nothing for a classifier.
    pub pooling: Option<String>,
    /// Tokens that an expert takes from a sequence; all if `None`.
    pub expert_capacity: Option<usize>,
    /// Assignments dropped over all sequences and layers.
    pub n_dropped: u64,
    /// Dimensions of the truncated embeddings.
    pub dimensions: Option<usize>,
    /// What was run.
    pub sequences: Vec<Sequence>,
}

/// One sequence, computed alone.
#[derive(Debug, Deserialize)]
pub struct Sequence {
    /// The text, where the case has a tokenizer.
    pub text: Option<String>,
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// `[n_tokens][d_model]`
    pub hidden: Option<Vec<Vec<f32>>>,
    /// Unit norm.
    pub mean_embedding: Option<Vec<f32>>,
    /// Unit norm.
    pub cls_embedding: Option<Vec<f32>>,
    /// Unit norm.
    pub last_embedding: Option<Vec<f32>>,
    /// The first `dimensions` of the mean, unit norm.
    pub truncated_mean_embedding: Option<Vec<f32>>,
    /// The first `dimensions` of the last token, unit norm.
    pub truncated_last_embedding: Option<Vec<f32>>,
    /// One entry a layer of experts.
    #[serde(default)]
    pub routing: Vec<LayerRouting>,
    /// `[n_labels]`
    pub logits: Option<Vec<f32>>,
    /// `[n_labels]`
    pub probabilities: Option<Vec<f32>>,
}

/// The choices of one layer.
#[derive(Debug, Deserialize)]
pub struct LayerRouting {
    /// Which layer.
    pub layer: usize,
    /// `[n_tokens][top_k]`, best first.
    pub expert_idx: Vec<Vec<u32>>,
    /// `[n_tokens][top_k]`; 0 where dropped.
    pub gate_weight: Vec<Vec<f32>>,
}

/// The folder of a case.
pub fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("goldens")
        .join(case)
}

/// Reads `file` of a case.
///
/// # Panics
/// If it is missing or of another schema.
pub fn read(case: &str, file: &str) -> Golden {
    let path = folder(case).join(file);
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
