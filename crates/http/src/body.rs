//! Reads a JSON body and says exactly what is wrong with one.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;

use crate::error::RequestError;
use crate::state::AppState;

/// How long the rest of a body that is too long is read and thrown away. A client that is still
/// sending when the connection closes would see a reset instead of the error.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A body within the limit.
pub(crate) struct Raw(pub(crate) Bytes);

/// A body of type `T`, whatever its content type says; unknown fields are ignored.
pub(crate) struct Payload<T>(pub(crate) T);

impl FromRequest<AppState> for Raw {
    type Rejection = RequestError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, RequestError> {
        let (parts, body) = request.into_parts();
        let limit = state.config().payload_limit;
        Ok(Self(read(&parts.headers, body, limit).await?))
    }
}

impl<T: DeserializeOwned> FromRequest<AppState> for Payload<T> {
    type Rejection = RequestError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, RequestError> {
        let Raw(bytes) = Raw::from_request(request, state).await?;
        Ok(Self(parse(&bytes)?))
    }
}

/// Parses a JSON object.
///
/// # Errors
/// [`RequestError::NotUtf8`], [`RequestError::Syntax`], or [`RequestError::Field`] naming the field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RequestError> {
    let text = std::str::from_utf8(bytes).map_err(|error| RequestError::NotUtf8 {
        byte: error.valid_up_to(),
    })?;
    if !text.trim_ascii_start().starts_with('{') {
        return Err(not_an_object(text));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        explain(&path, error.inner())
    })?;
    json.end().map_err(|error| explain("", &error))?;
    Ok(value)
}

/// A struct would also be read from a JSON list, field by field: refuse that.
fn not_an_object(text: &str) -> RequestError {
    match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Ok(_) => RequestError::field("", "the body must be a JSON object"),
        Err(error) => RequestError::Syntax(error.to_string()),
    }
}

fn explain(path: &str, error: &serde_json::Error) -> RequestError {
    if !error.is_data() {
        return RequestError::Syntax(error.to_string());
    }
    // The path of the body itself is `.`, and `?` stands for a part without a name.
    let field = path.trim_end_matches('?').trim_end_matches('.');
    RequestError::field(field, error.to_string())
}

/// Reads a body of at most `limit` bytes.
async fn read(headers: &HeaderMap, mut body: Body, limit: usize) -> Result<Bytes, RequestError> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    let announced = announced
        .and_then(|value| value.parse::<usize>().ok())
        .unwrap_or(0);
    if announced > limit {
        // A client that asks first has sent nothing yet.
        if !headers.contains_key(header::EXPECT) {
            drain(body).await;
        }
        return Err(RequestError::TooLarge { limit });
    }
    // A length that is only announced reserves no more than this.
    let mut bytes = Vec::with_capacity(announced.min(1 << 20));
    while let Some(chunk) = next_chunk(&mut body).await? {
        if bytes.len() + chunk.len() > limit {
            drop(bytes);
            drain(body).await;
            return Err(RequestError::TooLarge { limit });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// The next bytes; `None` at the end.
async fn next_chunk(body: &mut Body) -> Result<Option<Bytes>, RequestError> {
    loop {
        match poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
            None => return Ok(None),
            Some(Err(error)) => return Err(RequestError::Unreadable(error.to_string())),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

async fn drain(mut body: Body) {
    let rest = async { while let Ok(Some(_)) = next_chunk(&mut body).await {} };
    let _ = tokio::time::timeout(DRAIN_TIME, rest).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::EmbedRequest;

    #[test]
    fn a_wrong_body_is_explained() {
        let check = |body: &[u8], expect: &str| {
            let error = parse::<EmbedRequest>(body).expect_err(expect);
            // The place is serde's; what matters is what is wrong, and where in the structure.
            let message = error.to_string();
            assert_eq!(message.split(" at line").next(), Some(expect));
        };
        check(
            b"{\"inputs\":\"\xff\"}",
            "the body is not valid UTF-8 (at byte 11)",
        );
        check(b"", "the body is not valid JSON: EOF while parsing a value");
        check(
            b"{\"inputs\":",
            "the body is not valid JSON: EOF while parsing a value",
        );
        check(
            b"{\"inputs\":\"a\"} x",
            "the body is not valid JSON: trailing characters",
        );
        check(b"[\"a\"]", "the body must be a JSON object");
        check(b"{}", "missing field `inputs`");
        check(
            br#"{"inputs":"a","truncate":"yes"}"#,
            "`truncate`: invalid type: string \"yes\", expected a boolean",
        );
        check(
            br#"{"inputs":{"a":1}}"#,
            "`inputs`: invalid type: map, expected a text, a list of token ids, or a list of \
             those",
        );
        check(
            br#"{"inputs":["a",{"b":2}]}"#,
            "`inputs[1]`: invalid type: map, expected a text or a list of token ids",
        );
        check(
            br#"{"inputs":[1,-2]}"#,
            "`inputs[1]`: invalid value: integer `-2`, expected a token id (an integer from 0 to \
             4294967295)",
        );
        check(
            br#"{"inputs":"a","dimensions":-1}"#,
            "`dimensions`: invalid value: integer `-1`, expected usize",
        );
        check(
            br#"{"inputs":"a","truncation_direction":"up"}"#,
            "`truncation_direction`: unknown variant `up`, expected `left` or `right`",
        );
    }
}
