/// xoshiro256++ seeded by splitmix64 (Blackman and Vigna, 2019): small, fast, and the same
/// sequence on every machine, which a seed in a report needs.
#[derive(Debug, Clone)]
pub(crate) struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// `stream` keeps the draws of one seed apart (arrivals from texts, rate from rate).
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut splitmix = seed ^ stream.wrapping_mul(0xD1B5_4A32_D192_ED03);
        Self {
            state: std::array::from_fn(|_| splitmix64(&mut splitmix)),
        }
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Uniform in [0, 1), with all 53 bits of the mantissa.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Uniform in `0..n`. The bias of multiply-and-shift, n/2^64, does not matter here.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "a choice among nothing");
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Exponential with mean 1.
    pub(crate) fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }

    /// Gamma with the given shape and scale 1, so mean `shape`.
    ///
    /// Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables", 2000; shapes below
    /// 1 by their boost Γ(a) = Γ(a + 1) · U^(1/a).
    pub(crate) fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = (1.0 - self.uniform()).powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.uniform()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// Standard normal by Box and Muller; the second value of the pair is not kept.
    fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First output of splitmix64 seeded with 0, from its authors' C code.
    #[test]
    fn splitmix_is_the_published_generator() {
        let mut state = 0;
        assert_eq!(splitmix64(&mut state), 0xE220_A839_7B1D_CDAF);
        assert_eq!(splitmix64(&mut state), 0x6E78_9E6A_A1B9_65F4);
    }

    /// xoshiro256++ from state 1, 2, 3, 4, as in the test vectors of the `rand_xoshiro` crate.
    #[test]
    fn xoshiro_is_the_published_generator() {
        let mut rng = Rng {
            state: [1, 2, 3, 4],
        };
        assert_eq!(rng.next_u64(), 41_943_041);
        assert_eq!(rng.next_u64(), 58_720_359);
        assert_eq!(rng.next_u64(), 3_588_806_011_781_223);
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let n = 200_000;
        for shape in [0.3, 1.0, 4.0] {
            let mut rng = Rng::new(11, 0);
            let draws: Vec<f64> = (0..n).map(|_| rng.gamma(shape)).collect();
            let mean = draws.iter().sum::<f64>() / f64::from(n);
            let var = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n);
            assert!(
                (mean / shape - 1.0).abs() < 0.02,
                "mean {mean} of gamma({shape})"
            );
            assert!(
                (var / shape - 1.0).abs() < 0.05,
                "variance {var} of gamma({shape})"
            );
        }
    }

    #[test]
    fn below_reaches_every_value() {
        let mut rng = Rng::new(3, 1);
        let mut seen = [0_u32; 7];
        (0..7_000).for_each(|_| seen[rng.below(7)] += 1);
        assert!(seen.iter().all(|&n| (850..1150).contains(&n)), "{seen:?}");
    }
}
