//! What a layout of the experts costs: the work of the busiest rank, what it reads and what it receives, and how
//! long that takes at given rates. Everything else costs the same whatever the layout.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use moeshard_encoder::shard::{ShardPlan, Strategy};
use moeshard_encoder::spec::{EncoderSpec, ExpertsSpec};
use moeshard_tensor::dtype::DType;
use serde::Deserialize;

use crate::model::ComputeConfig;

/// Times that ranks meet in a layer of experts: for rows, for routings, for sums.
const N_MEETS: u64 = 3;
/// Larger batches are not looked at.
const MOST_TOKENS_LOG2: u32 = 20;
/// Bytes of an index and a gate.
const CHOICE_BYTES: u64 = 8;

/// How fast a rank computes, reads and exchanges.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// Where they come from.
    pub source: String,
    /// Operations per second, a multiply-add being two.
    pub flops: f64,
    /// Bytes per second of its memory.
    pub read_bytes: f64,
    /// Bytes per second from other ranks' memory.
    pub exchanged_bytes: f64,
    /// Seconds to meet the others.
    pub meet: f64,
}

impl Rates {
    /// What NVIDIA says of an H200 with NVLink: dense bf16, HBM3e, one direction of NVLink; meeting is a guess.
    #[must_use]
    pub fn h200() -> Self {
        Self {
            source: "an H200's data sheet, nothing measured".to_owned(),
            flops: 989e12,
            read_bytes: 4.8e12,
            exchanged_bytes: 450e9,
            meet: 10e-6,
        }
    }

    /// Those of the file that was named, else the data sheet's.
    ///
    /// # Errors
    /// As [`Rates::read`].
    pub fn of(compute: &ComputeConfig) -> Result<Self> {
        compute
            .rates
            .as_deref()
            .map_or_else(|| Ok(Self::h200()), Self::read)
    }

    /// What `gpu-check` has measured; what it has not is the data sheet's.
    ///
    /// # Errors
    /// If the file is no report of it.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let report: Report = serde_json::from_str(&text)
            .with_context(|| format!("{}: expected a gpu-check.json", path.display()))?;
        let sheet = Self::h200();
        let peak = report.peak;
        Ok(Self {
            source: format!("measured by gpu-check on {}", report.device),
            flops: peak.as_ref().map_or(sheet.flops, |peak| peak.mma_flops),
            read_bytes: peak
                .as_ref()
                .map_or(sheet.read_bytes, |peak| peak.read_bytes),
            exchanged_bytes: report.exchanged_bytes.unwrap_or(sheet.exchanged_bytes),
            meet: report.meet_seconds.unwrap_or(sheet.meet),
        })
    }
}

/// Of `gpu-check.json`, what is needed here.
#[derive(Deserialize)]
struct Report {
    device: String,
    peak: Option<Peak>,
    exchanged_bytes: Option<f64>,
    meet_seconds: Option<f64>,
}

#[derive(Deserialize)]
struct Peak {
    mma_flops: f64,
    read_bytes: f64,
}

/// How tokens are spread over the experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Every expert has as many.
    Even,
    /// All go to the experts of one rank.
    OneRank,
}

/// What the experts cost the busiest rank in one batch, all layers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiply-adds.
    pub multiply_adds: u64,
    /// Bytes of weights and activations that it reads and writes.
    pub memory_bytes: u64,
    /// Bytes from other ranks.
    pub exchanged_bytes: u64,
    /// Times that it meets the others.
    pub n_meets: u64,
}

impl Cost {
    /// A batch of `n_tokens`, spread evenly over `world_size` ranks.
    #[must_use]
    pub fn of(
        spec: &EncoderSpec,
        strategy: Strategy,
        spread: Spread,
        (world_size, n_tokens): (usize, usize),
        dtype: DType,
    ) -> Self {
        let layers = spec.expert_layers().map(|(_, layer)| {
            let batch = Batch {
                n_tokens: n_tokens as u64,
                world_size: world_size as u64,
                d_model: spec.d_model as u64,
                size: dtype.size() as u64,
            };
            batch.layer(layer, strategy, spread)
        });
        layers.fold(Self::default(), |sum, layer| Self {
            multiply_adds: sum.multiply_adds + layer.multiply_adds,
            memory_bytes: sum.memory_bytes + layer.memory_bytes,
            exchanged_bytes: sum.exchanged_bytes + layer.exchanged_bytes,
            n_meets: sum.n_meets + layer.n_meets,
        })
    }

    /// Computing and reading overlap; exchanging does not.
    #[must_use]
    pub fn seconds(&self, rates: &Rates) -> f64 {
        self.alone(rates) + self.exchanging(rates)
    }

    /// Of computing and reading.
    fn alone(&self, rates: &Rates) -> f64 {
        let computing = 2.0 * self.multiply_adds as f64 / rates.flops;
        computing.max(self.memory_bytes as f64 / rates.read_bytes)
    }

    fn exchanging(&self, rates: &Rates) -> f64 {
        self.exchanged_bytes as f64 / rates.exchanged_bytes + self.n_meets as f64 * rates.meet
    }
}

/// Seconds of a batch of `n_tokens` as two micro-batches, one exchanged while the other's experts compute; `None` where
/// nothing is exchanged, or the batch is limited as a whole. What else can hide exchanges, attention say, is not counted.
#[must_use]
pub fn seconds_in_halves(
    spec: &EncoderSpec,
    strategy: Strategy,
    spread: Spread,
    (world_size, n_tokens): (usize, usize),
    dtype: DType,
    rates: &Rates,
) -> Option<f64> {
    let is_limited = matches!(strategy, Strategy::Capacity { .. });
    let half = Cost::of(
        spec,
        strategy,
        spread,
        (world_size, n_tokens.div_ceil(2)),
        dtype,
    );
    if half.n_meets == 0 || is_limited {
        return None;
    }
    let (alone, exchanging) = (2.0 * half.alone(rates), 2.0 * half.exchanging(rates));
    let (longer, shorter) = (alone.max(exchanging), alone.min(exchanging));
    // Before the first and after the last of all, one has nothing beside it.
    let n_turns = 2 * spec.expert_layers().count().max(1);
    Some(longer + shorter / n_turns as f64)
}

/// The smallest power of two of tokens from which on two halves always take less time than the whole; `None` if there is
/// none. With few tokens halves may read different experts; with more, each reads all of them.
#[must_use]
pub fn overlap_from(
    spec: &EncoderSpec,
    strategy: Strategy,
    world_size: usize,
    dtype: DType,
    rates: &Rates,
) -> Option<usize> {
    let gains = |n_tokens: &usize| {
        let batch = (world_size, *n_tokens);
        let whole = Cost::of(spec, strategy, Spread::Even, batch, dtype).seconds(rates);
        seconds_in_halves(spec, strategy, Spread::Even, batch, dtype, rates)
            .is_some_and(|halves| halves < whole)
    };
    let sizes = (0..=MOST_TOKENS_LOG2).rev().map(|log2| 1 << log2);
    sizes.take_while(gains).last()
}

struct Batch {
    n_tokens: u64,
    world_size: u64,
    d_model: u64,
    size: u64,
}

impl Batch {
    fn layer(&self, layer: &ExpertsSpec, strategy: Strategy, spread: Spread) -> Cost {
        let (n_experts, top_k) = (layer.experts.len() as u64, layer.rule.top_k as u64);
        let all = self.n_tokens * top_k;
        let plan = |rank| ShardPlan {
            strategy,
            rank,
            world_size: self.world_size as usize,
        };
        let units = |rank| {
            let of_expert = |e| {
                plan(rank)
                    .hidden_units(e, layer.experts.len(), layer.d_ff)
                    .len()
            };
            (0..layer.experts.len()).map(of_expert).max().unwrap_or(0) as u64
        };
        let units = (0..self.world_size as usize).map(units).max().unwrap_or(0);
        // Tokens, with each of their experts, that the busiest rank computes; experts that it has.
        let (rows, held) = match (strategy, spread) {
            (Strategy::Sharded | Strategy::Uneven(_), _) => (all, n_experts),
            (Strategy::Replicated, _) => (all.div_ceil(self.world_size), n_experts),
            (Strategy::Parallel | Strategy::Capacity { .. }, spread) => {
                let held = n_experts.div_ceil(self.world_size);
                let rows = match spread {
                    Spread::Even => all * held / n_experts.max(1),
                    Spread::OneRank => all,
                };
                (rows.min(self.capacity(layer, strategy) * held), held)
            }
        };
        let weights = 2 * held.min(rows) * self.d_model * units;
        // Rows are read and written, and what is between the two products.
        let activations = 2 * rows * (self.d_model + units);
        let exchanged = match strategy.communicates() && self.world_size > 1 {
            true => self.exchanged(top_k),
            false => 0,
        };
        Cost {
            multiply_adds: 2 * rows * self.d_model * units,
            memory_bytes: (weights + activations) * self.size,
            exchanged_bytes: exchanged,
            n_meets: if exchanged > 0 { N_MEETS } else { 0 },
        }
    }

    fn capacity(&self, layer: &ExpertsSpec, strategy: Strategy) -> u64 {
        let (n_tokens, n_experts) = (self.n_tokens as usize, layer.experts.len());
        strategy
            .batch_capacity(n_tokens, layer.rule.top_k, n_experts)
            .map_or(u64::MAX / n_experts.max(1) as u64, |capacity| {
                capacity as u64
            })
    }

    /// Others' rows and choices before, their sums for this rank's rows after.
    fn exchanged(&self, top_k: u64) -> u64 {
        let own = self.n_tokens / self.world_size;
        let others = self.n_tokens - own;
        let rows = others * (self.d_model * self.size + top_k * CHOICE_BYTES);
        rows + (self.world_size - 1) * own * self.d_model * self.size
    }
}

/// The layout that takes least: every expert split, or all of them on every rank if that fits into `memory_bytes`.
#[must_use]
pub fn best(
    spec: &EncoderSpec,
    (world_size, n_tokens): (usize, usize),
    dtype: DType,
    rates: &Rates,
    fits: impl Fn(Strategy) -> bool,
) -> Strategy {
    let seconds = |strategy| {
        Cost::of(spec, strategy, Spread::Even, (world_size, n_tokens), dtype).seconds(rates)
    };
    let is_replicated =
        fits(Strategy::Replicated) && seconds(Strategy::Replicated) <= seconds(Strategy::Sharded);
    match is_replicated {
        true => Strategy::Replicated,
        false => Strategy::Sharded,
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} TFLOP/s, {:.0} GB/s of memory, {:.0} GB/s from other ranks, {:.0} us to meet: {}",
            1e-12 * self.flops,
            1e-9 * self.read_bytes,
            1e-9 * self.exchanged_bytes,
            1e6 * self.meet,
            self.source
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelArgs, ModelConfig, open};

    fn builtin_spec() -> EncoderSpec {
        let config = ModelConfig::try_from(ModelArgs::default()).expect("defaults");
        open(&config).expect("the built-in model").model.spec
    }

    fn cost(strategy: Strategy, spread: Spread, world_size: usize) -> Cost {
        Cost::of(
            &builtin_spec(),
            strategy,
            spread,
            (world_size, 1000),
            DType::BF16,
        )
    }

    #[test]
    fn splitting_every_expert_is_the_same_whatever_the_routing() {
        let one = cost(Strategy::Sharded, Spread::Even, 1);
        for world_size in [2, 4, 5] {
            let even = cost(Strategy::Sharded, Spread::Even, world_size);
            assert_eq!(even, cost(Strategy::Sharded, Spread::OneRank, world_size));
            assert_eq!(even.multiply_adds, one.multiply_adds / world_size as u64);
            let parallel = |spread| cost(Strategy::Parallel, spread, world_size).multiply_adds;
            assert_eq!(parallel(Spread::OneRank), one.multiply_adds);
            assert!(parallel(Spread::Even) < one.multiply_adds);
            let capacity = Strategy::Capacity { factor: 1.25 };
            let limited = cost(capacity, Spread::OneRank, world_size).multiply_adds;
            assert!(limited > parallel(Spread::Even) && limited < one.multiply_adds);
        }
    }

    #[test]
    fn what_is_exchanged_is_what_others_have() {
        // d_model 256, two layers with two experts a token.
        let sharded = cost(Strategy::Sharded, Spread::Even, 4);
        let rows = 750 * (256 * 2 + 2 * 8) + 3 * 250 * 256 * 2;
        assert_eq!((sharded.exchanged_bytes, sharded.n_meets), (2 * rows, 6));
        let alone = [
            cost(Strategy::Sharded, Spread::Even, 1),
            cost(Strategy::Replicated, Spread::Even, 4),
        ];
        assert!(
            alone
                .iter()
                .all(|cost| cost.exchanged_bytes == 0 && cost.n_meets == 0)
        );
    }

    #[test]
    fn the_layout_follows_the_rates() {
        let spec = builtin_spec();
        let choose = |rates: &Rates, fits| best(&spec, (4, 1000), DType::BF16, rates, |_| fits);
        let slow_links = Rates {
            exchanged_bytes: 1e6,
            ..Rates::h200()
        };
        assert_eq!(choose(&slow_links, true), Strategy::Replicated);
        assert_eq!(choose(&slow_links, false), Strategy::Sharded);
        // Memory that is read slowly: each rank reads a quarter.
        let slow_memory = Rates {
            read_bytes: 1e6,
            exchanged_bytes: 1e15,
            meet: 0.0,
            ..Rates::h200()
        };
        assert_eq!(choose(&slow_memory, true), Strategy::Sharded);
    }

    #[test]
    fn halves_hide_the_shorter_of_exchange_and_compute() {
        let spec = builtin_spec();
        let even = (Spread::Even, (4, 1000), DType::BF16);
        let halves = |strategy, rates: &Rates| {
            let (spread, batch, dtype) = even;
            seconds_in_halves(&spec, strategy, spread, batch, dtype, rates)
        };
        let rates = Rates {
            meet: 0.0,
            read_bytes: 1e15,
            flops: 1e12,
            ..Rates::h200()
        };
        // Two layers of experts: of the exchange, a quarter has nothing beside it.
        let whole = cost(Strategy::Sharded, Spread::Even, 4);
        let expected = whole.alone(&rates) + whole.exchanging(&rates) / 4.0;
        let found = halves(Strategy::Sharded, &rates).expect("an exchange");
        assert!((found / expected - 1.0).abs() < 1e-9, "{found}, {expected}");
        assert!(found < whole.seconds(&rates));
        let from = |rates: &Rates| overlap_from(&spec, Strategy::Sharded, 4, DType::BF16, rates);
        // Each half reads all experts, unless it has hardly a token.
        let slow_to_read = Rates {
            read_bytes: 1e9,
            ..rates.clone()
        };
        let least = from(&slow_to_read);
        let loses = |n_tokens: usize| {
            let (sharded, dtype) = (Strategy::Sharded, DType::BF16);
            let batch = (4, n_tokens);
            let whole = Cost::of(&spec, sharded, Spread::Even, batch, dtype);
            let halves =
                seconds_in_halves(&spec, sharded, Spread::Even, batch, dtype, &slow_to_read);
            halves.is_none_or(|halves| halves >= whole.seconds(&slow_to_read))
        };
        let from_there = (0..=20)
            .map(|log2| 1 << log2)
            .filter(|&n| least.is_some_and(|l| n >= l));
        assert!(from_there.clone().all(|n| !loses(n)), "{least:?}");
        assert!(least.is_none_or(|least| least > 16), "{least:?}");
        assert!(from(&rates).is_some_and(|n| n <= 16));
        // Whoever meets twice as often gains only where there is enough to hide.
        let slow_to_meet = Rates {
            meet: 1e-3,
            ..rates.clone()
        };
        assert!(from(&slow_to_meet) > from(&rates));
        assert_eq!(halves(Strategy::Replicated, &rates), None);
        assert_eq!(halves(Strategy::Capacity { factor: 1.0 }, &rates), None);
    }

    #[test]
    fn rates_are_read_from_a_report() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("gpu-check.json");
        fs::write(
            &path,
            r#"{"device": "X", "peak": {"mma_flops": 1e12, "read_bytes": 2e9, "f32_flops": 1.0}}"#,
        )?;
        let rates = Rates::read(&path)?;
        assert_eq!((rates.flops, rates.read_bytes), (1e12, 2e9));
        assert_eq!(rates.exchanged_bytes, Rates::h200().exchanged_bytes);
        assert_eq!(rates.source, "measured by gpu-check on X");
        fs::write(&path, "{}")?;
        let error = Rates::read(&path).expect_err("no report").to_string();
        assert!(
            error.ends_with("gpu-check.json: expected a gpu-check.json"),
            "{error}"
        );
        Ok(())
    }
}
