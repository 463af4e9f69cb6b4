//! Softmax and cross-entropy of a batch, with the gradient of the logits.

use super::error::check;
use super::{LinalgError, Result};
use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::math::exp;

/// Turns logits into the gradient of the batch's mean cross-entropy with respect to them, and
/// returns that loss; 0 of an empty batch.
///
/// `d[i, c] = (softmax(logits[i])[c] − 1{c = labels[i]}) / n_examples`. Sums run in the order of the
/// classes, and of the examples. NaN among the logits makes the loss NaN.
///
/// # Shapes
/// - `logits`: `[n_examples, n_classes]`
/// - `labels`: `[n_examples]`, each below `n_classes`
///
/// # Errors
/// [`LinalgError::Shape`] or [`LinalgError::Index`] if they disagree.
pub fn softmax_cross_entropy(logits: &mut [f32], n_classes: usize, labels: &[u32]) -> Result<f32> {
    on(Isa::detect(), logits, n_classes, labels)
}

fn on(isa: Isa, logits: &mut [f32], n_classes: usize, labels: &[u32]) -> Result<f32> {
    let n_logits = labels.len().saturating_mul(n_classes);
    check("cross-entropy", "n_logits", n_logits, logits.len())?;
    let largest = labels.iter().max().map_or(0, |&label| label as usize);
    if largest >= n_classes && !labels.is_empty() {
        return Err(LinalgError::Index {
            op: "cross-entropy",
            what: "a label",
            got: largest,
            limit: n_classes,
        });
    }
    let mut loss = 0.0;
    if !labels.is_empty() {
        gradient(isa, logits, n_classes, labels, &mut loss);
    }
    Ok(loss)
}

per_isa! {
    /// Three passes, so that exponentials, which cost most, are computed a register at a time
    /// however few classes there are.
    fn gradient(logits: &mut [f32], n_classes: usize, labels: &[u32], loss: &mut f32) {
        let share = 1.0 / labels.len() as f32;
        let mut of_labels = 0.0;
        for (row, &label) in logits.chunks_exact_mut(n_classes).zip(labels) {
            let mut largest = row[0];
            for &x in &*row {
                largest = if x > largest { x } else { largest };
            }
            for x in &mut *row {
                *x -= largest;
            }
            of_labels += row[label as usize];
        }
        for x in &mut *logits {
            *x = exp(*x);
        }
        let mut logs = 0.0;
        for (row, &label) in logits.chunks_exact_mut(n_classes).zip(labels) {
            let mut sum = 0.0;
            for &x in &*row {
                sum += x;
            }
            logs += sum.ln();
            // Before the division: the difference is exact where the label's share is near one.
            row[label as usize] -= sum;
            let scale = share / sum;
            for x in row {
                *x *= scale;
            }
        }
        // Neither is negative: no digits are lost.
        *loss = (logs - of_labels) * share;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loss and gradient in f64, by the definition.
    fn exact(logits: &[f32], n_classes: usize, labels: &[u32]) -> (f64, Vec<f64>) {
        let (mut loss, mut gradient) = (0.0, Vec::new());
        let n = labels.len() as f64;
        for (row, &label) in logits.chunks_exact(n_classes).zip(labels) {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exps = row
                .iter()
                .map(|&x| (f64::from(x) - f64::from(largest)).exp());
            let exps: Vec<f64> = exps.collect();
            let sum: f64 = exps.iter().sum();
            loss -= (exps[label as usize] / sum).ln() / n;
            gradient.extend(exps.iter().enumerate().map(|(class, e)| {
                let is_label = f64::from(u8::from(class == label as usize));
                (e / sum - is_label) / n
            }));
        }
        (loss, gradient)
    }

    #[test]
    fn loss_and_gradient_match_f64_on_every_instruction_set() {
        for (n_examples, n_classes) in [(1, 1), (1, 2), (13, 10), (128, 10), (7, 77), (40, 16)] {
            let number = |i: usize| ((i * 7919 + 13) % 2003) as f32 / 100.0 - 10.0;
            let logits: Vec<f32> = (0..n_examples * n_classes).map(number).collect();
            let labels: Vec<u32> = (0..n_examples)
                .map(|i| (i * 31 % n_classes) as u32)
                .collect();
            let (loss, gradient) = exact(&logits, n_classes, &labels);
            for isa in Isa::available() {
                let mut found = logits.clone();
                let found_loss = on(isa, &mut found, n_classes, &labels).expect("shapes");
                let error = (f64::from(found_loss) - loss).abs();
                assert!(
                    error < 1e-6 * (1.0 + loss),
                    "{isa}: {found_loss}, expected {loss}"
                );
                for (found, expected) in found.iter().zip(&gradient) {
                    let error = (f64::from(*found) - expected).abs() * n_examples as f64;
                    assert!(error < 1e-6, "{isa}: {found}, expected {expected}");
                }
            }
        }
    }

    #[test]
    fn a_sure_answer_keeps_its_digits() {
        // The gradient of the label is minus what the others have: 1e-7 of one.
        let mut logits = [16.0, 0.0];
        let loss = softmax_cross_entropy(&mut logits, 2, &[0]).expect("shapes");
        let rest = (-16.0_f64).exp();
        assert!((f64::from(logits[1]) / rest - 1.0).abs() < 1e-5);
        assert!((f64::from(logits[0]) + rest).abs() < 6e-8);
        assert!((f64::from(loss) - rest).abs() < 6e-8);
    }

    #[test]
    fn numbers_out_of_range_stay_visible() {
        let loss = |logits: &mut [f32]| softmax_cross_entropy(logits, 2, &[0]).expect("shapes");
        assert!(loss(&mut [f32::NAN, 0.0]).is_nan());
        assert!(loss(&mut [0.0, f32::NAN]).is_nan());
        assert!(loss(&mut [f32::INFINITY, 0.0]).is_nan());
        assert_eq!(loss(&mut [-1e30, 1e30]), 2e30);
        assert_eq!(softmax_cross_entropy(&mut [], 10, &[]), Ok(0.0));
    }

    #[test]
    fn labels_and_logits_that_disagree_are_refused() {
        let refused = |n_logits: usize, n_classes, labels: &[u32]| {
            let found = softmax_cross_entropy(&mut vec![0.0; n_logits], n_classes, labels);
            found.expect_err("out of place").to_string()
        };
        assert_eq!(
            refused(5, 2, &[0, 1]),
            "cross-entropy: n_logits is 5, expected 4"
        );
        let message = "cross-entropy: a label is 3, expected below 3";
        assert_eq!(refused(6, 3, &[3, 1]), message);
        let message = "cross-entropy: a label is 0, expected below 0";
        assert_eq!(refused(0, 0, &[0]), message);
    }
}
