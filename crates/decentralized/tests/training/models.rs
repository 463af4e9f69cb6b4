//! Gradients against finite differences.

use moeshard_decentralized::model::{Batch, Linear, Mlp, Model, Scratch};
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

/// Along random directions, at random parameters.
pub(crate) fn check(model: &dyn Model, n_examples: usize) {
    let mut rng = seed::rng(11, 0);
    let mut uniform =
        |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let features = uniform(n_examples * model.n_features());
    let labels: Vec<u32> = (0..n_examples)
        .map(|i| (i * 7 % model.n_classes()) as u32)
        .collect();
    let batch = Batch {
        features: &features,
        labels: &labels,
    };
    let params = uniform(model.n_params());
    let mut scratch = Scratch::default();
    let mut gradient = vec![f32::NAN; params.len()];
    let loss = model.gradient(&params, batch, &mut gradient, &mut scratch);
    let of_logits = mean_loss(model, &params, batch, &mut scratch);
    assert!(
        (f64::from(loss) - of_logits).abs() < 1e-5,
        "{loss} and {of_logits}"
    );
    for _ in 0..20 {
        let direction = uniform(params.len());
        // Small beside the curvature, large beside rounding.
        const H: f32 = 2e-3;
        let mut at = |sign: f32| {
            let moved = params.iter().zip(&direction).map(|(p, d)| p + sign * H * d);
            let moved: Vec<f32> = moved.collect();
            mean_loss(model, &moved, batch, &mut scratch)
        };
        let slope = (at(1.0) - at(-1.0)) / (2.0 * f64::from(H));
        let terms = gradient.iter().zip(&direction);
        let expected: f64 = terms.map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let error = (slope - expected).abs();
        assert!(
            error < 3e-3 * (1.0 + expected.abs()),
            "{model:?}: slope {slope}, expected {expected}"
        );
    }
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
