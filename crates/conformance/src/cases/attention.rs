//! Attention within packed sequences.

use moeshard_tensor::device::{AttentionShape, Device, PositionRule};

use crate::Scale;
use crate::inputs::Inputs;
use crate::reference::attention;
use crate::suite::{Outcome, Suite};
use crate::tolerance::{compare, equal_bits};

/// Around the tiles of 16, 64 and 128 that devices cut sequences into, and nothing at all.
const SHORT: [usize; 5] = [1, 0, 65, 2, 0];
const LONG: [usize; 4] = [63, 130, 0, 64];
const LARGE: [usize; 9] = [1, 63, 0, 512, 64, 130, 2, 300, 65];

fn positions(head_dim: usize) -> [PositionRule; 4] {
    let rotary = |base, dim| PositionRule::Rotary { base, dim };
    [
        PositionRule::None,
        PositionRule::RelativeBias {
            n_buckets: 32,
            max_distance: 50,
        },
        rotary(10_000.0, head_dim),
        rotary(500.0, head_dim / 4 * 2),
    ]
}

pub(super) fn cases<D: Device>(suite: &mut Suite<'_, D>) {
    let heads: &[(usize, usize)] = match suite.scale {
        Scale::Small => &[(3, 8), (2, 24), (2, 32), (2, 64), (1, 128)],
        Scale::Large => &[(4, 64), (2, 128), (4, 32), (3, 24)],
    };
    for &(n_heads, head_dim) in heads {
        for (i, position) in positions(head_dim).into_iter().enumerate() {
            let shape = AttentionShape {
                n_heads,
                head_dim,
                scale: 2.0 / (head_dim as f32).sqrt(),
                position,
            };
            let lengths: &[usize] = match suite.scale {
                Scale::Large => &LARGE,
                // Each rule meets long sequences with one width of heads, and each width once.
                Scale::Small if i == head_dim / 8 % 4 => &LONG,
                Scale::Small => &SHORT,
            };
            suite.case(
                format!("attention {n_heads}×{head_dim} {position:?} {lengths:?}"),
                |inputs| attend(inputs, &shape, lengths),
            );
        }
    }
}

/// The first rows of sequences of these lengths, and the row after the last.
pub(super) fn offsets(lengths: &[usize]) -> Vec<usize> {
    let mut cu_seqlens = vec![0];
    for n in lengths {
        cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + n);
    }
    cu_seqlens
}

fn attend<D: Device>(
    inputs: &mut Inputs<'_, D>,
    shape: &AttentionShape,
    lengths: &[usize],
) -> Outcome {
    let device = inputs.device;
    let cu_seqlens = offsets(lengths);
    let (n_rows, width) = (lengths.iter().sum(), shape.n_heads * shape.head_dim);
    let qkv = inputs.some_rows(n_rows, n_rows, 3 * width)?;
    let host_bias = match shape.position {
        PositionRule::RelativeBias { n_buckets, .. } => {
            Some(inputs.exact_numbers(n_buckets * shape.n_heads, 2.0))
        }
        _ => None,
    };
    let bias = host_bias.as_ref();
    let bias = bias.map(|bias| inputs.vector(bias)).transpose()?;
    let run = || {
        // What attention reads it may overwrite.
        let mut qkv = device.scale(&qkv.tensor, 1.0)?;
        let y = device.attention(&mut qkv, &cu_seqlens, shape, bias.as_ref())?;
        device.to_host(&y)
    };
    let found = run()?;
    equal_bits("a second run", &run()?, &found)?;
    let expected = attention(
        inputs.dtype,
        &qkv.rows,
        &cu_seqlens,
        shape,
        host_bias.as_ref(),
    );
    compare(inputs.dtype, &found, n_rows, &expected)
}
