//! The port that an engine implements, and what crosses it.
//!
//! The batcher packs sequences; whoever runs the model implements [`Engine`]. Nothing in this file
//! knows about HTTP, tokenizers, tensors or devices.

use std::collections::BTreeMap;

/// What one sequence is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// The pooled embedding.
    Embed {
        /// Scale the result to unit Euclidean norm.
        normalize: bool,
        /// Keep only the first so many dimensions (Matryoshka); normalised after the cut.
        dimensions: Option<usize>,
    },
    /// One score per label, in label order.
    Classify {
        /// Return logits instead of probabilities.
        raw_scores: bool,
    },
}

/// The sequences of one forward pass, packed one after the other without padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedBatch {
    /// `[n_tokens]`: token ids of all sequences.
    pub ids: Vec<u32>,
    /// `[n_tokens]`: segment of each token (0, or 1 for the second text of a pair).
    pub type_ids: Vec<u32>,
    /// `[n_seqs + 1]`: sequence `i` holds tokens `cu_seqlens[i] .. cu_seqlens[i + 1]`.
    pub cu_seqlens: Vec<usize>,
    /// `[n_seqs]`: what each sequence is to become.
    pub tasks: Vec<Task>,
}

/// Runs packed batches. Called from one worker thread at a time; blocking is expected.
pub trait Engine: Send + Sync + 'static {
    /// Runs one forward pass and returns one row per sequence, in the order of the batch.
    ///
    /// # Errors
    /// [`EngineError::Input`] if a sequence cannot be run (a token id outside the vocabulary);
    /// [`EngineError::Failed`] if the engine itself broke, or what it needs is gone.
    fn run(&self, batch: &PackedBatch) -> Result<Vec<Vec<f32>>, EngineError>;

    /// Counters since the start, for `/metrics`.
    fn stats(&self) -> EngineStats;
}

/// Why a batch was not run.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The batch cannot be run: the caller's mistake.
    #[error("{0}")]
    Input(String),
    /// The engine failed, or a process that it needs is gone: it is of no further use. The batch may be run
    /// elsewhere.
    #[error("the engine failed: {0}")]
    Failed(String),
}

/// What an engine counts. The per-rank vectors are `[world_size]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Bytes of expert weights that each rank holds.
    pub expert_bytes: Vec<u64>,
    /// Multiply-adds that each rank has spent in expert matrices.
    pub expert_multiply_adds: Vec<u64>,
    /// Token-expert assignments dropped by a capacity.
    pub n_dropped: u64,
    /// Tokens run.
    pub n_tokens: u64,
}

/// What the model is, as the server tells its clients.
#[derive(Clone, Debug, Default)]
pub struct ModelInfo {
    /// Name under which the model is served.
    pub id: String,
    /// Revision on the hub, if it came from there.
    pub revision: Option<String>,
    /// `float32`, `bfloat16` or `float16`.
    pub dtype: String,
    /// `cpu` or `cuda`.
    pub device: String,
    /// The family that translated the checkpoint, for example `nomic-bert`.
    pub family: String,
    /// Ranks that share the experts.
    pub world_size: usize,
    /// `sharded`, `parallel`, `capacity` or `replicated`.
    pub experts: String,
    /// Width of the hidden state and of a whole embedding.
    pub d_model: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Experts of an expert layer; 0 for a dense model.
    pub n_experts: usize,
    /// Experts each token visits; 0 for a dense model.
    pub top_k: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Longest sequence in tokens, special tokens counted.
    pub max_length: usize,
    /// `cls`, `mean` or `lasttoken`.
    pub pooling: String,
    /// Labels in the order of the scores; `None` if the model has no head.
    pub labels: Option<Vec<String>>,
    /// True if the checkpoint's own task is classification (POST `/` then classifies).
    pub classifier: bool,
    /// How the head came about, if it is not the model's own.
    pub head: Option<String>,
    /// Prompts by name, put before a text.
    pub prompts: BTreeMap<String, String>,
    /// The prompt put before a text to embed when its request names none; classification has no
    /// default prompt.
    pub default_prompt_name: Option<String>,
}
