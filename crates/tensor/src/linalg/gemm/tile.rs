//! Tiles of a product, accumulated in registers.
//!
//! An *outer* tile has its lanes along the columns of C: at each step of the inner dimension a row of
//! B is multiplied by single values of A. A *dot* tile has its lanes along the inner dimension, and
//! one sum across lanes an element at the end. Between them they read every layout of A and B that
//! training has, where it lies.

#[cfg(target_arch = "x86_64")]
use crate::cpu::lanes::{Avx2Lanes, Avx512Lanes};
use crate::cpu::lanes::{LANES, PortableLanes};
use crate::linalg::lanes::EndLanes;

/// What is done with the sums: `c = alpha · sums + beta · c`; with `beta` 0, `c` is not read.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub(super) alpha: f32,
    pub(super) beta: f32,
}

/// `M` rows × `P` groups of sixteen columns.
///
/// Row `r` at step `i` is `a[r · a_row + i · a_step]`, the columns at step `i` are
/// `b[i · b_step ..]`, row `r` of the result is `c[r · c_row ..]`.
#[derive(Clone, Copy)]
pub(super) struct Outer {
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    pub(super) a_step: usize,
    pub(super) b: *const f32,
    pub(super) b_step: usize,
    pub(super) n_steps: usize,
    pub(super) c: *mut f32,
    pub(super) c_row: usize,
    /// Columns of the last group, 1 to 16.
    pub(super) n_last: usize,
    pub(super) scale: Scale,
}

/// `M` rows × `N` columns, whose steps are contiguous: row `r` is `a[r · a_row ..]`, column `j` is
/// `b[j · b_col ..]`, element `(r, j)` of the result is `c[r · c_row + j]`.
#[derive(Clone, Copy)]
pub(super) struct Dot {
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    pub(super) b: *const f32,
    pub(super) b_col: usize,
    pub(super) n_steps: usize,
    pub(super) c: *mut f32,
    pub(super) c_row: usize,
    pub(super) scale: Scale,
}

/// The sums of an outer tile; `UNIT` where `a_row` is 1, `ENDS` where the last group is short.
///
/// # Safety
/// As [`outer`].
#[inline(always)]
unsafe fn outer_sums<
    L: EndLanes,
    const M: usize,
    const P: usize,
    const UNIT: bool,
    const ENDS: bool,
>(
    t: &Outer,
) -> [[L; P]; M] {
    let a_row = if UNIT { 1 } else { t.a_row };
    let (mut a, mut b) = (t.a, t.b);
    // SAFETY: the caller's promise; pointers move beyond the ends only when nothing reads them.
    unsafe {
        let mut sums = [[L::zero(); P]; M];
        for _ in 0..t.n_steps {
            let mut w = [L::zero(); P];
            for (p, w) in w.iter_mut().enumerate() {
                let from = b.add(p * LANES);
                *w = match ENDS && p == P - 1 {
                    true => L::load_first(from, t.n_last),
                    false => L::load_f32(from),
                };
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = L::splat(*a.add(r * a_row));
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = sum.add_product(x, w);
                }
            }
            a = a.wrapping_add(t.a_step);
            b = b.wrapping_add(t.b_step);
        }
        sums
    }
}

/// Computes an outer tile.
///
/// # Safety
/// The instructions of `L` are available, and A, B and C are valid for what [`Outer`] says.
#[inline(always)]
unsafe fn outer<L: EndLanes, const M: usize, const P: usize>(t: &Outer) {
    // SAFETY: the caller's promise.
    unsafe {
        let sums = match (t.a_row == 1, t.n_last < LANES) {
            (true, false) => outer_sums::<L, M, P, true, false>(t),
            (true, true) => outer_sums::<L, M, P, true, true>(t),
            (false, false) => outer_sums::<L, M, P, false, false>(t),
            (false, true) => outer_sums::<L, M, P, false, true>(t),
        };
        let alpha = L::splat(t.scale.alpha);
        let beta = L::splat(t.scale.beta);
        for (r, sums) in sums.into_iter().enumerate() {
            for (p, sum) in sums.into_iter().enumerate() {
                let c = t.c.add(r * t.c_row + p * LANES);
                let sum = L::zero().add_product(alpha, sum);
                match (p == P - 1 && t.n_last < LANES, t.scale.beta == 0.0) {
                    (false, true) => sum.store(c),
                    (false, false) => sum.add_product(beta, L::load_f32(c)).store(c),
                    (true, true) => sum.store_first(c, t.n_last),
                    (true, false) => {
                        let before = L::load_first(c, t.n_last);
                        sum.add_product(beta, before).store_first(c, t.n_last);
                    }
                }
            }
        }
    }
}

/// Computes a dot tile.
///
/// # Safety
/// The instructions of `L` are available, and A, B and C are valid for what [`Dot`] says.
#[inline(always)]
unsafe fn dot<L: EndLanes, const M: usize, const N: usize>(t: &Dot) {
    let n_left = t.n_steps % LANES;
    let n_full = t.n_steps - n_left;
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[L::zero(); N]; M];
        let mut at = 0;
        while at < n_full {
            let mut x = [L::zero(); M];
            for (r, x) in x.iter_mut().enumerate() {
                *x = L::load_f32(t.a.add(r * t.a_row + at));
            }
            for j in 0..N {
                let w = L::load_f32(t.b.add(j * t.b_col + at));
                for (sums, x) in sums.iter_mut().zip(x) {
                    sums[j] = sums[j].add_product(x, w);
                }
            }
            at += LANES;
        }
        if n_left > 0 {
            for j in 0..N {
                let w = L::load_first(t.b.add(j * t.b_col + at), n_left);
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = L::load_first(t.a.add(r * t.a_row + at), n_left);
                    sums[j] = sums[j].add_product(x, w);
                }
            }
        }
        // Row after row, over two registers, from which whole rows are then taken.
        let mut all = [L::zero(); 2];
        for (i, part) in all.iter_mut().enumerate() {
            let (first, last) = (i * LANES, (M * N).min((i + 1) * LANES));
            if first < last {
                let mut sixteen = [L::zero(); LANES];
                for (i, lanes) in (first..last).zip(&mut sixteen) {
                    *lanes = sums[i / N][i % N];
                }
                *part = L::sums_of_sixteen(&sixteen, last - first);
            }
        }
        let (alpha, beta) = (L::splat(t.scale.alpha), L::splat(t.scale.beta));
        for r in 0..M {
            let c = t.c.add(r * t.c_row);
            let sum = L::zero().add_product(alpha, L::lanes_from(all, r * N));
            match t.scale.beta == 0.0 {
                true => sum.store_first(c, N),
                false => sum.add_product(beta, L::load_first(c, N)).store_first(c, N),
            }
        }
    }
}

/// Tiles on one instruction set.
pub(super) trait Tiles {
    /// Most rows of an outer tile.
    const MOST_ROWS: usize;
    /// Most rows and columns of a dot tile.
    const MOST_DOT: (usize, usize);

    /// Groups of sixteen columns that an outer tile of `n_rows` rows takes at once.
    fn most_groups(n_rows: usize) -> usize;

    /// # Safety
    /// The instructions are available, and A, B and C are valid for what [`Outer`] says.
    unsafe fn outer(n_rows: usize, n_groups: usize, t: &Outer);

    /// # Safety
    /// The instructions are available, and A, B and C are valid for what [`Dot`] says.
    unsafe fn dot(n_rows: usize, n_cols: usize, t: &Dot);
}

/// Compiles the tiles of one instruction set, each size as a function of its own.
macro_rules! tiles {
    (
        $tiles:ident: $lanes:ty, $(#[$features:meta])*
        most_rows: $most_rows:literal, most_groups: $most_groups:expr, most_dot: $most_dot:expr,
        outer: $(($m:literal, $p:literal))*
        dot: $(($dm:literal, $dn:literal))*
    ) => {
        pub(super) struct $tiles;

        impl Tiles for $tiles {
            const MOST_ROWS: usize = $most_rows;
            const MOST_DOT: (usize, usize) = $most_dot;

            fn most_groups(n_rows: usize) -> usize {
                ($most_groups)(n_rows)
            }

            unsafe fn outer(n_rows: usize, n_groups: usize, t: &Outer) {
                $(#[$features])*
                unsafe fn tile<const M: usize, const P: usize>(t: &Outer) {
                    // SAFETY: the caller's promise.
                    unsafe { outer::<$lanes, M, P>(t) }
                }
                match (n_rows, n_groups) {
                    // SAFETY: the caller's promise.
                    $(($m, $p) => unsafe { tile::<$m, $p>(t) },)*
                    _ => unreachable!("an outer tile of {n_rows} x {n_groups}"),
                }
            }

            unsafe fn dot(n_rows: usize, n_cols: usize, t: &Dot) {
                $(#[$features])*
                unsafe fn tile<const M: usize, const N: usize>(t: &Dot) {
                    // SAFETY: the caller's promise.
                    unsafe { dot::<$lanes, M, N>(t) }
                }
                match (n_rows, n_cols) {
                    // SAFETY: the caller's promise.
                    $(($dm, $dn) => unsafe { tile::<$dm, $dn>(t) },)*
                    _ => unreachable!("a dot tile of {n_rows} x {n_cols}"),
                }
            }
        }
    };
}

// 14 rows × 2 groups: 28 sums, 2 of B and one of A are 31 of 32 registers; fewer rows take more
// groups, so that a row of B is loaded less often. Dot tiles: 25 sums, 5 rows and one column.
#[cfg(target_arch = "x86_64")]
tiles! {
    Avx512Tiles: Avx512Lanes,
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    most_rows: 14,
    most_groups: |n_rows| match n_rows {
        0..=6 => 4,
        7..=9 => 3,
        _ => 2,
    },
    most_dot: (5, 5),
    outer: (1, 1) (2, 1) (3, 1) (4, 1) (5, 1) (6, 1) (7, 1) (8, 1) (9, 1) (10, 1) (11, 1) (12, 1)
        (13, 1) (14, 1) (1, 2) (2, 2) (3, 2) (4, 2) (5, 2) (6, 2) (7, 2) (8, 2) (9, 2) (10, 2)
        (11, 2) (12, 2) (13, 2) (14, 2) (1, 3) (2, 3) (3, 3) (4, 3) (5, 3) (6, 3) (7, 3) (8, 3)
        (9, 3) (1, 4) (2, 4) (3, 4) (4, 4) (5, 4) (6, 4)
    dot: (1, 1) (2, 1) (3, 1) (4, 1) (5, 1) (1, 2) (2, 2) (3, 2) (4, 2) (5, 2) (1, 3) (2, 3) (3, 3)
        (4, 3) (5, 3) (1, 4) (2, 4) (3, 4) (4, 4) (5, 4) (1, 5) (2, 5) (3, 5) (4, 5) (5, 5)
}

// A group is two registers of sixteen: 6 rows × 1 group are 12 sums, 2 of B and one of A.
#[cfg(target_arch = "x86_64")]
tiles! {
    Avx2Tiles: Avx2Lanes,
    #[target_feature(enable = "avx2,fma,f16c")]
    most_rows: 6,
    most_groups: |n_rows| if n_rows <= 2 { 2 } else { 1 },
    most_dot: (2, 2),
    outer: (1, 1) (2, 1) (3, 1) (4, 1) (5, 1) (6, 1) (1, 2) (2, 2)
    dot: (1, 1) (2, 1) (1, 2) (2, 2)
}

tiles! {
    PortableTiles: PortableLanes,
    most_rows: 2, most_groups: |_| 1, most_dot: (1, 2),
    outer: (1, 1) (2, 1)
    dot: (1, 1) (1, 2)
}

/// Calls a function with the tiles of an instruction set as its first type.
macro_rules! with_tiles {
    ($isa:expr, $f:ident($($arg:expr),* $(,)?)) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => $f::<Avx512Tiles>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => $f::<Avx2Tiles>($($arg),*),
            _ => $f::<PortableTiles>($($arg),*),
        }
    };
}

pub(super) use with_tiles;
