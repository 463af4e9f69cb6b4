use std::time::Duration;

use crate::rng::Rng;

/// How the gaps between arrivals are drawn; their mean is one over the rate in every case.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Spacing {
    /// Equal gaps.
    Constant,
    /// Gamma-distributed gaps of this shape; shape 1 is the exponential gap of Poisson arrivals.
    Gamma(f64),
}

/// The scheduled sends of one rate, as offsets from its start: the same for the same seed.
///
/// It never ends; the caller stops at its number of requests or at its duration.
#[derive(Debug, Clone)]
pub(crate) struct Arrivals {
    rate: f64,
    spacing: Spacing,
    rng: Rng,
    /// Sum of the gaps so far, in units of the mean gap.
    elapsed_gaps: f64,
}

impl Arrivals {
    /// Arrivals at `rate` requests per second, which must be above zero.
    ///
    /// Each rate of a seed has draws of its own. One pattern for all would carry its luck (at 10
    /// requests/s for 20 s, the count varies by 7 %) through the whole sweep in one direction.
    pub(crate) fn new(rate: f64, spacing: Spacing, seed: u64) -> Self {
        Self {
            rate,
            spacing,
            rng: Rng::new(seed, rate.to_bits()),
            elapsed_gaps: 0.0,
        }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.elapsed_gaps += match self.spacing {
            Spacing::Constant => 1.0,
            Spacing::Gamma(1.0) => self.rng.exponential(),
            Spacing::Gamma(shape) => self.rng.gamma(shape) / shape,
        };
        // A gap too long for a Duration is never reached either.
        Some(Duration::try_from_secs_f64(self.elapsed_gaps / self.rate).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACINGS: [Spacing; 4] = [
        Spacing::Constant,
        Spacing::Gamma(1.0),
        Spacing::Gamma(0.5),
        Spacing::Gamma(3.0),
    ];

    #[test]
    fn a_seed_fixes_the_arrivals() {
        for spacing in SPACINGS {
            let take = |seed| {
                Arrivals::new(20.0, spacing, seed)
                    .take(100)
                    .collect::<Vec<_>>()
            };
            assert_eq!(take(7), take(7), "{spacing:?}");
            assert_eq!(
                take(7) == take(8),
                spacing == Spacing::Constant,
                "{spacing:?}"
            );
        }
    }

    #[test]
    fn the_mean_rate_is_the_one_asked_for() {
        let n = 100_000;
        for spacing in SPACINGS {
            let last = Arrivals::new(250.0, spacing, 5).nth(n - 1).unwrap();
            let rate = n as f64 / last.as_secs_f64();
            assert!(
                (rate / 250.0 - 1.0).abs() < 0.02,
                "{spacing:?} gave {rate}/s"
            );
        }
    }

    /// Over many seeds, so that a poor seeding would show: the count in 10 s has mean and
    /// variance 100.
    #[test]
    fn poisson_counts_are_poisson_from_seed_to_seed() {
        let n_seeds = 4000;
        let window = Duration::from_secs(10);
        let count = |seed| {
            let arrivals = Arrivals::new(10.0, Spacing::Gamma(1.0), seed);
            arrivals.take_while(|&at| at <= window).count() as f64
        };
        let counts: Vec<f64> = (0..n_seeds).map(count).collect();
        let mean = counts.iter().sum::<f64>() / n_seeds as f64;
        let var = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / n_seeds as f64;
        assert!((mean - 100.0).abs() < 0.7, "mean {mean}");
        assert!((var - 100.0).abs() < 10.0, "variance {var}");
    }

    /// The squared coefficient of variation of gamma gaps is 1/shape.
    #[test]
    fn burstiness_is_the_spread_of_the_gaps() {
        for (spacing, expected) in SPACINGS.into_iter().zip([0.0, 1.0, 2.0, 1.0 / 3.0]) {
            let times: Vec<f64> = Arrivals::new(1.0, spacing, 2)
                .take(100_000)
                .map(|t| t.as_secs_f64())
                .collect();
            let gaps: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let var = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            let spread = var / (mean * mean);
            assert!(
                (spread - expected).abs() < 0.06,
                "{spacing:?}: {spread} for {expected}"
            );
        }
    }

    #[test]
    fn arrivals_never_go_back_in_time() {
        for spacing in SPACINGS {
            let times: Vec<_> = Arrivals::new(1e6, spacing, 1).take(10_000).collect();
            assert!(times.windows(2).all(|w| w[0] <= w[1]), "{spacing:?}");
        }
    }
}
