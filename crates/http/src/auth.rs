//! The API key.

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::RequestError;
use crate::state::AppState;

/// Paths that need no key: probes and scrapers have none, and the page asks for it.
pub(crate) const PUBLIC: [&str; 7] = [
    "/live",
    "/health",
    "/ping",
    "/ready",
    "/metrics",
    "/docs",
    "/api-doc/openapi.json",
];

/// The layer that lets in who has the key.
pub(crate) async fn require_key(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let Some(key) = &state.config().api_key else {
        return next.run(request).await;
    };
    let authorization = request.headers().get(header::AUTHORIZATION);
    let token = authorization.and_then(|value| bearer(value.as_bytes()));
    if is_public(&request) || token.is_some_and(|token| key.matches(token)) {
        return next.run(request).await;
    }
    RequestError::Unauthorized.into_response()
}

/// Whether a request needs no key. `GET /` only leads to the page, while `POST /` runs the model.
fn is_public(request: &Request) -> bool {
    let path = request.uri().path();
    PUBLIC.contains(&path) || (path == "/" && request.method().is_safe())
}

/// The token of `Bearer TOKEN`; the scheme's case does not matter (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}
