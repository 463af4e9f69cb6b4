//! What every device checks of its arguments.

use crate::device::{DeviceError, Result};

/// Compares one dimension of two arguments.
///
/// # Errors
/// [`DeviceError::Shape`] if it differs.
pub fn check(op: &'static str, dim: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(DeviceError::Shape {
        op,
        dim,
        expected,
        got,
    })
}

/// Checks that segments cover the rows from the first to the last without overlap. Attention
/// relies on it to write disjoint rows.
///
/// # Errors
/// [`DeviceError::Shape`] if they do not.
pub fn check_segments(op: &'static str, segments: &[usize], n_rows: usize) -> Result<()> {
    check(op, "first row", 0, segments.first().copied().unwrap_or(0))?;
    check(
        op,
        "n_tokens",
        n_rows,
        segments.last().copied().unwrap_or(0),
    )?;
    match segments.windows(2).find(|w| w[0] > w[1]) {
        Some(w) => check(op, "end of a segment", w[0], w[1]),
        None => Ok(()),
    }
}
