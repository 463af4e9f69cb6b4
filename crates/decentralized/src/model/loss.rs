//! Softmax and cross-entropy.

/// Turns logits into the gradient of the batch's mean cross-entropy with respect to them, and
/// returns that loss.
///
/// `d[i, c] = (softmax(logits[i])[c] − 1{c = labels[i]}) / n_examples`
pub(super) fn cross_entropy_gradient(logits: &mut [f32], labels: &[u32]) -> f32 {
    let n_examples = labels.len();
    let n_classes = logits.len() / n_examples.max(1);
    let share = 1.0 / n_examples as f32;
    let mut loss = 0.0;
    for (row, &label) in logits.chunks_exact_mut(n_classes).zip(labels) {
        loss += softmax(row, label as usize);
        row[label as usize] -= 1.0;
        row.iter_mut().for_each(|p| *p *= share);
    }
    loss * share
}

/// The cross-entropy of one example, whose logits become probabilities.
fn softmax(row: &mut [f32], label: usize) -> f32 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let of_label = row[label] - largest;
    row.iter_mut().for_each(|x| *x = (*x - largest).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
    sum.ln() - of_label
}
