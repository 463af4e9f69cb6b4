//! From pooled vectors and logits to what a request asked for.

use moeshard_batcher::Task;
use moeshard_encoder::spec::ProblemType;

/// Cuts an embedding to its first `dimensions` and scales it to unit norm, as asked.
pub fn embedding(pooled: &[f32], normalize: bool, dimensions: Option<usize>) -> Vec<f32> {
    let n = dimensions.unwrap_or(pooled.len()).min(pooled.len());
    let cut = &pooled[..n];
    if !normalize {
        return cut.to_vec();
    }
    // In f64: squares of large values overflow f32.
    let squares = cut.iter().map(|&x| f64::from(x) * f64::from(x));
    let factor = 1.0 / squares.sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    // One read above, one write here: the answer is scaled as it is copied.
    cut.iter()
        .map(|&x| (f64::from(x) * factor) as f32)
        .collect()
}

/// Turns logits into probabilities without overflow, whatever their size.
pub fn probabilities(logits: &[f32], problem_type: ProblemType) -> Vec<f32> {
    match problem_type {
        ProblemType::Regression => logits.to_vec(),
        ProblemType::MultiLabel => logits.iter().map(|&x| sigmoid(x)).collect(),
        ProblemType::SingleLabel => {
            // The largest, not the largest in magnitude: every exponent is at most 0.
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = logits.iter().map(|&x| (x - largest).exp()).collect();
            let sum: f32 = powers.iter().sum();
            powers.into_iter().map(|p| p / sum).collect()
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    let e = (-x.abs()).exp();
    if x >= 0.0 {
        1.0 / (1.0 + e)
    } else {
        e / (1.0 + e)
    }
}

/// What a task makes of its sequence's pooled vector or logits.
pub(crate) fn finish(
    task: Task,
    pooled: Option<&[f32]>,
    logits: Option<&[f32]>,
    problem_type: ProblemType,
) -> Vec<f32> {
    match task {
        Task::Embed {
            normalize,
            dimensions,
        } => embedding(pooled.unwrap_or(&[]), normalize, dimensions),
        Task::Classify { raw_scores: true } => logits.unwrap_or(&[]).to_vec(),
        Task::Classify { raw_scores: false } => probabilities(logits.unwrap_or(&[]), problem_type),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_survives_extreme_logits() {
        let p = probabilities(&[-100.0, 0.0], ProblemType::SingleLabel);
        assert_eq!(p[1], 1.0);
        let p = probabilities(&[3e38, 3e38, -3e38], ProblemType::SingleLabel);
        assert_eq!(p, [0.5, 0.5, 0.0]);
    }

    #[test]
    fn sigmoid_survives_extreme_logits() {
        let p = probabilities(&[-1e30, 0.0, 1e30], ProblemType::MultiLabel);
        assert_eq!(p, [0.0, 0.5, 1.0]);
    }

    #[test]
    fn a_cut_embedding_is_normalised_again() {
        assert_eq!(embedding(&[3.0, 4.0, 12.0], true, Some(2)), [0.6, 0.8]);
        assert_eq!(embedding(&[3.0, 4.0, 12.0], false, Some(2)), [3.0, 4.0]);
        assert_eq!(embedding(&[1e30, 0.0], true, None), [1.0, 0.0]);
        assert_eq!(embedding(&[0.0, 0.0], true, None), [0.0, 0.0]);
    }
}
