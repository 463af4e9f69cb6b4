use std::io::{self, Write};

use crate::report::{RateReport, Report};

/// A lag of the generator that a reader should know of.
///
/// At 10 to 5000 requests/s on 2 cores that also ran compilers, the 99th percentile was 0.9 to
/// 2.7 ms and the median 0.1 ms; more than this is worth a word.
const NOTABLE_LAG_MS: f64 = 5.0;

const HEADERS: [&str; 14] = [
    "rate", "sent", "ok", "429", "error", "req/s", "tok/s", "p50", "p90", "p99", "max", "TTFB p50",
    "queue", "infer",
];

/// Prints the table of a report and its notes.
pub(crate) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let mut lines = vec![HEADERS.map(str::to_owned)];
    lines.extend(report.rates.iter().map(cells));
    let widths: [usize; HEADERS.len()] =
        std::array::from_fn(|col| lines.iter().map(|line| line[col].len()).max().unwrap_or(0));
    writeln!(
        out,
        "TTFT (p50 to max) from the scheduled send, ms; queue and infer: server means, ms"
    )?;
    for line in &lines {
        let padded: Vec<String> = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:>width$}"))
            .collect();
        writeln!(out, "{}", padded.join("  "))?;
    }
    if report.warmup_failures > 0 {
        writeln!(
            out,
            "note: {} warm-up requests failed",
            report.warmup_failures
        )?;
    }
    report
        .rates
        .iter()
        .try_for_each(|rate| write_notes(rate, report, out))
}

fn cells(rate: &RateReport) -> [String; HEADERS.len()] {
    let ttft = rate.latencies.ttft;
    let n_other = rate.failed - rate.errors.too_many_requests;
    [
        rate.request_rate.to_string(),
        rate.sent.to_string(),
        rate.completed.to_string(),
        rate.errors.too_many_requests.to_string(),
        n_other.to_string(),
        number(Some(rate.request_throughput)),
        number(rate.total_token_throughput),
        number(ttft.map(|ttft| ttft.p50_ms)),
        number(ttft.map(|ttft| ttft.p90_ms)),
        number(ttft.map(|ttft| ttft.p99_ms)),
        number(ttft.map(|ttft| ttft.max_ms)),
        number(rate.latencies.ttfb.map(|ttfb| ttfb.p50_ms)),
        number(rate.server.mean_queue_ms),
        number(rate.server.mean_inference_ms),
    ]
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value.abs() >= 1000.0 => format!("{value:.0}"),
        Some(value) => format!("{value:.1}"),
    }
}

fn write_notes(rate: &RateReport, report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let label = rate.request_rate;
    if rate.delayed > 0 {
        let cap = report.parameters.max_concurrency;
        writeln!(
            out,
            "note: rate {label}: {} requests waited for the cap of {cap} in flight",
            rate.delayed
        )?;
    }
    if let Some(lag) = rate
        .latencies
        .send_lag
        .filter(|lag| lag.p99_ms > NOTABLE_LAG_MS)
    {
        writeln!(
            out,
            "note: rate {label}: this machine sent late (p99 {:.1} ms, max {:.1} ms); it is short of CPU",
            lag.p99_ms, lag.max_ms
        )?;
    }
    if let Some(error) = &rate.first_error {
        writeln!(
            out,
            "note: rate {label}: {} requests failed, the first with: {error}",
            rate.failed
        )?;
    }
    Ok(())
}
