//! How far the classes of a node are from those of all.

use crate::classes::ClassCounts;

/// Label skew of each node.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelSkew {
    /// `[n_nodes]`: classes of which a node has an example.
    pub n_classes: Vec<usize>,
    /// `[n_nodes]`: `Σ_l |p_i(l) − p(l)|` of class proportions `p_i` on node `i` and `p` over all nodes;
    /// 0 is none, 2 the most.
    ///
    /// # Source
    /// D-Cliques, arXiv:2104.07365, whose skew of a clique this is for a clique of one.
    pub skew: Vec<f64>,
}

impl LabelSkew {
    /// The skew of each node against all of them together.
    #[must_use]
    pub fn new(counts: &ClassCounts) -> Self {
        let nodes = 0..counts.n_nodes();
        let global = counts.proportions_of(nodes.clone());
        let n_classes = |node| counts.node(node).iter().filter(|&&count| count > 0).count();
        let skew = |node| {
            let pairs = counts.proportions(node).into_iter().zip(&global);
            pairs.map(|(own, all)| (own - all).abs()).sum()
        };
        Self {
            n_classes: nodes.clone().map(n_classes).collect(),
            skew: nodes.map(skew).collect(),
        }
    }

    /// Classes a node, on average; 0 without nodes.
    #[must_use]
    pub fn mean_classes(&self) -> f64 {
        mean(self.n_classes.iter().map(|&n| n as f64))
    }

    /// Skew of a node, on average; 0 without nodes.
    #[must_use]
    pub fn mean(&self) -> f64 {
        mean(self.skew.iter().copied())
    }

    /// Skew of the worst node; 0 without nodes.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.skew.iter().copied().fold(0.0, f64::max)
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len().max(1) as f64;
    values.sum::<f64>() / n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skew_is_the_distance_of_proportions() {
        // All: (1/2, 1/4, 1/4).
        let counts = ClassCounts::new(3, vec![4, 0, 0, 0, 2, 2, 2, 1, 1]);
        let skew = LabelSkew::new(&counts);
        assert_eq!(skew.n_classes, [1, 2, 3]);
        assert_eq!(skew.skew, [1.0, 1.0, 0.0]);
        assert_eq!((skew.mean_classes(), skew.max()), (2.0, 1.0));
        assert!((skew.mean() - 2.0 / 3.0).abs() < 1e-15);
    }

    // One class of K on each node: 1 − 1/K too much of it, (K − 1)/K too little of the others.
    #[test]
    fn one_class_a_node_is_the_most_skewed() {
        let identity = (0..100).map(|i| if i % 11 == 0 { 7 } else { 0 }).collect();
        let skew = LabelSkew::new(&ClassCounts::new(10, identity));
        assert!((skew.mean() - 1.8).abs() < 1e-12 && (skew.max() - 1.8).abs() < 1e-12);
        let none = LabelSkew::new(&ClassCounts::new(10, Vec::new()));
        assert_eq!(
            (none.mean(), none.max(), none.mean_classes()),
            (0.0, 0.0, 0.0)
        );
    }
}
