//! The rows that have no place yet, exactly: shortest augmenting paths over all places, from a
//! matching and the prices that go with it.

use super::grid::Grid;
use super::matching::{FREE, Matching};

/// Assigns every row; `rows[r]` is the node of row `r`. Every row that `matching` assigns must be at
/// a place of least `cost − price`.
pub(super) fn complete(
    grid: &Grid<'_>,
    rows: &[u32],
    matching: Matching,
    prices: Vec<i64>,
) -> Matching {
    let places = matching.place_of.iter().enumerate();
    let free = places.filter(|&(_, &place)| place == FREE);
    let unassigned: Vec<usize> = free.map(|(row, _)| row).collect();
    let mut completion = Completion::new(grid, rows, matching, prices);
    for row in unassigned {
        completion.augment(row);
    }
    completion.matching
}

/// A matching and prices such that every assigned row is at a place of least `cost − price`.
struct Completion<'a> {
    grid: &'a Grid<'a>,
    /// The node of each row.
    rows: &'a [u32],
    matching: Matching,
    /// Of each place.
    prices: Vec<i64>,
    smooth: Vec<i64>,
    buffer: Vec<f64>,
    /// `cost − price` of the row last looked at, by place.
    reduced: Vec<i64>,
}

impl<'a> Completion<'a> {
    fn new(grid: &'a Grid<'a>, rows: &'a [u32], matching: Matching, prices: Vec<i64>) -> Self {
        Self {
            grid,
            rows,
            matching,
            prices,
            smooth: vec![0; grid.n_groups()],
            buffer: vec![0.0; grid.n_groups()],
            reduced: vec![0; rows.len()],
        }
    }

    fn look_at(&mut self, row: usize) {
        let node = self.rows[row] as usize;
        self.grid.smooth(node, &mut self.buffer, &mut self.smooth);
        let places = self.reduced.iter_mut().zip(&self.grid.group_at);
        for ((out, &group), price) in places.zip(&self.prices) {
            *out = self.smooth[group as usize] - price;
        }
        for (place, penalty) in self.grid.penalties(node) {
            self.reduced[place] += penalty;
        }
    }

    /// Dijkstra's algorithm on reduced costs, from a row without a place to the nearest free one.
    fn augment(&mut self, start: usize) {
        let n_nodes = self.rows.len();
        let mut distance = vec![i64::MAX; n_nodes];
        let mut previous = vec![start; n_nodes];
        let mut todo: Vec<usize> = (0..n_nodes).collect();
        let mut done = Vec::new();
        let (mut row, mut so_far) = (start, 0);
        let end = loop {
            self.look_at(row);
            let level = match self.matching.place_of[row] {
                FREE => 0,
                own => self.reduced[own],
            };
            let mut nearest = (i64::MAX, 0);
            for (at, &place) in todo.iter().enumerate() {
                let through = so_far + (self.reduced[place] - level);
                if through < distance[place] {
                    distance[place] = through;
                    previous[place] = row;
                }
                let is_tie = distance[place] == nearest.0;
                if distance[place] < nearest.0 || is_tie && self.matching.row_at[place] == FREE {
                    nearest = (distance[place], at);
                }
            }
            let place = todo.swap_remove(nearest.1);
            if self.matching.row_at[place] == FREE {
                break place;
            }
            so_far = nearest.0;
            done.push(place);
            row = self.matching.row_at[place];
        };
        for place in done {
            self.prices[place] += distance[place] - distance[end];
        }
        self.follow_back(&previous, start, end);
    }

    fn follow_back(&mut self, previous: &[usize], start: usize, end: usize) {
        let mut place = end;
        loop {
            let row = previous[place];
            self.matching.row_at[place] = row;
            std::mem::swap(&mut self.matching.place_of[row], &mut place);
            if row == start {
                return;
            }
        }
    }
}
