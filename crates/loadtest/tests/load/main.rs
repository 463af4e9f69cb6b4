//! The load generator against fake servers whose behaviour is known.

mod counting;
mod fake;
mod report;
mod timing;

use clap::Parser;
use fake::Fake;
use moeshard_loadtest::{Args, RateReport, Report};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

/// The arguments of a command line against `fake`, without warm-up requests unless asked for.
fn args(fake: &Fake, line: &str) -> Args {
    let url = format!("http://{}", fake.address);
    let begin = ["loadtest", "--url", &url];
    let mut words: Vec<&str> = begin.into_iter().chain(line.split_whitespace()).collect();
    if !line.contains("--num-warmups") {
        words.extend(["--num-warmups", "0"]);
    }
    Cli::parse_from(words).args
}

async fn run(fake: &Fake, line: &str) -> Report {
    moeshard_loadtest::run(args(fake, line))
        .await
        .expect("the test is possible")
}

/// The report of a run with a single rate.
async fn run_one(fake: &Fake, line: &str) -> RateReport {
    run(fake, line).await.rates.pop().expect("one rate")
}
