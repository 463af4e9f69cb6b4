//! What every rule must satisfy, on random data.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::{Labels, Partition, PartitionError, Partitioner};
use crate::seed;

/// Labels in no order; class `c` is about `c + 1` times as frequent as class 0.
pub(super) fn skewed_labels(n_examples: usize, n_classes: usize) -> Vec<u32> {
    let weights = n_classes * (n_classes + 1) / 2;
    let label = |i: usize| {
        let mut at = (i * 7919 + i / 13) % weights;
        let mut class = 0;
        while at > class {
            at -= class + 1;
            class += 1;
        }
        class as u32
    };
    (0..n_examples).map(label).collect()
}

pub(super) fn partition(
    rule: &dyn Partitioner,
    labels: &[u32],
    n_classes: usize,
    n_nodes: usize,
    seed: u64,
) -> Result<Partition, PartitionError> {
    let labels = Labels { labels, n_classes };
    rule.partition(&labels, n_nodes, &mut seed::rng(seed, 0))
}

/// Wherever the rule fits: no example twice, none beyond the data, no empty node, counts that add up,
/// the same from the same seed, another from another.
pub(super) fn sound(rule: &dyn Partitioner) {
    let cases = (2usize..8, 1usize..30, 1usize..40, any::<u64>());
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let n_fits = Cell::new(0);
    let run = runner.run(&cases, |(n_classes, n_nodes, per_node, seed)| {
        let labels = skewed_labels(n_nodes * per_node + per_node / 2, n_classes);
        let again = partition(rule, &labels, n_classes, n_nodes, seed);
        let Ok(made) = partition(rule, &labels, n_classes, n_nodes, seed) else {
            prop_assert!(again.is_err());
            return Ok(());
        };
        n_fits.set(n_fits.get() + 1);
        prop_assert_eq!(&made, &again.expect("as before"));
        prop_assert_eq!(made.n_nodes(), n_nodes);
        prop_assert!(made.nodes.iter().all(|node| !node.is_empty()));
        let mut all = made.nodes.concat();
        all.sort_unstable();
        prop_assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "twice");
        prop_assert!(all.iter().all(|&example| (example as usize) < labels.len()));
        let counts = made.class_counts(&labels, n_classes);
        for (node, examples) in made.nodes.iter().enumerate() {
            for class in 0..n_classes as u32 {
                let held = examples.iter().filter(|&&e| labels[e as usize] == class);
                prop_assert_eq!(counts.node(node)[class as usize] as usize, held.count());
            }
        }
        Ok(())
    });
    run.expect("a sound partition");
    assert!(
        n_fits.get() >= 5,
        "{} fitted {} times",
        rule.name(),
        n_fits.get()
    );
}

/// Sound, and no example is left over.
pub(super) fn every_example_once(rule: &dyn Partitioner) {
    sound(rule);
    for (n_examples, n_nodes) in [(300, 100), (307, 100), (1000, 7)] {
        let labels = skewed_labels(n_examples, 10);
        let made = partition(rule, &labels, 10, n_nodes, 3).expect("fits");
        assert_eq!(made.n_examples(), n_examples);
        assert_ne!(
            made,
            partition(rule, &labels, 10, n_nodes, 4).expect("fits")
        );
    }
}
