//! Which rank runs which sequence.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Deals whole sequences out to ranks so that token counts are even: longest first, each to the
/// rank with the fewest tokens. Returns each rank's sequences in the order of the batch.
///
/// The largest rank is at most 4/3 of the best possible (Graham, 1969).
pub fn place(lengths: &[usize], world_size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&seq| Reverse(lengths[seq]));
    let mut ranks: BinaryHeap<_> = (0..world_size)
        .map(|rank| Reverse((0_usize, rank)))
        .collect();
    let mut placed = vec![Vec::new(); world_size];
    for seq in order {
        let Some(Reverse((n_tokens, rank))) = ranks.pop() else {
            break;
        };
        placed[rank].push(seq);
        ranks.push(Reverse((n_tokens + lengths[seq], rank)));
    }
    placed.iter_mut().for_each(|seqs| seqs.sort_unstable());
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(lengths: &[usize], seqs: &[usize]) -> usize {
        seqs.iter().map(|&s| lengths[s]).sum()
    }

    #[test]
    fn every_sequence_has_one_rank_and_ranks_are_even() {
        let lengths = [512, 3, 4, 100, 100, 100, 100, 100, 7, 1];
        for world_size in 1..=5 {
            let placed = place(&lengths, world_size);
            let mut all: Vec<_> = placed.concat();
            all.sort_unstable();
            assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            let most = placed.iter().map(|s| tokens(&lengths, s)).max().unwrap();
            let total: usize = lengths.iter().sum();
            let floor = total.div_ceil(world_size).max(512);
            assert!(
                3 * most <= 4 * floor,
                "{most} of {total} on one of {world_size} ranks"
            );
        }
    }

    #[test]
    fn fewer_sequences_than_ranks_leave_ranks_empty() {
        assert_eq!(place(&[5], 3), [vec![0], vec![], vec![]]);
        assert_eq!(place(&[], 2), [Vec::<usize>::new(), vec![]]);
    }
}
