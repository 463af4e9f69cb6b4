//! Each algorithm against its equations, written down with dense matrices in f64.

use moeshard_decentralized::batches::Batches;
use moeshard_decentralized::model::{Batch, Scratch};
use moeshard_decentralized::seed;
use moeshard_decentralized::topology::{
    DCliques, Exponential, InterClique, OnePeerExponential, Ring, Schedule, Topology,
};
use moeshard_decentralized::train::{Method, MixOrder, Settings};

use crate::support::{Problem, connect, d_sgd, settings};

const N_NODES: usize = 10;
const N_ROUNDS: u64 = 9;

type Matrix = Vec<Vec<f64>>;

#[test]
fn d_sgd_follows_its_equations() {
    for order in [MixOrder::AfterStep, MixOrder::BeforeStep] {
        for momentum in [0.0, 0.7] {
            check(&Ring, d_sgd(order, momentum, false));
            check(&Exponential, d_sgd(order, momentum, false));
            check(&OnePeerExponential, d_sgd(order, momentum, false));
            check(&cliques(), d_sgd(order, momentum, true));
        }
    }
}

#[test]
fn gradient_tracking_follows_its_equations() {
    check(&Ring, Method::GradientTracking);
    check(&Exponential, Method::GradientTracking);
}

#[test]
fn d2_follows_its_equations() {
    check(&Ring, Method::D2);
}

/// Cliques of 5 without one of their edges each.
fn cliques() -> DCliques {
    DCliques {
        size: 5,
        inter: InterClique::Ring,
        steps: Some(0),
        removed_edges: 1,
    }
}

fn check(topology: &dyn Topology, method: Method) {
    let problem = Problem::new(N_NODES);
    let mut schedule = connect(topology, N_NODES);
    if !schedule.cliques.is_empty() {
        // Cliques of unequal data are told apart by their gradients.
        schedule.cliques.sort();
    }
    let settings = Settings {
        method,
        ..settings()
    };
    let found = problem.models(&schedule, &settings, N_ROUNDS);
    let expected = reference(&problem, &schedule, &settings);
    for (i, (found, expected)) in found.iter().zip(expected.concat()).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(
            error < 1e-5,
            "{method:?} on {}: parameter {i} is {found}, expected {expected}",
            topology.name(),
        );
    }
}

fn reference(problem: &Problem, schedule: &Schedule, settings: &Settings) -> Matrix {
    let n_params = problem.model.n_params();
    let mut x: Matrix = (0..N_NODES as u64)
        .map(|node| {
            let mut params = vec![0.0; n_params];
            problem
                .model
                .init(&mut seed::rng(settings.seed, node), &mut params);
            params.into_iter().map(f64::from).collect()
        })
        .collect();
    let eta = f64::from(settings.learning_rate);
    let zeros = vec![vec![0.0; n_params]; N_NODES];
    let (mut v, mut y) = (zeros.clone(), zeros.clone());
    let (mut x_before, mut g_before) = (zeros.clone(), zeros);
    for round in 0..N_ROUNDS {
        let w = dense(schedule, round as usize);
        let mut g = gradients(problem, settings, &x, round);
        match settings.method {
            Method::DSgd {
                order,
                momentum,
                clique_averaging,
            } => {
                if clique_averaging {
                    g = over_cliques(schedule, &w, &g);
                }
                v = sum(&[(f64::from(momentum), &v), (1.0, &g)]);
                x = match order {
                    MixOrder::AfterStep => times(&w, &sum(&[(1.0, &x), (-eta, &v)])),
                    MixOrder::BeforeStep => sum(&[(1.0, &times(&w, &x)), (-eta, &v)]),
                };
            }
            Method::GradientTracking => {
                y = match round {
                    0 => g.clone(),
                    _ => times(&w, &sum(&[(1.0, &y), (1.0, &g), (-1.0, &g_before)])),
                };
                x = times(&w, &sum(&[(1.0, &x), (-eta, &y)]));
            }
            Method::D2 => {
                let stepped = match round {
                    0 => sum(&[(1.0, &x), (-eta, &g)]),
                    _ => sum(&[(2.0, &x), (-1.0, &x_before), (-eta, &g), (eta, &g_before)]),
                };
                x_before.clone_from(&x);
                x = times(&w, &stepped);
            }
        }
        g_before = g;
    }
    x
}

fn gradients(problem: &Problem, settings: &Settings, x: &Matrix, round: u64) -> Matrix {
    let n_features = problem.train.n_features;
    let gradient = |node: usize| {
        let examples = problem.partition.nodes[node].clone();
        let mut batches = Batches::new(examples, settings.batch_size, settings.seed, node as u32);
        let n_batches = batches.n_batches() as u64;
        batches.start_epoch((round / n_batches) as u32);
        let batch = batches.batch((round % n_batches) as usize);
        let rows = batch
            .iter()
            .flat_map(|&example| problem.train.example(example as usize));
        let features: Vec<f32> = rows.copied().collect();
        assert_eq!(features.len(), batch.len() * n_features);
        let labels = batch
            .iter()
            .map(|&example| problem.train.labels[example as usize]);
        let labels: Vec<u32> = labels.collect();
        let params: Vec<f32> = x[node].iter().map(|&x| x as f32).collect();
        let mut gradient = vec![f32::NAN; params.len()];
        let batch = Batch {
            features: &features,
            labels: &labels,
        };
        let scratch = &mut Scratch::default();
        (problem.model).gradient(&params, batch, &mut gradient, scratch);
        gradient.into_iter().map(f64::from).collect()
    };
    (0..N_NODES).map(gradient).collect()
}

/// Means over each node's clique, as far as its edges reach.
fn over_cliques(schedule: &Schedule, w: &Matrix, g: &Matrix) -> Matrix {
    (0..N_NODES)
        .map(|node| {
            let of_node = |clique: &&Vec<u32>| clique.contains(&(node as u32));
            let clique = schedule.cliques.iter().find(of_node).expect("a clique");
            let mates = clique.iter().map(|&mate| mate as usize);
            let mates: Vec<usize> = mates
                .filter(|&mate| mate == node || w[node][mate] > 0.0)
                .collect();
            let share = 1.0 / mates.len() as f64;
            let rows: Vec<_> = mates.iter().map(|&mate| (share, &g[mate])).collect();
            combination(&rows)
        })
        .collect()
}

fn dense(schedule: &Schedule, round: usize) -> Matrix {
    let mut w = vec![vec![0.0; N_NODES]; N_NODES];
    for (row, col, weight) in schedule.mixing(round).entries() {
        w[row][col] = weight;
    }
    w
}

fn times(w: &Matrix, x: &Matrix) -> Matrix {
    let row = |weights: &Vec<f64>| {
        let terms: Vec<_> = weights.iter().copied().zip(x).collect();
        combination(&terms)
    };
    w.iter().map(row).collect()
}

fn sum(terms: &[(f64, &Matrix)]) -> Matrix {
    let row = |node: usize| {
        let rows: Vec<_> = terms
            .iter()
            .map(|(c, matrix)| (*c, &matrix[node]))
            .collect();
        combination(&rows)
    };
    (0..N_NODES).map(row).collect()
}

fn combination(terms: &[(f64, &Vec<f64>)]) -> Vec<f64> {
    let n = terms[0].1.len();
    let value = |i: usize| terms.iter().map(|(c, row)| c * row[i]).sum();
    (0..n).map(value).collect()
}
