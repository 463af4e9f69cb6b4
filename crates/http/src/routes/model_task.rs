//! `/` and `/invocations`: the model's own task, for clients that post to the server's address.

use axum::extract::State;
use axum::response::Response;

use super::{classify, embed, tools};
use crate::body::Raw;
use crate::error::RequestError;
use crate::openapi::Refusals;
use crate::state::AppState;

/// Embeds or classifies, whichever the model was made for.
///
/// The body is that of `/classify` if the model is a classifier, otherwise that of `/embed` (or of
/// `/similarity`, which `huggingface_hub` posts to the same address).
#[utoipa::path(
    post, path = "/", tag = "The model's own task",
    request_body(content = serde_json::Value, example = json!({ "inputs": "Hello" })),
    responses(
        (status = 200, description = "As /embed or /classify answers"),
        Refusals,
    ),
)]
pub(crate) async fn own_task(
    State(state): State<AppState>,
    body: Raw,
) -> Result<Response, RequestError> {
    if state.model()?.info().classifier {
        return classify::run(&state, body.parse(&state).await?).await;
    }
    match body.parse(&state).await {
        Ok(request) => embed::run(&state, request).await,
        Err(error) => match body.parse(&state).await {
            Ok(request) => tools::run_similarity(&state, request).await,
            // What is wrong with it as an embedding is what the client wants to know.
            Err(_) => Err(error),
        },
    }
}

/// The same under the path that SageMaker calls.
#[utoipa::path(
    post, path = "/invocations", tag = "The model's own task",
    request_body(content = serde_json::Value, example = json!({ "inputs": "Hello" })),
    responses((status = 200, description = "As / answers"), Refusals),
)]
pub(crate) async fn invocations(
    state: State<AppState>,
    body: Raw,
) -> Result<Response, RequestError> {
    own_task(state, body).await
}
