use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// The load test's command line. The names are those that users of other load generators know.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Server to load: http://host:port, or a full URL of a route that takes `inputs`, if it is not
    /// /embed
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:3000")]
    pub url: String,

    /// Requests per second; several (5,20,50 or repeated) are run one after the other. `inf`
    /// keeps --max-concurrency requests in flight instead (closed loop)
    #[arg(long, value_name = "R", value_delimiter = ',', default_value = "10")]
    pub request_rate: Vec<Rate>,

    /// How requests are spaced in time
    #[arg(long, value_name = "KIND", value_enum, default_value_t = ArrivalKind::Poisson)]
    pub arrivals: ArrivalKind,

    /// Shape of the gamma-distributed gaps: 1 is Poisson, below 1 is burstier, above 1 steadier
    #[arg(long, value_name = "SHAPE", default_value_t = 1.0)]
    pub burstiness: f64,

    /// Requests per rate [default: as many as fall due within --duration]
    #[arg(long, value_name = "N")]
    pub num_prompts: Option<u64>,

    /// Seconds per rate [default: 20, or until --num-prompts are sent]
    #[arg(long, value_name = "S")]
    pub duration: Option<f64>,

    /// Requests sent one by one before the first rate, not measured
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub num_warmups: u64,

    /// Seed of arrivals and generated texts
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// File with one text a line (blank lines are left out, the file starts again at its end)
    #[arg(long, value_name = "FILE", conflicts_with = "words")]
    pub inputs: Option<PathBuf>,

    /// Words in a generated text: a number, or a range as 5:60
    #[arg(long, value_name = "N|A:B", default_value = "16")]
    pub words: WordRange,

    /// Texts per request
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: usize,

    /// Most requests in flight; what is due beyond it waits, is counted as delayed, and its wait
    /// is in its latency [default: 512; needed with --request-rate inf]
    #[arg(long, value_name = "N")]
    pub max_concurrency: Option<usize>,

    /// Seconds after its scheduled send when a request counts as failed
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    pub timeout: f64,

    /// Write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// How requests are spaced in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ArrivalKind {
    /// Independent arrivals: exponential gaps, or gamma gaps with `--burstiness`
    Poisson,
    /// Equal gaps
    Constant,
}

/// Requests per second, or `inf` for a closed loop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// Open loop: requests fall due at this rate whatever the server does.
    PerSecond(f64),
    /// Closed loop: a request is sent as soon as one of the slots is free.
    Unbounded,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().parse::<f64>() {
            Ok(f64::INFINITY) => Ok(Self::Unbounded),
            Ok(rate) if rate > 0.0 => Ok(Self::PerSecond(rate)),
            _ => Err(format!("expected a number above 0 or inf, got {text:?}")),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerSecond(rate) => f.pad(&rate.to_string()),
            Self::Unbounded => f.pad("inf"),
        }
    }
}

/// A number, or the string `inf`, which JSON has no number for.
impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::PerSecond(rate) => serializer.serialize_f64(*rate),
            Self::Unbounded => serializer.serialize_str("inf"),
        }
    }
}

/// Number of words of a generated text: at least `min`, at most `max`, evenly distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WordRange {
    min: usize,
    max: usize,
}

impl WordRange {
    /// Both bounds, inclusive.
    #[must_use]
    pub fn bounds(self) -> RangeInclusive<usize> {
        self.min..=self.max
    }
}

impl FromStr for WordRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (min, max) = text.split_once(':').unwrap_or((text, text));
        let parse = |bound: &str| bound.trim().parse::<usize>().ok();
        match (parse(min), parse(max)) {
            (Some(min), Some(max)) if 1 <= min && min <= max => Ok(Self { min, max }),
            _ => Err(format!("expected N or A:B with 1 <= A <= B, got {text:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_positive_or_inf() {
        assert_eq!("2.5".parse(), Ok(Rate::PerSecond(2.5)));
        assert_eq!("inf".parse(), Ok(Rate::Unbounded));
        for bad in ["0", "-1", "NaN", "-inf", "ten", ""] {
            assert!(bad.parse::<Rate>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn word_ranges_are_ordered_and_not_empty() {
        assert_eq!("7".parse(), Ok(WordRange { min: 7, max: 7 }));
        assert_eq!("5:60".parse(), Ok(WordRange { min: 5, max: 60 }));
        for bad in ["0", "9:3", "a", "1:", ":", "0:4", ""] {
            assert!(bad.parse::<WordRange>().is_err(), "{bad:?} was taken");
        }
    }
}
