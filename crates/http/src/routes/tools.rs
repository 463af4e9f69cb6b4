//! `/similarity`, `/tokenize` and `/decode`, as text-embeddings-inference has them.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use moeshard_batcher::{Input, SubmitError, Task, TokenPiece};

use super::{answer, values};
use crate::body::Payload;
use crate::error::RequestError;
use crate::observe::Work;
use crate::openapi::Refusals;
use crate::state::{AppState, Wishes};
use crate::wire::{DecodeRequest, SimilarityRequest, Texts, TokenIds, TokenInfo, TokenizeRequest};

/// Most bytes of text that one `/tokenize` takes: its answer is some thirty times as long.
const LONGEST_TEXT: usize = 1_000_000;

/// Compares one text with others.
#[utoipa::path(
    post, path = "/similarity", tag = "Tools",
    request_body(
        content = SimilarityRequest,
        example = json!({ "inputs": {
            "source_sentence": "I lost my card", "sentences": ["My card is gone", "Hello"],
        } }),
    ),
    responses(
        (status = 200, description = "The cosine with each", body = Vec<f32>),
        Refusals,
    ),
)]
pub(crate) async fn similarity(
    State(state): State<AppState>,
    Payload(request): Payload<SimilarityRequest>,
) -> Result<Response, RequestError> {
    run_similarity(&state, request).await
}

pub(super) async fn run_similarity(
    state: &AppState,
    request: SimilarityRequest,
) -> Result<Response, RequestError> {
    let (inputs, parameters) = (request.inputs, request.parameters);
    if inputs.sentences.is_empty() {
        return Err(SubmitError::Empty {
            what: "`inputs.sentences`",
        }
        .into());
    }
    let wishes = Wishes {
        truncate: parameters.truncate,
        direction: parameters.truncation_direction,
        prompt_name: parameters.prompt_name,
    };
    let texts = std::iter::once(inputs.source_sentence).chain(inputs.sentences);
    let texts = texts.map(Input::Text).collect();
    let task = Task::Embed {
        normalize: true,
        dimensions: None,
    };
    let answers = state.submit(texts, task, wishes).await?;
    let work = Work::of(&answers);
    let embeddings = values(answers);
    let (source, others) = embeddings
        .split_first()
        .expect("there is at least the source");
    let cosines: Vec<f32> = others.iter().map(|other| cosine(source, other)).collect();
    Ok(answer(work, cosines))
}

/// Of two vectors of unit length, which rounding may take past one.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
    dot.clamp(-1.0, 1.0)
}

/// Shows the tokens of texts.
#[utoipa::path(
    post, path = "/tokenize", tag = "Tools",
    request_body(content = TokenizeRequest, example = json!({ "inputs": "Hello world" })),
    responses(
        (status = 200, description = "The tokens of each text", body = Vec<Vec<TokenInfo>>),
        Refusals,
    ),
)]
pub(crate) async fn tokenize(
    State(state): State<AppState>,
    Payload(request): Payload<TokenizeRequest>,
) -> Result<Json<Vec<Vec<TokenInfo>>>, RequestError> {
    let texts = match request.inputs {
        Texts::One(text) => vec![text],
        Texts::Many(texts) => texts,
    };
    if texts.is_empty() {
        return Err(SubmitError::Empty { what: "`inputs`" }.into());
    }
    state.check_n_inputs(texts.len())?;
    let n_bytes: usize = texts.iter().map(String::len).sum();
    if n_bytes > LONGEST_TEXT {
        let message = format!("at most {LONGEST_TEXT} bytes of text at a time, got {n_bytes}");
        return Err(RequestError::field("inputs", message));
    }
    let model = state.model()?;
    let special = request.add_special_tokens.unwrap_or(true);
    let lists = model.tokenize_all(texts, special).await?;
    let show = |pieces: Vec<TokenPiece>| pieces.into_iter().map(token_info).collect();
    Ok(Json(lists.into_iter().map(show).collect()))
}

/// Turns token ids back into text.
#[utoipa::path(
    post, path = "/decode", tag = "Tools",
    request_body(content = DecodeRequest, example = json!({ "ids": [[1, 2, 3]] })),
    responses(
        (status = 200, description = "One text per list of ids", body = Vec<String>),
        Refusals,
    ),
)]
pub(crate) async fn decode(
    State(state): State<AppState>,
    Payload(request): Payload<DecodeRequest>,
) -> Result<Json<Vec<String>>, RequestError> {
    let lists = match request.ids {
        TokenIds::One(ids) => vec![ids],
        TokenIds::Many(lists) => lists,
    };
    state.check_n_inputs(lists.len())?;
    let model = state.model()?;
    let skip_special = request.skip_special_tokens.unwrap_or(true);
    Ok(Json(model.decode_all(lists, skip_special).await?))
}

fn token_info(piece: TokenPiece) -> TokenInfo {
    TokenInfo {
        id: piece.id,
        text: piece.text,
        special: piece.special,
        start: piece.start,
        stop: piece.stop,
    }
}

#[cfg(test)]
mod tests {
    use super::cosine;

    #[test]
    fn a_cosine_stays_within_one() {
        let unit = [1.0, 1e-3];
        assert_eq!(cosine(&unit, &unit), 1.0);
        assert_eq!(cosine(&unit, &[-1.0, -1e-3]), -1.0);
        assert_eq!(cosine(&unit, &[0.5, 0.0]), 0.5);
    }
}
