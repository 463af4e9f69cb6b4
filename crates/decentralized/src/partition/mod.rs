//! Which node holds which examples.
//!
//! A [`Partitioner`] is a rule, written like `shards:k=2` ([`parse`]); from the labels of a data set
//! and a seed it makes a [`Partition`].
//!
//! - [`Iid`]: at random.
//! - [`Shards`]: examples sorted by label, cut into shards, `k` of them a node.
//! - [`OneClass`]: examples of one class a node.
//! - [`Dirichlet`]: classes in random proportions, more or less alike.
//! - [`ByFile`]: as a file says.
//!
//! [`crate::measures::LabelSkew`] says how far nodes are from one another.

use std::fmt::Debug;

use crate::classes::ClassCounts;
use crate::seed::Rng;

mod by_file;
mod dirichlet;
mod error;
mod iid;
mod one_class;
mod parse;
mod shards;

pub use by_file::ByFile;
pub use dirichlet::{Dirichlet, Sizes};
pub use error::PartitionError;
pub use iid::Iid;
pub use one_class::OneClass;
pub use parse::parse;
pub use shards::Shards;

/// The labels that are divided.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// `[n_examples]`, each below `n_classes`.
    pub labels: &'a [u32],
    /// Number of classes.
    pub n_classes: usize,
}

impl Labels<'_> {
    /// The examples of each class, ascending.
    fn by_class(&self) -> Vec<Vec<u32>> {
        let mut classes = vec![Vec::new(); self.n_classes];
        for (example, &label) in self.labels.iter().enumerate() {
            classes[label as usize].push(example as u32);
        }
        classes
    }
}

/// A rule by which examples are divided over nodes.
pub trait Partitioner: Debug + Send + Sync {
    /// How it is written on the command line, with its parameters.
    fn name(&self) -> String;

    /// Divides the examples over `n_nodes`; random choices are drawn from `rng`. No example goes to
    /// two nodes; a rule may leave some over.
    ///
    /// # Errors
    /// If a parameter does not fit the data, or a node is left without examples.
    fn partition(
        &self,
        labels: &Labels<'_>,
        n_nodes: usize,
        rng: &mut Rng,
    ) -> Result<Partition, PartitionError>;
}

/// The examples of each node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Indices into the data set, node by node.
    pub nodes: Vec<Vec<u32>>,
}

impl Partition {
    /// Number of nodes.
    #[must_use]
    pub fn n_nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Number of examples of all nodes.
    #[must_use]
    pub fn n_examples(&self) -> usize {
        self.nodes.iter().map(Vec::len).sum()
    }

    /// Examples of each class on each node.
    ///
    /// # Panics
    /// If an example or its label is beyond `labels` or `n_classes`.
    #[must_use]
    pub fn class_counts(&self, labels: &[u32], n_classes: usize) -> ClassCounts {
        let mut counts = vec![0; self.n_nodes() * n_classes];
        for (examples, counts) in self.nodes.iter().zip(counts.chunks_mut(n_classes)) {
            for &example in examples {
                counts[labels[example as usize] as usize] += 1;
            }
        }
        ClassCounts::new(n_classes, counts)
    }
}

/// The partition, unless a node of it is empty; `remedy` says what would help.
fn without_empty_nodes(
    rule: &dyn Partitioner,
    nodes: Vec<Vec<u32>>,
    remedy: impl FnOnce() -> String,
) -> Result<Partition, PartitionError> {
    match nodes.iter().position(Vec::is_empty) {
        None => Ok(Partition { nodes }),
        Some(node) => Err(PartitionError::EmptyNode {
            rule: rule.name(),
            node,
            remedy: remedy(),
        }),
    }
}

/// Every rule needs a node, and an example for each.
fn check_sizes(
    rule: &dyn Partitioner,
    labels: &Labels<'_>,
    n_nodes: usize,
) -> Result<(), PartitionError> {
    let n_examples = labels.labels.len();
    match (1..=n_examples).contains(&n_nodes) {
        true => Ok(()),
        false => Err(PartitionError::Parameter {
            rule: rule.name(),
            parameter: "the number of nodes",
            expected: format!("1 to {n_examples}, the number of examples"),
            got: n_nodes.to_string(),
        }),
    }
}

/// `n_items` cut into `n_parts` runs whose lengths differ by at most one.
fn even_part(n_items: usize, n_parts: usize, part: usize) -> std::ops::Range<usize> {
    let start = |part: usize| (part as u128 * n_items as u128 / n_parts as u128) as usize;
    start(part)..start(part + 1)
}

#[cfg(test)]
mod checks;
