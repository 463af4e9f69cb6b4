//! Gradients against finite differences.

use moeshard_decentralized::data::ImageShape;
use moeshard_decentralized::model::{Batch, GnLeNet, Linear, Mlp, Model, Scratch};
use moeshard_decentralized::seed;
use rand::RngExt;

#[test]
fn linear_gradients_are_those_of_the_loss() {
    check(&Linear::new(5, 3), 4);
    check(&Linear::new(17, 10), 1);
}

#[test]
fn mlp_gradients_are_those_of_the_loss() {
    check(&Mlp::new(5, 4, 3), 6);
    check(&Mlp::new(19, 33, 2), 3);
}

#[test]
fn gn_lenet_gradients_are_those_of_the_loss() {
    let image = |channels, side| ImageShape {
        channels,
        height: side,
        width: side,
    };
    let of_cifar = GnLeNet::new(image(3, 32), 10).expect("a network");
    assert_eq!(of_cifar.n_params(), 85_354);
    check(&of_cifar, 2);
    check(&GnLeNet::new(image(1, 15), 4).expect("a network"), 3);
    assert!(GnLeNet::new(image(1, 5), 4).is_err());
}

/// Large beside rounding, small beside the distance to most kinks.
const STEP: f32 = 2e-4;

/// For each part of the parameters.
const N_DIRECTIONS: usize = 4;

/// At the parameters from which training starts, moved a little: some of those are zero.
fn check(model: &dyn Model, n_examples: usize) {
    let mut rng = seed::rng(11, 0);
    let mut uniform =
        |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let mut params = vec![0.0; model.n_params()];
    model.init(&mut seed::rng(12, 0), &mut params);
    let nudges = uniform(params.len());
    params
        .iter_mut()
        .zip(&nudges)
        .for_each(|(x, nudge)| *x += 0.1 * nudge);
    let features = uniform(n_examples * model.n_features());
    let labels: Vec<u32> = (0..n_examples)
        .map(|i| (i * 7 % model.n_classes()) as u32)
        .collect();
    let batch = Batch {
        features: &features,
        labels: &labels,
    };
    let mut scratch = Scratch::default();
    let mut gradient = vec![f32::NAN; params.len()];
    let loss = model.gradient(&params, batch, &mut gradient, &mut scratch);
    let of_logits = mean_loss(model, &params, batch, &mut scratch);
    assert!(
        (f64::from(loss) - of_logits).abs() < 1e-5,
        "{loss} and {of_logits}"
    );
    // Each part of the parameters by itself, in directions that do not depend on the gradient: one that
    // is wrong, or zero, anywhere shows in most of them.
    let part = params.len().div_ceil(40);
    for first in (0..params.len()).step_by(part) {
        let range = first..params.len().min(first + part);
        for _ in 0..N_DIRECTIONS {
            let direction: Vec<f32> = range.clone().map(|_| rng.random_range(-1.0..1.0)).collect();
            let size = norm(&direction);
            let direction: Vec<f32> = direction
                .iter()
                .map(|x| (f64::from(*x) / size) as f32)
                .collect();
            let mut at = |step: f32| {
                let mut moved = params.to_vec();
                for (x, d) in moved[range.clone()].iter_mut().zip(&direction) {
                    *x += step * d;
                }
                mean_loss(model, &moved, batch, &mut scratch)
            };
            let pairs = gradient[range.clone()].iter().zip(&direction);
            let expected: f64 = pairs.map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            let here = at(0.0);
            let slopes = [here - at(-STEP), at(STEP) - here].map(|rise| rise / f64::from(STEP));
            // A kink of a ReLU or a pooling may lie on one side.
            let error = slopes.map(|slope| (slope - expected).abs());
            let most = 2e-3 + 0.02 * norm(&gradient[range.clone()]);
            assert!(
                error[0].min(error[1]) < most,
                "parameters {range:?}: slopes {slopes:?}, expected {expected}"
            );
        }
    }
}

fn norm(values: &[f32]) -> f64 {
    let squares = values.iter().map(|&x| f64::from(x).powi(2));
    squares.sum::<f64>().sqrt()
}

/// From the logits, in f64.
fn mean_loss(model: &dyn Model, params: &[f32], batch: Batch<'_>, scratch: &mut Scratch) -> f64 {
    let n_classes = model.n_classes();
    let mut logits = vec![f32::NAN; batch.labels.len() * n_classes];
    model.logits(params, batch.features, &mut logits, scratch);
    let rows = logits.chunks_exact(n_classes).zip(batch.labels);
    let losses = rows.map(|(row, &label)| {
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        sum.ln() - f64::from(row[label as usize])
    });
    losses.sum::<f64>() / batch.labels.len() as f64
}
