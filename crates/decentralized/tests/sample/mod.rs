//! Runs made up for the report's tests: true graphs and label histograms, and curves through the
//! accuracies that D-SGD reaches on MNIST with a linear model.

use moeshard_decentralized::classes::ClassCounts;
use moeshard_decentralized::mixing::MixingMatrix;
use moeshard_decentralized::record::{Evaluation, Heterogeneity, RunHeader, Spread};
use moeshard_decentralized::report::RunReport;
use moeshard_decentralized::seed::{self, Rng};
use moeshard_decentralized::topology::Clique;
use rand::RngExt as _;
use rand::seq::SliceRandom;

const N_CLASSES: usize = 10;
const N_PARAMS: usize = 7_850;
/// 50,000 examples over 100 nodes in batches of 128.
const ROUNDS_PER_EPOCH: f64 = 3.90625;

/// A run that owns what its report borrows.
pub(crate) struct Sample {
    pub(crate) header: RunHeader,
    pub(crate) evaluations: Vec<Evaluation>,
    pub(crate) mixing: MixingMatrix,
    pub(crate) cliques: Vec<Clique>,
    pub(crate) classes: ClassCounts,
}

impl Sample {
    pub(crate) fn report(&self) -> RunReport<'_> {
        RunReport {
            header: &self.header,
            evaluations: &self.evaluations,
            mixing: Some(&self.mixing),
            cliques: &self.cliques,
            classes: Some(&self.classes),
        }
    }
}

/// Accuracy after 0, 5, 10, 20 and 100 epochs, and the worst and best node's distance from it at 20.
type Curve = ([f64; 5], f64, f64);

/// Eight runs of `n_nodes` nodes with `n_evaluations` each.
pub(crate) fn samples(n_nodes: usize, n_evaluations: usize) -> Vec<Sample> {
    let mut rng = seed::rng(1, 0);
    let classes = two_shards(n_nodes, &mut rng);
    let cliques = cliques(&classes, &mut rng);
    let fixed = |edges: Vec<(usize, usize)>| metropolis_hastings(n_nodes, &edges);
    let rows: [(&str, &str, MixingMatrix, bool, Curve); 8] = [
        (
            "Complete",
            "complete",
            fixed(circulant(n_nodes, &(1..=n_nodes / 2).collect::<Vec<_>>())),
            false,
            ([9.8, 88.66, 89.86, 90.73, 91.93], 0.02, 0.02),
        ),
        (
            "STL-FW, 10 neighbours",
            "stl-fw:10",
            learned(&classes, 10, &mut rng),
            false,
            ([9.8, 88.37, 89.72, 90.64, 91.88], 0.37, 0.21),
        ),
        (
            "D-Cliques + Clique Averaging",
            "d-cliques:10,full",
            fixed(d_cliques(&cliques, true)),
            true,
            ([9.8, 88.35, 89.69, 90.59, 91.83], 0.26, 0.2),
        ),
        (
            "D-Cliques, ring",
            "d-cliques:10,ring",
            fixed(d_cliques(&cliques, false)),
            true,
            ([9.8, 86.79, 88.45, 89.67, 91.11], 1.92, 0.72),
        ),
        (
            "Random, 10 neighbours",
            "random:10",
            fixed(random_regular(n_nodes, 10, &mut rng)),
            false,
            ([9.8, 82.2, 87.38, 89.32, 91.23], 5.67, 1.2),
        ),
        (
            "Exponential",
            "exponential",
            fixed(circulant(n_nodes, &powers_of_two(n_nodes))),
            false,
            ([9.8, 81.79, 86.36, 88.68, 91.04], 6.3, 1.4),
        ),
        (
            "Grid",
            "grid",
            fixed(grid(n_nodes)),
            false,
            ([9.8, 66.2, 72.9, 78.4, 85.3], 15.1, 8.3),
        ),
        (
            "Ring",
            "ring",
            fixed(circulant(n_nodes, &[1])),
            false,
            ([9.8, 51.74, 58.38, 65.21, 77.06], 23.1, 16.2),
        ),
    ];
    let sample =
        |(name, topology, mixing, has_cliques, curve): (&str, &str, MixingMatrix, bool, Curve)| {
            let cliques = if has_cliques {
                cliques.clone()
            } else {
                Vec::new()
            };
            let header = header(name, topology, &mixing, &classes, &cliques);
            let evaluations = evaluations(&header, curve, n_evaluations);
            Sample {
                header,
                evaluations,
                mixing,
                cliques,
                classes: classes.clone(),
            }
        };
    rows.into_iter().map(sample).collect()
}

fn header(
    name: &str,
    topology: &str,
    mixing: &MixingMatrix,
    classes: &ClassCounts,
    cliques: &[Clique],
) -> RunHeader {
    let n_nodes = mixing.n_nodes();
    let directed: Vec<(usize, usize)> = mixing
        .entries()
        .filter(|(row, col, _)| row != col)
        .map(|(row, col, _)| (row, col))
        .collect();
    let is_edge = |row: usize, col: usize| mixing.row(row).0.binary_search(&(col as u32)).is_ok();
    let is_counted = |&(row, col): &(usize, usize)| row < col || !is_edge(col, row);
    let degree = |node: usize| mixing.row(node).0.len() - 1;
    let distance = |nodes: &Clique| -> f64 {
        let all = classes.proportions_of(0..n_nodes);
        let shares = classes.proportions_of(nodes.iter().map(|&node| node as usize));
        shares.iter().zip(&all).map(|(a, b)| (a - b).abs()).sum()
    };
    let is_averaging = name.contains("Averaging");
    let n_messages = directed.len() as f64 * if is_averaging { 2.0 } else { 1.0 };
    RunHeader {
        name: name.into(),
        topology: topology.into(),
        algorithm: if is_averaging {
            "d-sgd + clique averaging"
        } else {
            "d-sgd"
        }
        .into(),
        model: "linear".into(),
        task: "mnist".into(),
        partition: "shards:2".into(),
        seed: 1,
        n_nodes,
        n_classes: N_CLASSES,
        n_params: N_PARAMS,
        epochs: 100.0,
        learning_rate: 0.1,
        batch_size: 128,
        momentum: 0.0,
        period: 1,
        n_edges: directed.iter().filter(|edge| is_counted(edge)).count() as u64,
        max_degree: (0..n_nodes).map(degree).max().unwrap_or(0),
        n_components: 1,
        spectral_gap: None,
        heterogeneity: Some(heterogeneity(mixing, classes)),
        mean_skew: (!cliques.is_empty())
            .then(|| cliques.iter().map(distance).sum::<f64>() / cliques.len() as f64),
        messages_per_round: n_messages,
        bytes_per_round: n_messages * N_PARAMS as f64 * 4.0,
    }
}

// (1/n)‖WΠ − JΠ‖² and (1/n)‖W − J‖².
fn heterogeneity(mixing: &MixingMatrix, classes: &ClassCounts) -> Heterogeneity {
    let n = mixing.n_nodes();
    let all: Vec<f64> = (0..N_CLASSES)
        .map(|class| {
            (0..n)
                .map(|node| classes.proportions(node)[class])
                .sum::<f64>()
                / n as f64
        })
        .collect();
    let mut bias = 0.0;
    let mut squares = 0.0;
    for node in 0..n {
        let (cols, weights) = mixing.row(node);
        squares += weights.iter().map(|weight| weight * weight).sum::<f64>();
        let mut mixed = [0.0; N_CLASSES];
        for (&col, weight) in cols.iter().zip(weights) {
            let shares = classes.proportions(col as usize);
            mixed
                .iter_mut()
                .zip(shares)
                .for_each(|(sum, share)| *sum += weight * share);
        }
        bias += mixed
            .iter()
            .zip(&all)
            .map(|(a, b)| (a - b).powi(2))
            .sum::<f64>();
    }
    Heterogeneity {
        bias: bias / n as f64,
        variance: (squares - 1.0) / n as f64,
    }
}

fn evaluations(header: &RunHeader, curve: Curve, n_evaluations: usize) -> Vec<Evaluation> {
    let (accuracies, below, above) = curve;
    let labels = header.heterogeneity.unwrap_or_default();
    let mut noise = seed::rng(2, header.n_edges);
    let evaluation = |i: usize| {
        let epoch = header.epochs * (i as f64 / (n_evaluations - 1).max(1) as f64).powf(1.5);
        let round = (epoch * ROUNDS_PER_EPOCH).round();
        let wave = noise.random_range(-1.0..1.0) * 0.004 * below.min(8.0) / (1.0 + epoch / 20.0);
        let mean = along(&accuracies, epoch) / 100.0 + wave * mean_room(epoch);
        let width = (epoch / 2.0).min(1.0) * (20.0 / (epoch + 20.0) + 0.5) / 100.0;
        let (min, max) = ((mean - below * width).max(0.02), mean + above * width);
        let training = (1.0 + epoch).powf(-0.45);
        Evaluation {
            absence_bias: None,
            epoch,
            round: round as u64,
            accuracy: Spread {
                mean,
                min,
                lower_quartile: mean - 0.3 * (mean - min),
                median: mean + 0.1 * (max - mean),
                upper_quartile: mean + 0.5 * (max - mean),
                max,
            },
            train_loss: Some(2.4 * (1.0 - mean).powf(0.8)),
            test_loss: 0.12 + 2.4 * (1.0 - mean).powf(0.9),
            consensus_distance: match labels.variance < 1e-9 {
                true => 3e-15 * (1.0 + wave),
                false => (0.02 + 9.0 * labels.bias) * training * (1.0 + 9.0 * wave),
            },
            heterogeneity: Some(Heterogeneity {
                bias: labels.bias * training * (1.0 + 20.0 * wave),
                variance: labels.variance * training * 0.4 * (1.0 - 7.0 * wave),
            }),
            bytes_sent: (round * header.bytes_per_round) as u64,
            messages: (round * header.messages_per_round) as u64,
            train_s: epoch * 0.011 * (1.0 + header.max_degree as f64 / 60.0),
            eval_s: i as f64 * 0.07,
        }
    };
    (0..n_evaluations).map(evaluation).collect()
}

fn mean_room(epoch: f64) -> f64 {
    (epoch / 5.0).min(1.0)
}

// Between the known epochs, straight in the logarithm of the epoch.
fn along(accuracies: &[f64; 5], epoch: f64) -> f64 {
    let epochs = [0.0, 5.0, 10.0, 20.0, 100.0].map(|epoch: f64| (epoch + 0.2).ln());
    let x = (epoch + 0.2).ln();
    let i = (1..4).find(|&i| x < epochs[i]).unwrap_or(4);
    let share = (x - epochs[i - 1]) / (epochs[i] - epochs[i - 1]);
    accuracies[i - 1] + share * (accuracies[i] - accuracies[i - 1])
}

// Examples sorted by class in two shards a node.
fn two_shards(n_nodes: usize, rng: &mut Rng) -> ClassCounts {
    let mut shards: Vec<usize> = (0..2 * n_nodes)
        .map(|shard| shard * N_CLASSES / (2 * n_nodes))
        .collect();
    shards.shuffle(rng);
    let mut counts = vec![0; n_nodes * N_CLASSES];
    for (i, class) in shards.into_iter().enumerate() {
        counts[i / 2 * N_CLASSES + class] += 250;
    }
    ClassCounts::new(N_CLASSES, counts)
}

// Cliques of ten, less skewed with every swap.
fn cliques(classes: &ClassCounts, rng: &mut Rng) -> Vec<Clique> {
    let mut nodes: Vec<u32> = (0..classes.n_nodes() as u32).collect();
    nodes.shuffle(rng);
    let mut cliques: Vec<Clique> = nodes.chunks(10).map(<[u32]>::to_vec).collect();
    let skew = |clique: &Clique| -> f64 {
        let shares = classes.proportions_of(clique.iter().map(|&node| node as usize));
        shares
            .iter()
            .map(|share| (share - 1.0 / N_CLASSES as f64).abs())
            .sum()
    };
    for _ in 0..4_000 {
        let (a, b) = (
            rng.random_range(0..cliques.len()),
            rng.random_range(0..cliques.len()),
        );
        if a == b {
            continue;
        }
        let (i, j) = (
            rng.random_range(0..cliques[a].len()),
            rng.random_range(0..cliques[b].len()),
        );
        let (mut first, mut second) = (cliques[a].clone(), cliques[b].clone());
        std::mem::swap(&mut first[i], &mut second[j]);
        if skew(&first) + skew(&second) < skew(&cliques[a]) + skew(&cliques[b]) {
            (cliques[a], cliques[b]) = (first, second);
        }
    }
    cliques.iter_mut().for_each(|clique| clique.sort_unstable());
    cliques
}

fn d_cliques(cliques: &[Clique], is_full: bool) -> Vec<(usize, usize)> {
    let mut edges = Vec::new();
    for clique in cliques {
        for (i, &a) in clique.iter().enumerate() {
            edges.extend(clique[i + 1..].iter().map(|&b| (a as usize, b as usize)));
        }
    }
    let n = cliques.len();
    for a in 0..n {
        for b in a + 1..n {
            if is_full || b == a + 1 || (a == 0 && b == n - 1) {
                let (i, j) = match b == a + 1 {
                    _ if is_full => (b - 1, a),
                    true => (0, 5),
                    false => (5, 0),
                };
                let node =
                    |clique: usize, i: usize| cliques[clique][i % cliques[clique].len()] as usize;
                edges.push((node(a, i), node(b, j)));
            }
        }
    }
    edges
}

// Nodes in order of their classes; each receives from one node a tenth further, two tenths further…
fn learned(classes: &ClassCounts, degree: usize, rng: &mut Rng) -> MixingMatrix {
    let n = classes.n_nodes();
    let mut order: Vec<usize> = (0..n).collect();
    let main = |node: usize| (0..N_CLASSES).max_by_key(|&class| classes.node(node)[class]);
    order.sort_by_key(|&node| main(node));
    let weight = 1.0 / degree as f64;
    let mut rows: Vec<Vec<(u32, f64)>> = (0..n).map(|node| vec![(node as u32, weight)]).collect();
    let size = n / degree;
    for group in 0..degree {
        for further in 1..degree {
            let from = (group + further) % degree;
            let mut senders: Vec<usize> = order[from * size..(from + 1) * size].to_vec();
            senders.shuffle(rng);
            for (&receiver, sender) in order[group * size..].iter().zip(senders) {
                rows[receiver].push((sender as u32, weight));
            }
        }
    }
    MixingMatrix::new(rows).expect("doubly stochastic")
}

fn circulant(n_nodes: usize, offsets: &[usize]) -> Vec<(usize, usize)> {
    let edges = offsets
        .iter()
        .flat_map(|offset| (0..n_nodes).map(move |node| (node, (node + offset) % n_nodes)));
    edges.collect()
}

fn powers_of_two(n_nodes: usize) -> Vec<usize> {
    (0..)
        .map(|exponent| 1 << exponent)
        .take_while(|&offset| offset < n_nodes)
        .collect()
}

fn grid(n_nodes: usize) -> Vec<(usize, usize)> {
    let side = n_nodes.isqrt();
    let mut edges = Vec::new();
    for node in 0..n_nodes {
        let right = (node + 1) % side != 0 && node + 1 < n_nodes;
        edges.extend(right.then_some((node, node + 1)));
        edges.extend((node + side < n_nodes).then_some((node, node + side)));
    }
    edges
}

// Rings through all nodes in random order.
fn random_regular(n_nodes: usize, degree: usize, rng: &mut Rng) -> Vec<(usize, usize)> {
    let mut edges = Vec::new();
    let mut order: Vec<usize> = (0..n_nodes).collect();
    for _ in 0..degree / 2 {
        order.shuffle(rng);
        edges.extend((0..n_nodes).map(|i| (order[i], order[(i + 1) % n_nodes])));
    }
    edges
}

/// The mixing matrix of a graph with `1/(max(degrees) + 1)` on edges.
pub(crate) fn metropolis_hastings(n_nodes: usize, edges: &[(usize, usize)]) -> MixingMatrix {
    let mut neighbours = vec![std::collections::BTreeSet::new(); n_nodes];
    for &(a, b) in edges.iter().filter(|(a, b)| a != b) {
        neighbours[a].insert(b);
        neighbours[b].insert(a);
    }
    let row = |node: usize| {
        let weight =
            |other: &usize| 1.0 / (neighbours[node].len().max(neighbours[*other].len()) + 1) as f64;
        let mut row: Vec<(u32, f64)> = neighbours[node]
            .iter()
            .map(|other| (*other as u32, weight(other)))
            .collect();
        row.push((
            node as u32,
            1.0 - row.iter().map(|entry| entry.1).sum::<f64>(),
        ));
        row
    };
    MixingMatrix::new((0..n_nodes).map(row).collect()).expect("doubly stochastic")
}
