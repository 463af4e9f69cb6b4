//! How far the classes of some nodes are from those of all.

/// `Σₗ |p(l) − q(l)|`: 0 for equal proportions, 2 for disjoint classes. (The L1 distance, without
/// the ½ of the total variation.)
///
/// # Shapes
/// - `proportions`, `all`: `[n_classes]`
///
/// # Source
/// D-Cliques, arXiv:2104.07365, §3.
#[must_use]
pub fn skew(proportions: &[f64], all: &[f64]) -> f64 {
    let pairs = proportions.iter().zip(all);
    pairs.map(|(p, q)| (p - q).abs()).sum()
}

#[cfg(test)]
mod tests {
    use super::skew;

    #[test]
    fn no_half_is_taken() {
        assert_eq!(skew(&[1.0, 0.0], &[0.0, 1.0]), 2.0);
        assert_eq!(skew(&[0.5, 0.5, 0.0, 0.0], &[0.25; 4]), 1.0);
        assert_eq!(skew(&[0.25; 4], &[0.25; 4]), 0.0);
    }
}
