//! The linear oracle of Frank–Wolfe: the permutation at the least cost.

mod completion;
mod costs;
mod dense;
mod grid;
mod implicit;
mod matching;
mod transport;

pub(super) use costs::Costs;

use crate::seed::Rng;

/// How the assignment problem of each iteration is solved. Both are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oracle {
    /// On the stored matrix of all pairs of nodes, in O(n³): the reference, for up to some 2,000 nodes.
    Dense,
    /// On groups of nodes that hold the same shares of classes, without storing all pairs.
    Implicit,
}

impl Oracle {
    pub(super) fn assign(self, costs: &Costs<'_>, rng: &mut Rng) -> Vec<u32> {
        match self {
            Self::Dense => dense::assign(costs, rng),
            Self::Implicit => implicit::assign(costs, rng),
        }
    }
}
