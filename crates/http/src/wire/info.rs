//! `/info` and the probes.

use std::collections::BTreeMap;

use utoipa::ToSchema;

/// What the server serves: text-embeddings-inference's keys first, then this server's own.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct Info {
    /// Name under which the model is served.
    pub model_id: String,
    /// Revision on the hub.
    pub model_sha: Option<String>,
    /// `float32`, `bfloat16` or `float16`.
    pub model_dtype: String,
    /// What the model's own task is.
    pub model_type: ModelType,
    /// Longest sequence in tokens.
    pub max_input_length: usize,
    /// Most tokens of one forward pass.
    pub max_batch_tokens: usize,
    /// Most sequences of one forward pass.
    pub max_batch_requests: Option<usize>,
    /// New work is refused while this many tokens wait.
    pub max_queue_tokens: usize,
    /// New work is refused while this many bytes of text wait for the tokenizer.
    pub max_queue_bytes: usize,
    /// Most inputs of one request.
    pub max_client_batch_size: usize,
    /// Longest request body in bytes.
    pub payload_limit: usize,
    /// Whether an input that is too long is cut when its request does not say.
    pub auto_truncate: bool,
    /// Threads that tokenize.
    pub tokenization_workers: usize,
    /// Version of the server.
    pub version: &'static str,
    /// `cpu` or `cuda`.
    pub device: String,
    /// The family that translated the checkpoint.
    pub family: String,
    /// Ranks that share the experts.
    pub world_size: usize,
    /// How the experts are spread over the ranks.
    pub experts: String,
    /// Dimensions of a whole embedding.
    pub d_model: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Experts of an expert layer; 0 for a dense model.
    pub n_experts: usize,
    /// Experts each token visits.
    pub top_k: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Labels in the order of the head; absent without a head.
    pub labels: Option<Vec<String>>,
    /// How the head came about; absent if it is the model's own, or there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// Names of the model's prompts.
    pub prompts: Vec<String>,
    /// The prompt put before a text to embed when its request names none.
    pub default_prompt_name: Option<String>,
    /// Seconds since the server started.
    pub uptime_seconds: u64,
}

/// What the model's own task is.
#[derive(Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModelType {
    /// It embeds.
    Embedding(EmbeddingType),
    /// It classifies.
    Classifier(ClassifierType),
}

/// How a model embeds.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct EmbeddingType {
    /// `cls`, `mean` or `lasttoken`.
    pub pooling: String,
}

/// What a model tells apart.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct ClassifierType {
    /// Labels by number.
    #[schema(value_type = BTreeMap<String, String>)]
    pub id2label: BTreeMap<usize, String>,
    /// Numbers by label.
    pub label2id: BTreeMap<String, usize>,
}

/// The answer of a probe that is content.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct Status {
    /// `live` or `ready`.
    pub status: &'static str,
}
