//! What classifiers learn from.

use moeshard_tensor::linalg::softmax_cross_entropy;

/// Turns logits into the gradient of the batch's mean cross-entropy with respect to them, and
/// returns that loss. The labels are classes of the model.
pub(super) fn cross_entropy_gradient(logits: &mut [f32], labels: &[u32]) -> f32 {
    let n_classes = logits.len() / labels.len().max(1);
    let loss = softmax_cross_entropy(logits, n_classes, labels);
    loss.expect("labels are classes of the model")
}
