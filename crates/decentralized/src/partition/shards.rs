//! Shards of examples sorted by label.

use rand::seq::SliceRandom;

use super::{Labels, Partition, PartitionError, Partitioner, check_sizes, even_part};
use crate::seed::Rng;

/// Examples are sorted by label, cut into `n_nodes · k` shards, and `k` shards go to each node at
/// random: a node holds few classes, about `k`.
///
/// The sort is stable, so shards follow from the order of the data; only who gets which is random.
/// Shards are equal where their number divides that of the examples, else they differ by one, and no
/// example is left over.
///
/// # Source
/// McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
/// arXiv:1602.05629, section 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    /// Shards of a node.
    pub k: usize,
}

impl Partitioner for Shards {
    fn name(&self) -> String {
        format!("shards:k={}", self.k)
    }

    fn partition(
        &self,
        labels: &Labels<'_>,
        n_nodes: usize,
        rng: &mut Rng,
    ) -> Result<Partition, PartitionError> {
        check_sizes(self, labels, n_nodes)?;
        let n_examples = labels.labels.len();
        let n_shards = self.n_shards(n_nodes, n_examples)?;
        let examples = labels.by_class().concat();
        let mut shards: Vec<usize> = (0..n_shards).collect();
        shards.shuffle(rng);
        let shard = |&shard: &usize| &examples[even_part(n_examples, n_shards, shard)];
        let node = |shards: &[usize]| shards.iter().flat_map(shard).copied().collect();
        Ok(Partition {
            nodes: shards.chunks(self.k).map(node).collect(),
        })
    }
}

impl Shards {
    fn n_shards(&self, n_nodes: usize, n_examples: usize) -> Result<usize, PartitionError> {
        let n_shards = n_nodes.checked_mul(self.k);
        let n_shards = n_shards.filter(|n_shards| (1..=n_examples).contains(n_shards));
        n_shards.ok_or_else(|| PartitionError::Parameter {
            rule: self.name(),
            parameter: "k",
            expected: format!(
                "1 to {}, so that each of {n_nodes} nodes' shards has one of {n_examples} examples",
                n_examples / n_nodes
            ),
            got: self.k.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks;
    use super::*;

    #[test]
    fn every_example_goes_to_one_node() {
        checks::every_example_once(&Shards { k: 1 });
        checks::every_example_once(&Shards { k: 3 });
    }

    // The setup of the reference's table C.
    #[test]
    fn two_shards_of_250_a_node() {
        let labels = checks::skewed_labels(50_000, 10);
        let rule = Shards { k: 2 };
        let partition = checks::partition(&rule, &labels, 10, 100, 1).expect("fits");
        assert!(partition.nodes.iter().all(|node| node.len() == 500));
        let mut sorted: Vec<u32> = (0..50_000).collect();
        sorted.sort_by_key(|&example| (labels[example as usize], example));
        let shards: std::collections::BTreeSet<&[u32]> = sorted.chunks(250).collect();
        for shard in partition.nodes.iter().flat_map(|node| node.chunks(250)) {
            assert!(shards.contains(shard), "not a run of the sorted examples");
        }
        let counts = partition.class_counts(&labels, 10);
        let n_classes = |node: usize| counts.node(node).iter().filter(|&&n| n > 0).count();
        // A shard of 250 lies within one class or across the border of two.
        assert!((0..100).all(|node| (1..=4).contains(&n_classes(node))));
        let mean = (0..100).map(n_classes).sum::<usize>() as f64 / 100.0;
        assert!((1.7..2.3).contains(&mean), "{mean} classes a node");
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        let check = |k: usize, n_nodes: usize, expect: &str| {
            let labels = checks::skewed_labels(20, 2);
            let error = checks::partition(&Shards { k }, &labels, 2, n_nodes, 1);
            assert_eq!(error.expect_err("refused").to_string(), expect);
        };
        let expected = "so that each of 10 nodes' shards has one of 20 examples";
        check(
            0,
            10,
            &format!("shards:k=0: k is 0, expected 1 to 2, {expected}"),
        );
        check(
            3,
            10,
            &format!("shards:k=3: k is 3, expected 1 to 2, {expected}"),
        );
        check(
            1,
            21,
            "shards:k=1: the number of nodes is 21, expected 1 to 20, the number of examples",
        );
        let labels = checks::skewed_labels(20, 2);
        let huge = Shards { k: usize::MAX };
        assert!(checks::partition(&huge, &labels, 2, 10, 1).is_err());
    }
}
