//! `/classify` and `/predict`.

use axum::extract::State;
use axum::response::Response;
use moeshard_batcher::{Answer, Input, Task};

use super::answer;
use crate::body::Payload;
use crate::error::RequestError;
use crate::observe::Work;
use crate::openapi::Refusals;
use crate::state::{AppState, Wishes};
use crate::wire::{ClassifyRequest, FunctionToApply, PredictRequest, Score};

/// Classifies texts.
///
/// The answer is a list of lists, also for one input: all labels, highest score first, unless
/// `top_k`.
#[utoipa::path(
    post, path = "/classify", tag = "Classification",
    request_body(
        content = ClassifyRequest,
        example = json!({ "inputs": "I lost my card", "top_k": 3 }),
    ),
    responses(
        (status = 200, description = "The labels of each input", body = Vec<Vec<Score>>),
        Refusals,
    ),
)]
pub(crate) async fn classify(
    State(state): State<AppState>,
    Payload(request): Payload<ClassifyRequest>,
) -> Result<Response, RequestError> {
    run(&state, request).await
}

/// Classifies a text, a pair of texts, or a batch of those.
///
/// The answer is a list of labels for one input and a list of such lists for a batch.
#[utoipa::path(
    post, path = "/predict", tag = "Classification",
    request_body(
        content = PredictRequest,
        example = json!({ "inputs": [["I lost my card"], ["Where is it?", "In the bank"]] }),
    ),
    responses(
        (status = 200, description = "The labels; of one input, not in a list", body = Vec<Vec<Score>>),
        Refusals,
    ),
)]
pub(crate) async fn predict(
    State(state): State<AppState>,
    Payload(request): Payload<PredictRequest>,
) -> Result<Response, RequestError> {
    let wishes = Wishes {
        truncate: request.truncate,
        direction: request.truncation_direction,
        prompt_name: None,
    };
    let rule = Scoring {
        raw_scores: request.raw_scores.unwrap_or(false),
        ..Scoring::default()
    };
    let (work, mut scores) = score(&state, request.inputs.list, wishes, rule).await?;
    if request.inputs.is_batch {
        return Ok(answer(work, scores));
    }
    let only = scores.pop().expect("one input has one answer");
    Ok(answer(work, only))
}

pub(super) async fn run(
    state: &AppState,
    request: ClassifyRequest,
) -> Result<Response, RequestError> {
    let parameters = request.parameters;
    let (field, top_k) = match parameters.top_k {
        None => ("top_k", request.top_k),
        wish => ("parameters.top_k", wish),
    };
    if top_k == Some(0) {
        return Err(RequestError::field(field, "must be at least 1, got 0"));
    }
    let wishes = Wishes {
        truncate: request.truncate,
        direction: request.truncation_direction,
        prompt_name: request.prompt_name,
    };
    let rule = Scoring {
        raw_scores: request.raw_scores.unwrap_or(false),
        function: parameters.function_to_apply,
        top_k,
    };
    let (work, scores) = score(state, request.inputs.0, wishes, rule).await?;
    Ok(answer(work, scores))
}

/// From the head's values to the labels of an answer.
#[derive(Clone, Copy, Debug, Default)]
struct Scoring {
    raw_scores: bool,
    /// Overrides `raw_scores` and the model's own function.
    function: Option<FunctionToApply>,
    top_k: Option<usize>,
}

async fn score(
    state: &AppState,
    inputs: Vec<Input>,
    wishes: Wishes,
    rule: Scoring,
) -> Result<(Work, Vec<Vec<Score>>), RequestError> {
    let raw_scores = rule.raw_scores || rule.function.is_some();
    let model = state.model()?;
    let answers = state
        .submit(inputs, Task::Classify { raw_scores }, wishes)
        .await?;
    let work = Work::of(&answers);
    let labels = model.info().labels.as_deref().unwrap_or_default();
    let scores = answers
        .into_iter()
        .map(|answer| rank(answer, labels, rule))
        .collect();
    Ok((work, scores))
}

/// Labels with their scores, highest first; equal scores stay in the order of the head.
fn rank(answer: Answer, labels: &[String], rule: Scoring) -> Vec<Score> {
    let values = match rule.function {
        None | Some(FunctionToApply::None) => answer.values,
        Some(FunctionToApply::Sigmoid) => answer.values.into_iter().map(sigmoid).collect(),
        Some(FunctionToApply::Softmax) => softmax(answer.values),
    };
    let pairs = labels.iter().zip(values);
    let mut scores: Vec<Score> = pairs
        .map(|(label, score)| Score {
            label: label.clone(),
            score,
        })
        .collect();
    scores.sort_by(|a, b| b.score.total_cmp(&a.score));
    scores.truncate(rule.top_k.unwrap_or(usize::MAX));
    scores
}

/// `1 / (1 + exp(-x))`, without overflow for large negative `x`.
fn sigmoid(x: f32) -> f32 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// `exp(x - max x) / Σ exp(x - max x)`: subtracting the maximum keeps every exponent at most zero.
fn softmax(logits: Vec<f32>) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f32> = logits.into_iter().map(|x| (x - max).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    exponentials.into_iter().map(|e| e / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_stable() {
        assert_eq!(softmax(vec![-100.0, 0.0]), [(-100.0f32).exp(), 1.0]);
        assert_eq!(softmax(vec![1e30, 1e30]), [0.5, 0.5]);
        assert_eq!(
            (sigmoid(0.0), sigmoid(-1e30), sigmoid(1e30)),
            (0.5, 0.0, 1.0)
        );
    }

    #[test]
    fn labels_come_highest_first() {
        let labels: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let answer = || Answer {
            values: vec![1.0, 3.0, 2.0],
            n_tokens: 1,
            timings: moeshard_batcher::Timings::default(),
        };
        let names = |rule| -> Vec<String> {
            rank(answer(), &labels, rule)
                .into_iter()
                .map(|score| score.label)
                .collect()
        };
        assert_eq!(names(Scoring::default()), ["b", "c", "a"]);
        assert_eq!(
            names(Scoring {
                top_k: Some(1),
                ..Scoring::default()
            }),
            ["b"]
        );
        assert_eq!(
            names(Scoring {
                top_k: Some(9),
                ..Scoring::default()
            })
            .len(),
            3
        );
        let softmax = Scoring {
            function: Some(FunctionToApply::Softmax),
            ..Scoring::default()
        };
        let sum: f32 = rank(answer(), &labels, softmax)
            .iter()
            .map(|score| score.score)
            .sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }
}
