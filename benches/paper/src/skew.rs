//! The paper's skew router: which experts tokens go to, whatever they are.

use moeshard_tensor::device::Routing;
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;

/// The router of MoEShard's experiments.
///
/// Expert `i` has `p_i ∝ 1/E + α` if it is one of the first `k` (the popular ones), else `p_i ∝ 1/E`.
///
/// The paper draws every token on its own. Here an expert gets the tokens that it would get on average,
/// up to rounding, in random order: what is measured is the skew, not the luck of a draw.
///
/// # Source
/// arXiv:2503.08467, section on the experimental setup; its time to first token is at α = 0.6 with k a
/// tenth of the experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SkewRouter {
    /// Experts of a layer; at least one.
    pub n_experts: usize,
    /// α: 0 is uniform.
    pub skew: f64,
    /// k.
    pub n_popular: usize,
}

impl SkewRouter {
    /// The popular experts are `share` of all, rounded, and at least one.
    pub fn new(n_experts: usize, skew: f64, share: f64) -> Self {
        let n_popular = (share * n_experts as f64).round() as usize;
        Self {
            n_experts,
            skew,
            n_popular: n_popular.clamp(1, n_experts.max(1)),
        }
    }

    /// `[n_experts]`, of sum 1.
    pub fn probabilities(&self) -> Vec<f64> {
        let even = 1.0 / self.n_experts as f64;
        let sum = 1.0 + self.skew * self.n_popular as f64;
        (0..self.n_experts)
            .map(|expert_idx| match expert_idx < self.n_popular {
                true => (even + self.skew) / sum,
                false => even / sum,
            })
            .collect()
    }

    /// Tokens of each expert, `[n_experts]`. Neighbours round up in turn, so that any range of experts, as a
    /// rank may hold it, is less than one token off its share.
    pub fn counts(&self, n_tokens: usize) -> Vec<usize> {
        let (mut share, mut dealt) = (0.0, 0);
        let mut counts: Vec<usize> = Vec::with_capacity(self.n_experts);
        for p in self.probabilities() {
            share += p * n_tokens as f64;
            let until = (share.round() as usize).clamp(dealt, n_tokens);
            counts.push(until - dealt);
            dealt = until;
        }
        counts
    }

    /// The expert of each token in one layer, `[n_tokens]`. The same seed gives the same ones.
    pub fn deal(&self, n_tokens: usize, seed: u64) -> Vec<u32> {
        let counts = self.counts(n_tokens);
        let mut experts: Vec<u32> = counts
            .iter()
            .enumerate()
            .flat_map(|(expert_idx, &n)| std::iter::repeat_n(expert_idx as u32, n))
            .collect();
        experts.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        experts
    }
}

/// The routing of one rank's tokens, with one expert each and a gate of 1, as the paper has it.
pub fn routing(experts: impl Iterator<Item = u32>) -> Routing {
    let expert_idx: Vec<u32> = experts.collect();
    Routing {
        top_k: 1,
        gate_weight: vec![1.0; expert_idx.len()],
        expert_idx,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_the_paper() {
        let router = SkewRouter::new(8, 0.6, 0.1);
        assert_eq!(router.n_popular, 1);
        let p = router.probabilities();
        assert!((p[0] - 0.725 / 1.6).abs() < 1e-12);
        assert!((p[7] - 0.125 / 1.6).abs() < 1e-12);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(SkewRouter::new(128, 0.6, 0.1).n_popular, 13);
    }

    #[test]
    fn every_token_has_an_expert_and_every_expert_its_share() {
        for (n_experts, skew, n_tokens) in
            [(8, 0.0, 100), (8, 0.6, 1000), (64, 0.8, 77), (5, 3.0, 0)]
        {
            let router = SkewRouter::new(n_experts, skew, 0.1);
            let mut found = vec![0; n_experts];
            for expert in router.deal(n_tokens, 7) {
                found[expert as usize] += 1;
            }
            assert_eq!(found, router.counts(n_tokens));
            assert_eq!(found.iter().sum::<usize>(), n_tokens);
            for (n, p) in found.iter().zip(router.probabilities()) {
                assert!((*n as f64 - p * n_tokens as f64).abs() < 1.0 + 1e-9);
            }
        }
    }

    #[test]
    fn a_seed_decides() {
        let router = SkewRouter::new(8, 0.4, 0.1);
        assert_eq!(router.deal(500, 1), router.deal(500, 1));
        assert_ne!(router.deal(500, 1), router.deal(500, 2));
    }
}
