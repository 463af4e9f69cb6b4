//! Numbers and comparisons.

/// Numbers in −1..1 that depend on their place and the seed alone.
pub(crate) fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub(crate) fn wide(xs: &[f32]) -> Vec<f64> {
    xs.iter().map(|&x| f64::from(x)).collect()
}

/// Fails with the worst element if any is farther than `tolerance` of the largest.
pub(crate) fn assert_near(what: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0_f64, |most, x| most.max(x.abs()));
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - expected).abs() / scale;
        // A comparison that NaN fails.
        let is_near = error <= tolerance;
        assert!(is_near, "{what}, element {i}: {got}, expected {expected}");
    }
}

/// Derivatives of `f` at `x` by central differences.
pub(crate) fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let n = x.len();
    let mut x = x.to_vec();
    let mut derivative = |i: usize| {
        let before = x[i];
        x[i] = before + STEP;
        let above = f(&x);
        x[i] = before - STEP;
        let below = f(&x);
        x[i] = before;
        (above - below) / (2.0 * STEP)
    };
    (0..n).map(&mut derivative).collect()
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
