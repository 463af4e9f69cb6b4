//! The flags of `moeshard bench`, and what they mean.

use std::str::FromStr;
use std::time::Duration;

use crate::arg_error::ArgError;
use crate::model::{ModelArgs, ModelConfig};

/// Flags of `moeshard bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// Which model to run, and what on
    #[command(flatten)]
    pub model: ModelArgs,

    /// Sequences of a forward pass
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub batch: usize,

    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub length: usize,

    /// Several forward passes, each as batch × length: 16x128,1x16
    #[arg(long, value_name = "BxL,…", value_delimiter = ',', conflicts_with_all = ["batch", "length"])]
    pub shape: Vec<Shape>,

    /// How long each shape is run, at least three times
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    pub seconds: f64,

    /// How often each shape is run, however long that takes
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    pub rounds: Option<usize>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Sequences of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of sequences.
    pub batch: usize,
    /// Tokens of each.
    pub length: usize,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = text.split_once('x').and_then(|(batch, length)| {
            Some(Self {
                batch: batch.parse().ok()?,
                length: length.parse().ok()?,
            })
        });
        shape.ok_or_else(|| "expected batch and length as 16x128".to_owned())
    }
}

/// When a shape was run often enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// So many rounds.
    Rounds(usize),
    /// So long, and [`Until::LEAST_ROUNDS`] at least.
    Elapsed(Duration),
}

impl Until {
    /// Fewer have no median worth the name.
    const LEAST_ROUNDS: usize = 3;

    pub(super) fn is_over(self, n_rounds: usize, elapsed: Duration) -> bool {
        match self {
            Self::Rounds(n) => n_rounds >= n,
            Self::Elapsed(limit) => n_rounds >= Self::LEAST_ROUNDS && elapsed >= limit,
        }
    }
}

/// What to run, and how.
#[derive(Clone, Debug)]
pub struct BenchConfig {
    /// The model.
    pub model: ModelConfig,
    /// In the order in which they run.
    pub shapes: Vec<Shape>,
    /// For each of them.
    pub until: Until,
    /// JSON instead of tables.
    pub json: bool,
}

impl TryFrom<BenchArgs> for BenchConfig {
    type Error = ArgError;

    fn try_from(args: BenchArgs) -> Result<Self, ArgError> {
        let BenchArgs {
            model,
            batch,
            length,
            shape: mut shapes,
            seconds,
            rounds,
            json,
        } = args;
        let model = ModelConfig::try_from(model)?;
        if model.compute.n_ranks > 1 {
            let reason = format!("must be 1 here, got {}", model.compute.n_ranks);
            return Err(ArgError::other("--ranks", reason));
        }
        if shapes.is_empty() {
            let batch = ArgError::at_least_one("--batch", batch)?;
            let length = ArgError::at_least_one("--length", length)?;
            shapes.push(Shape { batch, length });
        }
        shapes.iter().copied().try_for_each(check)?;
        Ok(Self {
            model,
            shapes,
            until: until(seconds, rounds)?,
            json,
        })
    }
}

fn check(Shape { batch, length }: Shape) -> Result<(), ArgError> {
    /// More would take its memory by the terabyte.
    const MOST_TOKENS: usize = 1 << 24;
    ArgError::at_least_one("--shape", batch.min(length))?;
    match batch.checked_mul(length) {
        Some(n_tokens) if n_tokens <= MOST_TOKENS => Ok(()),
        _ => {
            let reason = format!("must have at most {MOST_TOKENS} tokens, got {batch}x{length}");
            Err(ArgError::other("--shape", reason))
        }
    }
}

fn until(seconds: f64, rounds: Option<usize>) -> Result<Until, ArgError> {
    if let Some(n) = ArgError::at_least_one_if_given("--rounds", rounds)? {
        return Ok(Until::Rounds(n));
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(limit) if !limit.is_zero() => Ok(Until::Elapsed(limit)),
        _ => {
            let reason = format!("must be above 0, got {seconds}");
            Err(ArgError::other("--seconds", reason))
        }
    }
}
