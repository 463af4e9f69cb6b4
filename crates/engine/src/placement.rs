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

/// Micro-batches of a batch whose exchanges one another's compute is to hide.
const N_MICRO: usize = 2;

/// Each rank's sequences of each micro-batch, the same number of micro-batches on every rank: two if `splits` and there is
/// enough for a second one, one otherwise.
///
/// Every rank's part is split evenly, so that all ranks are as busy in each as in all.
pub fn micro_batches(
    lengths: &[usize],
    placed: Vec<Vec<usize>>,
    splits: bool,
) -> Vec<Vec<Vec<usize>>> {
    let whole = |placed: Vec<Vec<usize>>| placed.into_iter().map(|seqs| vec![seqs]).collect();
    if !splits {
        return whole(placed);
    }
    let halves = |seqs: &Vec<usize>| -> Vec<Vec<usize>> {
        let of_rank: Vec<_> = seqs.iter().map(|&seq| lengths[seq]).collect();
        let to_batch = |half: Vec<usize>| half.into_iter().map(|i| seqs[i]).collect();
        let halves = place(&of_rank, N_MICRO);
        halves.into_iter().map(to_batch).collect()
    };
    let split: Vec<_> = placed.iter().map(halves).collect();
    // A rank's one long sequence is in the first: too many of these, and the second is not worth its launches.
    let n_tokens = |seqs: &[usize]| -> usize { seqs.iter().map(|&seq| lengths[seq]).sum() };
    let n_second: usize = split.iter().map(|halves| n_tokens(&halves[1])).sum();
    match 3 * n_second >= lengths.iter().sum() {
        true => split,
        false => whole(placed),
    }
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

    #[test]
    fn micro_batches_are_even_on_every_rank() {
        let lengths: Vec<usize> = (0..40).map(|i| 20 + i * 7 % 90).collect();
        for world_size in 1..=4 {
            let placed = place(&lengths, world_size);
            let split = micro_batches(&lengths, placed.clone(), true);
            for (halves, seqs) in split.iter().zip(&placed) {
                assert_eq!(halves.len(), 2);
                let mut all = halves.concat();
                all.sort_unstable();
                assert_eq!(&all, seqs);
                let [first, second] = [0, 1].map(|i| tokens(&lengths, &halves[i]));
                assert!(first.abs_diff(second) <= 110, "{first} and {second}");
            }
            let whole = micro_batches(&lengths, placed.clone(), false);
            assert_eq!(whole.concat(), placed);
        }
    }

    #[test]
    fn one_long_sequence_a_rank_is_not_split() {
        let lengths = [500, 500, 10];
        let placed = place(&lengths, 2);
        let whole = micro_batches(&lengths, placed.clone(), true);
        assert_eq!(whole.concat(), placed);
        assert_eq!(micro_batches(&[], vec![vec![], vec![]], true)[0].len(), 2);
    }
}
