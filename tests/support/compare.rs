//! Comparing numbers with what is expected.

/// `x / ‖x‖`
pub fn unit(x: &[f32]) -> Vec<f32> {
    let norm = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    x.iter().map(|&x| (f64::from(x) / norm) as f32).collect()
}

/// The largest absolute difference and where it is.
///
/// # Panics
/// If lengths differ.
pub fn max_abs_error(found: &[f32], expected: &[f32]) -> (f32, usize) {
    assert_eq!(found.len(), expected.len(), "lengths differ");
    let mut worst = (0.0, 0);
    for (i, (&a, &b)) in found.iter().zip(expected).enumerate() {
        let error = (a - b).abs();
        if error > worst.0 || error.is_nan() {
            worst = (error, i);
        }
    }
    worst
}

/// Asserts that no element is further off than `tolerance`.
///
/// # Panics
/// If one is.
#[track_caller]
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    let (error, i) = max_abs_error(found, expected);
    assert!(
        error <= tolerance,
        "{what}: element {i} is {}, expected {} (off by {error}, allowed {tolerance})",
        found[i],
        expected[i]
    );
}

/// The cosine of the angle between two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter()
            .zip(y)
            .map(|(&x, &y)| f64::from(x) * f64::from(y))
            .sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// How near vectors are to those that are expected: the cosine of each pair.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cosines(Vec<f64>);

impl Cosines {
    /// Compares vectors pair by pair.
    ///
    /// # Panics
    /// If one has no direction.
    pub fn of<'a>(pairs: impl Iterator<Item = (&'a [f32], &'a [f32])>) -> Self {
        let cosines: Vec<f64> = pairs.map(|(a, b)| cosine(a, b)).collect();
        assert!(cosines.iter().all(|c| c.is_finite()), "{cosines:?}");
        Self(cosines)
    }

    /// Adds those of other pairs.
    pub fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// The smallest, and of which pair it is.
    ///
    /// # Panics
    /// If there is no pair.
    pub fn worst(&self) -> (f64, usize) {
        let all = self.0.iter().copied().zip(0..);
        all.min_by(|a, b| a.0.total_cmp(&b.0)).expect("a pair")
    }

    /// The mean of all pairs.
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }
}

impl std::fmt::Display for Cosines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (mean, (worst, idx), n) = (self.mean(), self.worst(), self.0.len());
        write!(
            f,
            "cosine {worst:.6} at worst (text {idx} of {n}), {mean:.6} on average"
        )
    }
}

/// A seeded generator of numbers (splitmix64), so that tests repeat.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in −1..1.
    pub fn signed(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    /// Of mean 0 and standard deviation 1: three uniform numbers in −1..1 together.
    pub fn normal(&mut self) -> f32 {
        self.signed() + self.signed() + self.signed()
    }

    /// A permutation of `0..n`.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}
