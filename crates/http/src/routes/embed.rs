//! `/embed`, as text-embeddings-inference has it.

use axum::extract::State;
use axum::response::Response;
use moeshard_batcher::Task;

use super::{answer, values};
use crate::body::Payload;
use crate::error::RequestError;
use crate::observe::Work;
use crate::openapi::Refusals;
use crate::state::{AppState, Wishes};
use crate::wire::EmbedRequest;

/// Embeds texts.
///
/// The answer is a list of embeddings, also for one input.
#[utoipa::path(
    post, path = "/embed", tag = "Embeddings",
    request_body(
        content = EmbedRequest,
        example = json!({ "inputs": ["What is a mixture of experts?", "Hello"] }),
    ),
    responses(
        (status = 200, description = "One embedding per input", body = Vec<Vec<f32>>),
        Refusals,
    ),
)]
pub(crate) async fn embed(
    State(state): State<AppState>,
    Payload(request): Payload<EmbedRequest>,
) -> Result<Response, RequestError> {
    run(&state, request).await
}

pub(super) async fn run(state: &AppState, request: EmbedRequest) -> Result<Response, RequestError> {
    let normalize = request.normalize.unwrap_or(true);
    let task = Task::Embed {
        normalize,
        dimensions: request.dimensions,
    };
    let wishes = Wishes {
        truncate: request.truncate,
        direction: request.truncation_direction,
        prompt_name: request.prompt_name,
    };
    let answers = state.submit(request.inputs.0, task, wishes).await?;
    Ok(answer(Work::of(&answers), values(answers)))
}
