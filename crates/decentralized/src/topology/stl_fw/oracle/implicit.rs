//! The assignment problem without a stored matrix, exactly.
//!
//! Columns that hold the same shares of classes cost any row the same, but for the few that are
//! its neighbours already. So rows are first sent to groups of such columns (`transport`), then
//! matched within them around their neighbours (`matching`). Neighbours only ever cost more:
//! where that succeeds the solution is the best. Rows it leaves over, and all rows where hardly
//! any two columns are alike, find places along shortest augmenting paths (`completion`).

use rand::seq::SliceRandom;

use super::auction;
use super::completion::complete;
use super::costs::Costs;
use super::grid::Grid;
use super::matching::{Matching, within_groups};
use super::transport;
use crate::seed::Rng;

/// The most groups to plan transport between: each pair has a heap.
const MAX_GROUPS: usize = 512;

/// The column of each row, at the least cost in all. Rows and columns are shuffled first, so that
/// chance decides between equal solutions.
pub(super) fn assign(costs: &Costs<'_>, rng: &mut Rng) -> Vec<u32> {
    let n_nodes = costs.n_nodes();
    let (mut rows, mut cols): (Vec<u32>, Vec<u32>) = (0..n_nodes as u32).map(|i| (i, i)).unzip();
    rows.shuffle(rng);
    cols.shuffle(rng);
    let grid = Grid::new(costs, &cols);
    let matching = if grid.n_groups() <= MAX_GROUPS.min(n_nodes / 2) {
        by_groups(&grid, &rows)
    } else {
        auction::assign(&grid, &rows)
    };
    let mut to = vec![0; n_nodes];
    for (&row, &place) in rows.iter().zip(&matching.place_of) {
        to[row as usize] = grid.col_at[place];
    }
    to
}

fn by_groups(grid: &Grid<'_>, rows: &[u32]) -> Matching {
    let n_groups = grid.n_groups();
    let sizes: Vec<usize> = (0..n_groups)
        .map(|group| grid.places(group).len())
        .collect();
    let mut table = vec![0; rows.len() * n_groups];
    let mut buffer = vec![0.0; n_groups];
    let mut floors = vec![Vec::new(); rows.len()];
    for ((&row, costs), floors) in rows
        .iter()
        .zip(table.chunks_exact_mut(n_groups))
        .zip(&mut floors)
    {
        grid.smooth(row as usize, &mut buffer, costs);
        *floors = group_floors(grid, row as usize);
        for &(group, floor) in floors.iter() {
            costs[group] += floor;
        }
    }
    let plan = transport::solve(&table, &sizes);
    let paid = floors.iter().zip(&plan.group_of).map(|(floors, &group)| {
        let floor = floors.iter().find(|floor| floor.0 == group);
        floor.map_or(0, |&(_, floor)| floor)
    });
    let floors: Vec<i64> = paid.collect();
    let matching = within_groups(grid, &plan, rows, &floors);
    let prices = grid
        .group_at
        .iter()
        .map(|&group| plan.prices[group as usize]);
    complete(grid, rows, matching, prices.collect())
}

/// The groups whose every column is a neighbour of the row already, and the least that it pays
/// there on top.
fn group_floors(grid: &Grid<'_>, row: usize) -> Vec<(usize, i64)> {
    let mut penalties: Vec<(usize, i64)> = grid
        .penalties(row)
        .map(|(place, penalty)| (grid.group_at[place] as usize, penalty))
        .collect();
    penalties.sort_unstable();
    let groups = penalties.chunk_by(|a, b| a.0 == b.0);
    let full = groups.filter(|penalties| penalties.len() == grid.places(penalties[0].0).len());
    full.map(|penalties| penalties[0]).collect()
}
