//! Learning STL-FW topologies of ten neighbours: seconds, objective, and its ratio to that of the
//! dense exact oracle where that runs.
//!
//! `cargo bench -p moeshard-decentralized --bench topology_learning [-- WORD…]`; a line is measured
//! if its partition or number of nodes is among the words, every line without any.

use std::time::Instant;

use moeshard_decentralized::classes::ClassCounts;
use moeshard_decentralized::seed::rng;
use moeshard_decentralized::topology::Nodes;
use moeshard_decentralized::topology::stl_fw::{Learned, Oracle, StlFw};
use rand::seq::SliceRandom;
use rand_distr::{Distribution, Gamma};

const D_MAX: usize = 10;
const N_RUNS: usize = 3;

/// The dense oracle takes seconds beyond.
const MAX_DENSE_NODES: usize = 2_000;

/// Examples of each class: the first 50,000 of MNIST.
const EXAMPLES: [usize; 10] = [4932, 5678, 4968, 5101, 4859, 4506, 4951, 5175, 4842, 4988];

type Partition = fn(usize) -> ClassCounts;

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let is_asked_for = |word: &str| words.is_empty() || words.iter().any(|asked| asked == word);
    let partitions: [(&str, Partition); 3] = [
        ("one-class", one_class),
        ("two-shards", two_shards),
        ("dirichlet-0.1", dirichlet),
    ];
    println!("| n | partition | graph | seconds | objective | seconds, dense | ratio to dense |");
    println!("|---|---|---|---|---|---|---|");
    for (name, partition) in partitions {
        for n_nodes in [100, 500, 1_000, 2_000, 10_000] {
            if !is_asked_for(name) || !is_asked_for(&n_nodes.to_string()) {
                continue;
            }
            let classes = partition(n_nodes);
            for is_undirected in [false, true] {
                if !is_asked_for(if is_undirected {
                    "undirected"
                } else {
                    "directed"
                }) {
                    continue;
                }
                let rule = StlFw {
                    is_undirected,
                    ..StlFw::new(D_MAX)
                };
                measure(name, &rule, &classes);
            }
        }
    }
}

fn measure(partition: &str, rule: &StlFw, classes: &ClassCounts) {
    let n_nodes = classes.n_nodes();
    let graph = if rule.is_undirected {
        "undirected"
    } else {
        "directed"
    };
    let n_runs = if n_nodes > MAX_DENSE_NODES { 1 } else { N_RUNS };
    let (seconds, found) = best_of(n_runs, rule, classes);
    let objective = objective(&found);
    print!("| {n_nodes} | {partition} | {graph} | {seconds:.3} | {objective:.6} |");
    if n_nodes > MAX_DENSE_NODES {
        println!(" | |");
        return;
    }
    let dense = StlFw {
        oracle: Oracle::Dense,
        ..rule.clone()
    };
    let (seconds, reference) = best_of(1, &dense, classes);
    println!(
        " {seconds:.3} | {:.6} |",
        objective / self::objective(&reference)
    );
}

/// The fewest seconds of several runs, and what they learned.
fn best_of(n_runs: usize, rule: &StlFw, classes: &ClassCounts) -> (f64, Learned) {
    let nodes = Nodes {
        n_nodes: classes.n_nodes(),
        classes: Some(classes),
    };
    let runs = (0..n_runs).map(|_| {
        let start = Instant::now();
        let learned = rule.learn(&nodes, &mut rng(1, 0)).expect("learned");
        (start.elapsed().as_secs_f64(), learned)
    });
    runs.min_by(|a, b| a.0.total_cmp(&b.0)).expect("one run")
}

fn objective(learned: &Learned) -> f64 {
    learned.trace.last().expect("the identity").objective
}

fn one_class(n_nodes: usize) -> ClassCounts {
    let n_classes = EXAMPLES.len();
    let counts = (0..n_nodes * n_classes)
        .map(|at| u32::from(at / n_classes % n_classes == at % n_classes))
        .collect();
    ClassCounts::new(n_classes, counts)
}

/// Examples sorted by class and cut into two shards a node, of equal size up to one: some shards
/// lie across two classes.
fn two_shards(n_nodes: usize) -> ClassCounts {
    let n_classes = EXAMPLES.len();
    let labels: Vec<usize> = (0..n_classes).flat_map(|c| vec![c; EXAMPLES[c]]).collect();
    let cut = |shard: usize| shard * labels.len() / (2 * n_nodes);
    let mut shards: Vec<usize> = (0..2 * n_nodes).collect();
    shards.shuffle(&mut rng(1, 1));
    let mut counts = vec![0; n_nodes * n_classes];
    for (at, &shard) in shards.iter().enumerate() {
        for &label in &labels[cut(shard)..cut(shard + 1)] {
            counts[at / 2 * n_classes + label] += 1;
        }
    }
    ClassCounts::new(n_classes, counts)
}

/// 1,000 examples a node, by shares drawn from Dirichlet(0.1).
fn dirichlet(n_nodes: usize) -> ClassCounts {
    let n_classes = EXAMPLES.len();
    let gamma = Gamma::new(0.1, 1.0).expect("a distribution");
    let mut rng = rng(1, 2);
    let mut counts = Vec::new();
    for _ in 0..n_nodes {
        let draws: Vec<f64> = (0..n_classes).map(|_| gamma.sample(&mut rng)).collect();
        let total: f64 = draws.iter().sum();
        counts.extend(
            draws
                .iter()
                .map(|draw| (1000.0 * draw / total).round() as u32),
        );
    }
    ClassCounts::new(n_classes, counts)
}
