//! Open-loop load generator for `POST /embed`, and its report.
//!
//! # What is measured
//!
//! Every latency starts at the request's *scheduled* send. When the server stalls, later
//! requests still fall due on time, so the wait they suffer is in the figures (no coordinated
//! omission). Three points of an answer are timed:
//!
//! - **TTFB**: the response head has arrived.
//! - **TTFT**: the first complete result has arrived. In an `application/x-ndjson` stream that is
//!   the first line; in a single JSON document no result is usable before the document ends, so
//!   there TTFT equals the total.
//! - **E2EL** (end-to-end latency): the last byte has arrived.
//!
//! Latencies cover successful answers only; failures are counted by kind. A request that could
//! not be answered within the timeout, counted from its scheduled send, is a failure.
//!
//! # A run, step by step
//!
//! 1. A plan turns the command line into validated parts; the address is resolved once.
//! 2. A pacer thread draws the seeded arrivals, prepares each body ahead of time and hands it over
//!    at its instant.
//! 3. The driver takes a permit of the concurrency cap and spawns the request on a pooled
//!    keep-alive connection. What the cap or the generator itself delayed is counted.
//! 4. The tally keeps every latency, so that percentiles are exact, and becomes a [`RateReport`].
//!
//! # Example
//!
//! ```no_run
//! use clap::Parser;
//!
//! #[derive(Parser)]
//! struct Cli {
//!     #[command(flatten)]
//!     loadtest: moeshard_loadtest::Args,
//! }
//!
//! # async fn example() -> Result<(), moeshard_loadtest::Error> {
//! let report = moeshard_loadtest::run(Cli::parse().loadtest).await?;
//! report.write_table(&mut std::io::stdout())?;
//! report.require_success()
//! # }
//! ```

mod args;
mod arrivals;
mod client;
mod driver;
mod error;
mod pacer;
mod plan;
mod progress;
mod report;
mod rng;
mod stats;
mod table;
mod tally;
mod target;
mod workload;

use std::io::Write;

use plan::Plan;

pub use args::{Args, ArrivalKind, Rate, WordRange};
pub use error::Error;
pub use report::{Environment, Latencies, Parameters, RateReport, Report};
pub use stats::Summary;
pub use tally::{ErrorCounts, ServerMeans};

/// Loads the server as `args` say, one rate after the other, and reports what was measured.
///
/// Progress goes to stderr if that is a terminal. Nothing is printed to stdout and no file is
/// written: see [`Report::write_table`] and [`Report::write_json`], or [`run_and_print`].
///
/// # Cancel safety
/// Dropping the future closes the connections and stops the arrivals; what was measured is lost.
///
/// # Errors
/// If an argument is impossible, the texts cannot be read or the host has no address. Requests
/// that fail are counted in the report, they are no error here.
pub async fn run(args: Args) -> Result<Report, Error> {
    let plan = Plan::try_from(&args)?;
    drop(args);
    driver::run(&plan).await
}

/// Runs the load test, prints its table to `out`, writes the JSON where `--output` says.
///
/// # Errors
/// Those of [`run`], a report that cannot be written, and [`Error::AllFailed`] if no request at
/// all was answered, so that the program's exit status tells.
pub async fn run_and_print(args: Args, out: &mut (dyn Write + Send)) -> Result<(), Error> {
    let output = args.output.clone();
    if let Some(path) = &output {
        // Not after the run: an hour of load would be lost.
        report::check_writable(path)?;
    }
    let report = run(args).await?;
    report.write_table(out)?;
    if let Some(path) = output {
        report.write_json(&path)?;
    }
    report.require_success()
}
