//! The layer that reads the rest of a body whose request is refused.
//!
//! A client that is still sending when the connection closes sees a reset in place of the answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::body::next_chunk;

/// How long the rest of a body is read and thrown away.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Most bytes thrown away, but for a body that is refused for its length.
const DRAIN_BYTES: usize = 32_000_000;

/// Answers errors only after the request's body is read, within limits.
pub(crate) async fn drain_errors(mut request: Request, next: Next) -> Response {
    let body = std::mem::take(request.body_mut());
    // A client that asks first has sent nothing until the body is read.
    let silent = request.headers().contains_key(header::EXPECT);
    let unread = Unread::new(body, silent);
    request.extensions_mut().insert(unread.clone());
    let response = next.run(request).await;
    let most = match response.status() {
        StatusCode::PAYLOAD_TOO_LARGE => usize::MAX,
        status if status.is_client_error() || status.is_server_error() => DRAIN_BYTES,
        _ => return response,
    };
    let rest = unread.lock().body.take();
    if let Some(body) = rest.filter(|_| !unread.lock().silent) {
        let _ = tokio::time::timeout(DRAIN_TIME, drain(body, most)).await;
    }
    response
}

async fn drain(mut body: Body, most: usize) {
    let mut n_bytes = 0;
    while n_bytes < most && !body.is_end_stream() {
        match next_chunk(&mut body, DRAIN_TIME).await {
            Ok(Some(chunk)) => n_bytes += chunk.len(),
            _ => return,
        }
    }
}

/// What is left of a request's body: in its extensions, since a handler drops the request.
#[derive(Clone)]
pub(crate) struct Unread(Arc<Mutex<Rest>>);

struct Rest {
    body: Option<Body>,
    /// Whether the client sends nothing more.
    silent: bool,
}

impl Unread {
    fn new(body: Body, silent: bool) -> Self {
        let body = Some(body);
        Self(Arc::new(Mutex::new(Rest { body, silent })))
    }

    /// The body of the request, to be read.
    pub(crate) fn take(&self) -> Body {
        self.lock().body.take().unwrap_or_default()
    }

    /// Gives back a body that was not read to its end.
    pub(crate) fn give_back(&self, body: Body, silent: bool) {
        *self.lock() = Rest {
            body: Some(body),
            silent,
        };
    }

    fn lock(&self) -> MutexGuard<'_, Rest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
