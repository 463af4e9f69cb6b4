//! The work of each rank in closed form: multiply-adds in expert matrices, and bytes exchanged.

use moeshard_encoder::shard::{ShardPlan, Strategy};
use serde::Serialize;

/// What the work of a pass depends on, apart from the routing.
#[derive(Clone, Debug)]
pub struct Pass {
    /// How the experts are laid out.
    pub strategy: Strategy,
    /// Layers of experts.
    pub n_layers: usize,
    /// Width of the hidden states.
    pub d_model: usize,
    /// Hidden units of an expert.
    pub d_ff: usize,
    /// Bytes of an element of a hidden state on its way between ranks.
    pub element_bytes: usize,
    /// `[world_size]`: tokens that each rank brings.
    pub n_tokens: Vec<usize>,
}

/// Bytes of a rank in one pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Exchanged {
    /// Sent to the other ranks.
    pub sent: u64,
    /// Received from them.
    pub received: u64,
}

impl Pass {
    fn world_size(&self) -> usize {
        self.n_tokens.len()
    }

    /// Tokens of all ranks.
    pub fn all_tokens(&self) -> usize {
        self.n_tokens.iter().sum()
    }

    /// Tokens that expert `expert_idx` computes of `load[expert_idx]` that are routed to it, in one layer.
    fn computed(&self, load: &[f64], expert_idx: usize) -> f64 {
        let capacity = self
            .strategy
            .batch_capacity(self.all_tokens(), 1, load.len());
        capacity.map_or(load[expert_idx], |slots| load[expert_idx].min(slots as f64))
    }

    /// Multiply-adds of each rank in expert matrices, `[world_size]`, when `load[i]` tokens of all ranks go
    /// to expert `i` of each layer (a mean if it is not whole).
    ///
    /// A token costs `2 · d_model` for each hidden unit, so that a layer costs rank `r` of `N`
    /// - sharded: `2 · d_model · d_ff/N · Σ load`, whatever the load. Where N does not divide d_ff, its
    ///   hidden units in place of `d_ff/N`, which differ by one tile at most;
    /// - parallel: `2 · d_model · d_ff · Σ load[i]` over the experts `i` of the rank;
    /// - capacity: the same with `min(load[i], capacity)`;
    /// - replicated: `2 · d_model · d_ff` for each token that the rank brings.
    pub fn multiply_adds(&self, load: &[f64]) -> Vec<f64> {
        let per_unit = (2 * self.d_model * self.n_layers) as f64;
        let rank_units = |rank| {
            let plan = ShardPlan {
                strategy: self.strategy,
                rank,
                world_size: self.world_size(),
            };
            let units = |expert_idx| plan.hidden_units(expert_idx, load.len(), self.d_ff).len();
            match self.strategy {
                Strategy::Replicated => (self.n_tokens[rank] * self.d_ff) as f64,
                _ => (0..load.len())
                    .map(|e| units(e) as f64 * self.computed(load, e))
                    .sum(),
            }
        };
        (0..self.world_size())
            .map(|rank| per_unit * rank_units(rank))
            .collect()
    }

    /// Assignments that find their expert full, over all layers and ranks.
    pub fn n_dropped(&self, load: &[f64]) -> f64 {
        let dropped = (0..load.len()).map(|e| load[e] - self.computed(load, e));
        self.n_layers as f64 * dropped.sum::<f64>()
    }

    /// Multiply-adds of all ranks if every expert computed as many tokens as it has slots, as
    /// implementations do that pad to the capacity. `None` without a capacity.
    pub fn padded_multiply_adds(&self, n_experts: usize) -> Option<f64> {
        let slots = self
            .strategy
            .batch_capacity(self.all_tokens(), 1, n_experts)?;
        let per_token = (2 * self.d_model * self.d_ff * self.n_layers) as f64;
        Some(per_token * (slots * n_experts) as f64)
    }

    /// Bytes that each rank exchanges with the others, `[world_size]`.
    ///
    /// Of `n` tokens a rank brings `own`; a row is `d_model` elements, a token's routing an index and a
    /// gate of four bytes each. A layer of experts has
    /// - an all-gather of rows and routing: a rank sends its own to each of the `N - 1` others, and
    ///   receives those of the `n - own` other tokens;
    /// - a reduce-scatter of rows: it sends its part of the sum for each of the `n - own` other tokens to
    ///   their owner, and receives `N - 1` parts for each of its own.
    ///
    /// Replicated experts exchange nothing. The routing makes no difference to any of it.
    pub fn exchanged(&self) -> Vec<Exchanged> {
        const ROUTING_BYTES: usize = 2 * size_of::<u32>();
        let row = self.d_model * self.element_bytes;
        let n_others = self.world_size().saturating_sub(1);
        self.n_tokens
            .iter()
            .map(|own| {
                let (to_others, of_others) = (own * n_others, self.all_tokens() - own);
                let sent = to_others * (row + ROUTING_BYTES) + of_others * row;
                let received = of_others * (row + ROUTING_BYTES) + to_others * row;
                match self.strategy.communicates() {
                    true => Exchanged {
                        sent: (self.n_layers * sent) as u64,
                        received: (self.n_layers * received) as u64,
                    },
                    false => Exchanged::default(),
                }
            })
            .collect()
    }
}

/// The largest over the mean: 1 if all ranks do the same. `None` if there is no work.
pub fn max_over_mean(work: &[f64]) -> Option<f64> {
    let mean = work.iter().sum::<f64>() / work.len() as f64;
    let max = work.iter().copied().fold(0.0, f64::max);
    (mean > 0.0).then(|| max / mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(strategy: Strategy) -> Pass {
        Pass {
            strategy,
            n_layers: 2,
            d_model: 3,
            d_ff: 64,
            element_bytes: 4,
            n_tokens: vec![6, 4],
        }
    }

    #[test]
    fn closed_forms_by_hand() {
        let load = [5.0, 1.0, 2.0, 2.0];
        let token = (2 * 2 * 3 * 64) as f64;
        let check = |strategy, tokens: [f64; 2]| {
            let expected = tokens.map(|n| n * token);
            assert_eq!(pass(strategy).multiply_adds(&load), expected);
        };
        check(Strategy::Sharded, [5.0, 5.0]);
        check(Strategy::Parallel, [6.0, 4.0]);
        check(Strategy::Replicated, [6.0, 4.0]);
        // 10 tokens over 4 experts: 3 slots each.
        let capacity = Strategy::Capacity { factor: 1.2 };
        check(capacity, [4.0, 4.0]);
        assert_eq!(pass(capacity).n_dropped(&load), 4.0);
        assert_eq!(pass(capacity).padded_multiply_adds(4), Some(12.0 * token));
        assert_eq!(pass(Strategy::Parallel).padded_multiply_adds(4), None);
    }

    #[test]
    fn what_is_sent_is_received() {
        let exchanged = pass(Strategy::Parallel).exchanged();
        let [first, second] = exchanged[..] else {
            panic!("{exchanged:?}")
        };
        // Rows of 12 bytes, 8 of routing.
        assert_eq!(first.sent, 2 * (6 * 20 + 4 * 12));
        assert_eq!((first.sent, first.received), (second.received, second.sent));
        let nothing = vec![Exchanged::default(); 2];
        assert_eq!(pass(Strategy::Replicated).exchanged(), nothing);
    }

    #[test]
    fn the_ratio_of_nothing_is_none() {
        assert_eq!(max_over_mean(&[1.0, 3.0]), Some(1.5));
        assert_eq!(max_over_mean(&[0.0, 0.0]), None);
        assert_eq!(max_over_mean(&[]), None);
    }
}
