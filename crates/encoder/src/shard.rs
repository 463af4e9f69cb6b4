//! Which part of every expert a rank holds.

use std::fmt;
use std::ops::Range;

/// Hidden units of an expert are dealt out in groups of this size where there are enough of them:
/// the width of the CPU kernels' weight panels.
pub const TILE: usize = 16;

/// How the experts are laid out over ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Strategy {
    /// Every expert split over all ranks: W_in by columns, W_out by rows (MoEShard,
    /// arXiv:2503.08467). Every rank does the same work whatever the routing.
    Sharded,
    /// The same, in parts of unequal size, for ranks that compute at unequal speed.
    Uneven(Shares),
    /// Whole experts dealt out to ranks; no token is dropped.
    Parallel,
    /// As `Parallel`, but an expert takes at most `factor · n_tokens · top_k / n_experts` tokens
    /// of a batch and drops the others.
    Capacity {
        /// Room over the even share.
        factor: f32,
    },
    /// Every rank holds all experts and runs its own tokens; no communication.
    Replicated,
}

impl Strategy {
    /// Whether ranks exchange hidden states.
    pub fn communicates(self) -> bool {
        self != Self::Replicated
    }

    /// Slots of an expert for a batch, if it is limited.
    pub fn batch_capacity(self, n_tokens: usize, top_k: usize, n_experts: usize) -> Option<usize> {
        let Self::Capacity { factor } = self else {
            return None;
        };
        // As it was written: the f32 of 1.2 is a bit more, which could be a whole slot more.
        let factor = (factor.to_string().parse()).unwrap_or_else(|_| f64::from(factor));
        let slots: f64 = factor * n_tokens as f64 * top_k as f64 / n_experts.max(1) as f64;
        // Less what rounding to f64s may have added.
        Some((slots * (1.0 - 4.0 * f64::EPSILON)).ceil() as usize)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sharded => "sharded",
            Self::Uneven(shares) => return write!(f, "sharded {shares}"),
            Self::Parallel => "parallel",
            Self::Capacity { .. } => "capacity",
            Self::Replicated => "replicated",
        })
    }
}

/// Ranks that can have shares of their own.
pub const MOST_SHARES: usize = 32;

/// What part of every expert each rank has, by its speed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    n: usize,
    of_ranks: [f32; MOST_SHARES],
}

impl Shares {
    /// As to each other.
    ///
    /// # Errors
    /// A sentence if there are none or too many, or one is not above 0.
    pub fn new(of_ranks: &[f32]) -> Result<Self, String> {
        let n = of_ranks.len();
        if n == 0 || n > MOST_SHARES {
            return Err(format!("expected 1 to {MOST_SHARES} shares, got {n}"));
        }
        if let Some(share) = of_ranks.iter().find(|s| !(**s > 0.0 && s.is_finite())) {
            return Err(format!("a share must be above 0, got {share}"));
        }
        let mut shares = Self {
            n,
            of_ranks: [0.0; MOST_SHARES],
        };
        shares.of_ranks[..n].copy_from_slice(of_ranks);
        Ok(shares)
    }

    /// Part `rank` of `n_units`, in groups of [`TILE`] where there are enough of them; nobody is left without
    /// any.
    fn split(&self, n_units: usize, rank: usize) -> Range<usize> {
        let tile = if n_units >= TILE * self.n { TILE } else { 1 };
        let n_tiles = n_units.div_ceil(tile);
        let total: f64 = self.of_ranks[..self.n].iter().map(|&s| f64::from(s)).sum();
        let mut sum = 0.0;
        let mut ends = vec![0];
        for (i, &share) in self.of_ranks[..self.n].iter().enumerate() {
            sum += f64::from(share);
            let end = (n_tiles as f64 * sum / total).round() as usize;
            // Room for one at least: for this rank, and for each behind it.
            ends.push(end.clamp(ends[i] + 1, n_tiles - (self.n - 1 - i)));
        }
        (ends[rank] * tile).min(n_units)..(ends[rank + 1] * tile).min(n_units)
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: f32 = self.of_ranks[..self.n].iter().sum();
        let percent = |share: &f32| format!("{:.0}", 100.0 * share / total);
        let shares: Vec<_> = self.of_ranks[..self.n].iter().map(percent).collect();
        write!(f, "{} %", shares.join(":"))
    }
}

/// The experts of one rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShardPlan {
    /// How experts are laid out.
    pub strategy: Strategy,
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
}

impl ShardPlan {
    /// Everything on one rank.
    pub const SOLO: Self = Self {
        strategy: Strategy::Sharded,
        rank: 0,
        world_size: 1,
    };

    /// The hidden units of expert `expert_idx` that this rank holds; may be none.
    pub fn hidden_units(&self, expert_idx: usize, n_experts: usize, d_ff: usize) -> Range<usize> {
        match self.strategy {
            Strategy::Replicated => 0..d_ff,
            Strategy::Sharded => split_tiles(d_ff, self.rank, self.world_size),
            Strategy::Uneven(shares) => shares.split(d_ff, self.rank),
            Strategy::Parallel | Strategy::Capacity { .. } => {
                let mine = split_evenly(n_experts, self.rank, self.world_size);
                if mine.contains(&expert_idx) {
                    0..d_ff
                } else {
                    0..0
                }
            }
        }
    }

    /// Checks that the layout can be made.
    ///
    /// # Errors
    /// A sentence with both numbers if there are more ranks than things to split.
    pub fn check(&self, n_experts: usize, d_ff: usize) -> Result<(), String> {
        let n_ranks = self.world_size;
        match self.strategy {
            Strategy::Sharded | Strategy::Uneven(_) if d_ff < n_ranks => {
                Err(format!("d_ff {d_ff} cannot be split over {n_ranks} ranks"))
            }
            Strategy::Uneven(shares) if shares.n != n_ranks => {
                Err(format!("{} shares for {n_ranks} ranks", shares.n))
            }
            Strategy::Parallel | Strategy::Capacity { .. } if n_experts < n_ranks => Err(format!(
                "{n_experts} experts cannot be dealt out to {n_ranks} ranks"
            )),
            Strategy::Capacity { factor } if !(factor > 0.0 && factor.is_finite()) => {
                Err(format!("the capacity factor must be above 0, got {factor}"))
            }
            _ => Ok(()),
        }
    }
}

/// Part `rank` of `n` units in groups of [`TILE`], or one by one where those would leave a rank
/// without any.
///
/// Parts differ by at most one group; the incomplete last group goes to a part that has one more.
fn split_tiles(n: usize, rank: usize, world_size: usize) -> Range<usize> {
    let tile = if n >= TILE * world_size { TILE } else { 1 };
    let tiles = split_evenly(n.div_ceil(tile), rank, world_size);
    (tiles.start * tile).min(n)..(tiles.end * tile).min(n)
}

/// Part `rank` of `0..n`; the last parts take one more if it does not divide.
fn split_evenly(n: usize, rank: usize, world_size: usize) -> Range<usize> {
    let (share, rest) = (n / world_size, n % world_size);
    let smaller = world_size - rest;
    let start = rank * share + rank.saturating_sub(smaller);
    start..start + share + usize::from(rank >= smaller)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(strategy: Strategy, world_size: usize, d_ff: usize) -> Vec<Range<usize>> {
        (0..world_size)
            .map(|rank| {
                ShardPlan {
                    strategy,
                    rank,
                    world_size,
                }
                .hidden_units(0, 8, d_ff)
            })
            .collect()
    }

    #[test]
    fn sharded_parts_cover_d_ff_without_overlap_and_differ_by_one_tile() {
        for d_ff in [1, 2, 5, 16, 37, 48, 64, 100, 384, 3072] {
            for world_size in 1..=d_ff.min(9) {
                let parts = parts(Strategy::Sharded, world_size, d_ff);
                assert_eq!(parts[0].start, 0);
                assert_eq!(parts[world_size - 1].end, d_ff);
                assert!(
                    parts.windows(2).all(|w| w[0].end == w[1].start),
                    "{parts:?}"
                );
                let sizes = || parts.iter().map(Range::len);
                let spread = sizes().max().unwrap() - sizes().min().unwrap();
                assert!(spread <= TILE, "{d_ff} over {world_size}: {parts:?}");
                assert!(
                    sizes().min().unwrap() > 0,
                    "{d_ff} over {world_size}: {parts:?}"
                );
            }
        }
        assert_eq!(
            parts(Strategy::Sharded, 4, 3072),
            [0..768, 768..1536, 1536..2304, 2304..3072]
        );
    }

    #[test]
    fn unequal_parts_cover_d_ff_in_proportion_and_leave_nobody_out() {
        for of_ranks in [
            &[1.0, 1.0][..],
            &[3.0, 1.0],
            &[1.0, 0.001, 5.0],
            &[0.001, 0.001, 1.0, 1.0],
        ] {
            let shares = Shares::new(of_ranks).expect("shares");
            let total: f32 = of_ranks.iter().sum();
            for d_ff in [4, 37, 64, 100, 3072] {
                let parts = parts(Strategy::Uneven(shares), of_ranks.len(), d_ff);
                assert_eq!((parts[0].start, parts[of_ranks.len() - 1].end), (0, d_ff));
                assert!(
                    parts.windows(2).all(|w| w[0].end == w[1].start),
                    "{parts:?}"
                );
                for (part, share) in parts.iter().zip(of_ranks) {
                    let fair = d_ff as f32 * share / total;
                    assert!(!part.is_empty(), "{d_ff}: {parts:?}");
                    let off = (part.len() as f32 - fair).abs();
                    assert!(off <= (2 * TILE) as f32, "{d_ff}: {parts:?}");
                }
            }
        }
        let shares = Shares::new(&[3.0, 1.0]).expect("shares");
        assert_eq!(
            parts(Strategy::Uneven(shares), 2, 3072),
            [0..2304, 2304..3072]
        );
        assert_eq!(Strategy::Uneven(shares).to_string(), "sharded 75:25 %");
        for bad in [&[][..], &[1.0, 0.0], &[f32::NAN]] {
            assert!(Shares::new(bad).is_err());
        }
        let plan = ShardPlan {
            strategy: Strategy::Uneven(shares),
            rank: 0,
            world_size: 3,
        };
        assert_eq!(plan.check(8, 64).unwrap_err(), "2 shares for 3 ranks");
    }

    #[test]
    fn parallel_gives_every_expert_to_one_rank() {
        for (n_experts, world_size) in [(8, 3), (5, 4), (6, 1), (4, 4)] {
            for expert_idx in 0..n_experts {
                let holders = (0..world_size)
                    .filter(|&rank| {
                        let plan = ShardPlan {
                            strategy: Strategy::Parallel,
                            rank,
                            world_size,
                        };
                        !plan.hidden_units(expert_idx, n_experts, 7).is_empty()
                    })
                    .count();
                assert_eq!(holders, 1);
            }
        }
    }

    #[test]
    fn impossible_splits_are_named() {
        let plan = |strategy| ShardPlan {
            strategy,
            rank: 0,
            world_size: 5000,
        };
        let error = plan(Strategy::Sharded).check(8, 3072).unwrap_err();
        assert_eq!(error, "d_ff 3072 cannot be split over 5000 ranks");
        let error = plan(Strategy::Parallel).check(8, 3072).unwrap_err();
        assert_eq!(error, "8 experts cannot be dealt out to 5000 ranks");
        assert!(
            plan(Strategy::Capacity { factor: f32::NAN })
                .check(5000, 5000)
                .is_err()
        );
        assert!(plan(Strategy::Replicated).check(1, 1).is_ok());
    }

    #[test]
    fn capacity_is_the_factor_times_the_even_share() {
        let capacity = |factor| Strategy::Capacity { factor }.batch_capacity(100, 2, 8);
        assert_eq!(capacity(1.0), Some(25));
        assert_eq!(capacity(1.25), Some(32));
        assert_eq!(Strategy::Sharded.batch_capacity(100, 2, 8), None);
        // Neither f32 nor f64 has these factors.
        for (factor, (n_tokens, n_experts), slots) in [
            (1.2, (10, 4), 3),
            (1.2, (10, 3), 4),
            (1.1, (30, 3), 11),
            (0.07, (100, 1), 7),
            (0.07, (101, 1), 8),
            (1.001, (256_001, 256), 1002),
            (1.7, (1 << 30, 1 << 10), 1_782_580),
        ] {
            let capacity = Strategy::Capacity { factor }.batch_capacity(n_tokens, 1, n_experts);
            assert_eq!(capacity, Some(slots), "{factor} · {n_tokens} / {n_experts}");
        }
    }
}
