//! The command line, and what it means.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, ensure};
use clap::Parser;
use clap::builder::RangedU64ValueParser;
use moeshard_encoder::shard::Strategy;
use moeshard_gpu_check::models::ModelShape;
use moeshard_tensor::dtype::DType;

use crate::world::Batch;

/// The paper's capacity factor.
const CAPACITY: f32 = 50.0;
/// Tokens of a batch, at most: more would take memory by the terabyte.
const MOST_TOKENS: usize = 1 << 24;

/// Runs the experiment of the MoEShard paper: whole encoders under routers of rising skew, every strategy
/// in turn. Models are made here; nothing is downloaded.
#[derive(Clone, Debug, Parser)]
#[command(name = "moeshard-paper", version)]
pub struct Args {
    /// Folder for paper.json, paper.md and paper.html
    #[arg(long, default_value = "target/paper")]
    pub out: PathBuf,

    /// Experts of a layer
    #[arg(long, value_name = "E,…", value_delimiter = ',', default_value = "8,16,32,64,128,256", value_parser = size(1024))]
    pub experts: Vec<usize>,

    /// Ranks
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "4", value_parser = size(64))]
    pub ranks: Vec<usize>,

    /// Sequences of each rank
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "8", value_parser = size(1 << 20))]
    pub batch: Vec<usize>,

    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 120, value_parser = size(1 << 16))]
    pub length: usize,

    /// Skews of the router: how much more probable a popular expert is, 0 being uniform
    #[arg(
        allow_negative_numbers = true,
        long,
        value_name = "A,…",
        value_delimiter = ',',
        default_value = "0,0.2,0.4,0.6,0.8"
    )]
    pub skew: Vec<f64>,

    /// Popular experts, as a share of all
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub popular: f64,

    /// Strategies: sharded, parallel, capacity (a factor of min(E, 50)) or capacity:FACTOR, replicated
    #[arg(
        long,
        value_name = "S,…",
        value_delimiter = ',',
        default_value = "sharded,parallel,capacity,replicated"
    )]
    pub strategies: Vec<Choice>,

    /// Rounds, in each of which every strategy runs at every skew; 0 counts work and times nothing
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub rounds: usize,

    /// Width of the hidden states
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = size(1 << 14))]
    pub d_model: usize,

    /// Hidden units of an expert
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = size(1 << 16))]
    pub d_ff: usize,

    /// Heads of attention
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = size(1 << 10))]
    pub heads: usize,

    /// Layers, of which every second has experts
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = size(256))]
    pub layers: usize,

    /// Token ids
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = size(1 << 20))]
    pub vocab: usize,

    /// In which type weights are kept: f32, bf16 or f16
    #[arg(long, default_value = "f32")]
    pub dtype: DType,

    /// Threads of each rank, on the CPU
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = size(1024))]
    pub threads: usize,

    /// Other programs compute too: do not bind threads to cores
    #[arg(long)]
    pub share_cores: bool,

    /// What ranks compute on: cpu or cuda
    #[arg(long, default_value = "cpu")]
    pub device: DeviceKind,

    /// GPUs that ranks are dealt out to in turn
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = size(64))]
    pub gpus: usize,

    /// Of ids, of the dealing of tokens, and of the order of turns
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

fn size(most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=most)
}

/// A strategy as it is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// With the factor asked for; [`Choice::of`] limits it.
    strategy: Strategy,
}

impl Choice {
    /// For layers of so many experts. A factor above that could not be used up: the paper's is min(E, 50).
    pub fn of(self, n_experts: usize) -> Strategy {
        match self.strategy {
            Strategy::Capacity { factor } => Strategy::Capacity {
                factor: factor.min(n_experts as f32),
            },
            other => other,
        }
    }

    /// How tables and plots call it.
    pub fn name(self) -> String {
        match self.strategy {
            Strategy::Capacity { factor } => format!("capacity {factor}"),
            other => other.to_string(),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let factor = |text: &str| {
            let factor = text.parse().ok();
            let factor = factor.filter(|&factor: &f32| factor > 0.0 && factor.is_finite());
            factor.ok_or_else(|| format!("the capacity factor must be above 0, got {text}"))
        };
        let strategy = match text.split_once(':') {
            None if text == "sharded" => Strategy::Sharded,
            None if text == "parallel" => Strategy::Parallel,
            None if text == "replicated" => Strategy::Replicated,
            None if text == "capacity" => Strategy::Capacity { factor: CAPACITY },
            Some(("capacity", text)) => Strategy::Capacity {
                factor: factor(text)?,
            },
            _ => {
                return Err(
                    "expected sharded, parallel, capacity, capacity:FACTOR or replicated"
                        .to_owned(),
                );
            }
        };
        Ok(Self { strategy })
    }
}

/// What ranks compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The cores of this machine.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
    /// The kernels of GPUs on the CPU, in builds for tests.
    #[cfg(feature = "emulated")]
    Emulated,
}

impl FromStr for DeviceKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            #[cfg(feature = "emulated")]
            "emulated" => Ok(Self::Emulated),
            _ => Err("expected cpu or cuda".to_owned()),
        }
    }
}

impl Args {
    /// Checks what one flag alone does not show.
    ///
    /// # Errors
    /// In a sentence with what was found.
    pub fn check(&self) -> Result<()> {
        for &skew in &self.skew {
            let is_usable = (0.0..=1e6).contains(&skew);
            ensure!(is_usable, "--skew must be in 0 to 1e6, got {skew}");
        }
        let share = self.popular;
        let is_share = (0.0..=1.0).contains(&share);
        ensure!(is_share, "--popular must be in 0 to 1, got {share}");
        let (d_model, heads) = (self.d_model, self.heads);
        ensure!(
            d_model.is_multiple_of(heads),
            "--d-model {d_model} cannot be split over {heads} heads"
        );
        ensure!(
            self.layers > 1,
            "--layers must be at least 2, of which one has experts, got 1"
        );
        let n_ranks = self.ranks.iter().copied().max().unwrap_or(0);
        for Batch { per_rank, length } in self.batches() {
            let n_tokens = n_ranks * per_rank * length;
            ensure!(
                n_tokens <= MOST_TOKENS,
                "a batch must have at most {MOST_TOKENS} tokens, got {n_tokens}: {n_ranks} ranks with {per_rank} × {length}"
            );
        }
        Ok(())
    }

    /// In the order in which they run.
    pub fn batches(&self) -> impl Iterator<Item = Batch> {
        self.batch.iter().map(|&per_rank| Batch {
            per_rank,
            length: self.length,
        })
    }

    /// The model with so many experts.
    pub fn model(&self, n_experts: usize) -> ModelShape {
        ModelShape {
            name: "Switch",
            d_model: self.d_model,
            d_ff: self.d_ff,
            n_heads: self.heads,
            n_layers: self.layers,
            n_experts,
            vocab_size: self.vocab,
            // A small model has no use for more.
            block: 1 << 20,
            ..ModelShape::BASE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(args: &[&str]) -> String {
        let args = Args::try_parse_from(["moeshard-paper"].iter().chain(args));
        match args {
            Ok(args) => args.check().expect_err("refused").to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn impossible_arguments_are_named() {
        for (args, names) in [
            (["--skew", "-1"], "--skew must be in 0 to 1e6, got -1"),
            (["--skew", "NaN"], "--skew must be in 0 to 1e6"),
            (["--popular", "2"], "--popular must be in 0 to 1"),
            (["--heads", "7"], "128 cannot be split over 7 heads"),
            (["--layers", "1"], "--layers must be at least 2"),
            (["--batch", "1000000"], "at most 16777216 tokens"),
            (["--experts", "0"], "0 is not in 1..=1024"),
            (["--strategies", "capacity:0"], "must be above 0, got 0"),
            (["--strategies", "magic"], "expected sharded"),
            (["--device", "abacus"], "expected cpu or cuda"),
        ] {
            let said = complaint(&args);
            assert!(said.contains(names), "{args:?}: {said}");
        }
    }

    #[test]
    fn the_papers_capacity_is_at_most_the_number_of_experts() {
        let choice: Choice = "capacity".parse().expect("a strategy");
        assert_eq!(choice.of(8), Strategy::Capacity { factor: 8.0 });
        assert_eq!(choice.of(256), Strategy::Capacity { factor: 50.0 });
        assert_eq!(choice.name(), "capacity 50");
    }
}
