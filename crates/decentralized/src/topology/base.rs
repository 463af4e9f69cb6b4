//! Graphs that change every round and average exactly after a period, for any number of nodes and
//! any number of neighbours.
//!
//! # Source
//! Takezawa, Sato, Bao, Niwa, Yamada: Beyond Exponential Graph, arXiv:2305.11420, algorithms 1 to
//! 3.

use std::ops::Range;

use super::{Nodes, Schedule, Topology, TopologyError};
use crate::mixing::MixingMatrix;
use crate::seed::Rng;

/// The Base-(k+1) graph: the product of a period's matrices is J. Undirected, at most `k`
/// neighbours a round, and a period of at most 2·log₍ₖ₊₁₎ n + 2 rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseGraph {
    /// The most neighbours of a node in a round, at least 1.
    pub k: usize,
}

impl Topology for BaseGraph {
    fn name(&self) -> String {
        format!("base:k={}", self.k)
    }

    fn connect(&self, nodes: &Nodes<'_>, _: &mut Rng) -> Result<Schedule, TopologyError> {
        if self.k == 0 {
            return Err(TopologyError::Parameter {
                topology: "base",
                parameter: "k",
                expected: "at least 1".to_owned(),
                got: "0".to_owned(),
            });
        }
        let n_nodes = nodes.n_nodes;
        let k = self.k.min(n_nodes.saturating_sub(1)).max(1);
        nodes.check("base", k)?;
        let mut rounds = base(n_nodes, k + 1);
        if rounds.is_empty() {
            rounds.push(Round::default());
        }
        Ok(Schedule {
            rounds: rounds.iter().map(|round| round.mixing(n_nodes)).collect(),
            cliques: Vec::new(),
        })
    }
}

/// The edges of one round, `(a, b, weight)`, each once; what a node does not give it keeps.
#[derive(Clone, Debug, Default)]
struct Round {
    edges: Vec<(usize, usize, f64)>,
}

impl Round {
    /// Connects all of `group`, which then hold their average.
    fn average(&mut self, group: &[usize]) {
        let weight = 1.0 / group.len() as f64;
        for (i, &a) in group.iter().enumerate() {
            let others = group[i + 1..].iter();
            self.edges.extend(others.map(|&b| (a, b, weight)));
        }
    }

    /// Adds the edges of `other`, its nodes 0, 1, … being `members`.
    fn add(&mut self, other: &Self, member: impl Fn(usize) -> usize) {
        let edges = other.edges.iter();
        self.edges
            .extend(edges.map(|&(a, b, weight)| (member(a), member(b), weight)));
    }

    fn mixing(&self, n_nodes: usize) -> MixingMatrix {
        let mut rows = vec![Vec::new(); n_nodes];
        let mut kept = vec![1.0; n_nodes];
        for &(a, b, weight) in &self.edges {
            rows[a].push((b as u32, weight));
            rows[b].push((a as u32, weight));
            kept[a] -= weight;
            kept[b] -= weight;
        }
        for (node, row) in rows.iter_mut().enumerate() {
            // What rounding leaves of nothing may be negative.
            row.push((node as u32, f64::max(kept[node], 0.0)));
        }
        MixingMatrix::new(rows).expect("what is not given is kept, and edges have one weight")
    }
}

/// Algorithm 3. `n = p·q`, where `p` has all the prime factors up to `base`: `p` groups of `q`
/// nodes average within, by algorithm 2, and then one node of each group with those of the others,
/// by algorithm 1. Or algorithm 2 for all nodes, if that takes fewer rounds.
fn base(n_nodes: usize, base: usize) -> Vec<Round> {
    let p: usize = factors(n_nodes, base).iter().product();
    let q = n_nodes / p;
    let (within, across) = (simple_base(q, base), hyper_hypercube(p, base));
    let simple = simple_base(n_nodes, base);
    if simple.len() < within.len() + across.len() {
        return simple;
    }
    let repeat = |rounds: &[Round], n_groups, member: &dyn Fn(usize, usize) -> usize| {
        let spread = |round: &Round| {
            let mut spread = Round::default();
            (0..n_groups).for_each(|group| spread.add(round, |node| member(group, node)));
            spread
        };
        rounds.iter().map(spread).collect::<Vec<_>>()
    };
    let mut rounds = repeat(&within, p, &|group, node| group * q + node);
    rounds.extend(repeat(&across, q, &|group, node| node * q + group));
    rounds
}

/// The prime factors of `n` up to `base`, gathered greedily to the largest factors up to `base`, largest
/// first, as the authors' program does: for n up to 1,000 and base up to 11 that takes a round more than
/// it could for 216 and 648 nodes and base 8 alone.
fn factors(n: usize, base: usize) -> Vec<usize> {
    let mut rest = n;
    let mut factors = Vec::new();
    for factor in (2..=base.min(n)).rev() {
        while rest.is_multiple_of(factor) {
            factors.push(factor);
            rest /= factor;
        }
    }
    factors
}

/// Algorithm 1, the k-peer hyper-hypercube. With node numbers written in the mixed base of
/// `factors`, each round averages nodes that differ in one digit only. Averages exactly if all
/// prime factors are at most `base`.
fn hyper_hypercube(n_nodes: usize, base: usize) -> Vec<Round> {
    let mut stride = 1;
    let digit = |factor: usize| {
        let mut round = Round::default();
        for first in (0..n_nodes).filter(|node| (node / stride).is_multiple_of(factor)) {
            let group: Vec<usize> = (0..factor).map(|i| first + i * stride).collect();
            round.average(&group);
        }
        stride *= factor;
        round
    };
    factors(n_nodes, base).into_iter().map(digit).collect()
}

/// Nodes of algorithm 2 that stand for one digit of n: `n_blocks · block` of them.
struct Digit {
    nodes: Range<usize>,
    /// A power of the base.
    block: usize,
    /// The digit, less than the base.
    n_blocks: usize,
}

/// The digits of `n` that are not zero, the highest first.
fn digits(n: usize, base: usize) -> Vec<Digit> {
    let powers = std::iter::successors(Some(1usize), |power| power.checked_mul(base));
    let powers: Vec<usize> = powers.take_while(|&power| power <= n).collect();
    let mut start = 0;
    let digit = |&block: &usize| {
        let n_blocks = (n - start) / block;
        let nodes = start..start + n_blocks * block;
        start = nodes.end;
        Digit {
            nodes,
            block,
            n_blocks,
        }
    };
    let all = powers.iter().rev().map(digit);
    all.filter(|digit| digit.n_blocks > 0).collect()
}

/// Algorithm 2, the simple Base-(k+1) graph. The nodes are divided by the digits of their number.
///
/// 1. The nodes of each digit average among themselves.
/// 2. One digit after the other, the highest first, meets all nodes of lower digits: each of these
///    is joined with one node of every block of the higher digit. They then hold the average of
///    all, and so does each block of the higher digit as a whole.
/// 3. The blocks of a digit average within, while lower digits still are in step 2.
fn simple_base(n_nodes: usize, base: usize) -> Vec<Round> {
    let cube = hyper_hypercube(n_nodes, base);
    let is_smooth = factors(n_nodes, base).iter().product::<usize>() == n_nodes;
    let digits = digits(n_nodes, base);
    let [highest, .., _] = digits.as_slice() else {
        return cube;
    };
    if is_smooth {
        return cube;
    }
    let first = hyper_hypercube(highest.nodes.len(), base).len();
    let last = first + 1 + hyper_hypercube(highest.block, base).len();
    let mut rounds = vec![Round::default(); last];
    for (l, digit) in digits.iter().enumerate() {
        let start = digit.nodes.start;
        let whole = hyper_hypercube(digit.nodes.len(), base);
        for (round, of_digit) in rounds.iter_mut().zip(&whole) {
            round.add(of_digit, |node| start + node);
        }
        if l + 1 < digits.len() {
            meet(&mut rounds[first + l], digit, n_nodes, base);
        }
        let within = hyper_hypercube(digit.block, base);
        for (round, of_block) in rounds[first + l + 1..].iter_mut().zip(&within) {
            for block in 0..digit.n_blocks {
                round.add(of_block, |node| start + block * digit.block + node);
            }
        }
    }
    rounds
}

/// Joins each node of the lower digits with one of every block of `digit`, with a weight that gives
/// them the average of all nodes from `digit` on. The nodes of `digit` that nobody needs average in
/// groups of `base`, which changes nothing if they are equal, and helps if they are not (as in
/// training).
fn meet(round: &mut Round, digit: &Digit, n_nodes: usize, base: usize) {
    let lower = digit.nodes.end..n_nodes;
    let weight = digit.block as f64 / (n_nodes - digit.nodes.start) as f64;
    let block_start = |block: usize| digit.nodes.start + block * digit.block;
    for (i, node) in lower.clone().enumerate() {
        let others = (0..digit.n_blocks).map(|block| block_start(block) + i);
        round
            .edges
            .extend(others.map(|other| (node, other, weight)));
    }
    let unneeded = |block| block_start(block) + lower.len()..block_start(block) + digit.block;
    let idle: Vec<usize> = (0..digit.n_blocks).flat_map(unneeded).collect();
    idle.chunks(base).for_each(|group| round.average(group));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::testing::{connect, distance_to_average, product};

    fn check(n_nodes: usize, k: usize) -> Result<usize, TopologyError> {
        let schedule = connect(&BaseGraph { k }, n_nodes)?;
        let n_rounds = schedule.rounds.len();
        let distance = distance_to_average(&product(&schedule));
        assert!(distance < 1e-9, "n {n_nodes}, k {k}: {distance}");
        for mixing in &schedule.rounds {
            for node in 0..n_nodes {
                let (cols, weights) = mixing.row(node);
                let n_others = cols.iter().filter(|&&col| col as usize != node).count();
                assert!(
                    n_others <= k,
                    "n {n_nodes}, k {k}: node {node} has {n_others} neighbours"
                );
                for (&col, &weight) in cols.iter().zip(weights) {
                    let (back, weights) = mixing.row(col as usize);
                    let idx = back.binary_search(&(node as u32));
                    assert_eq!(idx.map(|idx| weights[idx]), Ok(weight), "symmetric");
                }
            }
        }
        Ok(n_rounds)
    }

    #[test]
    fn a_period_averages_exactly() -> Result<(), TopologyError> {
        for k in [1, 2, 3, 4, 5, 9] {
            for n_nodes in (1..=64).chain([97, 100, 128, 143]) {
                let n_rounds = check(n_nodes, k)?;
                let most = 2.0 * (n_nodes as f64).ln() / ((k + 1) as f64).ln() + 2.0;
                assert!(
                    n_rounds as f64 <= most + 1e-9,
                    "n {n_nodes}, k {k}: {n_rounds} rounds"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn periods_are_those_of_the_authors_program() -> Result<(), TopologyError> {
        // Rounds for k = 1, 2, 3, 4, counted by running github.com/yukiTakezawa/BaseGraph.
        let expect = [
            (3, [3, 1, 1, 1]),
            (5, [5, 3, 3, 1]),
            (6, [4, 2, 2, 2]),
            (7, [5, 4, 3, 3]),
            (12, [5, 3, 2, 2]),
            (21, [9, 5, 4, 4]),
            (22, [8, 6, 5, 4]),
            (25, [9, 6, 5, 2]),
            (31, [9, 7, 5, 5]),
            (60, [9, 6, 5, 3]),
            (97, [13, 9, 7, 6]),
            (100, [11, 8, 6, 3]),
            (121, [13, 9, 7, 6]),
        ];
        for (n_nodes, n_rounds) in expect {
            for (k, n_rounds) in (1..).zip(n_rounds) {
                assert_eq!(check(n_nodes, k)?, n_rounds, "n {n_nodes}, k {k}");
            }
        }
        Ok(())
    }

    #[test]
    fn zero_neighbours_are_refused_and_too_many_are_all() -> Result<(), TopologyError> {
        let error = connect(&BaseGraph { k: 0 }, 5).expect_err("no neighbours");
        assert_eq!(error.to_string(), "base: k is 0, expected at least 1");
        assert_eq!(check(5, 100)?, 1);
        Ok(())
    }
}
