//! The assignment problem on a stored matrix, exactly: shortest augmenting paths in the manner of
//! Jonker and Volgenant, in O(n³) and `[n, n]` numbers. The reference for the implicit solver.

use rand::seq::SliceRandom;

use super::costs::{Costs, dot};
use crate::seed::Rng;

const FREE: usize = usize::MAX;

/// The column of each row, at the least cost in all. Rows and columns are shuffled first, so that
/// chance decides between equal solutions.
pub(super) fn assign(costs: &Costs<'_>, rng: &mut Rng) -> Vec<u32> {
    let n_nodes = costs.n_nodes();
    let (mut rows, mut cols): (Vec<u32>, Vec<u32>) = (0..n_nodes as u32).map(|i| (i, i)).unzip();
    rows.shuffle(rng);
    cols.shuffle(rng);
    let mut position = vec![0; n_nodes];
    for (at, &col) in cols.iter().enumerate() {
        position[col as usize] = at;
    }
    let mut matrix = Vec::with_capacity(n_nodes * n_nodes);
    for &row in &rows {
        let left = costs.left(row as usize);
        let start = matrix.len();
        matrix.extend(cols.iter().map(|&col| dot(left, costs.right(col as usize))));
        for &(col, weight) in &costs.weights[row as usize] {
            matrix[start + position[col as usize]] += costs.lambda * weight;
        }
    }
    let solved = Solver::new(&matrix, n_nodes).solve();
    let mut to = vec![0; n_nodes];
    for (row, at) in solved.into_iter().enumerate() {
        to[rows[row] as usize] = cols[at];
    }
    to
}

struct Solver<'a> {
    /// `[n, n]`
    costs: &'a [f64],
    n: usize,
    /// Dual price of each column: an assigned row has its column at the least `cost − price`.
    prices: Vec<f64>,
    row_of: Vec<usize>,
    col_of: Vec<usize>,
}

impl<'a> Solver<'a> {
    fn new(costs: &'a [f64], n: usize) -> Self {
        let mut prices = vec![f64::INFINITY; n];
        for row in costs.chunks_exact(n) {
            for (price, &cost) in prices.iter_mut().zip(row) {
                *price = price.min(cost);
            }
        }
        Self {
            costs,
            n,
            prices,
            row_of: vec![FREE; n],
            col_of: vec![FREE; n],
        }
    }

    fn solve(mut self) -> Vec<usize> {
        for row in 0..self.n {
            self.take_cheapest_if_free(row);
        }
        for row in 0..self.n {
            if self.col_of[row] == FREE {
                self.augment(row);
            }
        }
        self.col_of
    }

    fn row(&self, row: usize) -> &'a [f64] {
        &self.costs[row * self.n..][..self.n]
    }

    fn take_cheapest_if_free(&mut self, row: usize) {
        let mut best = (f64::INFINITY, 0);
        for (col, (&cost, &price)) in self.row(row).iter().zip(&self.prices).enumerate() {
            let reduced = cost - price;
            let is_free_tie = reduced == best.0 && self.row_of[col] == FREE;
            if reduced < best.0 || is_free_tie {
                best = (reduced, col);
            }
        }
        if self.row_of[best.1] == FREE {
            self.row_of[best.1] = row;
            self.col_of[row] = best.1;
        }
    }

    /// Dijkstra's algorithm on reduced costs, from an unassigned row to the nearest free column.
    fn augment(&mut self, start: usize) {
        let mut distance = vec![f64::INFINITY; self.n];
        let mut previous = vec![start; self.n];
        let mut todo: Vec<usize> = (0..self.n).collect();
        let mut done = Vec::new();
        let (mut row, mut so_far) = (start, 0.0);
        let end = loop {
            let costs = self.row(row);
            // Of the row's own column; nothing for the start, whose level cancels.
            let level = match self.col_of[row] {
                FREE => 0.0,
                own => costs[own] - self.prices[own],
            };
            let mut nearest = (f64::INFINITY, 0);
            for (at, &col) in todo.iter().enumerate() {
                let through = so_far + (costs[col] - self.prices[col] - level);
                if through < distance[col] {
                    distance[col] = through;
                    previous[col] = row;
                }
                let is_free_tie = distance[col] == nearest.0 && self.row_of[col] == FREE;
                if distance[col] < nearest.0 || is_free_tie {
                    nearest = (distance[col], at);
                }
            }
            let col = todo.swap_remove(nearest.1);
            if self.row_of[col] == FREE {
                break col;
            }
            so_far = nearest.0;
            done.push(col);
            row = self.row_of[col];
        };
        for col in done {
            self.prices[col] += distance[col] - distance[end];
        }
        self.follow_back(&previous, start, end);
    }

    fn follow_back(&mut self, previous: &[usize], start: usize, end: usize) {
        let mut col = end;
        loop {
            let row = previous[col];
            self.row_of[col] = row;
            std::mem::swap(&mut self.col_of[row], &mut col);
            if row == start {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::rng;
    use rand::RngExt;

    /// The least cost over all permutations, one row after another.
    fn brute_force(costs: &[f64], n: usize, row: usize, taken: u32) -> f64 {
        if row == n {
            return 0.0;
        }
        let free = (0..n).filter(|col| taken & (1 << col) == 0);
        free.map(|col| costs[row * n + col] + brute_force(costs, n, row + 1, taken | 1 << col))
            .fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn is_the_best_of_all_permutations() {
        let mut rng = rng(3, 0);
        for n in 1..=7 {
            for levels in [2, 5, 1000] {
                // Few levels make many ties.
                let costs: Vec<f64> = (0..n * n)
                    .map(|_| f64::from(rng.random_range(-levels..levels)))
                    .collect();
                let found = Solver::new(&costs, n).solve();
                let mut is_taken = vec![false; n];
                let mut total = 0.0;
                for (row, &col) in found.iter().enumerate() {
                    assert!(
                        !std::mem::replace(&mut is_taken[col], true),
                        "a permutation"
                    );
                    total += costs[row * n + col];
                }
                assert_eq!(total, brute_force(&costs, n, 0, 0), "n = {n}");
            }
        }
    }
}
