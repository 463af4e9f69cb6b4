//! Router and capacity.

use crate::device::{RouterRule, Routing};

/// Turns logits `[n_tokens, n_experts]` into a routing, in the memory of an old one.
pub(crate) fn route(logits: &mut [f32], n_experts: usize, rule: RouterRule, routing: &mut Routing) {
    routing.top_k = rule.top_k;
    routing.expert_idx.clear();
    routing.gate_weight.clear();
    for row in logits.chunks_exact_mut(n_experts) {
        softmax(row);
        let first = routing.gate_weight.len();
        for _ in 0..rule.top_k {
            let best = most_probable(row);
            routing.expert_idx.push(best as u32);
            routing.gate_weight.push(row[best]);
            // Below every probability, so that it is not chosen again.
            row[best] = -1.0;
        }
        if rule.normalize {
            let chosen = &mut routing.gate_weight[first..];
            let sum = chosen.iter().sum::<f32>().max(f32::EPSILON);
            chosen.iter_mut().for_each(|w| *w /= sum);
        }
    }
}

fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|x| *x = (*x - largest).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}

/// The first index of the largest value.
fn most_probable(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, &x) in row.iter().enumerate() {
        if x > row[best] {
            best = i;
        }
    }
    best
}

/// Drops assignments beyond `capacity` per expert and segment, and returns how many.
///
/// First choices of all tokens come before second choices, each in token order. With one choice
/// and a segment a sequence this is what Switch Transformers' `expert_capacity` does.
pub(crate) fn limit_capacity(
    routing: &mut Routing,
    n_experts: usize,
    segments: &[usize],
    capacity: usize,
) -> u64 {
    let top_k = routing.top_k;
    let mut n_dropped = 0;
    for segment in segments.windows(2) {
        let mut n_taken = vec![0_usize; n_experts];
        for choice in 0..top_k {
            for token in segment[0]..segment[1] {
                let slot = token * top_k + choice;
                let Some(taken) = n_taken.get_mut(routing.expert_idx[slot] as usize) else {
                    continue; // dropped before
                };
                *taken += 1;
                if *taken > capacity {
                    routing.expert_idx[slot] = Routing::DROPPED;
                    routing.gate_weight[slot] = 0.0;
                    n_dropped += 1;
                }
            }
        }
    }
    n_dropped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(logits: &mut [f32], n_experts: usize, rule: RouterRule) -> Routing {
        let mut routing = Routing::default();
        super::route(logits, n_experts, rule, &mut routing);
        routing
    }

    #[test]
    fn chooses_the_most_probable_and_breaks_ties_downwards() {
        let mut logits = [0.0, 2.0, 2.0, 1.0, 5.0, 5.0, 5.0, 5.0];
        let routing = route(
            &mut logits,
            4,
            RouterRule {
                top_k: 2,
                normalize: true,
            },
        );
        assert_eq!(routing.expert_idx, [1, 2, 0, 1]);
        assert_eq!(routing.gate_weight, [0.5; 4]);
        assert_eq!(routing.n_tokens(), 2);
    }

    #[test]
    fn gates_are_probabilities_over_all_experts_unless_normalised() {
        let mut logits = [1.0_f32.ln(), 2.0_f32.ln(), 5.0_f32.ln()];
        let routing = route(
            &mut logits,
            3,
            RouterRule {
                top_k: 1,
                normalize: false,
            },
        );
        assert_eq!(routing.expert_idx, [2]);
        assert!((routing.gate_weight[0] - 5.0 / 8.0).abs() < 1e-6);
    }

    #[test]
    fn huge_logits_stay_finite() {
        let mut logits = [-1e30, 3e38, 0.0];
        let routing = route(
            &mut logits,
            3,
            RouterRule {
                top_k: 2,
                normalize: true,
            },
        );
        assert_eq!(routing.expert_idx[0], 1);
        assert!(routing.gate_weight.iter().all(|w| w.is_finite()));
    }

    #[test]
    fn capacity_counts_per_segment_first_choices_first() {
        // Tokens 0..3 are one sequence, token 3 another; all want expert 0, then expert 1.
        let mut routing = Routing {
            top_k: 2,
            expert_idx: vec![0, 1, 1, 0, 0, 1, 0, 1],
            gate_weight: vec![1.0; 8],
        };
        let n_dropped = limit_capacity(&mut routing, 2, &[0, 3, 4], 2);
        let x = Routing::DROPPED;
        // Expert 0 takes tokens 0 and 2 by first choice, expert 1 token 1 by first choice and
        // token 0 by second; token 1's and token 2's second choices find them full.
        assert_eq!(routing.expert_idx, [0, 1, 1, x, 0, x, 0, 1]);
        assert_eq!(
            routing.gate_weight,
            [1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0]
        );
        assert_eq!(n_dropped, 2);
        assert_eq!(limit_capacity(&mut routing, 2, &[0, 3, 4], 2), 0);
    }
}
