//! Rows of a large matrix, such as the examples of a batch, copied side by side.

use super::error::check;
use super::lanes::{EndLanes, LaneWork, fetch, on_lanes};
use super::{LinalgError, Result};
use crate::cpu::isa::Isa;
use crate::cpu::lanes::LANES;

/// Rows whose lines are asked for while an earlier one is copied: rows that lie anywhere come from
/// memory one page after the other, which the machine does not foresee. 3 KiB rows of 157 MB came at
/// 17.2 GB/s of CPU time with two ahead, at 15.6 with eight, and at 10.0 copied plainly (Zen 5).
const ROWS_AHEAD: usize = 2;

/// `to[i] = from[rows[i]]`
///
/// # Shapes
/// - `from`: `[n_rows, row_len]`
/// - `to`: `[rows.len(), row_len]`
///
/// # Errors
/// [`LinalgError::Shape`] or [`LinalgError::Index`] if they disagree.
pub fn gather_rows(from: &[f32], row_len: usize, rows: &[u32], to: &mut [f32]) -> Result<()> {
    on(Isa::detect(), from, row_len, rows, to)
}

fn on(isa: Isa, from: &[f32], row_len: usize, rows: &[u32], to: &mut [f32]) -> Result<()> {
    let n_values = rows.len().saturating_mul(row_len);
    check("gathered rows", "n_values", n_values, to.len())?;
    let n_rows = from.len().checked_div(row_len).unwrap_or_default();
    match rows.iter().max() {
        Some(&row) if row as usize >= n_rows => Err(LinalgError::Index {
            op: "gathered rows",
            what: "a row",
            got: row as usize,
            limit: n_rows,
        }),
        _ => {
            let gather = Gather {
                from,
                row_len,
                rows,
                to,
            };
            // SAFETY: callers name instructions that this machine has.
            unsafe { on_lanes(isa, gather) };
            Ok(())
        }
    }
}

/// Every row lies within `from`, and `to` has room for all.
struct Gather<'a> {
    from: &'a [f32],
    row_len: usize,
    rows: &'a [u32],
    to: &'a mut [f32],
}

impl LaneWork for Gather<'_> {
    #[inline(always)]
    unsafe fn run<L: EndLanes>(self) {
        let n_last = self.row_len % LANES;
        let n_full = self.row_len - n_last;
        let row_at = |i: usize| {
            let row = self.rows[i.min(self.rows.len() - 1)] as usize;
            self.from.as_ptr().wrapping_add(row * self.row_len)
        };
        for (i, to) in self.to.chunks_exact_mut(self.row_len.max(1)).enumerate() {
            let (from, ahead) = (row_at(i), row_at(i + ROWS_AHEAD));
            let to = to.as_mut_ptr();
            // SAFETY: the caller's promise, and that of `Gather`.
            unsafe {
                for at in (0..n_full).step_by(LANES) {
                    fetch(ahead.wrapping_add(at));
                    L::load_f32(from.add(at)).store(to.add(at));
                }
                L::load_first(from.add(n_full), n_last).store_first(to.add(n_full), n_last);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_copied_on_every_instruction_set() {
        for row_len in [1, 7, 16, 35, 784] {
            let from: Vec<f32> = (0..50 * row_len).map(|i| i as f32).collect();
            for rows in [&[] as &[u32], &[3], &[49, 0, 7, 7, 48]] {
                let row = |&row: &u32| &from[row as usize * row_len..][..row_len];
                let expected: Vec<f32> = rows.iter().flat_map(row).copied().collect();
                for isa in Isa::available() {
                    let mut to = vec![f32::NAN; rows.len() * row_len];
                    on(isa, &from, row_len, rows, &mut to).expect("shapes");
                    assert_eq!(to, expected, "{isa}, rows of {row_len}");
                }
            }
        }
        assert_eq!(gather_rows(&[], 0, &[], &mut []), Ok(()));
    }

    #[test]
    fn rows_that_are_not_there_are_refused() {
        let mut to = [0.0; 4];
        let mut refused = |rows: &[u32], row_len| {
            let found = gather_rows(&[0.0; 6], row_len, rows, &mut to);
            found.expect_err("out of place").to_string()
        };
        let message = "gathered rows: a row is 3, expected below 3";
        assert_eq!(refused(&[0, 3], 2), message);
        let message = "gathered rows: n_values is 4, expected 2";
        assert_eq!(refused(&[1], 2), message);
    }
}
