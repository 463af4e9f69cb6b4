//! The rows of A: how they are cut into tiles, and packed.
//!
//! A tile of `h` rows is stored step by step, `[n_steps, h]`, so that the inner loop reads it from
//! front to back; tiles follow one another, which makes row `r` of the whole start at or after
//! `r · n_steps`.

use std::ops::Range;

use super::kernel::{IsaWork, Kernel, MAX_ROWS, fetch, max_rows, on_isa};
use crate::cpu::isa::Isa;
use crate::cpu::lanes::{Aligned, LANES};
use crate::cpu::panels::Element;
use crate::cpu::parallel::{Parallel, SharedMut};

/// Consecutive rows that meet the same weights, cut into tiles of nearly equal height.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RowTiles {
    rows: Range<usize>,
    n_tiles: usize,
}

impl RowTiles {
    pub(crate) fn new(isa: Isa, rows: Range<usize>) -> Self {
        let n_tiles = rows.len().div_ceil(max_rows(isa));
        Self { rows, n_tiles }
    }

    /// Those of its rows that are in `part`, counted from the part's first.
    pub(crate) fn part(&self, isa: Isa, part: &Range<usize>) -> Self {
        let row = |row: usize| row.clamp(part.start, part.end) - part.start;
        Self::new(isa, row(self.rows.start)..row(self.rows.end))
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.n_tiles
    }

    /// Height of the highest tile; the others are at most one row lower.
    pub(crate) fn height(&self) -> usize {
        self.rows.len().div_ceil(self.n_tiles.max(1))
    }

    /// The rows of one tile.
    pub(crate) fn tile(&self, tile_idx: usize) -> Range<usize> {
        let (low, n_high) = (
            self.rows.len() / self.n_tiles,
            self.rows.len() % self.n_tiles,
        );
        let start = |tile: usize| self.rows.start + tile * low + tile.min(n_high);
        start(tile_idx)..start(tile_idx + 1)
    }
}

/// Rows of f32, all or some of them, in any order.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// `[_, n_cols]`
    pub(crate) data: &'a [f32],
    pub(crate) n_cols: usize,
    /// Which row of `data` each row is; in order where there is none.
    pub(crate) idx: Option<&'a [usize]>,
}

impl<'a> Rows<'a> {
    /// Some consecutive ones of them.
    pub(crate) fn part(&self, part: &Range<usize>) -> Self {
        let n_cols = self.n_cols;
        match self.idx {
            Some(idx) => Self {
                idx: Some(&idx[part.clone()]),
                ..*self
            },
            None => Self {
                data: &self.data[part.start * n_cols..part.end * n_cols],
                ..*self
            },
        }
    }

    fn row(&self, row: usize) -> &'a [f32] {
        let row = self.idx.map_or(row, |idx| idx[row]);
        &self.data[row * self.n_cols..][..self.n_cols]
    }
}

/// Packs the rows of all groups into `to`: `[n_rows, n_steps]` values in all.
pub(crate) fn pack<K: Kernel>(
    parallel: &Parallel,
    rows: Rows<'_>,
    groups: &[RowTiles],
    to: &mut [K::A],
) {
    let n_steps = rows.n_cols.div_ceil(K::Weight::STEP);
    let n_rows: usize = groups.iter().map(RowTiles::n_rows).sum();
    assert!(to.len() >= n_rows * n_steps, "packed rows need more room");
    let to = SharedMut::new(to);
    let n_tiles: usize = groups.iter().map(RowTiles::len).sum();
    // A few tiles a piece: packing one takes little longer than fetching a piece of work.
    const PIECE: usize = 4;
    parallel.for_each(n_tiles.div_ceil(PIECE), |piece| {
        let wanted = piece * PIECE..(piece + 1) * PIECE;
        let mut before = 0;
        for group in groups {
            for tile in 0..group.len() {
                if wanted.contains(&(before + tile)) {
                    let work = PackTile::<K> {
                        rows,
                        tile: group.tile(tile),
                        n_steps,
                        to,
                    };
                    // SAFETY: tiles are disjoint rows of `to`, which has room for all of them and
                    // is borrowed until every piece is done.
                    unsafe { on_isa(K::ISA, &work) };
                }
            }
            before += group.len();
        }
    });
}

struct PackTile<'a, K: Kernel> {
    rows: Rows<'a>,
    tile: Range<usize>,
    n_steps: usize,
    to: SharedMut<K::A>,
}

impl<K: Kernel> IsaWork for PackTile<'_, K> {
    #[inline(always)]
    unsafe fn run(&self) {
        let n = self.rows.n_cols;
        // SAFETY: the tile's values start there and fill `n_steps · height`.
        let to = unsafe { self.to.ptr().add(self.tile.start * self.n_steps) };
        let height = self.tile.len();
        // Each row is read from a place of its own, more of them than a core foresees.
        const AHEAD: usize = 8;
        for first in (0..self.n_steps).step_by(LANES) {
            let n_steps = LANES.min(self.n_steps - first);
            let from = first * K::Weight::STEP;
            let cols = from..n.min(from + LANES * K::Weight::STEP);
            let row = |r: usize| &self.rows.row(self.tile.start + r)[cols.clone()];
            for row in (0..height).map(row) {
                let ahead = row.as_ptr().wrapping_add(AHEAD * LANES * K::Weight::STEP);
                (0..K::Weight::STEP).for_each(|line| fetch(ahead.wrapping_add(line * LANES)));
            }
            // SAFETY: steps `first ..` of the tile lie there.
            unsafe { put::<K>(height, row, to.add(first * height), n_steps) };
        }
    }
}

/// Converts at most sixteen steps of all rows of a tile and stores `n_steps` of them.
///
/// # Safety
/// As [`Kernel::put_steps`]. There are at most `MAX_ROWS` rows.
#[inline(always)]
pub(super) unsafe fn put<'a, K: Kernel>(
    n_rows: usize,
    row: impl Fn(usize) -> &'a [f32],
    to: *mut K::A,
    n_steps: usize,
) {
    let mut converted = Aligned([[bytemuck::Zeroable::zeroed(); LANES]; MAX_ROWS]);
    let converted = &mut converted.0[..n_rows];
    for (r, converted) in converted.iter_mut().enumerate() {
        let row = row(r);
        // SAFETY: `convert` reads sixteen steps, which the row or the copy of it has.
        unsafe {
            if row.len() >= LANES * K::Weight::STEP {
                K::convert(row.as_ptr(), converted);
            } else {
                let mut padded = [0.0; 2 * LANES];
                padded[..row.len()].copy_from_slice(row);
                K::convert(padded.as_ptr(), converted);
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { K::put_steps(converted, n_steps, to) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_of_nearly_equal_height() {
        let tiles = RowTiles::new(Isa::Avx512, 5..18);
        assert_eq!((tiles.len(), tiles.height()), (2, 7));
        assert_eq!([tiles.tile(0), tiles.tile(1)], [5..12, 12..18]);
        let none = RowTiles::new(Isa::Avx512, 3..3);
        assert_eq!((none.len(), none.height()), (0, 0));
        let part = |range| tiles.part(Isa::Avx512, &range);
        assert_eq!(part(0..9), RowTiles::new(Isa::Avx512, 5..9));
        assert_eq!(part(9..30), RowTiles::new(Isa::Avx512, 0..9));
        assert_eq!(part(18..30).n_rows(), 0);
    }
}
