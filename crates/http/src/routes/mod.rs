//! The routes, one file per family of clients.

pub(crate) mod classify;
pub(crate) mod docs;
pub(crate) mod embed;
pub(crate) mod model_task;
pub(crate) mod openai;
pub(crate) mod probes;
pub(crate) mod tools;

use axum::Json;
use axum::response::{IntoResponse, Response};
use moeshard_batcher::Answer;
use serde::Serialize;

use crate::observe::Work;

/// JSON with what it took, which the outer layer turns into headers.
fn answer(work: Work, body: impl Serialize) -> Response {
    let mut response = Json(body).into_response();
    response.extensions_mut().insert(work);
    response
}

fn values(answers: Vec<Answer>) -> Vec<Vec<f32>> {
    answers.into_iter().map(|answer| answer.values).collect()
}
