//! Linear layers and dense FFNs.

use moeshard_tensor::device::{Activation, DenseFfn, Device, NormKind};
use moeshard_tensor::dtype::DType;

use super::rows::NORMS;
use crate::Scale;
use crate::inputs::Inputs;
use crate::reference::{activated, ffn, normed, sum};
use crate::suite::{Outcome, Suite};
use crate::tolerance::equal_bits;

pub(super) const ACTIVATIONS: [Activation; 6] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Tanh,
];

/// Rows, inputs and outputs.
type Size = (usize, usize, usize);

/// What is done to a product.
#[derive(Clone, Copy, Debug)]
struct Ends {
    has_bias: bool,
    activation: Activation,
    has_residual: bool,
    norm: Option<(NormKind, bool)>,
}

fn sizes(scale: Scale, dtype: DType) -> Vec<Size> {
    match (scale, dtype) {
        (Scale::Large, _) => vec![(4099, 768, 2304), (2049, 3072, 768), (1, 768, 3072)],
        (Scale::Small, DType::F32) => {
            vec![
                (1, 16, 24),
                (0, 16, 8),
                (5, 1, 3),
                (19, 37, 29),
                (70, 99, 131),
            ]
        }
        (Scale::Small, _) => vec![(1, 16, 24), (0, 16, 8), (19, 40, 24), (70, 104, 136)],
    }
}

pub(super) fn cases<D: Device>(suite: &mut Suite<'_, D>) {
    // At the size of models shapes matter, and some of the combinations will do.
    let is_large = suite.scale == Scale::Large;
    for (n, size) in sizes(suite.scale, suite.dtype).into_iter().enumerate() {
        for (i, activation) in ACTIVATIONS.into_iter().enumerate() {
            for has_residual in [false, true] {
                if is_large && has_residual == ((i + n) % 2 == 0) {
                    continue;
                }
                // Every norm meets every activation as sizes go by, and each size has every norm.
                let norm = NORMS[(i + n) % NORMS.len()].filter(|_| size.2 > 3);
                let ends = Ends {
                    has_bias: (i + n) % 2 == 0,
                    activation,
                    has_residual,
                    norm,
                };
                suite.case(format!("linear {size:?} {ends:?}"), |inputs| {
                    linear(inputs, size, ends)
                });
            }
        }
        for (i, activation) in ACTIVATIONS.into_iter().enumerate() {
            if is_large && (i + n) % 3 > 0 {
                continue;
            }
            let is_gated = (i + n) % 2 == 0;
            let norm = NORMS[(2 * i + n) % NORMS.len()].filter(|_| size.1 > 3);
            let name = format!("ffn {size:?} {activation:?}, gated {is_gated}, norm {norm:?}");
            suite.case(name, |inputs| {
                dense(inputs, size, (activation, is_gated), norm)
            });
        }
    }
}

fn linear<D: Device>(
    inputs: &mut Inputs<'_, D>,
    (n_rows, n_in, n_out): Size,
    ends: Ends,
) -> Outcome {
    let device = inputs.device;
    let x = inputs.rows(n_rows, n_in)?;
    let layer = inputs.linear(n_out, n_in, ends.has_bias)?;
    let residual = (ends.has_residual)
        .then(|| inputs.rows(n_rows, n_out))
        .transpose()?;
    let norm = (ends.norm)
        .map(|(kind, has_bias)| inputs.norm(n_out, kind, has_bias))
        .transpose()?;
    let run = || {
        let y = device.linear(
            &x.tensor,
            &layer.matrix,
            layer.bias.as_ref(),
            ends.activation,
            residual.as_ref().map(|residual| &residual.tensor),
            norm.as_ref().map(|norm| &norm.device),
        )?;
        device.to_host(&y).map(|host| (y, host))
    };
    let (found, first) = run()?;
    equal_bits("a second run", &run()?.1, &first)?;
    let expected = (layer.host.rows(&x.rows)).map(|y| activated(ends.activation, y));
    let expected = sum(expected, residual.as_ref().map(|residual| &residual.rows));
    let expected = normed(inputs.dtype, expected, norm.as_ref().map(|norm| &norm.host));
    inputs.check(&found, n_rows, &expected)
}

fn dense<D: Device>(
    inputs: &mut Inputs<'_, D>,
    (n_rows, d_model, d_ff): Size,
    (activation, is_gated): (Activation, bool),
    norm: Option<(NormKind, bool)>,
) -> Outcome {
    let x = inputs.rows(n_rows, d_model)?;
    let residual = inputs.rows(n_rows, d_model)?;
    let has_bias = inputs.below(2) == 0;
    let up = inputs.linear(d_ff, d_model, has_bias)?;
    let gate = is_gated
        .then(|| inputs.linear(d_ff, d_model, !has_bias))
        .transpose()?;
    let down = inputs.linear(d_model, d_ff, has_bias)?;
    let norm = norm
        .map(|(kind, has_bias)| inputs.norm(d_model, kind, has_bias))
        .transpose()?;
    let weights = DenseFfn {
        up: up.weights(),
        gate: gate.as_ref().map(|gate| gate.weights()),
        activation,
        down: down.weights(),
    };
    let device_norm = norm.as_ref().map(|norm| &norm.device);
    let found = (inputs.device).ffn(&x.tensor, &weights, &residual.tensor, device_norm)?;
    let gate = gate.as_ref().map(|gate| &gate.host);
    let layers = (&up.host, gate, &down.host);
    let expected = ffn(inputs.dtype, &x.rows, layers, activation);
    let expected = sum(expected, Some(&residual.rows));
    let expected = normed(inputs.dtype, expected, norm.as_ref().map(|norm| &norm.host));
    inputs.check(&found, n_rows, &expected)
}
