//! What works row by row: embeddings, norms, sums, factors, pooling.

use moeshard_tensor::device::{Device, EmbeddingRows, Norm, NormKind, Pooling};
use moeshard_tensor::dtype::DType;

use crate::Scale;
use crate::inputs::{Inputs, MOST_ROWS};
use crate::reference::{norm_row, normed, plus, plus_vector, pool, sum};
use crate::suite::{Outcome, Suite};
use crate::tolerance::{Estimate, F32, Rows, equal_bits};

/// Every norm that there is, and none.
pub(super) const NORMS: [Option<(NormKind, bool)>; 5] = [
    None,
    Some((NormKind::Layer, true)),
    Some((NormKind::Layer, false)),
    Some((NormKind::Rms, true)),
    Some((NormKind::Rms, false)),
];

/// Rows and columns.
fn shapes(scale: Scale, dtype: DType) -> Vec<(usize, usize)> {
    match (scale, dtype) {
        (Scale::Large, _) => vec![(4099, 768), (1000, 3072)],
        (Scale::Small, DType::F32) => vec![(1, 16), (7, 37), (33, 160)],
        (Scale::Small, _) => vec![(1, 16), (7, 40), (33, 160)],
    }
}

pub(super) fn cases<D: Device>(suite: &mut Suite<'_, D>) {
    for shape in shapes(suite.scale, suite.dtype) {
        let (n_rows, n_cols) = shape;
        let size = format!("{n_rows}×{n_cols}");
        suite.case(format!("to_host {size}"), |inputs| read_back(inputs, shape));
        for n_tables in 1..=3 {
            for norm in NORMS {
                suite.case(
                    format!("embed {n_tables} tables {size}, norm {norm:?}"),
                    |inputs| embed(inputs, shape, n_tables, norm),
                );
            }
        }
        for norm in NORMS.into_iter().flatten() {
            suite.case(format!("norm {norm:?} {size}"), |inputs| {
                one_norm(inputs, shape, norm)
            });
        }
        for norm in NORMS {
            for has_bias in [false, true] {
                suite.case(
                    format!("add {size}, bias {has_bias}, norm {norm:?}"),
                    |inputs| add(inputs, shape, has_bias, norm),
                );
            }
        }
        suite.case(format!("scale {size}"), |inputs| scale(inputs, shape));
        for rule in [Pooling::Cls, Pooling::Mean, Pooling::LastToken] {
            suite.case(format!("pool {rule:?} {size}"), |inputs| {
                pooled(inputs, shape, rule)
            });
        }
    }
}

/// A table's rows come back as they are, whether the table was rounded or not.
fn read_back<D: Device>(inputs: &mut Inputs<'_, D>, (n_rows, n_cols): (usize, usize)) -> Outcome {
    let numbers = inputs.numbers(n_rows.min(MOST_ROWS) * n_cols, 1.0);
    let expected: Vec<f32> = (0..n_rows * n_cols)
        .map(|i| numbers[i % numbers.len()])
        .collect();
    for _ in 0..2 {
        let x = inputs.embedded(&numbers, n_cols, n_rows)?;
        let found = inputs.device.to_host(&x)?;
        equal_bits("rows of a table", &found, &expected)?;
    }
    Ok(0.0)
}

fn embed<D: Device>(
    inputs: &mut Inputs<'_, D>,
    (n_rows, n_cols): (usize, usize),
    n_tables: usize,
    norm: Option<(NormKind, bool)>,
) -> Outcome {
    let device = inputs.device;
    let n_different = n_rows.min(MOST_ROWS);
    let mut tables = Vec::new();
    let mut expected = Rows::exact(n_cols, &vec![0.0; n_different * n_cols]);
    for (table_idx, n_entries) in [23, 5, 2].into_iter().enumerate().take(n_tables) {
        // The second table is computed positions: it keeps all digits.
        let is_exact = table_idx == 1;
        let numbers = match is_exact {
            true => inputs.exact_numbers(n_entries * n_cols, 1.0),
            false => inputs.numbers(n_entries * n_cols, 1.0),
        };
        let factor = [1.7, 1.0, 0.3][table_idx];
        let idx: Vec<usize> = (0..n_different).map(|_| inputs.below(n_entries)).collect();
        for (out, &row) in expected.data.chunks_exact_mut(n_cols).zip(&idx) {
            for (out, &x) in out.iter_mut().zip(&numbers[row * n_cols..]) {
                let x = f64::from(factor) * f64::from(x);
                *out = plus(*out, Estimate::new(x, (F32 * x).powi(2)));
            }
        }
        let shape = [n_entries, n_cols];
        let table = match is_exact {
            true => {
                let host = moeshard_tensor::checkpoint::HostTensor::from_f32(shape, &numbers);
                device.load_exact_table(&host)?
            }
            false => device.load_table(&inputs.host_tensor(&shape, &numbers))?,
        };
        let row_idx: Vec<u32> = (0..n_rows).map(|t| idx[t % n_different] as u32).collect();
        tables.push((table, row_idx, factor));
    }
    let rows: Vec<_> = (tables.iter())
        .map(|(table, row_idx, scale)| EmbeddingRows {
            table,
            row_idx,
            scale: *scale,
        })
        .collect();
    let norm = norm
        .map(|(kind, has_bias)| inputs.norm(n_cols, kind, has_bias))
        .transpose()?;
    let found = device.embed(&rows, norm.as_ref().map(|norm| &norm.device))?;
    let expected = normed(inputs.dtype, expected, norm.as_ref().map(|norm| &norm.host));
    inputs.check(&found, n_rows, &expected)
}

fn one_norm<D: Device>(
    inputs: &mut Inputs<'_, D>,
    (n_rows, n_cols): (usize, usize),
    (kind, has_bias): (NormKind, bool),
) -> Outcome {
    let x = inputs.rows(n_rows, n_cols)?;
    let norm = inputs.norm(n_cols, kind, has_bias)?;
    let found = inputs.device.norm(&x.tensor, &norm.device)?;
    let expected = Rows::from_fn(x.rows.n_rows(), n_cols, |row| {
        norm_row(x.rows.row(row), &norm.host)
    });
    inputs.check(&found, n_rows, &expected)
}

fn add<D: Device>(
    inputs: &mut Inputs<'_, D>,
    (n_rows, n_cols): (usize, usize),
    has_bias: bool,
    norm: Option<(NormKind, bool)>,
) -> Outcome {
    let mut x = inputs.rows(n_rows, n_cols)?;
    let residual = inputs.rows(n_rows, n_cols)?;
    let host_bias = has_bias.then(|| inputs.exact_numbers(n_cols, 1.0));
    let bias = host_bias.as_ref();
    let bias = bias.map(|bias| inputs.vector(bias)).transpose()?;
    let norm = norm
        .map(|(kind, has_bias)| inputs.norm(n_cols, kind, has_bias))
        .transpose()?;
    let device_norm: Option<&Norm<_>> = norm.as_ref().map(|norm| &norm.device);
    (inputs.device).add(&mut x.tensor, &residual.tensor, bias.as_ref(), device_norm)?;
    let expected = plus_vector(sum(x.rows, Some(&residual.rows)), host_bias.as_ref());
    let expected = normed(inputs.dtype, expected, norm.as_ref().map(|norm| &norm.host));
    let worst = inputs.check(&x.tensor, n_rows, &expected)?;
    // What was added is left as it was.
    Ok(worst.max(inputs.check(&residual.tensor, n_rows, &residual.rows)?))
}

fn scale<D: Device>(inputs: &mut Inputs<'_, D>, (n_rows, n_cols): (usize, usize)) -> Outcome {
    let x = inputs.rows(n_rows, n_cols)?;
    let found = inputs.device.scale(&x.tensor, -0.37)?;
    let factor = f64::from(-0.37_f32);
    let scaled = |x: Estimate| Estimate::exact(factor * x.value);
    let expected = x.rows.clone().map(scaled);
    let worst = inputs.check(&found, n_rows, &expected)?;
    Ok(worst.max(inputs.check(&x.tensor, n_rows, &x.rows)?))
}

fn pooled<D: Device>(
    inputs: &mut Inputs<'_, D>,
    (n_rows, n_cols): (usize, usize),
    rule: Pooling,
) -> Outcome {
    let x = inputs.some_rows(n_rows, n_rows, n_cols)?;
    // Empty sequences first and last and in between, and one of a single token.
    let cu_seqlens = [0, 0, n_rows / 2, n_rows / 2, n_rows - 1, n_rows, n_rows];
    let found = inputs.device.pool(&x.tensor, &cu_seqlens, rule)?;
    let expected = pool(&x.rows, &cu_seqlens, rule);
    inputs.check(&found, cu_seqlens.len() - 1, &expected)
}
