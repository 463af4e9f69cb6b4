//! What is counted, and how Prometheus reads it.
//!
//! Every server has its own recorder instead of the process's global one: two servers in one
//! process do not mix, and every series exists from the start with the value zero.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use moeshard_batcher::{BatchObserver, ModelSlot, Readiness};

use crate::observe::Work;

/// Upper bounds of the time histograms, in seconds: from a cached lookup to a bulk request.
const SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];

/// Upper bounds of the size histograms: powers of two up to four times the default batch.
const SIZES: [f64; 17] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
    16384.0, 32768.0, 65536.0,
];

const METADATA: Metadata<'static> = Metadata::new("moeshard", Level::INFO, None);

/// Name, help: the histograms over requests and batches.
const HISTOGRAMS: [(&str, &str); 6] = [
    (
        "moeshard_request_duration_seconds",
        "Time from the request's head to its answer, by route",
    ),
    (
        "moeshard_tokenization_duration_seconds",
        "Longest time of an input in the tokenizer",
    ),
    (
        "moeshard_queue_duration_seconds",
        "Longest time that an input of a request waited",
    ),
    (
        "moeshard_inference_duration_seconds",
        "Time of a batch in the engine",
    ),
    ("moeshard_batch_tokens", "Tokens of a batch"),
    ("moeshard_batch_sequences", "Sequences of a batch"),
];

/// Name, help: the counters.
const COUNTERS: [(&str, &str); 4] = [
    (
        "moeshard_requests_total",
        "Requests answered, by route and status",
    ),
    ("moeshard_tokens_total", "Tokens run by the engine"),
    (
        "moeshard_dropped_tokens_total",
        "Token-expert assignments dropped by a capacity",
    ),
    (
        "moeshard_expert_multiply_adds_total",
        "Multiply-adds in expert matrices, by rank",
    ),
];

/// Name, help: the gauges.
const GAUGES: [(&str, &str); 5] = [
    ("moeshard_ready", "1 if the model can answer"),
    ("moeshard_queue_tokens", "Tokens accepted and not answered"),
    (
        "moeshard_queue_sequences",
        "Sequences accepted and not answered",
    ),
    ("moeshard_requests_in_flight", "Requests being answered"),
    ("moeshard_expert_bytes", "Bytes of expert weights, by rank"),
];

/// The counters of one server.
#[derive(Clone)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
}

impl Metrics {
    /// Counters that all exist and are zero.
    #[must_use]
    pub fn new() -> Self {
        let recorder = Arc::new(builder().build_recorder());
        let metrics = Self {
            handle: recorder.handle(),
            recorder,
        };
        metrics.register();
        metrics
    }

    /// Makes sure that the series of a route exist.
    pub fn add_route(&self, route: &'static str) {
        self.requests(route, 200).absolute(0);
        drop(self.histogram("moeshard_request_duration_seconds", &[("route", route)]));
    }

    /// Everything in Prometheus' text format, with the model's state as of now.
    #[must_use]
    pub fn render(&self, slot: &ModelSlot) -> String {
        self.refresh(slot);
        self.handle.render()
    }

    /// Sorts collected samples into their buckets, so that they do not pile up between scrapes.
    pub fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Counts batches.
    pub(crate) fn batch_observer(&self) -> BatchObserver {
        let tokens = self.histogram("moeshard_batch_tokens", &[]);
        let sequences = self.histogram("moeshard_batch_sequences", &[]);
        let inference = self.histogram("moeshard_inference_duration_seconds", &[]);
        Arc::new(move |report| {
            tokens.record(report.n_tokens as f64);
            sequences.record(report.n_seqs as f64);
            inference.record(report.inference.as_secs_f64());
        })
    }

    /// Counts one answered request.
    pub(crate) fn request(&self, route: &str, status: u16, took: Duration, work: Option<&Work>) {
        self.requests(route, status).increment(1);
        let duration = self.histogram("moeshard_request_duration_seconds", &[("route", route)]);
        duration.record(took.as_secs_f64());
        if let Some(work) = work {
            let timings = &work.timings;
            self.histogram("moeshard_tokenization_duration_seconds", &[])
                .record(timings.tokenization.as_secs_f64());
            self.histogram("moeshard_queue_duration_seconds", &[])
                .record(timings.queue.as_secs_f64());
        }
    }

    /// The number of requests being answered.
    pub(crate) fn in_flight(&self) -> Gauge {
        self.gauge("moeshard_requests_in_flight", &[])
    }

    fn register(&self) {
        for (name, help) in HISTOGRAMS {
            self.recorder
                .describe_histogram(name.into(), None, help.into());
            if name != "moeshard_request_duration_seconds" {
                drop(self.histogram(name, &[]));
            }
        }
        for (name, help) in COUNTERS {
            self.recorder
                .describe_counter(name.into(), None, help.into());
        }
        for (name, help) in GAUGES {
            self.recorder.describe_gauge(name.into(), None, help.into());
        }
        self.counter("moeshard_tokens_total", &[]).absolute(0);
        self.counter("moeshard_dropped_tokens_total", &[])
            .absolute(0);
        self.counter("moeshard_expert_multiply_adds_total", &[("rank", "0")])
            .absolute(0);
        self.gauge("moeshard_expert_bytes", &[("rank", "0")])
            .set(0.0);
        self.in_flight().set(0.0);
    }

    /// Copies what the batcher and the engine count themselves.
    fn refresh(&self, slot: &ModelSlot) {
        let ready = slot.readiness() == Readiness::Ready;
        self.gauge("moeshard_ready", &[])
            .set(f64::from(u8::from(ready)));
        let model = slot.loaded();
        let load = model
            .as_ref()
            .map(moeshard_batcher::Handle::load)
            .unwrap_or_default();
        self.gauge("moeshard_queue_tokens", &[])
            .set(load.n_tokens as f64);
        self.gauge("moeshard_queue_sequences", &[])
            .set(load.n_seqs as f64);
        let Some(model) = model else { return };
        let stats = model.stats();
        self.counter("moeshard_tokens_total", &[])
            .absolute(stats.n_tokens);
        self.counter("moeshard_dropped_tokens_total", &[])
            .absolute(stats.n_dropped);
        for (rank, &bytes) in stats.expert_bytes.iter().enumerate() {
            self.gauge("moeshard_expert_bytes", &[("rank", &rank.to_string())])
                .set(bytes as f64);
        }
        for (rank, &n) in stats.expert_multiply_adds.iter().enumerate() {
            let label = [("rank", &*rank.to_string())];
            self.counter("moeshard_expert_multiply_adds_total", &label)
                .absolute(n);
        }
    }

    fn requests(&self, route: &str, status: u16) -> Counter {
        let status = status.to_string();
        self.counter(
            "moeshard_requests_total",
            &[("route", route), ("status", &status)],
        )
    }

    fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.recorder
            .register_counter(&key(name, labels), &METADATA)
    }

    fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }

    fn histogram(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
        self.recorder
            .register_histogram(&key(name, labels), &METADATA)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

fn builder() -> PrometheusBuilder {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Prefix("moeshard_batch_".to_owned()), &SIZES)
        })
        .expect("the bounds are not empty")
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> = labels
        .iter()
        .map(|&(name, value)| Label::new(name, value.to_owned()))
        .collect();
    Key::from_parts(name, labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_exists_from_the_start() {
        let metrics = Metrics::new();
        metrics.add_route("/embed");
        let text = metrics.render(&ModelSlot::new());
        for expect in [
            "moeshard_requests_total{route=\"/embed\",status=\"200\"} 0",
            "moeshard_request_duration_seconds_count{route=\"/embed\"} 0",
            "moeshard_batch_tokens_bucket{le=\"+Inf\"} 0",
            "moeshard_batch_sequences_count 0",
            "moeshard_queue_tokens 0",
            "moeshard_queue_sequences 0",
            "moeshard_ready 0",
            "moeshard_tokens_total 0",
            "moeshard_dropped_tokens_total 0",
            "moeshard_expert_bytes{rank=\"0\"} 0",
            "moeshard_expert_multiply_adds_total{rank=\"0\"} 0",
            "# HELP moeshard_batch_tokens Tokens of a batch",
        ] {
            assert!(text.contains(expect), "{expect} is missing in\n{text}");
        }
    }
}
