//! The heterogeneity of gradients against what their whole data says.

use moeshard_decentralized::measures::Heterogeneity;
use moeshard_decentralized::model::{Batch, Scratch};
use moeshard_decentralized::partition::Partition;
use moeshard_decentralized::topology::{Complete, Ring, Schedule};

use crate::support::{N_FEATURES, Problem, connect, dataset, settings};

/// `n_nodes` of `n_examples` each: sorted by class first, so that nodes hold few, or as they come.
fn problem(n_nodes: usize, n_examples: usize, is_sorted: bool) -> Problem {
    let train = dataset(n_nodes * n_examples, 3);
    let mut examples: Vec<u32> = (0..train.labels.len() as u32).collect();
    if is_sorted {
        examples.sort_by_key(|&example| train.labels[example as usize]);
    }
    let nodes = examples.chunks(n_examples).map(<[u32]>::to_vec).collect();
    Problem {
        train,
        partition: Partition { nodes },
        ..Problem::new(1)
    }
}

fn measured(problem: &Problem, schedule: &Schedule) -> Heterogeneity {
    let mut trainer = problem.trainer(schedule, &settings());
    let measured = trainer.heterogeneity(schedule).expect("measured");
    measured.expect("rank 0")
}

/// From the gradients of all examples of each node, at the models from which training starts.
fn exact_bias(problem: &Problem, schedule: &Schedule) -> f64 {
    let n_nodes = problem.partition.nodes.len();
    let models = problem.models(schedule, &settings(), 0);
    let n_params = problem.model.n_params();
    let mean: Vec<f32> = (0..n_params)
        .map(|at| models.iter().skip(at).step_by(n_params).sum::<f32>() / n_nodes as f32)
        .collect();
    let mut gradients = Vec::new();
    for examples in &problem.partition.nodes {
        let row = |&example: &u32| {
            let start = example as usize * N_FEATURES;
            problem.train.features[start..start + N_FEATURES].to_vec()
        };
        let features: Vec<f32> = examples.iter().flat_map(row).collect();
        let labels: Vec<u32> = (examples.iter())
            .map(|&example| problem.train.labels[example as usize])
            .collect();
        let batch = Batch {
            features: &features,
            labels: &labels,
        };
        let mut gradient = vec![0.0; n_params];
        (problem.model).gradient(&mean, batch, &mut gradient, &mut Scratch::default());
        gradients.extend(gradient);
    }
    Heterogeneity::of_gradients(schedule.mixing(0), &gradients, 0.0).bias
}

#[test]
fn few_examples_are_all_measured() {
    let problem = problem(9, 40, true);
    let schedule = connect(&Ring, 9);
    let (measured, exact) = (
        measured(&problem, &schedule),
        exact_bias(&problem, &schedule),
    );
    assert!(
        (measured.bias - exact).abs() < 1e-5 * exact,
        "{measured:?}, {exact}"
    );
    assert!(measured.variance > 0.0);
}

#[test]
fn some_of_many_examples_stand_for_all() {
    let schedule = connect(&Ring, 30);
    // Sorted examples: the first of a node's are of one class, where the node holds two.
    let skewed = problem(30, 600, true);
    let (found, exact) = (measured(&skewed, &schedule), exact_bias(&skewed, &schedule));
    assert!(
        (found.bias - exact).abs() < 0.1 * exact,
        "{found:?}, {exact}"
    );
    // Without skew what is left is small beside what measuring 128 examples adds, which is some
    // 4 / 128 of the variance of a batch of 4.
    let even = problem(30, 600, false);
    let (found, exact) = (measured(&even, &schedule), exact_bias(&even, &schedule));
    let added = found.variance * 4.0 / 128.0;
    assert!(
        (found.bias - exact).abs() < 0.5 * added,
        "{found:?}, {exact}, {added}"
    );
    // Whoever averages with everybody has neither.
    let all = measured(&skewed, &connect(&Complete, 30));
    assert!(all.bias < 1e-10 && all.variance < 1e-10, "{all:?}");
}
