//! Rows of a group to its places, without paying more than the group's cost, as far as possible.

use super::grid::Grid;
use super::transport::Plan;

/// Of a place: no row has it. Of a row: it has no place.
pub(super) const FREE: usize = usize::MAX;

/// An assignment of rows to places, perhaps not of all.
pub(super) struct Matching {
    /// Of each row.
    pub(super) place_of: Vec<usize>,
    /// Of each place.
    pub(super) row_at: Vec<usize>,
}

impl Matching {
    pub(super) fn empty(n_nodes: usize) -> Self {
        Self {
            place_of: vec![FREE; n_nodes],
            row_at: vec![FREE; n_nodes],
        }
    }
}

/// A largest matching within the groups of a plan. `rows[r]` is the node of row `r`, and
/// `floors[r]` what it pays in its group on top of the smooth cost, at the least.
pub(super) fn within_groups(
    grid: &Grid<'_>,
    plan: &Plan,
    rows: &[u32],
    floors: &[i64],
) -> Matching {
    let mut members = vec![Vec::new(); grid.n_groups()];
    for (row, &group) in plan.group_of.iter().enumerate() {
        members[group].push(row);
    }
    let mut matching = Matching::empty(rows.len());
    for (group, members) in members.iter().enumerate() {
        let mut within = Within {
            grid,
            rows,
            floors,
            first: grid.places(group).start,
            n_places: members.len(),
            matching: &mut matching,
        };
        within.solve(members);
    }
    matching
}

struct Within<'a> {
    grid: &'a Grid<'a>,
    rows: &'a [u32],
    floors: &'a [i64],
    first: usize,
    n_places: usize,
    matching: &'a mut Matching,
}

impl Within<'_> {
    fn solve(&mut self, members: &[usize]) {
        let mut free: Vec<usize> = (self.first..self.first + self.n_places).rev().collect();
        let mut left = Vec::new();
        for &row in members {
            let dear = self.dear_places(row);
            // Few places are dear, so that this looks at few.
            match free.iter().rposition(|place| !dear.contains(place)) {
                Some(at) => self.pair(row, free.remove(at)),
                None => left.push(row),
            }
        }
        for row in left {
            self.augment(row);
        }
    }

    /// Places of the group where a row pays more than it must.
    fn dear_places(&self, row: usize) -> Vec<usize> {
        let group = self.first..self.first + self.n_places;
        let penalties: Vec<_> = self
            .grid
            .penalties(self.rows[row] as usize)
            .filter(|(place, penalty)| group.contains(place) && *penalty > self.floors[row])
            .map(|(place, _)| place)
            .collect();
        penalties
    }

    fn pair(&mut self, row: usize, place: usize) {
        self.matching.place_of[row] = place;
        self.matching.row_at[place] = row;
    }

    /// A place for one more row, others moving over, by breadth-first search; or none.
    fn augment(&mut self, start: usize) {
        let mut todo: Vec<usize> = (self.first..self.first + self.n_places).collect();
        let mut queue = std::collections::VecDeque::from([start]);
        let mut previous = vec![FREE; self.n_places];
        while let Some(row) = queue.pop_front() {
            let dear = self.dear_places(row);
            let (reached, rest): (Vec<_>, Vec<_>) =
                todo.iter().partition(|place| !dear.contains(place));
            todo = rest;
            for place in reached {
                previous[place - self.first] = row;
                if self.matching.row_at[place] == FREE {
                    return self.follow_back(place, &previous);
                }
                queue.push_back(self.matching.row_at[place]);
            }
        }
    }

    fn follow_back(&mut self, mut place: usize, previous: &[usize]) {
        while place != FREE {
            let row = previous[place - self.first];
            let left = self.matching.place_of[row];
            self.pair(row, place);
            place = left;
        }
    }
}
