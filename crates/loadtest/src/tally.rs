use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::args::Rate;
use crate::client::{Answer, Failure, ServerHeaders};
use crate::report::{Latencies, RateReport};
use crate::stats::Summary;

/// Failed requests by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ErrorCounts {
    /// Status 429: the server sheds load, as it should.
    pub too_many_requests: u64,
    /// Every other status that is no success.
    pub by_status: BTreeMap<u16, u64>,
    /// Connections refused or broken.
    pub connection: u64,
    /// No complete answer within the timeout, counted from the scheduled send.
    pub timeout: u64,
}

impl ErrorCounts {
    /// All failed requests.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.too_many_requests
            + self.by_status.values().sum::<u64>()
            + self.connection
            + self.timeout
    }

    fn add(&mut self, failure: &Failure) {
        match failure {
            Failure::Status { code: 429, .. } => self.too_many_requests += 1,
            Failure::Status { code, .. } => *self.by_status.entry(*code).or_default() += 1,
            Failure::Connection(_) => self.connection += 1,
            Failure::Timeout(_) => self.timeout += 1,
        }
    }
}

/// Means of what the server's `x-*-time` headers say, over the answers that carry them.
///
/// # Units
/// Milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ServerMeans {
    /// `x-total-time`.
    pub mean_total_ms: Option<f64>,
    /// `x-tokenization-time`.
    pub mean_tokenization_ms: Option<f64>,
    /// `x-queue-time`.
    pub mean_queue_ms: Option<f64>,
    /// `x-inference-time`.
    pub mean_inference_ms: Option<f64>,
}

/// What became of one request.
#[derive(Debug)]
pub(crate) struct Flight {
    /// Its scheduled send.
    pub(crate) due: Instant,
    pub(crate) ended: Instant,
    pub(crate) outcome: Result<Answer, Failure>,
}

/// Everything measured at one rate. All latencies are kept (48 bytes a request), because an
/// exact 99.9th percentile of a small run matters more than the memory of a large one.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    ttfb: Vec<Duration>,
    ttft: Vec<Duration>,
    e2el: Vec<Duration>,
    /// Of requests that the concurrency cap did not delay: how late the generator itself was.
    pub(crate) send_lag: Vec<Duration>,
    /// Requests that waited for the concurrency cap.
    pub(crate) delayed: u64,
    pub(crate) max_in_flight: usize,
    errors: ErrorCounts,
    first_error: Option<String>,
    tokens: Option<u64>,
    /// Total, tokenization, queue, inference.
    server: [Mean; 4],
    last_end: Option<Instant>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Mean {
    sum: f64,
    n: u32,
}

impl Mean {
    fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.sum += value;
            self.n += 1;
        }
    }

    fn value(self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / f64::from(self.n))
    }
}

impl Tally {
    /// Counts a request that is over.
    pub(crate) fn record(&mut self, flight: &Flight) {
        self.last_end = self.last_end.max(Some(flight.ended));
        match &flight.outcome {
            Ok(answer) => self.record_answer(flight.due, answer),
            Err(failure) => {
                self.errors.add(failure);
                self.first_error.get_or_insert_with(|| failure.to_string());
            }
        }
    }

    fn record_answer(&mut self, due: Instant, answer: &Answer) {
        self.ttfb.push(answer.head.saturating_duration_since(due));
        self.ttft
            .push(answer.first_result.saturating_duration_since(due));
        self.e2el.push(answer.end.saturating_duration_since(due));
        let ServerHeaders {
            tokens,
            total_ms,
            tokenization_ms,
            queue_ms,
            inference_ms,
        } = answer.server;
        if let Some(tokens) = tokens {
            *self.tokens.get_or_insert(0) += tokens;
        }
        let values = [total_ms, tokenization_ms, queue_ms, inference_ms];
        self.server
            .iter_mut()
            .zip(values)
            .for_each(|(mean, value)| mean.add(value));
    }

    /// The report of a rate that began at `start` with `batch` texts a request.
    pub(crate) fn finish(mut self, rate: Rate, start: Instant, batch: usize) -> RateReport {
        let duration = self
            .last_end
            .map_or(Duration::ZERO, |end| end.duration_since(start));
        let duration_s = duration.as_secs_f64();
        let per_second = |n: u64| if n == 0 { 0.0 } else { n as f64 / duration_s };
        let completed = self.e2el.len() as u64;
        let completed_texts = completed * batch as u64;
        let failed = self.errors.total();
        let [total, tokenization, queue, inference] = self.server.map(Mean::value);
        RateReport {
            request_rate: rate,
            duration_s,
            sent: completed + failed,
            completed,
            completed_texts,
            failed,
            errors: self.errors,
            first_error: self.first_error,
            delayed: self.delayed,
            max_in_flight: self.max_in_flight,
            total_tokens: self.tokens,
            request_throughput: per_second(completed),
            text_throughput: per_second(completed_texts),
            total_token_throughput: self.tokens.map(per_second),
            latencies: Latencies {
                ttfb: Summary::of(&mut self.ttfb),
                ttft: Summary::of(&mut self.ttft),
                e2el: Summary::of(&mut self.e2el),
                send_lag: Summary::of(&mut self.send_lag),
            },
            server: ServerMeans {
                mean_total_ms: total,
                mean_tokenization_ms: tokenization,
                mean_queue_ms: queue,
                mean_inference_ms: inference,
            },
        }
    }
}
