//! Which sequences make the next batch: a pure function, without channel, clock or metric.

use std::cmp::Ordering;
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

/// Chooses the sequences of the next batch from `queue`, which is in order of arrival.
///
/// The oldest sequence always goes, so nobody starves. The rest of the budget is given to the
/// sequences with the highest *response ratio*, `1 + waited / service time` (highest response ratio
/// next, Brinch Hansen 1971): a short text does not wait behind long ones, and a long one gains rank
/// while it waits. Service time is taken as proportional to tokens, so no measured rate is needed.
/// A sequence that does not fit is passed over, it does not end the batch.
///
/// There is no padding, so mixing lengths costs nothing.
///
/// # Shapes
/// - returns positions in `queue`, ascending; empty only if `queue` is empty
#[must_use]
pub fn pack(queue: &[Waiting], budget: Budget) -> Vec<usize> {
    let Some(oldest) = queue.first() else {
        return Vec::new();
    };
    let mut chosen = vec![0];
    let mut tokens_left = budget.max_tokens.saturating_sub(oldest.n_tokens);
    for seq_idx in by_response_ratio(queue, tokens_left) {
        if chosen.len() >= budget.max_seqs || tokens_left == 0 {
            break;
        }
        if let Some(left) = tokens_left.checked_sub(queue[seq_idx].n_tokens) {
            tokens_left = left;
            chosen.push(seq_idx);
        }
    }
    chosen.sort_unstable();
    chosen
}

/// Positions after the first whose sequence fits in `tokens_left` at all, best ratio first.
fn by_response_ratio(queue: &[Waiting], tokens_left: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (1..queue.len())
        .filter(|&seq_idx| queue[seq_idx].n_tokens <= tokens_left)
        .collect();
    // A stable sort: equal ratios stay in order of arrival.
    order.sort_by(|&a, &b| compare_ratio(&queue[b], &queue[a]));
    order
}

/// Compares `a.waited / a.n_tokens` with `b.waited / b.n_tokens`, without division.
fn compare_ratio(a: &Waiting, b: &Waiting) -> Ordering {
    let left = a.waited.as_micros().saturating_mul(b.n_tokens as u128);
    let right = b.waited.as_micros().saturating_mul(a.n_tokens as u128);
    left.cmp(&right)
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

    proptest! {
        #[test]
        fn every_batch_is_legal_and_takes_the_oldest(
            entries in prop::collection::vec((0usize..600, 0u64..1000), 1..200),
            max_tokens in 1usize..1000,
            max_seqs in 1usize..50,
        ) {
            let queue = queue(&entries);
            let chosen = pack(&queue, Budget { max_tokens, max_seqs });
            prop_assert_eq!(chosen[0], 0);
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
