//! Which sequences make the next batch: a pure function, without channel, clock or metric.

use std::cmp::{Ordering, Reverse};
use std::time::Duration;

/// One waiting sequence, as far as packing cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its tokens.
    pub n_tokens: usize,
    /// How long it has waited.
    pub waited: Duration,
}

/// What one batch may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Most tokens; a single sequence may exceed it, alone.
    pub max_tokens: usize,
    /// Most sequences.
    pub max_seqs: usize,
}

impl Budget {
    /// Most sequences of `n_tokens` tokens that one batch takes.
    #[must_use]
    pub fn most_of(&self, n_tokens: usize) -> usize {
        (self.max_tokens / n_tokens.max(1)).clamp(1, self.max_seqs.max(1))
    }
}

/// Chooses the sequences of the next batch.
///
/// The sequence that has waited longest always goes, so nobody starves. The rest of the budget is given to the
/// sequences with the highest *response ratio*, `1 + waited / service time` (highest response ratio
/// next, Brinch Hansen 1971): a short text does not wait behind long ones, and a long one gains rank
/// while it waits. Service time is taken as proportional to tokens, so no measured rate is needed.
/// A sequence that does not fit is passed over, it does not end the batch.
///
/// There is no padding, so mixing lengths costs nothing.
///
/// Only as many sequences as the batch can hold are sorted, so the rest of the queue costs time in
/// proportion to its length.
///
/// # Shapes
/// - returns positions in `queue`, ascending; empty only if `queue` is empty
#[must_use]
pub fn pack(queue: &[Waiting], budget: Budget) -> Vec<usize> {
    let Some(oldest) = oldest(queue) else {
        return Vec::new();
    };
    let mut chosen = vec![oldest];
    let mut tokens_left = budget.max_tokens.saturating_sub(queue[oldest].n_tokens);
    let mut rest: Vec<usize> = (0..queue.len()).collect();
    rest.swap_remove(oldest);
    loop {
        rest.retain(|&seq_idx| queue[seq_idx].n_tokens <= tokens_left);
        let seqs_left = budget.max_seqs.saturating_sub(chosen.len());
        let n_best = seqs_left.min(most_that_fit(queue, &rest, tokens_left));
        if n_best == 0 {
            break;
        }
        // The first of them fits, so every round chooses one; a second round is needed only if a
        // long sequence was passed over.
        for seq_idx in take_best(queue, &mut rest, n_best) {
            if let Some(left) = tokens_left.checked_sub(queue[seq_idx].n_tokens) {
                tokens_left = left;
                chosen.push(seq_idx);
            }
        }
    }
    chosen.sort_unstable();
    chosen
}

/// Position of the sequence that has waited longest; of several, the first.
fn oldest(queue: &[Waiting]) -> Option<usize> {
    let positions = 0..queue.len();
    positions.min_by_key(|&seq_idx| Reverse(queue[seq_idx].waited))
}

/// How many of `rest` there can be in `tokens_left` if the shortest are taken.
fn most_that_fit(queue: &[Waiting], rest: &[usize], tokens_left: usize) -> usize {
    let lengths = rest.iter().map(|&seq_idx| queue[seq_idx].n_tokens.max(1));
    lengths
        .min()
        .map_or(0, |shortest| rest.len().min(tokens_left / shortest))
}

/// Removes the `n_best` positions with the highest response ratio from `rest`, best first.
fn take_best(queue: &[Waiting], rest: &mut Vec<usize>, n_best: usize) -> Vec<usize> {
    let worst_first = |a: &usize, b: &usize| better_first(queue, *b, *a);
    let start = rest.len() - n_best;
    if start > 0 {
        rest.select_nth_unstable_by(start, worst_first);
    }
    let mut best = rest.split_off(start);
    best.sort_unstable_by(|&a, &b| better_first(queue, a, b));
    best
}

/// The higher `waited / n_tokens` first, compared without division; if equal, the earlier position.
fn better_first(queue: &[Waiting], a: usize, b: usize) -> Ordering {
    let weight = |one: &Waiting, other: &Waiting| {
        let micros = one.waited.as_micros();
        micros.saturating_mul(other.n_tokens.max(1) as u128)
    };
    let (left, right) = (&queue[a], &queue[b]);
    weight(right, left)
        .cmp(&weight(left, right))
        .then(a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn queue(entries: &[(usize, u64)]) -> Vec<Waiting> {
        let waiting = |&(n_tokens, ms)| Waiting {
            n_tokens,
            waited: Duration::from_millis(ms),
        };
        entries.iter().map(waiting).collect()
    }

    #[test]
    fn examples() {
        let check = |entries: &[(usize, u64)], max_tokens, max_seqs, expect: &[usize]| {
            assert_eq!(
                pack(
                    &queue(entries),
                    Budget {
                        max_tokens,
                        max_seqs
                    }
                ),
                expect
            );
        };
        check(&[], 10, 10, &[]);
        // All fit.
        check(&[(3, 2), (3, 1), (4, 0)], 10, 10, &[0, 1, 2]);
        // One that does not fit is passed over.
        check(&[(3, 2), (8, 1), (4, 0)], 10, 10, &[0, 2]);
        // An oversize sequence goes alone, and only when it is the oldest.
        check(&[(20, 2), (1, 1)], 10, 10, &[0]);
        check(&[(1, 2), (20, 1), (1, 0)], 10, 10, &[0, 2]);
        // Short before long at equal age; the long one wins once it has waited enough.
        check(&[(2, 9), (8, 5), (4, 5), (4, 5)], 10, 10, &[0, 2, 3]);
        check(&[(2, 99), (8, 50), (4, 5), (4, 5)], 10, 10, &[0, 1]);
        // The number of sequences counts too.
        check(&[(1, 3), (1, 2), (1, 1)], 10, 2, &[0, 1]);
    }

    /// The rule itself: everything sorted, then taken one by one as far as it fits.
    fn pack_by_sorting(queue: &[Waiting], budget: Budget) -> Vec<usize> {
        let mut order: Vec<usize> = (0..queue.len()).collect();
        let oldest = oldest(queue).expect("somebody waits");
        order.sort_by(|&a, &b| {
            (b == oldest)
                .cmp(&(a == oldest))
                .then(better_first(queue, a, b))
        });
        let mut tokens_left = budget.max_tokens.max(queue[oldest].n_tokens);
        let mut chosen = Vec::new();
        for seq_idx in order {
            let fits = queue[seq_idx].n_tokens <= tokens_left;
            if fits && (chosen.is_empty() || chosen.len() < budget.max_seqs) {
                tokens_left -= queue[seq_idx].n_tokens;
                chosen.push(seq_idx);
            }
        }
        chosen.sort_unstable();
        chosen
    }

    proptest! {
        #[test]
        fn a_partial_selection_chooses_what_sorting_chooses(
            entries in prop::collection::vec((1usize..600, 0u64..50), 1..300),
            max_tokens in 1usize..5000,
            max_seqs in 1usize..50,
        ) {
            let queue = queue(&entries);
            for max_seqs in [max_seqs, usize::MAX] {
                let budget = Budget { max_tokens, max_seqs };
                prop_assert_eq!(pack(&queue, budget), pack_by_sorting(&queue, budget));
            }
        }

        #[test]
        fn every_batch_is_legal_and_takes_the_oldest(
            entries in prop::collection::vec((0usize..600, 0u64..1000), 1..200),
            max_tokens in 1usize..1000,
            max_seqs in 1usize..50,
        ) {
            let queue = queue(&entries);
            let chosen = pack(&queue, Budget { max_tokens, max_seqs });
            let longest = queue.iter().map(|waiting| waiting.waited).max();
            prop_assert!(chosen.iter().any(|&i| Some(queue[i].waited) == longest));
            prop_assert!(chosen.is_sorted_by(|a, b| a < b));
            prop_assert!(chosen.len() <= max_seqs);
            let n_tokens: usize = chosen.iter().map(|&i| queue[i].n_tokens).sum();
            prop_assert!(n_tokens <= max_tokens || chosen.len() == 1);
        }

        #[test]
        fn every_sequence_is_packed_exactly_once(
            entries in prop::collection::vec((1usize..600, 0u64..1000), 1..120),
            max_tokens in 1usize..1000,
        ) {
            let mut left: Vec<(usize, Waiting)> = queue(&entries).into_iter().enumerate().collect();
            let mut seen = vec![0; entries.len()];
            let mut n_batches = 0;
            while !left.is_empty() {
                let waiting: Vec<Waiting> = left.iter().map(|&(_, waiting)| waiting).collect();
                let chosen = pack(&waiting, Budget { max_tokens, max_seqs: usize::MAX });
                for &position in chosen.iter().rev() {
                    seen[left.remove(position).0] += 1;
                }
                n_batches += 1;
                prop_assert!(n_batches <= entries.len());
            }
            prop_assert!(seen.iter().all(|&times| times == 1));
        }
    }
}
