//! The costs as the implicit solver sees them: whole numbers, by groups of identical columns.

use std::collections::HashMap;
use std::ops::Range;

use super::costs::Costs;

/// Costs are rounded to this many steps between zero and the largest. Sums of whole numbers are
/// exact: equal costs stay equal, whatever the order of summation, and no reduced cost turns
/// negative by rounding. A solution is off by at most `n · rank · 2⁻⁴⁰` of the largest cost.
const STEPS: f64 = (1_u64 << 40) as f64;

/// Adding and subtracting this rounds a number below 2⁵¹ to a whole one, without a branch.
const ROUND: f64 = (3_u64 << 51) as f64;

/// Columns in places, so that those of identical `right[j]` (a *group*) lie side by side.
pub(super) struct Grid<'a> {
    costs: &'a Costs<'a>,
    /// Steps for each unit of cost.
    scale: f64,
    /// The column at each place, in a random order within a group.
    pub(super) col_at: Vec<u32>,
    /// The place of each column.
    place_of: Vec<u32>,
    /// The group of each place.
    pub(super) group_at: Vec<u32>,
    /// `[n_groups + 1]`: group `g` has places `offsets[g] .. offsets[g + 1]`.
    offsets: Vec<usize>,
    /// `right` of each group, `[rank, n_groups]`.
    right: Vec<f64>,
}

impl<'a> Grid<'a> {
    /// Groups in the order in which the shuffled `cols` first show them.
    pub(super) fn new(costs: &'a Costs<'a>, cols: &[u32]) -> Self {
        let members = group(costs, cols);
        let (mut col_at, mut group_at, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
        let mut place_of = vec![0; cols.len()];
        let mut right = vec![0.0; costs.rank * members.len()];
        for (group, cols) in members.iter().enumerate() {
            for (k, &x) in costs.right(cols[0] as usize).iter().enumerate() {
                right[k * members.len() + group] = x;
            }
            for &col in cols {
                place_of[col as usize] = col_at.len() as u32;
                col_at.push(col);
                group_at.push(group as u32);
            }
            offsets.push(col_at.len());
        }
        Self {
            costs,
            scale: STEPS / largest(costs),
            col_at,
            place_of,
            group_at,
            offsets,
            right,
        }
    }

    pub(super) fn n_groups(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The places of a group.
    pub(super) fn places(&self, group: usize) -> Range<usize> {
        self.offsets[group]..self.offsets[group + 1]
    }

    /// `left[row] · right[group]` for every group, each of its terms rounded; `buffer` is
    /// overwritten.
    pub(super) fn smooth(&self, row: usize, buffer: &mut [f64], out: &mut [i64]) {
        buffer.fill(ROUND);
        let terms = self.right.chunks_exact(self.n_groups());
        for (&left, right) in self.costs.left(row).iter().zip(terms) {
            let left = left * self.scale;
            for (sum, &right) in buffer.iter_mut().zip(right) {
                *sum += left * right;
            }
        }
        for (out, sum) in out.iter_mut().zip(buffer) {
            *out = sum.to_bits() as i64 - ROUND.to_bits() as i64;
        }
    }

    /// What a row pays on top at the places whose columns are already its neighbours.
    pub(super) fn penalties(&self, row: usize) -> impl Iterator<Item = (usize, i64)> + '_ {
        let weights = self.costs.weights[row].iter();
        weights.map(|&(col, weight)| {
            let penalty = (self.costs.lambda * weight * self.scale).round();
            (self.place_of[col as usize] as usize, penalty as i64)
        })
    }
}

/// The columns of each group.
fn group(costs: &Costs<'_>, cols: &[u32]) -> Vec<Vec<u32>> {
    let mut seen = HashMap::new();
    let mut members: Vec<Vec<u32>> = Vec::new();
    for &col in cols {
        // Of the two zeros, one.
        let right = costs
            .right(col as usize)
            .iter()
            .map(|x| (x + 0.0).to_bits());
        let group = *seen
            .entry(right.collect::<Vec<_>>())
            .or_insert(members.len());
        if group == members.len() {
            members.push(Vec::new());
        }
        members[group].push(col);
    }
    members
}

/// A bound on the size of any cost; one if all are zero.
fn largest(costs: &Costs<'_>) -> f64 {
    let norm = |rows: &[f64]| {
        let rows = rows.chunks_exact(costs.rank);
        let squares = rows.map(|row| row.iter().map(|x| x * x).sum::<f64>());
        squares.fold(0.0, f64::max).sqrt()
    };
    let bound = norm(&costs.left) * norm(&costs.right) + costs.lambda;
    if bound > 0.0 { bound } else { 1.0 }
}
