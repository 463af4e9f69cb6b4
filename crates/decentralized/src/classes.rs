//! How many examples of each class each node holds: all that a topology may know of the data.

/// Examples of each class on each node, `[n_nodes, n_classes]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassCounts {
    n_classes: usize,
    counts: Vec<u32>,
}

impl ClassCounts {
    /// Wraps `counts`, row by row.
    ///
    /// # Panics
    /// If `counts` is not a whole number of rows, or `n_classes` is zero.
    #[must_use]
    pub fn new(n_classes: usize, counts: Vec<u32>) -> Self {
        assert!(n_classes > 0, "no classes");
        assert_eq!(counts.len() % n_classes, 0, "rows of class counts");
        Self { n_classes, counts }
    }

    /// Number of nodes.
    #[must_use]
    pub fn n_nodes(&self) -> usize {
        self.counts.len() / self.n_classes
    }

    /// Number of classes.
    #[must_use]
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// Examples of each class on one node.
    #[must_use]
    pub fn node(&self, node: usize) -> &[u32] {
        &self.counts[node * self.n_classes..][..self.n_classes]
    }

    /// Share of each class among the examples of one node: its row of Π. All zero without examples.
    #[must_use]
    pub fn proportions(&self, node: usize) -> Vec<f64> {
        shares(self.node(node).iter().map(|&count| u64::from(count)))
    }

    /// Share of each class among the examples of `nodes` together.
    #[must_use]
    pub fn proportions_of(&self, nodes: impl IntoIterator<Item = usize>) -> Vec<f64> {
        let mut sums = vec![0u64; self.n_classes];
        for node in nodes {
            for (sum, &count) in sums.iter_mut().zip(self.node(node)) {
                *sum += u64::from(count);
            }
        }
        shares(sums.into_iter())
    }
}

fn shares(counts: impl Iterator<Item = u64> + Clone) -> Vec<f64> {
    let total = counts.clone().sum::<u64>().max(1) as f64;
    counts.map(|count| count as f64 / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proportions_are_shares_of_examples() {
        let counts = ClassCounts::new(2, vec![1, 3, 4, 0, 0, 0]);
        assert_eq!(counts.n_nodes(), 3);
        assert_eq!(counts.proportions(0), [0.25, 0.75]);
        assert_eq!(counts.proportions(2), [0.0, 0.0]);
        assert_eq!(counts.proportions_of([0, 1]), [0.625, 0.375]);
    }
}
