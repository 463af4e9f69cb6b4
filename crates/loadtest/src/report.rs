use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::args::{ArrivalKind, Rate, WordRange};
use crate::error::Error;
use crate::stats::Summary;
use crate::table;
use crate::tally::{ErrorCounts, ServerMeans};

/// Everything a load test measured, with what it takes to repeat it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The machine that sent the requests.
    pub environment: Environment,
    /// The command line, defaults filled in.
    pub parameters: Parameters,
    /// Warm-up requests that failed.
    pub warmup_failures: u64,
    /// One entry a rate, in the order in which they ran.
    pub rates: Vec<RateReport>,
}

/// The machine that sent the requests.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Environment {
    /// Version of this generator.
    pub version: &'static str,
    /// Operating system.
    pub os: &'static str,
    /// Processor architecture.
    pub arch: &'static str,
    /// Cores this process may use.
    pub cores: usize,
    /// Start of the test, in seconds since 1970.
    pub started_unix_s: u64,
}

impl Environment {
    pub(crate) fn observe() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            started_unix_s: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        }
    }
}

/// The command line, defaults filled in.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Parameters {
    /// `--url`.
    pub url: String,
    /// `--arrivals`.
    pub arrivals: ArrivalKind,
    /// `--burstiness`.
    pub burstiness: f64,
    /// `--num-prompts`, per rate.
    pub num_prompts: Option<u64>,
    /// `--duration`, per rate.
    pub duration_s: Option<f64>,
    /// `--num-warmups`.
    pub num_warmups: u64,
    /// `--seed`.
    pub seed: u64,
    /// `--inputs`.
    pub inputs: Option<PathBuf>,
    /// `--words`, if the texts were generated.
    pub words: Option<WordRange>,
    /// `--batch`.
    pub batch: usize,
    /// `--max-concurrency`.
    pub max_concurrency: usize,
    /// `--timeout`.
    pub timeout_s: f64,
}

/// What was measured at one rate. The JSON has the latencies as `p99_ttft_ms` and so on.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RateReport {
    /// The rate asked for.
    pub request_rate: Rate,
    /// From the start to the end of the last request.
    pub duration_s: f64,
    /// Requests that fell due: completed plus failed.
    pub sent: u64,
    /// Requests answered with success.
    pub completed: u64,
    /// Texts in them.
    pub completed_texts: u64,
    /// Requests without a successful answer.
    pub failed: u64,
    /// The same by kind.
    pub errors: ErrorCounts,
    /// The first failure seen.
    pub first_error: Option<String>,
    /// Requests that waited for the concurrency cap; the wait is in their latency.
    pub delayed: u64,
    /// Most requests in flight at once.
    pub max_in_flight: usize,
    /// Sum of the `x-compute-tokens` headers, if the server sends them.
    pub total_tokens: Option<u64>,
    /// Completed requests a second.
    pub request_throughput: f64,
    /// Completed texts a second.
    pub text_throughput: f64,
    /// Tokens a second, if the server counts them.
    pub total_token_throughput: Option<f64>,
    /// Times from the scheduled send.
    #[serde(flatten)]
    pub latencies: Latencies,
    /// The server's own split of its time.
    pub server: ServerMeans,
}

/// Times from the scheduled send, over the completed requests; `None` if there are none.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Latencies {
    /// To the head of the response.
    pub ttfb: Option<Summary>,
    /// To the first complete result.
    pub ttft: Option<Summary>,
    /// To the last byte.
    pub e2el: Option<Summary>,
    /// To the actual send, over the requests that the concurrency cap did not delay: how late
    /// the generator itself was.
    pub send_lag: Option<Summary>,
}

impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let Self {
            ttfb,
            ttft,
            e2el,
            send_lag,
        } = self;
        for (what, summary) in [
            ("ttfb", ttfb),
            ("ttft", ttft),
            ("e2el", e2el),
            ("send_lag", send_lag),
        ] {
            let values = summary.map(|summary| summary.values());
            for (idx, statistic) in Summary::NAMES.into_iter().enumerate() {
                let key = format!("{statistic}_{what}_ms");
                map.serialize_entry(&key, &values.map(|values| values[idx]))?;
            }
        }
        map.end()
    }
}

/// Checks that a report can be written to `path`, making its folder if need be and keeping what is
/// there.
///
/// # Errors
/// [`Error::WriteReport`].
pub(crate) fn check_writable(path: &Path) -> Result<(), Error> {
    let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let open = || File::options().append(true).create(true).open(path);
    folder
        .and_then(|()| open())
        .map(drop)
        .map_err(|source| Error::WriteReport {
            path: path.to_owned(),
            source,
        })
}

impl Report {
    /// Prints a table with one line a rate, and notes on what would mislead its reader.
    ///
    /// # Errors
    /// If `out` does not take it.
    pub fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        table::write(self, out)
    }

    /// Writes the report to `path`, making its folder if need be.
    ///
    /// # Errors
    /// [`Error::WriteReport`].
    pub fn write_json(&self, path: &Path) -> Result<(), Error> {
        self.try_write_json(path)
            .map_err(|source| Error::WriteReport {
                path: path.to_owned(),
                source,
            })
    }

    fn try_write_json(&self, path: &Path) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = BufWriter::new(File::create(path)?);
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        file.flush()
    }

    /// An error if not one request of the whole test was answered.
    ///
    /// # Errors
    /// [`Error::AllFailed`], or [`Error::NothingSent`] if nothing fell due.
    pub fn require_success(&self) -> Result<(), Error> {
        if self.rates.iter().any(|rate| rate.completed > 0) {
            return Ok(());
        }
        match self.rates.iter().find_map(|rate| rate.first_error.clone()) {
            None => Err(Error::NothingSent),
            Some(first_error) => {
                let n_requests = self.rates.iter().map(|rate| rate.sent).sum();
                Err(Error::AllFailed {
                    n_requests,
                    first_error,
                })
            }
        }
    }
}
