//! Mini-batches: the order in which a node goes through its examples.

use std::num::NonZeroUsize;
use std::slice::Chunks;

use rand::seq::SliceRandom;

use crate::seed;

/// Streams of this half of a seed are those of batches, one for each node and epoch.
const STREAMS: u64 = 1 << 63;

/// The mini-batches of one node: in every epoch its examples in another order, cut into batches, the
/// last of which may be smaller. Every example is used once an epoch.
///
/// The order of an epoch follows from seed, node and epoch alone, so a resumed run goes on with the
/// batches that it would have had.
#[derive(Clone, Debug)]
pub struct Batches {
    /// The node's part of the partition.
    examples: Vec<u32>,
    /// The same in the order of the epoch last begun.
    order: Vec<u32>,
    batch_size: NonZeroUsize,
    seed: u64,
    node: u32,
}

impl Batches {
    /// The batches of `node`, which holds `examples`. Before [`start_epoch`](Self::start_epoch) they
    /// come in the order given.
    #[must_use]
    pub fn new(examples: Vec<u32>, batch_size: NonZeroUsize, seed: u64, node: u32) -> Self {
        Self {
            order: examples.clone(),
            examples,
            batch_size,
            seed,
            node,
        }
    }

    /// Shuffles the node's examples for an epoch. Allocates nothing.
    pub fn start_epoch(&mut self, epoch: u32) {
        // From the partition's order each time: that of the epoch before may not have been made.
        self.order.copy_from_slice(&self.examples);
        let mut rng = seed::rng(self.seed, stream(self.node, epoch));
        self.order.shuffle(&mut rng);
    }

    /// The batches of the epoch, indices into the data set.
    pub fn iter(&self) -> Chunks<'_, u32> {
        self.order.chunks(self.batch_size.get())
    }

    /// One batch of the epoch; empty after the last.
    #[must_use]
    pub fn batch(&self, batch_idx: usize) -> &[u32] {
        let start = batch_idx.saturating_mul(self.batch_size.get());
        let rest = self.order.get(start..).unwrap_or_default();
        &rest[..rest.len().min(self.batch_size.get())]
    }

    /// Batches of an epoch.
    #[must_use]
    pub fn n_batches(&self) -> usize {
        self.examples.len().div_ceil(self.batch_size.get())
    }

    /// Examples of the node.
    #[must_use]
    pub fn n_examples(&self) -> usize {
        self.examples.len()
    }
}

impl<'a> IntoIterator for &'a Batches {
    type Item = &'a [u32];
    type IntoIter = Chunks<'a, u32>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// No two pairs share one: a node is below 2³¹.
fn stream(node: u32, epoch: u32) -> u64 {
    assert!(node < 1 << 31, "node {node}");
    STREAMS | u64::from(node) << 32 | u64::from(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(n_examples: u32, batch_size: usize, node: u32) -> Batches {
        let size = NonZeroUsize::new(batch_size).expect("not zero");
        Batches::new((100..100 + n_examples).collect(), size, 7, node)
    }

    #[test]
    fn every_example_is_used_once_an_epoch() {
        for (n_examples, batch_size, sizes) in [
            (500, 128, vec![128, 128, 128, 116]),
            (6, 3, vec![3, 3]),
            (2, 128, vec![2]),
            (1, 1, vec![1]),
            (0, 5, vec![]),
        ] {
            let mut batches = batches(n_examples, batch_size, 0);
            for epoch in 0..3 {
                batches.start_epoch(epoch);
                let found: Vec<usize> = batches.iter().map(<[u32]>::len).collect();
                assert_eq!(found, sizes);
                assert_eq!(batches.n_batches(), sizes.len());
                let mut all: Vec<u32> = batches.iter().flatten().copied().collect();
                all.sort_unstable();
                assert!(all.into_iter().eq(100..100 + n_examples));
                for (i, batch) in batches.iter().enumerate() {
                    assert_eq!(batches.batch(i), batch);
                }
                assert!(batches.batch(sizes.len()).is_empty());
                assert!(batches.batch(usize::MAX).is_empty());
            }
        }
    }

    #[test]
    fn an_epoch_follows_from_seed_node_and_epoch_alone() {
        let mut run = batches(50, 8, 3);
        let orders: Vec<Vec<u32>> = (0..4)
            .map(|epoch| {
                run.start_epoch(epoch);
                run.iter().flatten().copied().collect()
            })
            .collect();
        let mut resumed = batches(50, 8, 3);
        resumed.start_epoch(2);
        assert!(resumed.iter().flatten().eq(&orders[2]));
        let mut other_node = batches(50, 8, 2);
        other_node.start_epoch(3);
        assert!(!other_node.iter().flatten().eq(&orders[2]));
        assert!(!other_node.iter().flatten().eq(&orders[3]));
        assert!((0..3).all(|epoch| orders[epoch] != orders[epoch + 1]));
    }

    // A run begun by one version is gone on with by the next only while these numbers stay.
    #[test]
    fn the_order_is_as_it_was() {
        let mut batches = batches(10, 4, 3);
        batches.start_epoch(2);
        let order: Vec<u32> = batches.iter().flatten().copied().collect();
        assert_eq!(order, [102, 108, 101, 109, 100, 106, 103, 105, 104, 107]);
    }

    #[test]
    fn every_place_is_equally_likely() {
        let mut batches = batches(5, 5, 0);
        let mut counts = [[0u32; 5]; 5];
        for epoch in 0..10_000 {
            batches.start_epoch(epoch);
            for (place, &example) in batches.batch(0).iter().enumerate() {
                counts[place][example as usize - 100] += 1;
            }
        }
        // Binomial of mean 2000 and deviation 40.
        let counts = counts.as_flattened();
        assert!(
            counts.iter().all(|count| (1800..2200).contains(count)),
            "{counts:?}"
        );
    }
}
