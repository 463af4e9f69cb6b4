//! What every device checks of its arguments.

use crate::device::{AttentionShape, DeviceError, EmbeddingRows, Norm, PositionRule, Result};

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

/// Checks that tables belong together and have the rows that are asked for; `shape` is a table's
/// `[n_rows, d_model]`. Returns `[n_tokens, d_model]` of their sum.
///
/// # Errors
/// [`DeviceError::Shape`] if they do not, or there is no table.
pub fn check_embedding<T>(
    rows: &[EmbeddingRows<'_, T>],
    shape: impl Fn(&T) -> [usize; 2],
) -> Result<[usize; 2]> {
    let check = |dim, expected, got| check("embed", dim, expected, got);
    let Some(first) = rows.first() else {
        check("tables", 1, 0)?;
        return Ok([0, 0]);
    };
    let (n_tokens, [_, d_model]) = (first.row_idx.len(), shape(first.table));
    for part in rows {
        let [n_rows, n_cols] = shape(part.table);
        check("n_tokens", n_tokens, part.row_idx.len())?;
        check("d_model", d_model, n_cols)?;
        let largest = part.row_idx.iter().max().map_or(0, |&i| i as usize + 1);
        check("n_rows", n_rows, largest.max(n_rows))?;
    }
    Ok([n_tokens, d_model])
}

/// Checks what attention is handed: `qkv` is `[n_rows, n_cols]`, its bias has `n_bias` numbers.
///
/// # Errors
/// [`DeviceError::Shape`] if the widths are not those of the heads, sequences do not cover the rows,
/// or there are not as many biases as the rule of positions needs.
pub fn check_attention(
    [n_rows, n_cols]: [usize; 2],
    cu_seqlens: &[usize],
    shape: &AttentionShape,
    n_bias: usize,
) -> Result<()> {
    let width = shape.n_heads * shape.head_dim;
    check("attention", "3 · n_heads · head_dim", 3 * width, n_cols)?;
    check_segments("attention", cu_seqlens, n_rows)?;
    let expected = match shape.position {
        PositionRule::RelativeBias { n_buckets, .. } => n_buckets * shape.n_heads,
        PositionRule::None | PositionRule::Rotary { .. } => 0,
    };
    check("attention", "bias", expected, n_bias)
}

/// Checks that a norm, if there is one, is of this width; `len` is a vector's length.
///
/// # Errors
/// [`DeviceError::Shape`] if it is not.
pub fn check_norm<V>(
    op: &'static str,
    n_cols: usize,
    norm: Option<&Norm<V>>,
    len: impl Fn(&V) -> usize,
) -> Result<()> {
    let Some(norm) = norm else { return Ok(()) };
    check(op, "d_model", n_cols, len(&norm.weight))?;
    check(
        op,
        "bias of the norm",
        n_cols,
        norm.bias.as_ref().map_or(n_cols, len),
    )
}
