//! One class a node.

use rand::seq::SliceRandom;

use super::{Labels, Partition, PartitionError, Partitioner, check_sizes};
use crate::seed::Rng;

/// A node holds examples of one class: the hardest case.
///
/// Nodes are dealt to classes evenly (if there is no whole number for each, the first classes have one
/// more), and which node has which class is random. All hold the same number of examples, as many as
/// the scarcest class allows, drawn at random from those of their class; others are left over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OneClass;

impl Partitioner for OneClass {
    fn name(&self) -> String {
        "one-class".into()
    }

    fn partition(
        &self,
        labels: &Labels<'_>,
        n_nodes: usize,
        rng: &mut Rng,
    ) -> Result<Partition, PartitionError> {
        check_sizes(self, labels, n_nodes)?;
        let n_classes = labels.n_classes;
        if n_nodes < n_classes {
            // Some class would be on no node, and could not be learned.
            return Err(PartitionError::Parameter {
                rule: self.name(),
                parameter: "the number of nodes",
                expected: format!("at least {n_classes}, the number of classes"),
                got: n_nodes.to_string(),
            });
        }
        let mut classes: Vec<usize> = (0..n_nodes).map(|node| node % n_classes).collect();
        classes.shuffle(rng);
        let mut examples = labels.by_class();
        for examples in &mut examples {
            examples.shuffle(rng);
        }
        let n_each = self.n_each(&examples, &classes)?;
        let mut n_taken = vec![0; n_classes];
        let node = |&class: &usize| {
            let start = n_taken[class];
            n_taken[class] += n_each;
            examples[class][start..][..n_each].to_vec()
        };
        Ok(Partition {
            nodes: classes.iter().map(node).collect(),
        })
    }
}

impl OneClass {
    /// Examples of a node, where class `c` has `examples[c]` and node `i` is of class `classes[i]`.
    fn n_each(&self, examples: &[Vec<u32>], classes: &[usize]) -> Result<usize, PartitionError> {
        let mut n_nodes = vec![0; examples.len()];
        for &class in classes {
            n_nodes[class] += 1;
        }
        let n_each = |class: usize| examples[class].len() / n_nodes[class];
        for (node, &class) in classes.iter().enumerate() {
            if n_each(class) == 0 {
                let (n_examples, n_nodes) = (examples[class].len(), n_nodes[class]);
                return Err(PartitionError::EmptyNode {
                    rule: self.name(),
                    node,
                    remedy: format!(
                        "class {class} has {n_examples} examples for {n_nodes} nodes, take fewer \
                         nodes or more examples"
                    ),
                });
            }
        }
        Ok((0..examples.len()).map(n_each).min().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks;
    use super::*;

    #[test]
    fn no_example_is_given_twice() {
        checks::sound(&OneClass);
    }

    // The setup of the reference's table D: the scarcest of ten classes has 4,506 examples.
    #[test]
    fn ten_nodes_a_class_of_450_examples_each() {
        let sizes = [4932, 5678, 4968, 5101, 4859, 4506, 4951, 5175, 4842, 4988];
        let classes = sizes
            .iter()
            .zip(0u32..)
            .map(|(&size, class)| vec![class; size]);
        let labels = classes.collect::<Vec<_>>().concat();
        let partition = checks::partition(&OneClass, &labels, 10, 100, 1).expect("fits");
        assert_eq!(partition.n_examples(), 45_000);
        let counts = partition.class_counts(&labels, 10);
        let mut nodes_of = [0; 10];
        for node in 0..100 {
            let class = labels[partition.nodes[node][0] as usize] as usize;
            nodes_of[class] += 1;
            assert_eq!(counts.node(node)[class], 450);
            assert_eq!(counts.node(node).iter().sum::<u32>(), 450);
        }
        assert_eq!(nodes_of, [10; 10]);
    }

    #[test]
    fn where_classes_do_not_divide_nodes_some_have_one_more() {
        let labels: Vec<u32> = (0..300).map(|i| i % 3).collect();
        let partition = checks::partition(&OneClass, &labels, 3, 8, 1).expect("fits");
        // 3, 3 and 2 nodes; ⌊100 / 3⌋ examples each.
        assert!(partition.nodes.iter().all(|node| node.len() == 33));
        let class = |node: &Vec<u32>| labels[node[0] as usize];
        let of_last = partition.nodes.iter().filter(|node| class(node) == 2);
        assert_eq!(of_last.count(), 2);
    }

    #[test]
    fn a_class_needs_a_node_and_a_node_an_example() {
        let labels: Vec<u32> = (0..300).map(|i| i % 3).collect();
        let error = checks::partition(&OneClass, &labels, 3, 2, 1).expect_err("too few");
        assert_eq!(
            error.to_string(),
            "one-class: the number of nodes is 2, expected at least 3, the number of classes"
        );
        let labels = [0, 0, 0, 0, 1];
        let error = checks::partition(&OneClass, &labels, 2, 4, 1).expect_err("too many");
        let text = error.to_string();
        let (node, remedy) = text.split_once(" gets no example: ").expect("a node");
        assert!(node.starts_with("one-class: node "), "{text}");
        assert_eq!(
            remedy,
            "class 1 has 1 examples for 2 nodes, take fewer nodes or more examples"
        );
    }
}
