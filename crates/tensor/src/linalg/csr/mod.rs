//! Sparse × dense: the rows of a matrix (the models of all nodes) mixed by a sparse matrix.

mod kernel;

use std::collections::HashMap;
use std::ops::Range;

use super::error::{check, checked};
use super::{LinalgError, MatMut, MatRef, Result, Scratch, Threads};
use crate::cpu::isa::Isa;
use crate::cpu::lanes::LANES;
use crate::cpu::parallel::SharedMut;
use kernel::Piece;

/// Bytes of a block of columns of the dense matrix, read once by every row that needs it: half of
/// the second-level cache of the machines at hand.
const BLOCK_BYTES: usize = 512 << 10;

/// Least columns of a block: shorter pieces of rows cost more to fetch than they save by fitting in
/// a cache. With 10,000 rows, 128 columns were 1.3 times as fast as 64 and 1.1 times as 256.
const LEAST_COLS: usize = 128;

/// A row that was used by so many rows before is still in a cache.
const NEAR_ROWS: usize = 32;

/// Pieces per thread, so that none waits long for the last.
const PIECES_PER_THREAD: usize = 4;

/// From this size on the caches do not hold a matrix. Results are stored past them, which saves
/// reading what is overwritten, and rows that are needed by others far away are gathered block by
/// block (10,000 rows: 120 ms instead of 150; 1000 rows: 4.0 instead of 4.4; one thread).
const LARGE_BYTES: usize = 24 << 20;

/// A sparse matrix, row by row, as a factor from the left.
#[derive(Clone, Debug, PartialEq)]
pub struct Csr {
    isa: Isa,
    n_cols: usize,
    /// `[n_rows + 1]`: row `i` has entries `row_starts[i] .. row_starts[i + 1]`.
    row_starts: Vec<usize>,
    cols: Vec<u32>,
    values: Vec<f32>,
    /// All rows, those that are equal side by side: they are computed once.
    members: Vec<u32>,
    /// `[n_groups + 1]`: group `g` is `members[group_starts[g] .. group_starts[g + 1]]`.
    group_starts: Vec<usize>,
    /// Whether rows of the dense matrix are needed by rows close to each other alone, such as those
    /// of a clique.
    is_local: bool,
}

/// What makes two rows equal: columns, and bits of values.
type Row<'a> = (&'a [u32], &'a [u32]);

impl Csr {
    /// `[row_starts.len() - 1, n_cols]`, with columns ascending within a row; with the best
    /// instructions of this machine.
    ///
    /// # Errors
    /// [`LinalgError::Shape`] if there are not as many values as columns, or no `row_starts`;
    /// [`LinalgError::RowEnd`] and [`LinalgError::Column`] for entries out of place.
    pub fn new(
        n_cols: usize,
        row_starts: Vec<usize>,
        cols: Vec<u32>,
        values: Vec<f32>,
    ) -> Result<Self> {
        check("csr", "n_values", cols.len(), values.len())?;
        check_rows(n_cols, &row_starts, &cols)?;
        let mut csr = Self {
            isa: Isa::detect(),
            n_cols,
            row_starts,
            cols,
            values,
            members: Vec::new(),
            group_starts: vec![0],
            is_local: false,
        };
        csr.group_equal_rows();
        csr.is_local = csr.n_fetches() <= n_cols + n_cols / 4;
        Ok(csr)
    }

    /// The same matrix, multiplied with the instructions named.
    ///
    /// # Errors
    /// [`LinalgError::Isa`] if this machine lacks them.
    pub fn with_isa(mut self, isa: Isa) -> Result<Self> {
        self.isa = checked(isa)?;
        Ok(self)
    }

    /// Rows.
    pub fn n_rows(&self) -> usize {
        self.row_starts.len() - 1
    }

    /// Columns.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Entries.
    pub fn n_entries(&self) -> usize {
        self.cols.len()
    }

    /// Rows that differ from each other: as many are computed, the others are copies.
    pub fn n_distinct_rows(&self) -> usize {
        self.group_starts.len() - 1
    }

    /// `out = self · x`.
    ///
    /// `scratches` is the working memory of the threads; any list, kept from one call to the next.
    /// An element is summed by one accumulator in the order of the columns, so its bits depend
    /// neither on the threads nor on the other rows.
    ///
    /// # Shapes
    /// - `x`: `[n_cols, p]`, `out`: `[n_rows, p]`, the values of a row side by side; rows that begin
    ///   at multiples of 64 bytes are fastest
    ///
    /// # Errors
    /// [`LinalgError::Shape`] if they disagree or values of a row lie apart.
    pub fn mul(
        &self,
        threads: &Threads,
        scratches: &mut Vec<Scratch>,
        x: MatRef<'_>,
        mut out: MatMut<'_>,
    ) -> Result<()> {
        let out = out.reborrow();
        check("csr product", "rows of x", self.n_cols, x.n_rows)?;
        check(
            "csr product",
            "rows of the result",
            self.n_rows(),
            out.n_rows,
        )?;
        check("csr product", "columns of the result", x.n_cols, out.n_cols)?;
        let n = x.n_cols;
        if n > 1 {
            check("csr product", "column stride of x", 1, x.col_stride)?;
            check(
                "csr product",
                "column stride of the result",
                1,
                out.col_stride,
            )?;
        }
        let blocks = Blocks::new(self, n, threads.n_threads());
        let is_large = |n_rows: usize| n_rows * n * size_of::<f32>() >= LARGE_BYTES;
        let is_out_large = is_large(out.n_rows);
        let (out_row, data) = (out.row_stride, SharedMut::new(out.data));
        let n_gathered = match is_large(self.n_cols) && !self.is_local {
            true => blocks.block_cols * self.n_cols,
            false => 0,
        };
        scratches.resize_with(threads.n_threads(), Scratch::default);
        threads.for_each_with(scratches, blocks.n_pieces(), |scratch, i| {
            let (groups, cols) = blocks.piece(i);
            let piece = Piece {
                csr: self,
                groups,
                cols,
                x: x.data.as_ptr(),
                x_row: x.row_stride,
                x_col: 0,
                gathered: (n_gathered > 0).then(|| scratch.room(n_gathered)),
                out: data.ptr(),
                out_row,
                is_large: is_out_large,
            };
            // SAFETY: the instructions are checked; shapes and views are, too; pieces have distinct
            // columns or distinct groups and so write disjoint elements.
            unsafe { piece.run(self.isa) };
        });
        Ok(())
    }

    /// The entries of a row.
    fn entries(&self, row: usize) -> Range<usize> {
        self.row_starts[row]..self.row_starts[row + 1]
    }

    /// How often a row of the dense matrix comes from memory if those used lately are in a cache.
    fn n_fetches(&self) -> usize {
        let mut last_used = vec![usize::MAX; self.n_cols];
        let mut n_fetches = 0;
        for group in 0..self.n_distinct_rows() {
            let row = self.members[self.group_starts[group]] as usize;
            for &col in &self.cols[self.entries(row)] {
                let last = std::mem::replace(&mut last_used[col as usize], group);
                n_fetches += usize::from(last == usize::MAX || group - last > NEAR_ROWS);
            }
        }
        n_fetches
    }

    /// Lists the rows, equal ones side by side, each group where its first row would be.
    fn group_equal_rows(&mut self) {
        let mut group_of: HashMap<Row<'_>, usize> = HashMap::new();
        let mut groups: Vec<Vec<u32>> = Vec::new();
        for row in 0..self.n_rows() {
            let entries = self.entries(row);
            let bits = bytemuck::cast_slice(&self.values[entries.clone()]);
            let key = (&self.cols[entries], bits);
            let group = *group_of.entry(key).or_insert(groups.len());
            if group == groups.len() {
                groups.push(Vec::new());
            }
            groups[group].push(row as u32);
        }
        for group in groups {
            self.members.extend(group);
            self.group_starts.push(self.members.len());
        }
    }
}

/// Checks what the kernel relies on.
fn check_rows(n_cols: usize, row_starts: &[usize], cols: &[u32]) -> Result<()> {
    let n_rows = row_starts.len().saturating_sub(1);
    check("csr", "n_row_starts", n_rows + 1, row_starts.len())?;
    check("csr", "first of row_starts", 0, row_starts[0])?;
    // Rows are counted in u32, as columns are.
    check("csr", "n_rows", n_rows.min(u32::MAX as usize), n_rows)?;
    for (row, ends) in row_starts.windows(2).enumerate() {
        let (start, end) = (ends[0], ends[1]);
        let is_last = row + 1 == n_rows;
        if end < start || end > cols.len() || (is_last && end != cols.len()) {
            let expected = match is_last {
                true => format!("{}", cols.len()),
                false => format!("{start} to {}", cols.len()),
            };
            return Err(LinalgError::RowEnd { row, end, expected });
        }
        let mut least = 0;
        for &col in &cols[start..end] {
            if (col as usize) < least || col as usize >= n_cols {
                return Err(LinalgError::Column { row, col, n_cols });
            }
            least = col as usize + 1;
        }
    }
    match n_rows {
        0 => check("csr", "n_entries without rows", 0, cols.len()),
        _ => Ok(()),
    }
}

/// A product cut into pieces: blocks of columns, and of rows where those are too few.
struct Blocks {
    n_cols: usize,
    block_cols: usize,
    n_groups: usize,
    groups_at_once: usize,
}

impl Blocks {
    fn new(csr: &Csr, n_cols: usize, n_threads: usize) -> Self {
        let row_bytes = csr.n_cols.max(1) * size_of::<f32>();
        let most_cols = match csr.is_local {
            true => n_cols,
            // Whole steps of the kernel's widest loop.
            false => (BLOCK_BYTES / row_bytes / LEAST_COLS * LEAST_COLS).max(LEAST_COLS),
        };
        let n_wanted = PIECES_PER_THREAD * n_threads;
        let fair_cols = n_cols.div_ceil(n_wanted).max(LEAST_COLS);
        let block_cols = most_cols.min(fair_cols).max(1).next_multiple_of(LANES);
        let n_groups = csr.n_distinct_rows();
        let n_row_blocks = n_wanted.div_ceil(n_cols.div_ceil(block_cols).max(1));
        Self {
            n_cols,
            block_cols,
            n_groups,
            groups_at_once: n_groups.div_ceil(n_row_blocks).max(1),
        }
    }

    fn n_pieces(&self) -> usize {
        self.n_cols.div_ceil(self.block_cols) * self.n_groups.div_ceil(self.groups_at_once)
    }

    /// Groups and columns of a piece; pieces that share columns follow each other.
    fn piece(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let n_row_blocks = self.n_groups.div_ceil(self.groups_at_once);
        let group = i % n_row_blocks * self.groups_at_once;
        let col = i / n_row_blocks * self.block_cols;
        (
            group..self.n_groups.min(group + self.groups_at_once),
            col..self.n_cols.min(col + self.block_cols),
        )
    }
}

#[cfg(test)]
mod tests;
