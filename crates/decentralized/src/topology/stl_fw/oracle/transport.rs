//! Rows to groups of columns at the least cost, exactly: the assignment problem once columns of a
//! group cannot be told apart.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

const NONE: usize = usize::MAX;

/// A solution, and the prices that prove it: every row is in a group of least `cost − price`.
pub(super) struct Plan {
    /// Of each row.
    pub(super) group_of: Vec<usize>,
    /// Of each group.
    pub(super) prices: Vec<i64>,
}

/// Solves for `costs`, `[n_rows, n_groups]`, with `sizes[g]` rows in group `g`: one row after
/// another along a shortest augmenting path over the groups, in O(n_rows · n_groups²) and a heap
/// for each pair of groups. Of equal solutions the order of the rows decides.
///
/// # Source
/// The successive shortest path method for the transportation problem.
pub(super) fn solve(costs: &[i64], sizes: &[usize]) -> Plan {
    let mut solver = Solver::new(costs, sizes);
    for row in 0..costs.len() / sizes.len() {
        solver.insert(row);
    }
    Plan {
        group_of: solver.group_of,
        prices: solver.prices,
    }
}

/// What it costs to move a row between two groups, cheapest first; also of rows that have left.
type Moves = BinaryHeap<Reverse<(i64, usize)>>;

struct Solver<'a> {
    costs: &'a [i64],
    sizes: &'a [usize],
    n_rows: Vec<usize>,
    group_of: Vec<usize>,
    prices: Vec<i64>,
    /// `[n_groups, n_groups]`: from a group to another.
    moves: Vec<Moves>,
    distance: Vec<i64>,
    previous: Vec<usize>,
}

impl<'a> Solver<'a> {
    fn new(costs: &'a [i64], sizes: &'a [usize]) -> Self {
        let n_groups = sizes.len();
        Self {
            costs,
            sizes,
            n_rows: vec![0; n_groups],
            group_of: vec![NONE; costs.len() / n_groups],
            prices: vec![0; n_groups],
            moves: vec![Moves::new(); n_groups * n_groups],
            distance: vec![0; n_groups],
            previous: vec![NONE; n_groups],
        }
    }

    fn insert(&mut self, row: usize) {
        let end = self.shortest_path(row);
        let mut group = end;
        while self.previous[group] != NONE {
            let from = self.previous[group];
            let (_, moved) = self.cheapest_move(from, group).expect("it was on the path");
            self.put(moved, group);
            group = from;
        }
        self.put(row, group);
        // All along the path one row came and one went.
        self.n_rows[end] += 1;
    }

    fn put(&mut self, row: usize, group: usize) {
        let n_groups = self.sizes.len();
        let costs = &self.costs[row * n_groups..][..n_groups];
        self.group_of[row] = group;
        let moves = &mut self.moves[group * n_groups..][..n_groups];
        for (heap, &cost) in moves.iter_mut().zip(costs) {
            heap.push(Reverse((cost - costs[group], row)));
        }
    }

    fn cheapest_move(&mut self, from: usize, to: usize) -> Option<(i64, usize)> {
        let heap = &mut self.moves[from * self.sizes.len() + to];
        while let Some(&Reverse((cost, row))) = heap.peek() {
            if self.group_of[row] == from {
                return Some((cost, row));
            }
            heap.pop();
        }
        None
    }

    /// Dijkstra's algorithm on reduced costs, from a row to the nearest group with room, which it
    /// returns; then prices along the way, so that the path costs nothing.
    fn shortest_path(&mut self, row: usize) -> usize {
        let n_groups = self.sizes.len();
        let costs = &self.costs[row * n_groups..][..n_groups];
        for (group, cost) in costs.iter().enumerate() {
            self.distance[group] = cost - self.prices[group];
            self.previous[group] = NONE;
        }
        let mut todo: Vec<usize> = (0..n_groups).collect();
        let mut done = Vec::new();
        let end = loop {
            let nearest = (0..todo.len()).min_by_key(|&at| {
                let is_full = self.n_rows[todo[at]] == self.sizes[todo[at]];
                (self.distance[todo[at]], is_full)
            });
            let group = todo.swap_remove(nearest.expect("as many places as rows"));
            if self.n_rows[group] < self.sizes[group] {
                break group;
            }
            done.push(group);
            for &to in &todo {
                let Some((cost, _)) = self.cheapest_move(group, to) else {
                    continue;
                };
                let reduced = cost + self.prices[group] - self.prices[to];
                if self.distance[group] + reduced < self.distance[to] {
                    self.distance[to] = self.distance[group] + reduced;
                    self.previous[to] = group;
                }
            }
        };
        for group in done {
            self.prices[group] += self.distance[group] - self.distance[end];
        }
        end
    }
}
