//! `/v1/embeddings` and `/v1/models`, as OpenAI's clients call them.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use moeshard_batcher::{Answer, Handle, Input, SubmitError, Task};

use super::answer;
use crate::body::Payload;
use crate::error::RequestError;
use crate::observe::Work;
use crate::openapi::OpenAiRefusals;
use crate::state::{AppState, Wishes};
use crate::wire::{
    Embedding, EmbeddingValues, EmbeddingsRequest, EmbeddingsResponse, EncodingFormat, Model,
    Models, OpenAiErrorBody, Usage,
};

/// Embeds texts for OpenAI's clients.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "OpenAI",
    request_body(
        content = EmbeddingsRequest,
        example = json!({ "input": ["Hello", "world"], "model": "any" }),
    ),
    responses(
        (status = 200, description = "One embedding per input", body = EmbeddingsResponse),
        OpenAiRefusals,
    ),
)]
pub(crate) async fn embeddings(
    State(state): State<AppState>,
    Payload(request): Payload<EmbeddingsRequest>,
) -> Result<Response, RequestError> {
    let model = state.model()?;
    refuse_foreign_ids(&request.input.0, &model)?;
    let task = Task::Embed {
        normalize: true,
        dimensions: request.dimensions,
    };
    let answers = state.submit(request.input.0, task, Wishes::default()).await;
    let answers = answers.map_err(about_input)?;
    let work = Work::of(&answers);
    let format = request.encoding_format.unwrap_or_default();
    let body = EmbeddingsResponse {
        object: "list",
        data: answers
            .into_iter()
            .enumerate()
            .map(|(i, one)| embedding(i, one, format))
            .collect(),
        model: model.info().id.clone(),
        usage: Usage {
            prompt_tokens: work.n_tokens,
            total_tokens: work.n_tokens,
        },
    };
    Ok(answer(work, body))
}

/// The one model of this server.
#[utoipa::path(
    get, path = "/v1/models", tag = "OpenAI",
    responses(
        (status = 200, description = "The model", body = Models),
        (status = 503, description = "The model is not loaded", body = OpenAiErrorBody),
    ),
)]
pub(crate) async fn models(State(state): State<AppState>) -> Result<Json<Models>, RequestError> {
    Ok(Json(Models {
        object: "list",
        data: vec![served(&state)?],
    }))
}

/// One model by its name.
#[utoipa::path(
    get, path = "/v1/models/{id}", tag = "OpenAI",
    params(("id" = String, Path, description = "Its name, which may hold slashes")),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = 404, description = "Another model is served", body = OpenAiErrorBody),
        (status = 503, description = "The model is not loaded", body = OpenAiErrorBody),
    ),
)]
pub(crate) async fn model(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Model>, RequestError> {
    let model = served(&state)?;
    if model.id != id {
        return Err(RequestError::NoModel { id });
    }
    Ok(Json(model))
}

fn served(state: &AppState) -> Result<Model, RequestError> {
    Ok(Model {
        id: state.model()?.info().id.clone(),
        object: "model",
        created: state.created(),
        owned_by: "moeshard",
    })
}

/// Refuses token ids that another tokenizer made.
///
/// Some OpenAI clients (langchain's, by default) send ids of OpenAI's own tokenizer. Those below
/// this model's vocabulary size would be embedded as unrelated words, without an error. Ids of this
/// model begin with its special tokens (or end with them, where it puts none first), and ids of
/// OpenAI's tokenizer have none, so that is what tells them apart.
fn refuse_foreign_ids(inputs: &[Input], model: &Handle) -> Result<(), RequestError> {
    let (before, after) = model.special_ids();
    let vocab_size = model.info().vocab_size;
    for (input_idx, input) in inputs.iter().enumerate() {
        let Input::Ids(ids) = input else { continue };
        let outside = ids.iter().find(|&&id| id as usize >= vocab_size);
        let framed = if before.is_empty() {
            ids.ends_with(after)
        } else {
            ids.starts_with(before)
        };
        let reason = match outside {
            _ if ids.is_empty() => continue,
            Some(id) => format!("id {id} is outside its vocabulary of {vocab_size} tokens"),
            None if framed => continue,
            None if before.is_empty() => format!("they do not end with its {after:?}"),
            None => format!("they do not begin with its {before:?}"),
        };
        return Err(RequestError::field(
            "input",
            foreign(input_idx, inputs.len(), &reason),
        ));
    }
    Ok(())
}

fn foreign(input_idx: usize, n_inputs: usize, reason: &str) -> String {
    let which = if n_inputs > 1 {
        format!("of input {input_idx} ")
    } else {
        String::new()
    };
    format!(
        "the token ids {which}were not made by this model's tokenizer: {reason}; send text instead \
         (with langchain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
    )
}

/// OpenAI's name of the field.
fn about_input(error: RequestError) -> RequestError {
    const EMPTY: SubmitError = SubmitError::Empty { what: "`input`" };
    match error {
        RequestError::Submit(SubmitError::Empty { .. }) => EMPTY.into(),
        RequestError::Submit(SubmitError::At { input_idx, source })
            if matches!(*source, SubmitError::Empty { .. }) =>
        {
            SubmitError::At {
                input_idx,
                source: Box::new(EMPTY),
            }
            .into()
        }
        other => other,
    }
}

fn embedding(index: usize, answer: Answer, format: EncodingFormat) -> Embedding {
    let embedding = match format {
        EncodingFormat::Float => EmbeddingValues::Float(answer.values),
        EncodingFormat::Base64 => {
            let bytes: Vec<u8> = answer.values.iter().flat_map(|v| v.to_le_bytes()).collect();
            EmbeddingValues::Base64(BASE64_STANDARD.encode(bytes))
        }
    };
    Embedding {
        object: "embedding",
        embedding,
        index,
    }
}
