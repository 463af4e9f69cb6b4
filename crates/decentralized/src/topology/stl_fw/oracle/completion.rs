//! The rows that have no place yet, exactly: shortest augmenting paths over all places, from a
//! matching and the prices that go with it.

use super::grid::Grid;
use super::matching::{FREE, Matching};

/// Rounds in which every unassigned row may outbid another, before the search for paths.
const N_BIDDING_ROUNDS: usize = 2;

/// A matching and prices such that every assigned row is at a place of least `cost − price`.
pub(super) struct Completion<'a> {
    grid: &'a Grid<'a>,
    /// The node of each row.
    rows: &'a [u32],
    pub(super) matching: Matching,
    /// Of each place.
    prices: Vec<i64>,
    smooth: Vec<i64>,
    buffer: Vec<f64>,
    /// `cost − price` of the row last looked at, by place.
    reduced: Vec<i64>,
}

impl<'a> Completion<'a> {
    pub(super) fn new(
        grid: &'a Grid<'a>,
        rows: &'a [u32],
        matching: Matching,
        prices: Vec<i64>,
    ) -> Self {
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

    /// Nothing assigned; each place costs as much as the row that wants it most would pay.
    pub(super) fn from_scratch(grid: &'a Grid<'a>, rows: &'a [u32]) -> Self {
        let n_nodes = rows.len();
        let matching = Matching::empty(n_nodes);
        let mut this = Self::new(grid, rows, matching, vec![0; n_nodes]);
        let mut prices = vec![i64::MAX; n_nodes];
        for row in 0..n_nodes {
            this.look_at(row);
            for (price, &cost) in prices.iter_mut().zip(&this.reduced) {
                *price = (*price).min(cost);
            }
        }
        this.prices = prices;
        this
    }

    /// Assigns every row.
    pub(super) fn complete(&mut self) {
        let mut left = self.unassigned();
        for _ in 0..N_BIDDING_ROUNDS {
            for row in left {
                self.bid(row);
            }
            left = self.unassigned();
        }
        for row in left {
            self.augment(row);
        }
    }

    fn unassigned(&self) -> Vec<usize> {
        let places = self.matching.place_of.iter().enumerate();
        places
            .filter(|&(_, &place)| place == FREE)
            .map(|(row, _)| row)
            .collect()
    }

    fn look_at(&mut self, row: usize) {
        let node = self.rows[row] as usize;
        self.grid.smooth(node, &mut self.buffer, &mut self.smooth);
        if self.grid.n_groups() == self.rows.len() {
            for ((out, cost), price) in self.reduced.iter_mut().zip(&self.smooth).zip(&self.prices)
            {
                *out = cost - price;
            }
        } else {
            let places = self.reduced.iter_mut().zip(&self.grid.group_at);
            for ((out, &group), price) in places.zip(&self.prices) {
                *out = self.smooth[group as usize] - price;
            }
        }
        for (place, penalty) in self.grid.penalties(node) {
            self.reduced[place] += penalty;
        }
    }

    /// The row takes its best place, whose price falls until the second best is as good.
    fn bid(&mut self, row: usize) {
        self.look_at(row);
        let (mut best, mut second) = ((i64::MAX, FREE), (i64::MAX, FREE));
        for (place, &reduced) in self.reduced.iter().enumerate() {
            if reduced < second.0 {
                second = (reduced, place);
                if second.0 < best.0 {
                    std::mem::swap(&mut best, &mut second);
                }
            }
        }
        let is_tie = second.0 == best.0;
        let place = match is_tie && self.matching.row_at[best.1] != FREE {
            true => second.1,
            false => best.1,
        };
        if second.1 != FREE {
            self.prices[place] -= second.0 - best.0;
        }
        let outbid = std::mem::replace(&mut self.matching.row_at[place], row);
        if outbid != FREE {
            self.matching.place_of[outbid] = FREE;
        }
        self.matching.place_of[row] = place;
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
