//! Learning STL-FW topologies of ten neighbours: seconds, objective, and its ratio to that of the
//! dense exact oracle where that runs. Cliques of ten by Greedy Swap: seconds, mean skew, and its ratio
//! to that after ten times the steps.
//!
//! `cargo bench -p moeshard-decentralized --bench topology_learning [-- WORD…]`, with words such as
//! `directed two-shards 1000`: of graphs, partitions and numbers of nodes those that are named are
//! measured, all of a kind if none of it is.

use std::time::Instant;

use moeshard_decentralized::classes::ClassCounts;
use moeshard_decentralized::measures::LabelSkew;
use moeshard_decentralized::seed::rng;
use moeshard_decentralized::topology::d_cliques::default_steps;
use moeshard_decentralized::topology::stl_fw::{Oracle, StlFw};
use moeshard_decentralized::topology::{DCliques, InterClique, Nodes, Topology};
use rand::seq::SliceRandom;
use rand_distr::{Distribution, Gamma};

const D_MAX: usize = 10;

/// The dense oracle takes minutes beyond.
const MAX_DENSE_NODES: usize = 2_000;

/// Examples of each class: the first 50,000 of MNIST.
const EXAMPLES: [usize; 10] = [4932, 5678, 4968, 5101, 4859, 4506, 4951, 5175, 4842, 4988];

/// Words that name a graph, a partition, a number of nodes.
const KINDS: [&[&str]; 3] = [
    &["directed", "undirected", "d-cliques"],
    &["one-class", "two-shards", "dirichlet-0.1"],
    &["100", "500", "1000", "2000", "10000"],
];

type Partition = fn(usize) -> ClassCounts;

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let is_asked_for = |word: &str| is_asked_for(&words, word);
    let partitions: [(&str, Partition); 3] = [
        ("one-class", one_class),
        ("two-shards", two_shards),
        ("dirichlet-0.1", dirichlet),
    ];
    println!(
        "| n | partition | graph | seeds | seconds | objective | seconds, dense | ratio to dense |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (name, partition) in partitions {
        for n_nodes in [100, 500, 1_000, 2_000, 10_000] {
            if !is_asked_for(name) || !is_asked_for(&n_nodes.to_string()) {
                continue;
            }
            let classes = partition(n_nodes);
            for is_undirected in [false, true] {
                if !is_asked_for(graph(is_undirected)) {
                    continue;
                }
                let rule = StlFw {
                    is_undirected,
                    ..StlFw::new(D_MAX)
                };
                measure(name, &rule, &classes);
            }
            if is_asked_for("d-cliques") {
                measure_cliques(name, &classes);
            }
        }
    }
}

/// Whether `word` is among `words`, or no other of its kind is.
fn is_asked_for(words: &[String], word: &str) -> bool {
    let kind = KINDS.iter().find(|kind| kind.contains(&word));
    let mut named = words
        .iter()
        .filter(|asked| kind.is_some_and(|k| k.contains(&asked.as_str())));
    named.clone().next().is_none() || named.any(|asked| asked == word)
}

fn measure(partition: &str, rule: &StlFw, classes: &ClassCounts) {
    let n_nodes = classes.n_nodes();
    let graph = graph(rule.is_undirected);
    let n_seeds = n_seeds(n_nodes);
    let (seconds, objective) = learn(n_seeds, rule, classes);
    print!("| {n_nodes} | {partition} | {graph} | {n_seeds} | {seconds:.3} | {objective:.6} |");
    if n_nodes > MAX_DENSE_NODES {
        println!(" | |");
        return;
    }
    let dense = StlFw {
        oracle: Oracle::Dense,
        ..rule.clone()
    };
    let (seconds, reference) = learn(n_seeds, &dense, classes);
    println!(" {seconds:.3} | {:.5} |", objective / reference);
}

fn measure_cliques(partition: &str, classes: &ClassCounts) {
    let n_nodes = classes.n_nodes();
    let n_steps = default_steps(n_nodes.div_ceil(D_MAX));
    let [once, longer] = [n_steps, 10 * n_steps].map(|n_steps| {
        let rule = DCliques {
            size: D_MAX,
            inter: InterClique::FullyConnected,
            steps: Some(n_steps),
            removed_edges: 0,
        };
        let nodes = Nodes {
            n_nodes,
            classes: Some(classes),
        };
        let start = Instant::now();
        let schedule = rule.connect(&nodes, &mut rng(0, 0)).expect("cliques");
        let seconds = start.elapsed().as_secs_f64();
        (
            seconds,
            LabelSkew::of_cliques(&schedule.cliques, classes).mean,
        )
    });
    // Both may be zero.
    let ratio = if once.1 == longer.1 {
        1.0
    } else {
        once.1 / longer.1
    };
    println!(
        "| {n_nodes} | {partition} | d-cliques | 1 | {:.3} | {:.6} | {:.3} | {ratio:.5} |",
        once.0, once.1, longer.0
    );
}

/// Chance decides between equally good permutations, and what follows depends on it: by ±0.5 % of
/// the objective at n = 100 and ±0.1 % at n = 500, so that means are compared.
fn n_seeds(n_nodes: usize) -> u64 {
    match n_nodes {
        ..=200 => 100,
        201..=500 => 20,
        501..=1_000 => 3,
        _ => 1,
    }
}

/// The fewest seconds of several seeds, and the mean objective.
fn learn(n_seeds: u64, rule: &StlFw, classes: &ClassCounts) -> (f64, f64) {
    let nodes = Nodes {
        n_nodes: classes.n_nodes(),
        classes: Some(classes),
    };
    let (mut seconds, mut sum) = (f64::INFINITY, 0.0);
    for seed in 0..n_seeds {
        let start = Instant::now();
        let learned = rule.learn(&nodes, &mut rng(seed, 0)).expect("learned");
        seconds = start.elapsed().as_secs_f64().min(seconds);
        sum += learned.trace.last().expect("the identity").objective;
    }
    (seconds, sum / n_seeds as f64)
}

fn graph(is_undirected: bool) -> &'static str {
    match is_undirected {
        false => "directed",
        true => "undirected",
    }
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
