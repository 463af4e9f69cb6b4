//! Examples at random.

use rand::seq::SliceRandom;

use super::{Labels, Partition, PartitionError, Partitioner, check_sizes, even_part};
use crate::seed::Rng;

/// Every node holds a sample of all classes: examples are shuffled and dealt out, to nodes whose sizes
/// differ by at most one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iid;

impl Partitioner for Iid {
    fn name(&self) -> String {
        "iid".into()
    }

    fn partition(
        &self,
        labels: &Labels<'_>,
        n_nodes: usize,
        rng: &mut Rng,
    ) -> Result<Partition, PartitionError> {
        check_sizes(self, labels, n_nodes)?;
        let n_examples = labels.labels.len();
        let mut examples: Vec<u32> = (0..n_examples as u32).collect();
        examples.shuffle(rng);
        let part = |node| examples[even_part(n_examples, n_nodes, node)].to_vec();
        Ok(Partition {
            nodes: (0..n_nodes).map(part).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks;
    use super::*;

    #[test]
    fn nodes_are_even_and_take_every_example() {
        checks::every_example_once(&Iid);
        let labels = checks::skewed_labels(5003, 10);
        let partition = checks::partition(&Iid, &labels, 10, 100, 1).expect("fits");
        let sizes = partition.nodes.iter().map(Vec::len);
        assert!(sizes.clone().all(|size| size == 50 || size == 51));
        assert_eq!(sizes.filter(|&size| size == 51).count(), 3);
    }

    #[test]
    fn nodes_hold_classes_as_the_whole_does() {
        let labels: Vec<u32> = (0..20_000).map(|i| i / 2000).collect();
        let partition = checks::partition(&Iid, &labels, 10, 4, 1).expect("fits");
        let counts = partition.class_counts(&labels, 10);
        for node in 0..4 {
            for &count in counts.node(node) {
                // Hypergeometric of mean 500 and deviation 18.4.
                assert!((400..600).contains(&count), "{count}");
            }
        }
    }

    #[test]
    fn there_are_no_more_nodes_than_examples() {
        let error = checks::partition(&Iid, &[0, 1], 2, 3, 1).expect_err("too many");
        assert_eq!(
            error.to_string(),
            "iid: the number of nodes is 3, expected 1 to 2, the number of examples"
        );
        assert!(checks::partition(&Iid, &[0, 1], 2, 0, 1).is_err());
        assert!(checks::partition(&Iid, &[], 2, 1, 1).is_err());
    }
}
