//! Cliques whose classes are about those of all: random ones, improved by swapping two nodes at a
//! time.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::seq::{IteratorRandom, SliceRandom};

use crate::classes::ClassCounts;
use crate::seed::Rng;
use crate::topology::Clique;

/// A swap has to lower the sum of two skews by more than rounding could.
const LEAST_GAIN: f64 = 1e-12;

/// How many steps of Greedy Swap bring `n_cliques` close to what any number of steps would: the
/// paper's 1000 for its 10 cliques, and 40,000 for 100 and 4,000,000 for 1000, from where on it is
/// 4000 a clique.
///
/// The last swaps are between the few pairs of cliques that are left to improve. Each pair has to
/// be met some times for that, and there are as many as cliques squared. Measured with two shards
/// of ten equal classes a node: ten times the steps change nothing any more, while a twentieth of
/// them leaves 10,000 nodes with twenty times the skew. They take 2.6 s on one core.
#[must_use]
pub fn default_steps(n_cliques: usize) -> usize {
    let per_clique = n_cliques.saturating_mul(4).clamp(100, 4000);
    n_cliques.saturating_mul(per_clique)
}

/// Divides nodes at random into the fewest cliques of at most `size`, which differ by one node at
/// most.
///
/// # Panics
/// If `size` is zero.
#[must_use]
pub fn random_cliques(n_nodes: usize, size: usize, rng: &mut Rng) -> Vec<Clique> {
    let mut order: Vec<u32> = (0..n_nodes as u32).collect();
    order.shuffle(rng);
    let n_cliques = n_nodes.div_ceil(size);
    let bound = |clique: usize| clique * n_nodes / n_cliques;
    let clique = |clique| order[bound(clique)..bound(clique + 1)].to_vec();
    (0..n_cliques).map(clique).collect()
}

/// Lowers the skew of `cliques`: each of `n_steps` takes two cliques at random, lists the swaps of
/// one node each that lower the sum of their skews, and makes one of them, chosen uniformly.
///
/// Nodes with the same class counts are tried once and counted as many, so that a step takes
/// O(kinds² · n_classes) for the different class counts in a clique.
///
/// # Source
/// D-Cliques, arXiv:2104.07365, algorithm 1.
pub fn greedy_swap(cliques: &mut [Clique], classes: &ClassCounts, n_steps: usize, rng: &mut Rng) {
    if cliques.len() < 2 {
        return;
    }
    let mut swaps = Swaps::new(cliques, classes);
    let mut settled = Settled::new(cliques.len());
    for _ in 0..n_steps {
        let first = rng.random_range(0..cliques.len());
        let other = rng.random_range(1..cliques.len());
        let second = (first + other) % cliques.len();
        if settled.contains(first, second) {
            continue;
        }
        swaps.list_improving([first, second], [&cliques[first], &cliques[second]]);
        let Some([kind_out, kind_in]) = swaps.choose(rng) else {
            settled.insert(first, second);
            continue;
        };
        let i = swaps.any_of_kind(&cliques[first], kind_out, rng);
        let j = swaps.any_of_kind(&cliques[second], kind_in, rng);
        let (leaves, comes) = (cliques[first][i], cliques[second][j]);
        cliques[first][i] = comes;
        cliques[second][j] = leaves;
        swaps.tallies[first].exchange(&swaps.kinds[kind_out], &swaps.kinds[kind_in]);
        swaps.tallies[second].exchange(&swaps.kinds[kind_in], &swaps.kinds[kind_out]);
        settled.changed(first);
        settled.changed(second);
    }
}

/// The pairs of cliques that no swap improves, as long as neither changes: once swaps have become
/// rare, nearly every step meets one again.
struct Settled {
    n_cliques: usize,
    /// `[n_cliques]`: changes of each, from 1.
    n_changes: Vec<u32>,
    /// `[n_cliques, n_cliques]`: the changes of both together when no swap was found; 0 if never.
    /// Both only grow, so that an equal sum means that neither has changed. Empty if there are many
    /// cliques.
    settled_at: Vec<u32>,
}

impl Settled {
    /// With more cliques the table would take more than 64 MB, and pairs seldom meet again.
    const MOST_CLIQUES: usize = 4096;

    fn new(n_cliques: usize) -> Self {
        let n_pairs = if n_cliques > Self::MOST_CLIQUES {
            0
        } else {
            n_cliques * n_cliques
        };
        Self {
            n_cliques,
            n_changes: vec![1; n_cliques],
            settled_at: vec![0; n_pairs],
        }
    }

    fn contains(&self, a: usize, b: usize) -> bool {
        let settled_at = self.settled_at.get(self.pair(a, b));
        settled_at.is_some_and(|&at| at == self.n_changes[a] + self.n_changes[b])
    }

    fn insert(&mut self, a: usize, b: usize) {
        let pair = self.pair(a, b);
        if let Some(settled_at) = self.settled_at.get_mut(pair) {
            *settled_at = self.n_changes[a] + self.n_changes[b];
        }
    }

    fn changed(&mut self, clique: usize) {
        self.n_changes[clique] += 1;
    }

    fn pair(&self, a: usize, b: usize) -> usize {
        a.min(b) * self.n_cliques + a.max(b)
    }
}

/// What Greedy Swap keeps of nodes and cliques.
struct Swaps {
    /// `[n_nodes]`: nodes with the same class counts are of the same kind.
    kind_of: Vec<usize>,
    /// `[n_kinds]`: what a node of the kind holds.
    kinds: Vec<Tally>,
    /// `[n_cliques]`: what its nodes hold together.
    tallies: Vec<Tally>,
    /// `[n_classes]`: shares of the classes among all examples.
    all: Vec<f64>,
    /// Swaps of this step that lower the skew: the kinds of the two nodes, and how many such pairs
    /// there are.
    improving: Vec<([usize; 2], usize)>,
}

/// Examples of each class. Whole numbers, far below those that an `f64` no longer holds.
#[derive(Clone, Debug)]
struct Tally {
    counts: Vec<f64>,
    total: f64,
}

impl Tally {
    fn new(counts: impl Iterator<Item = f64>) -> Self {
        let counts: Vec<f64> = counts.collect();
        let total = counts.iter().sum();
        Self { counts, total }
    }

    fn exchange(&mut self, out: &Self, into: &Self) {
        let changes = out.counts.iter().zip(&into.counts);
        for (count, (out, into)) in self.counts.iter_mut().zip(changes) {
            *count += into - out;
        }
        self.total += into.total - out.total;
    }

    /// The skew once `out` has left and `into` has come.
    fn skew_after(&self, out: &Self, into: &Self, all: &[f64]) -> f64 {
        let scale = 1.0 / (self.total - out.total + into.total).max(1.0);
        let changes = out.counts.iter().zip(&into.counts);
        let counts = self.counts.iter().zip(changes);
        let shares = counts.map(|(count, (out, into))| (count - out + into) * scale);
        shares.zip(all).map(|(share, q)| (share - q).abs()).sum()
    }
}

impl Swaps {
    fn new(cliques: &[Clique], classes: &ClassCounts) -> Self {
        let (kind_of, kinds) = kinds(classes);
        let tally = |clique: &Clique| {
            let mut tally = Tally::new(std::iter::repeat_n(0.0, classes.n_classes()));
            let nothing = tally.clone();
            for &node in clique {
                tally.exchange(&nothing, &kinds[kind_of[node as usize]]);
            }
            tally
        };
        Self {
            tallies: cliques.iter().map(tally).collect(),
            all: classes.proportions_of(0..classes.n_nodes()),
            kind_of,
            kinds,
            improving: Vec::new(),
        }
    }

    /// Lists the swaps between two cliques that lower the sum of their skews.
    fn list_improving(&mut self, idx: [usize; 2], cliques: [&[u32]; 2]) {
        self.improving.clear();
        let [first, second] = idx.map(|clique| &self.tallies[clique]);
        let [outs, ins] = cliques.map(|clique| self.groups(clique));
        let skew_after = |out: usize, into: usize| {
            let (out, into) = (&self.kinds[out], &self.kinds[into]);
            first.skew_after(out, into, &self.all) + second.skew_after(into, out, &self.all)
        };
        let stay = outs[0].0;
        let before = skew_after(stay, stay);
        for &(out, n_out) in &outs {
            for &(into, n_into) in &ins {
                if skew_after(out, into) < before - LEAST_GAIN {
                    self.improving.push(([out, into], n_out * n_into));
                }
            }
        }
    }

    /// The kinds in a clique, and how many nodes are of each.
    fn groups(&self, clique: &[u32]) -> Vec<(usize, usize)> {
        let mut groups: Vec<(usize, usize)> = Vec::with_capacity(clique.len());
        for &node in clique {
            let kind = self.kind_of[node as usize];
            match groups.iter_mut().find(|(other, _)| *other == kind) {
                Some((_, n_nodes)) => *n_nodes += 1,
                None => groups.push((kind, 1)),
            }
        }
        groups
    }

    /// One of the listed swaps, every pair of nodes as likely as any other.
    fn choose(&self, rng: &mut Rng) -> Option<[usize; 2]> {
        let n_pairs: usize = self.improving.iter().map(|(_, n_pairs)| n_pairs).sum();
        if n_pairs == 0 {
            return None;
        }
        let mut chosen = rng.random_range(0..n_pairs);
        let found = self.improving.iter().find(|(_, n_pairs)| {
            let is_here = chosen < *n_pairs;
            chosen = chosen.saturating_sub(*n_pairs);
            is_here
        });
        found.map(|&(kinds, _)| kinds)
    }

    /// Where in `clique` some node of a kind stands that is in it.
    fn any_of_kind(&self, clique: &[u32], kind: usize, rng: &mut Rng) -> usize {
        let is_of_kind = |&i: &usize| self.kind_of[clique[i] as usize] == kind;
        let positions = (0..clique.len()).filter(is_of_kind);
        positions
            .choose(rng)
            .expect("the kind was found in this clique")
    }
}

/// The different rows of class counts, and which of them each node has.
fn kinds(classes: &ClassCounts) -> (Vec<usize>, Vec<Tally>) {
    let mut kinds = Vec::new();
    let mut known: BTreeMap<&[u32], usize> = BTreeMap::new();
    let kind_of = (0..classes.n_nodes()).map(|node| {
        let row = classes.node(node);
        *known.entry(row).or_insert_with(|| {
            kinds.push(Tally::new(row.iter().map(|&count| f64::from(count))));
            kinds.len() - 1
        })
    });
    (kind_of.collect(), kinds)
}
