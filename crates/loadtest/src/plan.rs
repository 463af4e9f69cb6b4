use std::time::Duration;

use crate::args::{Args, ArrivalKind, Rate};
use crate::arrivals::{Arrivals, Spacing};
use crate::error::Error;
use crate::report::Parameters;
use crate::target::Url;
use crate::workload::{Texts, Workload};

/// Requests in flight at most unless told: below the 1024 open files that many systems allow.
const DEFAULT_MAX_CONCURRENCY: usize = 512;
/// Length of a rate when neither its requests nor its seconds are given.
const DEFAULT_DURATION: Duration = Duration::from_secs(20);

/// The command line after validation, in the parts that use it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) url: Url,
    pub(crate) rates: Vec<Rate>,
    pub(crate) spacing: Spacing,
    pub(crate) extent: Extent,
    pub(crate) num_warmups: u64,
    pub(crate) seed: u64,
    pub(crate) workload: Workload,
    pub(crate) max_concurrency: usize,
    pub(crate) timeout: Duration,
    /// What the report repeats.
    pub(crate) parameters: Parameters,
}

/// Where one rate ends: at whichever limit comes first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) max_requests: Option<u64>,
    pub(crate) duration: Option<Duration>,
}

impl Extent {
    /// Whether request number `idx`, due `offset` after the start, is still to be sent.
    pub(crate) fn holds(self, idx: u64, offset: Duration) -> bool {
        self.max_requests.is_none_or(|max| idx < max)
            && self.duration.is_none_or(|duration| offset <= duration)
    }
}

impl Plan {
    /// The scheduled sends at `rate`.
    pub(crate) fn arrivals(&self, rate: f64) -> Arrivals {
        Arrivals::new(rate, self.spacing, self.seed)
    }
}

impl TryFrom<&Args> for Plan {
    type Error = Error;

    fn try_from(args: &Args) -> Result<Self, Error> {
        let timeout = seconds("--timeout", args.timeout)?;
        let extent = extent(args)?;
        let max_concurrency = max_concurrency(args)?;
        Ok(Self {
            url: args.url.parse()?,
            rates: args.request_rate.clone(),
            spacing: spacing(args)?,
            extent,
            num_warmups: args.num_warmups,
            seed: args.seed,
            workload: workload(args)?,
            max_concurrency,
            timeout,
            parameters: Parameters {
                url: args.url.clone(),
                arrivals: args.arrivals,
                burstiness: args.burstiness,
                num_prompts: extent.max_requests,
                duration_s: extent.duration.map(|duration| duration.as_secs_f64()),
                num_warmups: args.num_warmups,
                seed: args.seed,
                inputs: args.inputs.clone(),
                words: args.inputs.is_none().then_some(args.words),
                batch: args.batch,
                max_concurrency,
                timeout_s: args.timeout,
            },
        })
    }
}

fn argument(name: &'static str, reason: impl Into<String>) -> Error {
    Error::Argument {
        name,
        reason: reason.into(),
    }
}

fn seconds(name: &'static str, value: f64) -> Result<Duration, Error> {
    match Duration::try_from_secs_f64(value) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(argument(
            name,
            format!("must be a number of seconds above 0, got {value}"),
        )),
    }
}

fn extent(args: &Args) -> Result<Extent, Error> {
    if args.num_prompts == Some(0) {
        return Err(argument("--num-prompts", "must be at least 1, got 0"));
    }
    let mut duration = args
        .duration
        .map(|value| seconds("--duration", value))
        .transpose()?;
    if args.num_prompts.is_none() {
        duration = duration.or(Some(DEFAULT_DURATION));
    }
    Ok(Extent {
        max_requests: args.num_prompts,
        duration,
    })
}

fn spacing(args: &Args) -> Result<Spacing, Error> {
    let shape = args.burstiness;
    if !(shape.is_finite() && shape > 0.0) {
        return Err(argument(
            "--burstiness",
            format!("must be above 0, got {shape}"),
        ));
    }
    match args.arrivals {
        ArrivalKind::Poisson => Ok(Spacing::Gamma(shape)),
        ArrivalKind::Constant if shape == 1.0 => Ok(Spacing::Constant),
        ArrivalKind::Constant => Err(argument(
            "--burstiness",
            format!("{shape} has no meaning for constant arrivals"),
        )),
    }
}

fn max_concurrency(args: &Args) -> Result<usize, Error> {
    let closed = args.request_rate.contains(&Rate::Unbounded);
    match args.max_concurrency {
        Some(0) => Err(argument("--max-concurrency", "must be at least 1, got 0")),
        Some(n) if n > tokio::sync::Semaphore::MAX_PERMITS => Err(argument(
            "--max-concurrency",
            format!("{n} is more than this program can count"),
        )),
        Some(n) => Ok(n),
        None if closed => Err(argument("--request-rate", "inf needs --max-concurrency N")),
        None => Ok(DEFAULT_MAX_CONCURRENCY),
    }
}

fn workload(args: &Args) -> Result<Workload, Error> {
    if args.batch == 0 {
        return Err(argument("--batch", "must be at least 1, got 0"));
    }
    let texts = match &args.inputs {
        Some(path) => Texts::read(path)?,
        None => Texts::Generated(args.words),
    };
    Ok(Workload {
        texts,
        batch: args.batch,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn plan(line: &str) -> Result<Plan, Error> {
        let words = std::iter::once("loadtest").chain(line.split_whitespace());
        Plan::try_from(
            &Cli::try_parse_from(words)
                .expect("clap takes the line")
                .args,
        )
    }

    #[test]
    fn rates_may_be_listed_or_repeated() {
        let expected = [5.0, 20.0, 50.0].map(Rate::PerSecond);
        assert_eq!(plan("--request-rate 5,20,50").unwrap().rates, expected);
        assert_eq!(
            plan("--request-rate 5 --request-rate 20,50").unwrap().rates,
            expected
        );
    }

    #[test]
    fn a_rate_ends_by_count_or_by_time_or_by_default_time() {
        let holds = |line, idx, secs| {
            plan(line)
                .unwrap()
                .extent
                .holds(idx, Duration::from_secs(secs))
        };
        assert!(holds("", 1_000_000, 20) && !holds("", 0, 21));
        assert!(holds("--num-prompts 9", 8, 10_000) && !holds("--num-prompts 9", 9, 0));
        assert!(holds("--duration 3", 50, 3) && !holds("--duration 3", 50, 4));
        assert!(!holds("--num-prompts 9 --duration 3", 5, 4));
    }

    #[test]
    fn the_impossible_is_refused_by_name() {
        for (line, name) in [
            ("--request-rate inf", "--request-rate"),
            ("--max-concurrency 0", "--max-concurrency"),
            ("--num-prompts 0", "--num-prompts"),
            ("--duration 0", "--duration"),
            ("--duration inf", "--duration"),
            ("--timeout 0", "--timeout"),
            ("--batch 0", "--batch"),
            ("--burstiness 0", "--burstiness"),
            ("--arrivals constant --burstiness 2", "--burstiness"),
        ] {
            let message = plan(line).expect_err(line).to_string();
            assert!(message.starts_with(name), "{line}: {message}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = plan("--inputs no/such/file").unwrap_err();
        assert!(error.to_string().contains("no/such/file"), "{error}");
    }
}
