use std::time::Duration;

/// Summary of a set of durations; every percentile is an observed value.
///
/// # Units
/// Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Arithmetic mean.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// 95th percentile.
    pub p95_ms: f64,
    /// 99th percentile; with fewer than 100 values it is the maximum.
    pub p99_ms: f64,
    /// 99.9th percentile; with fewer than 1000 values it is the maximum.
    pub p999_ms: f64,
    /// Largest value.
    pub max_ms: f64,
}

impl Summary {
    /// Sorts `values` and summarises them; `None` if there are none.
    #[must_use]
    pub fn of(values: &mut [Duration]) -> Option<Self> {
        values.sort_unstable();
        let max = *values.last()?;
        let sum: Duration = values.iter().sum();
        let at = |per_mille| millis(percentile(values, per_mille));
        Some(Self {
            mean_ms: millis(sum) / values.len() as f64,
            p50_ms: at(500),
            p90_ms: at(900),
            p95_ms: at(950),
            p99_ms: at(990),
            p999_ms: at(999),
            max_ms: millis(max),
        })
    }

    /// The names of [`Self::values`] in the JSON report, before `_<what>_ms`.
    pub(crate) const NAMES: [&str; 7] = ["mean", "p50", "p90", "p95", "p99", "p999", "max"];

    pub(crate) fn values(&self) -> [f64; 7] {
        [
            self.mean_ms,
            self.p50_ms,
            self.p90_ms,
            self.p95_ms,
            self.p99_ms,
            self.p999_ms,
            self.max_ms,
        ]
    }
}

/// Nearest rank: the smallest value that at least `per_mille`/1000 of the values do not exceed.
/// The rank is computed in integers, where 0.99 · n would round to a neighbour for some n.
fn percentile(sorted: &[Duration], per_mille: usize) -> Duration {
    let rank = (sorted.len() * per_mille).div_ceil(1000);
    sorted[rank.max(1) - 1]
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n, n-1, …, 1` milliseconds.
    fn countdown(n: u64) -> Vec<Duration> {
        (1..=n).rev().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_of_known_data_are_exact() {
        for (n, expected) in [
            (1000, [500.5, 500.0, 900.0, 950.0, 990.0, 999.0, 1000.0]),
            (100, [50.5, 50.0, 90.0, 95.0, 99.0, 100.0, 100.0]),
            (10, [5.5, 5.0, 9.0, 10.0, 10.0, 10.0, 10.0]),
            (1, [1.0; 7]),
        ] {
            let found = Summary::of(&mut countdown(n)).unwrap().values();
            for (found, expected) in found.into_iter().zip(expected) {
                assert!(
                    (found - expected).abs() < 1e-9,
                    "n {n}: {found} for {expected}"
                );
            }
        }
    }

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(Summary::of(&mut []), None);
    }
}
