//! The assignment problem where hardly any two columns are alike: an auction.
//!
//! Rows without a place bid for the one of least `cost − price`, whose price falls until the second
//! best is as good, and by ε more. In the end every row is within ε of its best place, and the whole
//! within `n · ε` of the least cost. ε shrinks from phase to phase, prices stay.
//!
//! Prices only ever fall. So a row that has seen all places once may keep the best few and look at
//! the others again only when those have fallen behind: nearly all bids then look at a short list.

use super::grid::Grid;
use super::matching::{FREE, Matching};

/// The last ε, in units of what a row gains at its best place over a mean one, on average.
/// Measured: objectives stay within 0.1 % of those of the exact oracle.
const TOLERANCE: f64 = 1e-4;

/// The first ε in the same units, and by how much each phase divides it.
const FIRST_EPSILON: f64 = 0.25;
const EPSILON_RATIO: f64 = 5.0;

/// Places that a row keeps in mind.
const LIST_LEN: usize = 64;

/// Places among which a row looks for a threshold, where there are many more.
const N_SAMPLES: usize = 512;

/// Fewer rows are not worth a thread.
const MIN_ROWS_A_THREAD: usize = 256;

/// Assigns every row; `rows[r]` is the node of row `r`.
pub(super) fn assign(grid: &Grid<'_>, rows: &[u32]) -> Matching {
    let mut auction = Auction::new(grid, rows);
    let gain = auction.mean_gain();
    let mut epsilon = FIRST_EPSILON;
    while epsilon > TOLERANCE {
        auction.run_phase((epsilon * gain) as i64 + 1);
        epsilon /= EPSILON_RATIO;
    }
    auction.run_phase((TOLERANCE * gain) as i64 + 1);
    auction.matching
}

/// The best places of a row.
#[derive(Clone, Default)]
struct Shortlist {
    /// Costs and places.
    places: Vec<(i64, u32)>,
    /// `cost − price` of every other place is at least this.
    horizon: i64,
}

struct Auction<'a> {
    grid: &'a Grid<'a>,
    rows: &'a [u32],
    matching: Matching,
    /// Of each place.
    prices: Vec<i64>,
    lists: Vec<Shortlist>,
    scan: Scan,
}

impl<'a> Auction<'a> {
    fn new(grid: &'a Grid<'a>, rows: &'a [u32]) -> Self {
        let n_nodes = rows.len();
        Self {
            grid,
            rows,
            matching: Matching::empty(n_nodes),
            prices: vec![0; n_nodes],
            lists: vec![Shortlist::default(); n_nodes],
            scan: Scan::new(grid),
        }
    }

    /// What rows gain at the best place over a mean one, on average; every list is filled on the
    /// way, by all cores: rows do not mind each other before prices move.
    fn mean_gain(&mut self) -> f64 {
        let n_rows = self.rows.len();
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let chunk_len = n_rows.div_ceil(n_threads).max(MIN_ROWS_A_THREAD);
        let (grid, prices) = (self.grid, &self.prices);
        // Whole numbers: the sum is the same however rows are divided.
        let sum: i64 = std::thread::scope(|scope| {
            let rows = self.rows.chunks(chunk_len);
            let threads: Vec<_> = rows
                .zip(self.lists.chunks_mut(chunk_len))
                .map(|(rows, lists)| scope.spawn(move || fill_lists(grid, rows, prices, lists)))
                .collect();
            let gains = threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"));
            gains.sum()
        });
        sum as f64 / n_rows as f64
    }

    fn fill_list(&mut self, row: usize) {
        let node = self.rows[row] as usize;
        self.scan
            .shortlist(self.grid, node, &self.prices, &mut self.lists[row]);
    }

    fn run_phase(&mut self, epsilon: i64) {
        let mut waiting: Vec<usize> = (0..self.rows.len()).rev().collect();
        waiting.retain(|&row| !self.is_content(row, epsilon));
        while let Some(row) = waiting.pop() {
            if let Some(outbid) = self.bid(row, epsilon) {
                waiting.push(outbid);
            }
        }
    }

    /// Whether a row's place is within ε of its best; if not, it leaves it.
    fn is_content(&mut self, row: usize, epsilon: i64) -> bool {
        let own = self.matching.place_of[row];
        if own == FREE {
            return false;
        }
        let list = &self.lists[row];
        let reduced = |&(cost, place): &(i64, u32)| cost - self.prices[place as usize];
        let best = list
            .places
            .iter()
            .map(reduced)
            .min()
            .unwrap_or(list.horizon);
        let at_own = list
            .places
            .iter()
            .find(|&&(_, place)| place as usize == own)
            .map(reduced);
        let is_content = at_own.is_some_and(|at_own| at_own <= best.min(list.horizon) + epsilon);
        if !is_content {
            self.matching.row_at[own] = FREE;
            self.matching.place_of[row] = FREE;
        }
        is_content
    }

    /// The row takes its best place; whoever had it is returned.
    fn bid(&mut self, row: usize, epsilon: i64) -> Option<usize> {
        let (mut best, mut second) = self.two_best(row);
        if best.0 > self.lists[row].horizon {
            self.fill_list(row);
            (best, second) = self.two_best(row);
        }
        // Places beyond the list may be second, but are no better than the horizon.
        let second = second.min(self.lists[row].horizon);
        let (reduced, place) = best;
        self.prices[place] -= (second - reduced).max(0) + epsilon;
        let outbid = std::mem::replace(&mut self.matching.row_at[place], row);
        self.matching.place_of[row] = place;
        if outbid == FREE {
            return None;
        }
        self.matching.place_of[outbid] = FREE;
        Some(outbid)
    }

    fn two_best(&self, row: usize) -> ((i64, usize), i64) {
        let (mut best, mut second) = ((i64::MAX, FREE), i64::MAX);
        for &(cost, place) in &self.lists[row].places {
            let reduced = cost - self.prices[place as usize];
            if reduced < best.0 {
                second = best.0;
                best = (reduced, place as usize);
            } else if reduced < second {
                second = reduced;
            }
        }
        (best, second)
    }
}

/// The first lists of some rows, and the sum of what each gains at its best place over a mean one.
fn fill_lists(grid: &Grid<'_>, rows: &[u32], prices: &[i64], lists: &mut [Shortlist]) -> i64 {
    let mut scan = Scan::new(grid);
    let mut sum = 0;
    for (&node, list) in rows.iter().zip(lists) {
        scan.shortlist(grid, node as usize, prices, list);
        let total: i64 = scan.costs.iter().sum();
        let least = list.places.iter().map(|&(cost, _)| cost).min();
        sum += total / scan.costs.len() as i64 - least.unwrap_or(0);
    }
    sum
}

/// One look at all places.
struct Scan {
    smooth: Vec<i64>,
    buffer: Vec<f64>,
    costs: Vec<i64>,
    reduced: Vec<i64>,
    sample: Vec<i64>,
    /// `cost − price` and place of candidates.
    near: Vec<(i64, u32)>,
}

impl Scan {
    fn new(grid: &Grid<'_>) -> Self {
        Self {
            smooth: vec![0; grid.n_groups()],
            buffer: vec![0.0; grid.n_groups()],
            costs: vec![0; grid.col_at.len()],
            reduced: vec![0; grid.col_at.len()],
            sample: Vec::new(),
            near: Vec::new(),
        }
    }

    fn shortlist(&mut self, grid: &Grid<'_>, node: usize, prices: &[i64], list: &mut Shortlist) {
        grid.smooth(node, &mut self.buffer, &mut self.smooth);
        for (cost, &group) in self.costs.iter_mut().zip(&grid.group_at) {
            *cost = self.smooth[group as usize];
        }
        for (place, penalty) in grid.penalties(node) {
            self.costs[place] += penalty;
        }
        let reduced = self.reduced.iter_mut().zip(&self.costs);
        for ((reduced, cost), price) in reduced.zip(prices) {
            *reduced = cost - price;
        }
        self.gather();
        let len = LIST_LEN.min(self.near.len());
        list.horizon = match len < self.near.len() {
            true => self.near.select_nth_unstable(len).1.0,
            false => i64::MAX,
        };
        let best = self.near[..len].iter();
        list.places.clear();
        list.places
            .extend(best.map(|&(_, place)| (self.costs[place as usize], place)));
    }

    /// Gathers the places that may be among the best, by a threshold that a sample suggests:
    /// ordering all of them would take most of the time.
    fn gather(&mut self) {
        let stride = self.reduced.len() / N_SAMPLES;
        let mut threshold = i64::MAX;
        if stride > 1 {
            self.sample.clear();
            self.sample.extend(self.reduced.iter().step_by(stride));
            let rank = 2 * LIST_LEN / stride + 4;
            threshold = *self.sample.select_nth_unstable(rank).1;
        }
        self.gather_below(threshold);
        if self.near.len() <= LIST_LEN {
            self.gather_below(i64::MAX);
        }
    }

    fn gather_below(&mut self, threshold: i64) {
        self.near.clear();
        let places = self.reduced.iter().zip(0..);
        let near = places.filter(|&(&reduced, _)| reduced < threshold);
        self.near
            .extend(near.map(|(&reduced, place)| (reduced, place)));
    }
}
