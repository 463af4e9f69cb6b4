//! From an error to a status and to JSON.

use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use moeshard_batcher::SubmitError;

use crate::wire::{ErrorBody, OpenAiError, OpenAiErrorBody};

/// After this it is worth asking a server again that is down: another may have taken its place.
const RESTART: Duration = Duration::from_secs(5);

/// Most characters of a message: it may quote what the client sent, which may be a whole body.
const LONGEST_MESSAGE: usize = 1000;

/// Why a request is not answered with what it asked for.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// The batcher refused or failed it.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The body is not UTF-8.
    #[error("the body is not valid UTF-8 (at byte {byte})")]
    NotUtf8 {
        /// Position of the first bad byte.
        byte: usize,
    },
    /// The body is not JSON.
    #[error("the body is not valid JSON: {0}")]
    Syntax(String),
    /// The body ended early or could not be read.
    #[error("the body could not be read: {0}")]
    Unreadable(String),
    /// A field has the wrong type or an impossible value.
    #[error("{}{message}", if .field.is_empty() { String::new() } else { format!("`{}`: ", .field) })]
    Field {
        /// Path of the field, such as `inputs[3]`; empty for the body itself.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// The body is longer than the server takes.
    #[error("the body is longer than the limit of {limit} bytes")]
    TooLarge {
        /// The limit in force.
        limit: usize,
    },
    /// The client stopped sending in the middle of the body.
    #[error("nothing came of the body for {} s", .idle_time.as_secs())]
    Slow {
        /// How long the server waited.
        idle_time: Duration,
    },
    /// The bodies under way take all the memory that the server has for them.
    #[error("the server reads too many long bodies at once; try again soon")]
    TooManyBytes,
    /// There is no such route.
    #[error("there is no route {path}; see /docs")]
    NoRoute {
        /// The path asked for.
        path: String,
    },
    /// The model asked about is not the one that is served.
    #[error("the model {id:?} is not served here; see /v1/models")]
    NoModel {
        /// The name asked for.
        id: String,
    },
    /// The route exists, but not for this method.
    #[error("{path} does not take {method}; see /docs")]
    Method {
        /// The method used.
        method: String,
        /// The path asked for.
        path: String,
    },
    /// The API key is missing or wrong.
    #[error("a valid API key is needed: send the header `Authorization: Bearer KEY`")]
    Unauthorized,
    /// A handler panicked.
    #[error("the server made a mistake and could not answer; it goes on")]
    Internal,
}

/// How an error is classed on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// The status of the answer.
    pub status: StatusCode,
    /// `error_type`, as text-embeddings-inference names it.
    pub error_type: &'static str,
}

impl RequestError {
    /// A field with an impossible value.
    pub(crate) fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Field {
            field: field.into(),
            message: message.into(),
        }
    }

    /// The status and type of this error: the one place that decides.
    #[must_use]
    pub fn class(&self) -> Class {
        let (status, error_type) = match self {
            Self::Submit(error) => return class_of(error),
            Self::NotUtf8 { .. } | Self::Syntax(_) | Self::Unreadable(_) => {
                (StatusCode::BAD_REQUEST, "Validation")
            }
            Self::Field { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "Validation"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "Validation"),
            Self::Slow { .. } => (StatusCode::REQUEST_TIMEOUT, "Validation"),
            Self::TooManyBytes => (StatusCode::TOO_MANY_REQUESTS, "Overloaded"),
            Self::NoRoute { .. } | Self::NoModel { .. } => (StatusCode::NOT_FOUND, "NotFound"),
            Self::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "Internal"),
        };
        Class { status, error_type }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Submit(
                SubmitError::Overloaded { retry_after, .. }
                | SubmitError::TooManyBytes { retry_after, .. },
            ) => Some(*retry_after),
            Self::Submit(SubmitError::Starting) | Self::TooManyBytes => {
                Some(Duration::from_secs(1))
            }
            Self::Submit(SubmitError::Unhealthy(_) | SubmitError::Closed) => Some(RESTART),
            _ => None,
        }
    }

    fn field_name(&self) -> Option<&str> {
        match self {
            Self::Field { field, .. } if !field.is_empty() => Some(field),
            Self::Submit(SubmitError::Dimensions { .. }) => Some("dimensions"),
            Self::Submit(
                SubmitError::Empty { .. }
                | SubmitError::TooLong { .. }
                | SubmitError::TokenId { .. }
                | SubmitError::At { .. },
            ) => Some("input"),
            _ => None,
        }
    }

    /// The answer in the shape that clients of `path` expect.
    fn render(&self, path: &str) -> Response {
        let class = self.class();
        let openai = is_openai(path);
        let status = if openai {
            openai_status(class.status)
        } else {
            class.status
        };
        let mut response = if openai {
            (status, Json(self.openai_body(status))).into_response()
        } else {
            (status, Json(self.tei_body(class))).into_response()
        };
        if let Some(retry_after) = self.retry_after() {
            let seconds = HeaderValue::from(retry_after.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }

    /// The error in words, without the middle if they are very many.
    fn message(&self) -> String {
        let whole = self.to_string();
        let n_chars = whole.chars().count();
        if n_chars <= LONGEST_MESSAGE {
            return whole;
        }
        let half = LONGEST_MESSAGE / 2;
        let begin: String = whole.chars().take(half).collect();
        let end: String = whole.chars().skip(n_chars - half).collect();
        format!("{begin} … {end}")
    }

    fn tei_body(&self, class: Class) -> ErrorBody {
        ErrorBody {
            error: self.message(),
            error_type: class.error_type,
        }
    }

    fn openai_body(&self, status: StatusCode) -> OpenAiErrorBody {
        let (kind, code) = match status {
            StatusCode::UNAUTHORIZED => ("authentication_error", Some("invalid_api_key")),
            StatusCode::TOO_MANY_REQUESTS => ("rate_limit_error", Some("rate_limit_exceeded")),
            StatusCode::NOT_FOUND if matches!(self, Self::NoModel { .. }) => {
                ("invalid_request_error", Some("model_not_found"))
            }
            StatusCode::NOT_FOUND => ("invalid_request_error", Some("unknown_url")),
            status if status.is_server_error() => ("server_error", None),
            StatusCode::FAILED_DEPENDENCY => ("server_error", None),
            _ => ("invalid_request_error", None),
        };
        let error = OpenAiError {
            message: self.message(),
            kind,
            param: self.field_name().map(str::to_owned),
            code,
        };
        OpenAiErrorBody { error }
    }
}

/// The status of what the batcher says; exhaustive, so that a new variant needs its status.
fn class_of(error: &SubmitError) -> Class {
    let (status, error_type) = match error {
        SubmitError::Empty { .. } => (StatusCode::BAD_REQUEST, "Empty"),
        SubmitError::TooLong { .. }
        | SubmitError::TokenId { .. }
        | SubmitError::UnknownPrompt { .. }
        | SubmitError::PromptBeforeIds
        | SubmitError::Dimensions { .. }
        | SubmitError::NoHead
        | SubmitError::Input(_) => (StatusCode::UNPROCESSABLE_ENTITY, "Validation"),
        SubmitError::Tokenizer(_) => (StatusCode::UNPROCESSABLE_ENTITY, "Tokenizer"),
        SubmitError::Backend(_) => (StatusCode::FAILED_DEPENDENCY, "Backend"),
        SubmitError::Overloaded { .. } | SubmitError::TooManyBytes { .. } => {
            (StatusCode::TOO_MANY_REQUESTS, "Overloaded")
        }
        SubmitError::Starting | SubmitError::Unhealthy(_) | SubmitError::Closed => {
            (StatusCode::SERVICE_UNAVAILABLE, "Unhealthy")
        }
        SubmitError::At { source, .. } => return class_of(source),
    };
    Class { status, error_type }
}

/// OpenAI's API answers every mistake of a client with 400; its clients know no 422.
fn openai_status(status: StatusCode) -> StatusCode {
    match status {
        StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
        status => status,
    }
}

pub(crate) fn is_openai(path: &str) -> bool {
    path == "/embeddings" || path == "/v1" || path.starts_with("/v1/")
}

/// Carries the error to [`render_errors`], which knows the path and thereby the shape.
impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        let mut response = self.class().status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The layer that turns every [`RequestError`] into JSON.
pub(crate) async fn render_errors(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    let Some(error) = response.extensions_mut().remove::<RequestError>() else {
        return response;
    };
    let mut rendered = error.render(&path);
    // A wrong method's answer carries `Allow`.
    if let Some(allow) = response.headers_mut().remove(header::ALLOW) {
        rendered.headers_mut().insert(header::ALLOW, allow);
    }
    rendered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_class(error: &RequestError, (status, error_type): (u16, &str)) {
        let class = error.class();
        assert_eq!(
            (class.status.as_u16(), class.error_type),
            (status, error_type),
            "{error}"
        );
    }

    #[test]
    fn what_the_batcher_says_has_its_status_wherever_it_says_it() {
        let too_long = SubmitError::TooLong {
            n_tokens: 2,
            exact: true,
            max_length: 1,
        };
        let token_id = SubmitError::TokenId {
            id: 1,
            vocab_size: 1,
        };
        let unknown_prompt = SubmitError::UnknownPrompt {
            name: String::new(),
            known: vec![],
        };
        let dimensions = SubmitError::Dimensions {
            dimensions: 0,
            d_model: 1,
        };
        let cases = [
            (SubmitError::Empty { what: "" }, (400, "Empty")),
            (too_long, (422, "Validation")),
            (token_id, (422, "Validation")),
            (unknown_prompt, (422, "Validation")),
            (SubmitError::PromptBeforeIds, (422, "Validation")),
            (dimensions, (422, "Validation")),
            (SubmitError::NoHead, (422, "Validation")),
            (SubmitError::Input(String::new()), (422, "Validation")),
            (SubmitError::Tokenizer(String::new()), (422, "Tokenizer")),
            (SubmitError::Backend(String::new()), (424, "Backend")),
            (overloaded(), (429, "Overloaded")),
            (too_many_bytes(), (429, "Overloaded")),
            (SubmitError::Starting, (503, "Unhealthy")),
            (SubmitError::Unhealthy(String::new()), (503, "Unhealthy")),
            (SubmitError::Closed, (503, "Unhealthy")),
        ];
        for (error, class) in cases {
            let at = SubmitError::At {
                input_idx: 1,
                source: Box::new(error.clone()),
            };
            assert_class(&error.into(), class);
            assert_class(&at.into(), class);
        }
    }

    #[test]
    fn every_other_error_has_its_status() {
        let text = String::new;
        let idle_time = Duration::from_secs(30);
        let method = RequestError::Method {
            method: text(),
            path: text(),
        };
        let cases = [
            (RequestError::NotUtf8 { byte: 3 }, (400, "Validation")),
            (RequestError::Syntax(text()), (400, "Validation")),
            (RequestError::Unreadable(text()), (400, "Validation")),
            (RequestError::field("a", "b"), (422, "Validation")),
            (RequestError::TooLarge { limit: 1 }, (413, "Validation")),
            (RequestError::Slow { idle_time }, (408, "Validation")),
            (RequestError::TooManyBytes, (429, "Overloaded")),
            (RequestError::NoRoute { path: text() }, (404, "NotFound")),
            (RequestError::NoModel { id: text() }, (404, "NotFound")),
            (method, (405, "MethodNotAllowed")),
            (RequestError::Unauthorized, (401, "Unauthorized")),
            (RequestError::Internal, (500, "Internal")),
        ];
        for (error, class) in cases {
            assert_class(&error, class);
        }
    }

    fn overloaded() -> SubmitError {
        SubmitError::Overloaded {
            n_tokens: 2,
            max_tokens: 1,
            retry_after: Duration::from_secs(3),
        }
    }

    fn too_many_bytes() -> SubmitError {
        SubmitError::TooManyBytes {
            n_bytes: 2,
            max_bytes: 1,
            retry_after: Duration::from_secs(3),
        }
    }

    #[test]
    fn who_finds_a_server_that_goes_down_is_told_when_to_come_again() {
        for error in [SubmitError::Unhealthy("broken".into()), SubmitError::Closed] {
            let response = RequestError::from(error).render("/embed");
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers()[header::RETRY_AFTER], "5");
        }
    }

    #[test]
    fn openai_clients_get_openai_statuses_and_a_time_to_retry() {
        let error = RequestError::field("input", "wrong");
        assert_eq!(
            error.render("/v1/embeddings").status(),
            StatusCode::BAD_REQUEST
        );
        assert_eq!(
            error.render("/embed").status(),
            StatusCode::UNPROCESSABLE_ENTITY
        );
        for error in [overloaded(), too_many_bytes()] {
            let response = RequestError::from(error).render("/v1/embeddings");
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(response.headers()[header::RETRY_AFTER], "3");
        }
    }
}
