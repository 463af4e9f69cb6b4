//! The page at `/docs` and what it is made from.

use axum::Json;
use axum::http::header;
use axum::response::{Html, IntoResponse};

use crate::openapi::document;

/// One file without anything from elsewhere: it works without a network.
const PAGE: &str = include_str!("../assets/docs.html");

/// Nothing but the page's own code may run, and it may talk to this server only.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// This server's documentation, readable and with a form to try each route.
#[utoipa::path(
    get, path = "/docs", tag = "Server",
    responses((status = 200, description = "A web page", content_type = "text/html")),
)]
pub(crate) async fn page() -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE))
}

/// The same for machines.
#[utoipa::path(
    get, path = "/api-doc/openapi.json", tag = "Server",
    responses((status = 200, description = "OpenAPI", content_type = "application/json")),
)]
pub(crate) async fn openapi_json() -> impl IntoResponse {
    Json(document())
}
