//! Rows to groups of columns at the least cost, exactly: the assignment problem once columns of a
//! group cannot be told apart.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

const NONE: usize = usize::MAX;

/// The cost of a move that no row can make: above any other, and far from overflow.
const NEVER: i64 = i64::MAX / 4;

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
type Moves = BinaryHeap<Reverse<(i64, u32)>>;

struct Solver<'a> {
    costs: &'a [i64],
    sizes: &'a [usize],
    n_rows: Vec<usize>,
    group_of: Vec<usize>,
    prices: Vec<i64>,
    /// `[n_groups, n_groups]`: from a group to another.
    moves: Vec<Moves>,
    /// The first of each heap: its cost, and the row that would move. Paths are searched on this.
    cheapest: Vec<i64>,
    mover: Vec<usize>,
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
            cheapest: vec![NEVER; n_groups * n_groups],
            mover: vec![NONE; n_groups * n_groups],
            distance: vec![0; n_groups],
            previous: vec![NONE; n_groups],
        }
    }

    fn insert(&mut self, row: usize) {
        let end = self.shortest_path(row);
        let mut group = end;
        while self.previous[group] != NONE {
            let from = self.previous[group];
            let moved = self.mover[from * self.sizes.len() + group];
            self.put(moved, group);
            self.forget(moved, from);
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
        for (to, cost) in costs.iter().enumerate() {
            let (at, cost) = (group * n_groups + to, cost - costs[group]);
            self.moves[at].push(Reverse((cost, row as u32)));
            if cost < self.cheapest[at] {
                (self.cheapest[at], self.mover[at]) = (cost, row);
            }
        }
    }

    /// Finds other movers where a row that has left `from` was the cheapest.
    fn forget(&mut self, row: usize, from: usize) {
        let n_groups = self.sizes.len();
        for at in from * n_groups..(from + 1) * n_groups {
            if self.mover[at] != row {
                continue;
            }
            (self.cheapest[at], self.mover[at]) = (NEVER, NONE);
            while let Some(&Reverse((cost, row))) = self.moves[at].peek() {
                if self.group_of[row as usize] == from {
                    (self.cheapest[at], self.mover[at]) = (cost, row as usize);
                    break;
                }
                self.moves[at].pop();
            }
        }
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
            let level = self.distance[group] + self.prices[group];
            let cheapest = &self.cheapest[group * n_groups..][..n_groups];
            for &to in &todo {
                let through = level + cheapest[to] - self.prices[to];
                if through < self.distance[to] {
                    self.distance[to] = through;
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
