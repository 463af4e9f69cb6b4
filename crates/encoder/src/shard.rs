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
        let even = n_tokens as f64 * top_k as f64 / n_experts.max(1) as f64;
        Some((f64::from(factor) * even).ceil() as usize)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sharded => "sharded",
            Self::Parallel => "parallel",
            Self::Capacity { .. } => "capacity",
            Self::Replicated => "replicated",
        })
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
            Strategy::Sharded if d_ff < n_ranks => {
                Err(format!("d_ff {d_ff} cannot be split over {n_ranks} ranks"))
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
    }
}
