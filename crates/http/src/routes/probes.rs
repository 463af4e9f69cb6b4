//! What machines ask about the server itself.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use moeshard_batcher::{ModelInfo, Readiness, SubmitError};

use crate::error::RequestError;
use crate::state::AppState;
use crate::wire::{ClassifierType, EmbeddingType, ErrorBody, Info, ModelType, Status};

/// 200 as soon as the port is bound: the process lives.
#[utoipa::path(
    get, path = "/live", tag = "Server",
    responses((status = 200, description = "The process lives", body = Status)),
)]
pub(crate) async fn live() -> Json<Status> {
    Json(Status { status: "live" })
}

/// 200 only when the model can answer.
///
/// It reads a flag and never waits behind a batch. `/ready` and `/ping` are the same.
#[utoipa::path(
    get, path = "/health", tag = "Server",
    responses(
        (status = 200, description = "The model can answer", body = Status),
        (status = 503, description = "It is loading, broken or shutting down", body = ErrorBody),
    ),
)]
pub(crate) async fn health(State(state): State<AppState>) -> Result<Json<Status>, RequestError> {
    match state.slot().readiness() {
        Readiness::Ready => Ok(Json(Status { status: "ready" })),
        Readiness::Starting => Err(SubmitError::Starting.into()),
        Readiness::Failed(reason) => Err(SubmitError::Unhealthy(reason).into()),
        Readiness::Draining => Err(SubmitError::Closed.into()),
    }
}

/// What is served.
#[utoipa::path(
    get, path = "/info", tag = "Server",
    responses(
        (status = 200, description = "The model and the limits", body = Info),
        (status = 503, description = "The model is not loaded", body = ErrorBody),
    ),
)]
pub(crate) async fn info(State(state): State<AppState>) -> Result<Json<Info>, RequestError> {
    let model = state.model()?;
    let (info, limits) = (model.info().clone(), model.config());
    Ok(Json(Info {
        model_type: model_type(&info),
        model_id: info.id,
        model_sha: info.revision,
        model_dtype: info.dtype,
        max_input_length: info.max_length,
        max_batch_tokens: limits.max_batch_tokens,
        max_batch_requests: limits.max_batch_requests,
        max_queue_tokens: limits.max_queue_tokens,
        max_queue_bytes: limits.max_queue_bytes,
        max_client_batch_size: state.config().max_client_batch_size,
        payload_limit: state.config().payload_limit,
        auto_truncate: state.config().auto_truncate,
        tokenization_workers: limits.tokenization_workers,
        version: env!("CARGO_PKG_VERSION"),
        device: info.device,
        family: info.family,
        world_size: info.world_size,
        experts: info.experts,
        d_model: info.d_model,
        n_layers: info.n_layers,
        n_experts: info.n_experts,
        top_k: info.top_k,
        vocab_size: info.vocab_size,
        labels: info.labels,
        head: info.head,
        prompts: info.prompts.into_keys().collect(),
        default_prompt_name: info.default_prompt_name,
        uptime_seconds: state.started().elapsed().as_secs(),
    }))
}

/// Counters in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "Server",
    responses((status = 200, description = "Counters", body = String, content_type = "text/plain")),
)]
pub(crate) async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    let content_type = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (content_type, state.metrics().render(state.slot()))
}

fn model_type(info: &ModelInfo) -> ModelType {
    let labels = info.labels.as_deref().filter(|_| info.classifier);
    let Some(labels) = labels else {
        return ModelType::Embedding(EmbeddingType {
            pooling: info.pooling.clone(),
        });
    };
    ModelType::Classifier(ClassifierType {
        id2label: labels.iter().cloned().enumerate().collect(),
        label2id: labels.iter().cloned().zip(0..).collect(),
    })
}
