//! A server with a fake engine, and a small client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Method, Request};
use moeshard_batcher::{
    BatcherConfig, Engine, EngineError, EngineStats, ModelInfo, ModelSlot, PackedBatch, Task,
    TokenizerPool, pair,
};
use moeshard_http::{AppState, HttpConfig, router};
use serde_json::Value;
use tower::ServiceExt;

pub(crate) const TOKENIZER: &[u8] = include_bytes!("../../../batcher/tests/data/tokenizer.json");
pub(crate) const CLS: u32 = 2;
pub(crate) const SEP: u32 = 3;
pub(crate) const HELLO: u32 = 4;
pub(crate) const WORLD: u32 = 5;
pub(crate) const D_MODEL: usize = 4;

/// Embeds as `[n_tokens, id 1, type id -1, 1]`, classifies with logits `[1, id 1, 0.5]`.
#[derive(Default)]
pub(crate) struct FakeEngine {
    pub(crate) n_runs: AtomicUsize,
    pub(crate) n_seqs: AtomicUsize,
    pub(crate) n_tokens: AtomicU64,
    pub(crate) delay: Duration,
    pub(crate) panics: bool,
}

impl Engine for FakeEngine {
    fn run(&self, batch: &PackedBatch) -> Result<Vec<Vec<f32>>, EngineError> {
        self.n_runs.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics, "the fake engine panics");
        std::thread::sleep(self.delay);
        self.n_seqs.fetch_add(batch.tasks.len(), Ordering::SeqCst);
        self.n_tokens
            .fetch_add(batch.ids.len() as u64, Ordering::SeqCst);
        let sequences = batch.cu_seqlens.windows(2).zip(&batch.tasks);
        Ok(sequences
            .map(|(range, task)| row(batch, range[0], range[1], *task))
            .collect())
    }

    fn stats(&self) -> EngineStats {
        EngineStats {
            expert_bytes: vec![1000, 1000],
            expert_multiply_adds: vec![7, 8],
            n_dropped: 0,
            n_tokens: self.n_tokens.load(Ordering::SeqCst),
        }
    }
}

fn row(batch: &PackedBatch, start: usize, end: usize, task: Task) -> Vec<f32> {
    let id = batch.ids[(start + 1).min(end - 1)] as f32;
    match task {
        Task::Embed {
            normalize,
            dimensions,
        } => {
            let type_id = batch.type_ids[end - 1] as f32;
            let mut row = vec![(end - start) as f32, id, type_id, 1.0];
            row.truncate(dimensions.unwrap_or(D_MODEL));
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter_mut()
                .for_each(|x| *x /= if normalize { norm } else { 1.0 });
            row
        }
        Task::Classify { raw_scores: true } => vec![1.0, id, 0.5],
        Task::Classify { raw_scores: false } => vec![0.2, 0.7, 0.1],
    }
}

pub(crate) fn info() -> ModelInfo {
    ModelInfo {
        id: "tiny".into(),
        dtype: "float32".into(),
        device: "cpu".into(),
        family: "test".into(),
        world_size: 2,
        experts: "sharded".into(),
        d_model: D_MODEL,
        n_layers: 1,
        n_experts: 8,
        top_k: 2,
        vocab_size: 89,
        max_length: 16,
        pooling: "mean".into(),
        labels: Some(["lost", "found", "other"].map(str::to_owned).to_vec()),
        prompts: [("query".to_owned(), "search query : ".to_owned())].into(),
        ..ModelInfo::default()
    }
}

/// What a test wants different from the default.
pub(crate) struct Setup {
    pub(crate) engine: FakeEngine,
    pub(crate) info: ModelInfo,
    pub(crate) batcher: BatcherConfig,
    pub(crate) http: HttpConfig,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            engine: FakeEngine::default(),
            info: info(),
            batcher: BatcherConfig {
                tokenization_workers: 2,
                ..BatcherConfig::default()
            },
            http: HttpConfig::default(),
        }
    }
}

/// A server whose model is loaded.
pub(crate) struct Server {
    pub(crate) engine: Arc<FakeEngine>,
    pub(crate) slot: ModelSlot,
    pub(crate) state: AppState,
    pub(crate) router: Router,
}

impl Server {
    pub(crate) fn start(setup: Setup) -> Self {
        let slot = ModelSlot::new();
        let state = AppState::new(slot.clone(), setup.http);
        let engine = Arc::new(setup.engine);
        let tokenizers = TokenizerPool::from_json(TOKENIZER, setup.batcher.tokenization_workers)
            .expect("the test's tokenizer");
        let port = Arc::clone(&engine) as Arc<dyn Engine>;
        let (handle, worker) = pair(port, tokenizers, setup.info, setup.batcher);
        worker.spawn().expect("a thread");
        slot.fill(handle);
        Self {
            engine,
            slot,
            router: router(state.clone()),
            state,
        }
    }

    pub(crate) fn new() -> Self {
        Self::start(Setup::default())
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        send(&self.router, Method::POST, path, &[], body.into()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(&self.router, Method::GET, path, &[], Body::empty()).await
    }

    /// Posts JSON and expects 200.
    pub(crate) async fn json(&self, path: &str, body: Value) -> Value {
        let answer = self.post(path, body.to_string()).await;
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.text());
        answer.json()
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no header {name}"))
            .to_str()
            .expect("text")
    }
}

pub(crate) async fn send(
    router: &Router,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Body,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body).expect("a request");
    let response = router.clone().oneshot(request).await.expect("an answer");
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.expect("a body");
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body,
    }
}
