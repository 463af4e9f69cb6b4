//! General matrix products: `C = alpha · A · B + beta · C`, on one thread, nothing prepacked.
//!
//! A and B may have any strides, so that transposes are views. What a shape is bound by decides how
//! it is computed ([`Plan`]): lanes along the columns of C, or along the inner dimension where both
//! operands are contiguous there, as in the forward pass of a linear layer.

mod blocks;
mod copy;
mod tile;

use super::error::{check, checked};
use super::{MatMut, MatRef, Result, Scratch, Threads};
use crate::cpu::isa::Isa;
use crate::cpu::lanes::LANES;
use blocks::{dot_blocks, outer_blocks};
use copy::{add_scaled, copy, scale_in_place};
#[cfg(target_arch = "x86_64")]
use tile::{Avx2Tiles, Avx512Tiles};
use tile::{PortableTiles, Scale, with_tiles};

/// Fewer steps than this are not worth the sums across lanes at the end of a dot tile.
const LEAST_DOT_STEPS: usize = 48;

/// Rows of A per thousand steps from which a transposed copy of B costs less than sums across lanes:
/// a copy costs as much as multiplying some 48 rows, the sums as much as some 128 steps.
const ROWS_FOR_COPY: usize = 375;

/// Multiplies matrices on the calling thread. Keeps its working memory, so that once the largest
/// shape has been seen nothing is allocated.
#[derive(Debug)]
pub struct Gemm {
    isa: Isa,
    /// A transposed copy of B where neither kind of tile can read it as it lies.
    b: Scratch,
    /// The result where it cannot be stored as it lies.
    c: Scratch,
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// Lanes along the columns of C; rows of B are contiguous.
    Outer,
    /// The same with a copy of B whose rows are.
    OuterCopied,
    /// Lanes along the inner dimension, in which A and B are contiguous.
    Dot,
    /// The same with a copy of B that is.
    DotCopied,
    /// Lanes along the rows of C, because it has few columns: `Cᵀ = Bᵀ · Aᵀ`, then transposed.
    Turned,
}

impl Plan {
    fn of(a: &MatRef<'_>, b: &MatRef<'_>) -> Self {
        let (m, n, k) = (a.n_rows, b.n_cols, a.n_cols);
        let is_narrow = n < LANES;
        let are_sums_long = k >= LEAST_DOT_STEPS;
        let is_copy_cheap = !is_narrow && 1000 * m > ROWS_FOR_COPY * k;
        let are_dots_cheap = are_sums_long && !is_copy_cheap;
        match () {
            () if a.col_stride == 1 && b.row_stride == 1 && are_dots_cheap => Plan::Dot,
            () if a.col_stride == 1 && is_narrow && are_sums_long && m > 4 => Plan::DotCopied,
            () if a.row_stride == 1 && is_narrow && m >= LANES => Plan::Turned,
            () if b.col_stride == 1 => Plan::Outer,
            () => Plan::OuterCopied,
        }
    }
}

impl Default for Gemm {
    fn default() -> Self {
        Self::new()
    }
}

impl Gemm {
    /// With the best instructions of this machine.
    pub fn new() -> Self {
        Self::on(Isa::detect())
    }

    /// With the instructions named.
    ///
    /// # Errors
    /// [`LinalgError::Isa`](super::LinalgError::Isa) if this machine lacks them.
    pub fn with_isa(isa: Isa) -> Result<Self> {
        checked(isa).map(Self::on)
    }

    fn on(isa: Isa) -> Self {
        Self {
            isa,
            b: Scratch::default(),
            c: Scratch::default(),
        }
    }

    /// `c = alpha · a · b + beta · c`.
    ///
    /// With `beta` 0, `c` is written without being read; with `alpha` 0, `a` and `b` are not read.
    ///
    /// # Shapes
    /// - `a`: `[m, k]`, `b`: `[k, n]`, `c`: `[m, n]`; any may be empty
    ///
    /// # Errors
    /// [`LinalgError::Shape`](super::LinalgError::Shape) if they disagree.
    pub fn run(
        &mut self,
        alpha: f32,
        a: MatRef<'_>,
        b: MatRef<'_>,
        beta: f32,
        c: MatMut<'_>,
    ) -> Result<()> {
        check_shapes(&a, &b, &c)?;
        if c.n_rows == 0 || c.n_cols == 0 {
            return Ok(());
        }
        let mut c = c;
        if a.n_cols == 0 || alpha == 0.0 {
            scale_in_place(beta, &mut c);
            return Ok(());
        }
        let scale = Scale { alpha, beta };
        // A single row or column lies however is best; a column is stored as a row.
        let is_row_major = c.col_stride == 1 || c.n_cols == 1 && c.n_rows == 1;
        let is_col_major = c.row_stride == 1;
        match (is_row_major, is_col_major) {
            (true, _) => self.store_rows(scale, a, b, c),
            (false, true) => self.store_rows(scale, b.t(), a.t(), c.t()),
            (false, false) => self.staged(scale, a, b, c),
        }
        Ok(())
    }

    /// Into a result whose rows are contiguous.
    fn store_rows(&mut self, scale: Scale, a: MatRef<'_>, b: MatRef<'_>, mut c: MatMut<'_>) {
        let (k, n) = (b.n_rows, b.n_cols);
        match Plan::of(&a, &b) {
            Plan::Outer => with_tiles!(self.isa, outer_blocks(scale, a, b, &mut c)),
            Plan::Dot => with_tiles!(self.isa, dot_blocks(scale, a, b, &mut c)),
            Plan::OuterCopied => {
                let b = copy(b, n.next_multiple_of(LANES), &mut self.b);
                with_tiles!(self.isa, outer_blocks(scale, a, b, &mut c));
            }
            Plan::DotCopied => {
                let b = copy(b.t(), k.next_multiple_of(LANES), &mut self.b).t();
                with_tiles!(self.isa, dot_blocks(scale, a, b, &mut c));
            }
            Plan::Turned => self.staged(scale, b.t(), a.t(), c.t()),
        }
    }

    /// Through a contiguous copy of the result.
    fn staged(&mut self, scale: Scale, a: MatRef<'_>, b: MatRef<'_>, mut c: MatMut<'_>) {
        let (m, n) = (c.n_rows, c.n_cols);
        let row_stride = n.next_multiple_of(LANES);
        let mut staging = std::mem::take(&mut self.c);
        let sums = MatMut {
            data: staging.room(m * row_stride),
            n_rows: m,
            n_cols: n,
            row_stride,
            col_stride: 1,
        };
        let only_sums = Scale { beta: 0.0, ..scale };
        // A copy of B at most: `Turned` would come back here.
        match b.col_stride == 1 {
            true => self.outer(only_sums, a, b, sums),
            false => {
                let mut copied = std::mem::take(&mut self.b);
                self.outer(only_sums, a, copy(b, row_stride, &mut copied), sums);
                self.b = copied;
            }
        }
        add_scaled(&staging, row_stride, scale.beta, &mut c);
        self.c = staging;
    }

    fn outer(&mut self, scale: Scale, a: MatRef<'_>, b: MatRef<'_>, mut c: MatMut<'_>) {
        with_tiles!(self.isa, outer_blocks(scale, a, b, &mut c));
    }
}

/// Products that threads share, each computed by one of them.
#[derive(Debug)]
pub struct GemmBatch(Vec<Gemm>);

impl GemmBatch {
    /// For a pool of as many threads.
    pub fn new(n_threads: usize) -> Self {
        Self((0..n_threads.max(1)).map(|_| Gemm::new()).collect())
    }

    /// With the instructions named.
    ///
    /// # Errors
    /// [`LinalgError::Isa`](super::LinalgError::Isa) if this machine lacks them.
    pub fn with_isa(n_threads: usize, isa: Isa) -> Result<Self> {
        let isa = checked(isa)?;
        Ok(Self((0..n_threads.max(1)).map(|_| Gemm::on(isa)).collect()))
    }

    /// `c[i] = alpha · a[i] · b[i] + beta · c[i]` for each `i`, as [`Gemm::run`].
    ///
    /// # Errors
    /// [`LinalgError::Shape`](super::LinalgError::Shape) if two lists differ in length or the
    /// matrices of a product disagree.
    pub fn run(
        &mut self,
        threads: &Threads,
        alpha: f32,
        a: &[MatRef<'_>],
        b: &[MatRef<'_>],
        beta: f32,
        c: &mut [MatMut<'_>],
    ) -> Result<()> {
        check("batched gemm", "n_products of b", a.len(), b.len())?;
        check("batched gemm", "n_products of c", a.len(), c.len())?;
        for ((a, b), c) in a.iter().zip(b).zip(c.iter()) {
            check_shapes(a, b, c)?;
        }
        threads.for_each_item(&mut self.0, c, |gemm, i, c| {
            let product = gemm.run(alpha, a[i], b[i], beta, c.reborrow());
            debug_assert!(product.is_ok(), "shapes are checked");
        });
        Ok(())
    }
}

fn check_shapes(a: &MatRef<'_>, b: &MatRef<'_>, c: &MatMut<'_>) -> Result<()> {
    check("gemm", "rows of b", a.n_cols, b.n_rows)?;
    check("gemm", "rows of c", a.n_rows, c.n_rows)?;
    check("gemm", "columns of c", b.n_cols, c.n_cols)
}

#[cfg(test)]
mod tests;
