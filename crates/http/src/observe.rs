//! The layer that counts and logs each request and writes the timing headers.

use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use moeshard_batcher::{Answer, Timings};

use crate::state::AppState;

/// What nginx counts when a client closes the connection before its answer.
const CLIENT_GONE: u16 = 499;

/// What a request took, attached to its response for the headers, the metrics and the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Inputs answered.
    pub n_inputs: usize,
    /// Tokens of all inputs.
    pub n_tokens: usize,
    /// The longest of each stage over the inputs: they run side by side, so this is what the client
    /// waited for.
    pub timings: Timings,
}

impl Work {
    /// Sums up the answers of one request.
    pub(crate) fn of(answers: &[Answer]) -> Self {
        let mut work = Self {
            n_inputs: answers.len(),
            ..Self::default()
        };
        for answer in answers {
            let (sum, one) = (&mut work.timings, &answer.timings);
            work.n_tokens += answer.n_tokens;
            sum.tokenization = sum.tokenization.max(one.tokenization);
            sum.queue = sum.queue.max(one.queue);
            sum.inference = sum.inference.max(one.inference);
        }
        work
    }

    /// # Units
    /// Integer milliseconds, as text-embeddings-inference writes them.
    fn headers(&self, total: Duration) -> [(HeaderName, u64); 5] {
        let ms = |duration: Duration| duration.as_millis() as u64;
        let name = HeaderName::from_static;
        [
            (name("x-compute-tokens"), self.n_tokens as u64),
            (name("x-total-time"), ms(total)),
            (name("x-tokenization-time"), ms(self.timings.tokenization)),
            (name("x-queue-time"), ms(self.timings.queue)),
            (name("x-inference-time"), ms(self.timings.inference)),
        ]
    }
}

/// Counts and logs a request, without its body.
pub(crate) async fn observe(
    State(state): State<AppState>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    // An unknown path is not a label: anyone could fill the metrics with made-up ones.
    let route = matched
        .as_ref()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let visit = Visit::begin(state, request.method().clone(), route);
    let mut response = next.run(request).await;
    let work = response.extensions().get::<Work>().copied();
    if let Some(work) = work {
        for (name, value) in work.headers(visit.started.elapsed()) {
            response
                .headers_mut()
                .insert(name, HeaderValue::from(value));
        }
    }
    visit.end(response.status().as_u16(), work.as_ref());
    response
}

/// One request under way; counted as [`CLIENT_GONE`] if it is dropped before its end.
struct Visit {
    state: AppState,
    method: Method,
    route: String,
    started: Instant,
    ended: bool,
}

impl Visit {
    fn begin(state: AppState, method: Method, route: String) -> Self {
        state.metrics().in_flight().increment(1.0);
        Self {
            state,
            method,
            route,
            started: Instant::now(),
            ended: false,
        }
    }

    fn end(mut self, status: u16, work: Option<&Work>) {
        self.ended = true;
        self.count(status, work);
    }

    fn count(&self, status: u16, work: Option<&Work>) {
        let took = self.started.elapsed();
        self.state.metrics().in_flight().decrement(1.0);
        self.state
            .metrics()
            .request(&self.route, status, took, work);
        let (method, route) = (self.method.as_str(), self.route.as_str());
        let total_ms = took.as_millis() as u64;
        match work {
            Some(work) => {
                let (n_inputs, n_tokens) = (work.n_inputs, work.n_tokens);
                tracing::info!(
                    method, route, status, total_ms, n_inputs, n_tokens, "request"
                );
            }
            // Probes and scrapes come every few seconds, and more often while a model loads.
            None if status < 400 || status == 503 => {
                tracing::debug!(method, route, status, total_ms, "request");
            }
            None => tracing::info!(method, route, status, total_ms, "request"),
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if !self.ended {
            self.count(CLIENT_GONE, None);
        }
    }
}
