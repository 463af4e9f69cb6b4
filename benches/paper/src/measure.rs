//! Runs every strategy at every skew: once to count its work, then in rounds to time it.

use std::sync::Arc;

use anyhow::Result;
use moeshard_batcher::PackedBatch;
use moeshard_encoder::model::Model;
use moeshard_encoder::shard::Strategy;
use moeshard_engine::DeviceMaker;
use moeshard_tensor::device::Routing;
use moeshard_tensor::imposed::TakesRouting;
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;

use crate::args::{Args, Choice};
use crate::report::{Row, Times, Work};
use crate::skew::SkewRouter;
use crate::work::{Pass, max_over_mean};
use crate::world::{Batch, World};

/// A model on some ranks under every strategy, with one batch to run.
pub struct Case<'a> {
    args: &'a Args,
    n_experts: usize,
    n_ranks: usize,
    batch: Batch,
    packed: PackedBatch,
    /// `[n_strategies]`
    worlds: &'a [World],
    routers: Vec<SkewRouter>,
    /// `[n_skews][n_ranks][n_layers]`
    routings: Vec<Vec<Arc<[Routing]>>>,
}

/// Starts a world for each strategy. All are loaded at once, so that turns may alternate.
///
/// # Errors
/// If one cannot be started.
pub fn worlds<M: DeviceMaker<Device: TakesRouting>>(
    args: &Args,
    model: &Arc<Model>,
    (n_experts, n_ranks): (usize, usize),
    devices: impl Fn(&Args, usize) -> M,
) -> Result<Vec<World>> {
    let start = |choice: &Choice| {
        let layout = (n_ranks, choice.of(n_experts));
        World::start(model, layout, devices(args, n_ranks))
    };
    args.strategies.iter().map(start).collect()
}

impl<'a> Case<'a> {
    /// Deals all tokens out, for every skew.
    pub fn new(
        args: &'a Args,
        (n_experts, n_ranks, batch): (usize, usize, Batch),
        worlds: &'a [World],
    ) -> Self {
        let router = |&skew: &f64| SkewRouter::new(n_experts, skew, args.popular);
        let routers: Vec<SkewRouter> = args.skew.iter().map(router).collect();
        let n_layers = args.layers / 2;
        let routings = routers
            .iter()
            .map(|router| batch.routings(n_ranks, n_layers, router, args.seed))
            .collect();
        Self {
            args,
            n_experts,
            n_ranks,
            batch,
            packed: batch.pack(n_ranks, args.vocab, args.seed),
            worlds,
            routers,
            routings,
        }
    }

    /// A row for each strategy at each skew.
    ///
    /// # Errors
    /// If a batch cannot be run.
    pub fn run(&self) -> Result<Vec<Row>> {
        let mut works = Vec::new();
        for strategy_idx in 0..self.worlds.len() {
            for skew_idx in 0..self.routers.len() {
                works.push(self.count(strategy_idx, skew_idx)?);
            }
        }
        let times = self.time()?;
        let rows = works.into_iter().enumerate().map(|(i, work)| {
            let (strategy_idx, skew_idx) = (i / self.routers.len(), i % self.routers.len());
            Row {
                strategy: self.args.strategies[strategy_idx].name(),
                n_experts: self.n_experts,
                n_ranks: self.n_ranks,
                batch: self.batch.per_rank,
                length: self.batch.length,
                skew: self.args.skew[skew_idx],
                n_popular: self.routers[skew_idx].n_popular,
                work,
                times: self.times_of(&times, strategy_idx, skew_idx),
            }
        });
        Ok(rows.collect())
    }

    fn strategy(&self, strategy_idx: usize) -> Strategy {
        self.args.strategies[strategy_idx].of(self.n_experts)
    }

    /// Counts one pass, beside the closed form. A pass before it takes over the routing.
    fn count(&self, strategy_idx: usize, skew_idx: usize) -> Result<Work> {
        let world = &self.worlds[strategy_idx];
        world.impose(&self.routings[skew_idx]);
        world.run(&self.packed)?;
        let counted = world.count(&self.packed)?;
        let pass = Pass {
            strategy: self.strategy(strategy_idx),
            n_layers: self.args.layers / 2,
            d_model: self.args.d_model,
            d_ff: self.args.d_ff,
            element_bytes: self.args.element_bytes(),
            n_tokens: vec![self.batch.per_rank * self.batch.length; self.n_ranks],
        };
        let n_tokens = pass.all_tokens() as f64;
        let shares = self.routers[skew_idx].probabilities();
        let load: Vec<f64> = shares.iter().map(|p| p * n_tokens).collect();
        let found: Vec<f64> = counted.multiply_adds.iter().map(|&n| n as f64).collect();
        let closed_form = pass.multiply_adds(&load);
        Ok(Work {
            max_over_mean: max_over_mean(&found),
            closed_form_max_over_mean: max_over_mean(&closed_form),
            off: found
                .iter()
                .zip(&closed_form)
                .map(|(found, expected)| (found / expected - 1.0).abs())
                .fold(0.0, f64::max),
            multiply_adds: counted.multiply_adds,
            closed_form,
            exchanged: pass.exchanged(),
            n_dropped: counted.n_dropped,
            n_assignments: (n_tokens as u64) * pass.n_layers as u64,
            padded_multiply_adds: pass.padded_multiply_adds(self.n_experts),
        })
    }

    /// Milliseconds of each round, `[n_strategies · n_skews][n_rounds]`.
    ///
    /// In a round every strategy runs at every skew, in an order that changes from round to round, so that
    /// whatever slows the machine down hits all alike. Two skews of one strategy are near each other in time:
    /// their ratio is what matters. A pass before each that counts takes over the routing and wakes the
    /// threads.
    fn time(&self) -> Result<Vec<Vec<f64>>> {
        let (n_strategies, n_skews) = (self.worlds.len(), self.routers.len());
        let mut times = vec![Vec::new(); n_strategies * n_skews];
        let mut rng = ChaCha8Rng::seed_from_u64(self.args.seed);
        let mut strategies: Vec<usize> = (0..n_strategies).collect();
        let mut skews: Vec<usize> = (0..n_skews).collect();
        for _ in 0..self.args.rounds {
            strategies.shuffle(&mut rng);
            for &strategy_idx in &strategies {
                let world = &self.worlds[strategy_idx];
                skews.shuffle(&mut rng);
                for &skew_idx in &skews {
                    world.impose(&self.routings[skew_idx]);
                    world.run(&self.packed)?;
                    let elapsed = world.run(&self.packed)?;
                    times[strategy_idx * n_skews + skew_idx].push(1e3 * elapsed.as_secs_f64());
                }
            }
        }
        Ok(times)
    }

    fn times_of(&self, times: &[Vec<f64>], strategy_idx: usize, skew_idx: usize) -> Option<Times> {
        let n_skews = self.routers.len();
        let rounds = times[strategy_idx * n_skews + skew_idx].clone();
        let uniform = self.args.skew.iter().position(|&skew| skew == 0.0);
        let over_uniform = uniform.and_then(|uniform| {
            let base = &times[strategy_idx * n_skews + uniform];
            let ratios = rounds.iter().zip(base).map(|(ms, base)| ms / base);
            median(ratios.collect())
        });
        Some(Times {
            median_ms: median(rounds.clone())?,
            over_uniform,
            rounds_ms: rounds,
        })
    }
}

/// The middle one, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    Some((values.get(low)? + values.get(high)?) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(vec![9.0, 1.0, 5.0, 7.0]), Some(6.0));
    }
}
