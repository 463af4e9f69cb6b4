//! A model behind the batcher, as the server has it, without HTTP.

use std::path::PathBuf;
use std::sync::Arc;

use moeshard_batcher::{
    Answer, BatcherConfig, Handle, Input, ModelInfo, Options, Task, TokenizerPool, pair,
};
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::Strategy;
use moeshard_engine::{CpuRanks, Layout, RankEngine};
use moeshard_tensor::cpu::Isa;
use moeshard_tensor::dtype::DType;

/// The folder of the built-in model.
pub fn mini_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/mini")
}

/// A model with its tokenizer and engine.
pub struct Service {
    /// Takes texts.
    pub handle: Handle,
    /// The opened model.
    pub model: Arc<Model>,
    runtime: tokio::runtime::Runtime,
}

impl Service {
    /// Starts the model in `folder` on `n_ranks` ranks.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(folder: &std::path::Path, n_ranks: usize, dtype: DType) -> Self {
        let model = Arc::new(Model::open(folder).expect("model"));
        let layout = Layout {
            n_ranks,
            strategy: Strategy::Sharded,
            sequence_capacity: None,
            overlap: None,
        };
        let cores = CpuRanks {
            dtype,
            n_threads: std::thread::available_parallelism().map_or(1, usize::from),
            binds_threads: false,
            isa: Isa::detect(),
        };
        let progress = Arc::new(|_| {}) as _;
        let engine = RankEngine::start(&model, layout, cores, &progress).expect("engine");
        let tokenizer = model.tokenizer_json.as_deref().expect("tokenizer.json");
        let info = ModelInfo {
            d_model: model.spec.d_model,
            vocab_size: model.spec.embedding.vocab_size,
            max_length: model.settings.max_length,
            labels: model.spec.head.as_ref().map(|h| h.labels.clone()),
            ..ModelInfo::default()
        };
        let config = BatcherConfig {
            max_queue_tokens: usize::MAX,
            ..BatcherConfig::default()
        };
        let pool = TokenizerPool::from_json(tokenizer, 2).expect("tokenizer");
        let (handle, worker) = pair(Arc::new(engine), pool, info, config);
        worker.spawn().expect("worker");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("runtime");
        Self {
            handle,
            model,
            runtime,
        }
    }

    /// Runs a task on every text.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&self, texts: &[String], task: Task) -> Vec<Answer> {
        let inputs = texts.iter().map(|t| Input::Text(t.clone())).collect();
        let options = Options::new(task);
        self.runtime
            .block_on(self.handle.submit_all(inputs, &options))
            .expect("answers")
    }

    /// Token ids of every text, special tokens included, cut to the model's length.
    ///
    /// # Panics
    /// If it fails.
    pub fn ids(&self, texts: &[String]) -> Vec<Vec<u32>> {
        let max_length = self.model.settings.max_length;
        let ids = |text: &String| {
            let pieces = self
                .runtime
                .block_on(self.handle.tokenize(text.clone(), true));
            pieces
                .expect("ids")
                .iter()
                .map(|piece| piece.id)
                .take(max_length)
                .collect()
        };
        texts.iter().map(ids).collect()
    }
}
