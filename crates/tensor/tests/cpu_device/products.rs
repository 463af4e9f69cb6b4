//! Linear layers and dense FFNs.

use moeshard_tensor::cpu::{CpuDevice, Matrix, Tensor};
use moeshard_tensor::device::{
    Activation, DenseFfn, Device, LinearWeights, MatrixLayout, Norm, NormKind,
};

use crate::support::{
    Random, activated, assert_close, assert_within, bits, matrix, multiplied, multiplies_bf16,
    on_every_path, product,
};

#[test]
fn linear_matches_f64_at_odd_sizes() {
    let sizes = [
        (1, 1, 1),
        (1, 37, 100),
        (3, 16, 17),
        (13, 64, 33),
        (29, 5, 47),
        (97, 130, 31),
        (2, 65, 147),
        (6, 48, 80),
        (25, 33, 112),
        (300, 640, 50),
        // More rows than are packed at once.
        (701, 1900, 5),
    ];
    let activations = [
        Activation::Identity,
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Tanh,
    ];
    on_every_path(|device, path| {
        let mut random = Random(1);
        for (case, (m, n_in, n_out)) in sizes.into_iter().enumerate() {
            let activation = activations[case % activations.len()];
            let x = random.tensor(m, n_in);
            let (w, bias) = (random.short(n_out * n_in), random.numbers(n_out));
            let residual = random.tensor(m, n_out);
            let split = n_out / 2;
            let parts = [
                matrix(split, n_in, &w[..split * n_in], MatrixLayout::OutIn),
                matrix(n_out - split, n_in, &w[split * n_in..], MatrixLayout::InOut),
            ];
            let weight = device.load_matrix(&parts).expect("load");
            let found = device
                .linear(&x, &weight, Some(&bias), activation, Some(&residual), None)
                .expect("linear");
            let expected: Vec<f64> = product(&multiplied(path, x.as_slice()), &w, n_in)
                .into_iter()
                .enumerate()
                .map(|(i, y)| {
                    activated(activation, y + f64::from(bias[i % n_out]))
                        + f64::from(residual.as_slice()[i])
                })
                .collect();
            assert_close(
                &format!("{m}×{n_in}×{n_out} on {path}"),
                found.as_slice(),
                &expected,
            );
        }
    });
}

#[test]
fn ffn_matches_f64_at_odd_sizes() {
    // The last has more rows than are multiplied at once.
    let sizes = [
        (1, 5, 3),
        (2, 33, 47),
        (7, 64, 96),
        (41, 19, 130),
        (601, 3, 4099),
    ];
    on_every_path(|device, path| {
        for (case, size) in sizes.into_iter().enumerate() {
            check_ffn(device, path, size, case % 2 == 0);
            check_ffn(device, path, size, case % 2 == 1);
        }
    });
}

/// A random FFN against the formula.
fn check_ffn(
    device: &CpuDevice,
    path: &str,
    (m, d_model, d_ff): (usize, usize, usize),
    is_gated: bool,
) {
    let mut random = Random(7);
    let (x, residual) = (random.tensor(m, d_model), random.tensor(m, d_model));
    let mut layer = |n_out, n_in| {
        let (w, b) = (random.short(n_out * n_in), random.numbers(n_out));
        let host = matrix(n_out, n_in, &w, MatrixLayout::OutIn);
        let loaded = device.load_matrix(&[host]).expect("load");
        (w, b, loaded)
    };
    let (up, gate, down) = (
        layer(d_ff, d_model),
        layer(d_ff, d_model),
        layer(d_model, d_ff),
    );
    fn weights<'a>(
        (_, bias, weight): &'a (Vec<f32>, Vec<f32>, Matrix),
    ) -> LinearWeights<'a, Matrix, Vec<f32>> {
        LinearWeights {
            weight,
            bias: Some(bias),
        }
    }
    let ffn = DenseFfn {
        up: weights(&up),
        gate: is_gated.then(|| weights(&gate)),
        activation: Activation::Silu,
        down: weights(&down),
    };
    let found = device.ffn(&x, &ffn, &residual, None).expect("ffn");
    let linear = |x: &[f32], (w, b, _): &(Vec<f32>, Vec<f32>, Matrix)| -> Vec<f64> {
        let products = product(&multiplied(path, x), w, x.len() / m).into_iter();
        let bias = b.iter().map(|&b| f64::from(b)).cycle();
        products.zip(bias).map(|(y, b)| y + b).collect()
    };
    let silu = |x| activated(Activation::Silu, x);
    let (ups, gates) = (linear(x.as_slice(), &up), linear(x.as_slice(), &gate));
    let hidden: Vec<f32> = (ups.into_iter().zip(gates))
        .map(|(up, gate)| if is_gated { up * silu(gate) } else { silu(up) } as f32)
        .collect();
    let expected: Vec<f64> = (linear(&hidden, &down).into_iter().zip(residual.as_slice()))
        .map(|(y, &r)| y + f64::from(r))
        .collect();
    // A hidden unit on the border between two bf16 may fall to either side.
    let limit = if multiplies_bf16(path) { 1e-3 } else { 3e-6 };
    let what = format!("{m}×{d_model}×{d_ff} on {path}, gated: {is_gated}");
    assert_within(limit, &what, found.as_slice(), &expected);
}

#[test]
fn a_row_alone_and_among_many_is_bit_for_bit_the_same() {
    // More rows than three threads multiply at once.
    let (m, n_in, n_hidden) = (1700, 1900, 4099);
    on_every_path(|device, path| {
        let mut random = Random(8);
        let mut load = |n_out, n_in| {
            let host = matrix(
                n_out,
                n_in,
                &random.short(n_out * n_in),
                MatrixLayout::OutIn,
            );
            device.load_matrix(&[host]).expect("load")
        };
        let wide = load(5, n_in);
        let (up, gate, down) = (load(n_hidden, 3), load(n_hidden, 3), load(3, n_hidden));
        let weights = |weight| LinearWeights { weight, bias: None };
        let ffn = DenseFfn {
            up: weights(&up),
            gate: Some(weights(&gate)),
            activation: Activation::Gelu,
            down: weights(&down),
        };
        let (x, h) = (random.tensor(m, n_in), random.tensor(m, 3));
        let rows_of = |x: &Tensor, row: usize| {
            let n = x.as_slice().len() / m;
            Tensor::new(1, n, x.as_slice()[row * n..(row + 1) * n].to_vec())
        };
        let linear = |x: &Tensor| device.linear(x, &wide, None, Activation::Identity, None, None);
        let (y, z) = (
            linear(&x).expect("linear"),
            device.ffn(&h, &ffn, &h, None).expect("ffn"),
        );
        for row in [0, 11, 424, 425, 566, 849, 850, 1133, 1699] {
            let what = format!("row {row} on {path}");
            let alone = linear(&rows_of(&x, row)).expect("linear");
            assert_eq!(alone, rows_of(&y, row), "linear, {what}");
            let h = rows_of(&h, row);
            assert_eq!(
                device.ffn(&h, &ffn, &h, None).expect("ffn"),
                rows_of(&z, row),
                "ffn, {what}"
            );
        }
    });
}

/// Norms of `n` columns: of each kind, with a bias and without.
fn norms(random: &mut Random, n: usize) -> [Norm<Vec<f32>>; 4] {
    let kinds = [
        NormKind::Layer,
        NormKind::Layer,
        NormKind::Rms,
        NormKind::Rms,
    ];
    let mut has_bias = false;
    kinds.map(|kind| {
        has_bias = !has_bias;
        Norm {
            kind,
            eps: 1e-5,
            weight: random.numbers(n),
            bias: has_bias.then(|| random.numbers(n)),
        }
    })
}

#[test]
fn a_norm_with_the_product_is_the_norm_after_it() {
    // The last two have more rows than even three threads multiply at once: of a linear layer, and
    // of an FFN.
    let sizes = [
        (1, 1, 1),
        (2, 0, 5),
        (1, 37, 100),
        (7, 130, 31),
        (97, 64, 147),
        (301, 48, 770),
        (1701, 1900, 5),
        (601, 3, 4099),
    ];
    on_every_path(|device, path| {
        let mut random = Random(11);
        for (m, n_in, n_out) in sizes {
            let what = format!("{m}×{n_in}×{n_out} on {path}");
            let mut load = |n_out, n_in| {
                let w = random.short(n_out * n_in);
                let host = matrix(n_out, n_in, &w, MatrixLayout::OutIn);
                (
                    device.load_matrix(&[host]).expect("load"),
                    random.numbers(n_out),
                )
            };
            let [up, back] = [load(n_out, n_in), load(n_in, n_out)];
            let [x, residual] = [n_in, n_out].map(|n| random.tensor(m, n));
            let linear = |norm: Option<&Norm<Vec<f32>>>| {
                let (w, b, r) = (&up.0, Some(&up.1), Some(&residual));
                let y = device.linear(&x, w, b, Activation::Tanh, r, norm);
                y.expect("linear")
            };
            let plain = linear(None);
            for norm in norms(&mut random, n_out) {
                let (found, expected) = (linear(Some(&norm)), device.norm(&plain, &norm));
                let expected = expected.expect("norm");
                assert_eq!(bits(found.as_slice()), bits(expected.as_slice()), "{what}");
            }
            let weights = |(weight, bias)| LinearWeights {
                weight,
                bias: Some(bias),
            };
            let ffn = DenseFfn {
                up: weights((&up.0, &up.1)),
                gate: None,
                activation: Activation::Gelu,
                down: weights((&back.0, &back.1)),
            };
            let run = |norm: Option<&Norm<Vec<f32>>>| device.ffn(&x, &ffn, &x, norm).expect("ffn");
            let plain = run(None);
            for norm in norms(&mut random, n_in) {
                let (found, expected) = (run(Some(&norm)), device.norm(&plain, &norm));
                let expected = expected.expect("norm");
                assert_eq!(
                    bits(found.as_slice()),
                    bits(expected.as_slice()),
                    "FFN, {what}"
                );
            }
        }
    });
}

#[test]
fn matrices_without_inputs_give_what_is_added() {
    on_every_path(|device, path| {
        let load = |n_out, n_in| {
            let host = matrix(n_out, n_in, &[], MatrixLayout::OutIn);
            device.load_matrix(&[host]).expect("load")
        };
        let (up, down) = (load(0, 3), load(3, 0));
        let (x, residual) = (
            Tensor::new(2, 3, vec![7.0; 6]),
            Tensor::new(2, 3, vec![1.0; 6]),
        );
        let (none, bias) = (vec![], vec![0.5, 0.0, -0.5]);
        let weights = |weight, bias| LinearWeights {
            weight,
            bias: Some(bias),
        };
        let ffn = DenseFfn {
            up: weights(&up, &none),
            gate: None,
            activation: Activation::Gelu,
            down: weights(&down, &bias),
        };
        let y = device.ffn(&x, &ffn, &residual, None);
        let expected = [1.5, 1.0, 0.5, 1.5, 1.0, 0.5];
        assert_eq!(y.expect("ffn").as_slice(), expected, "{path}");
        let nothing = Tensor::new(2, 0, vec![]);
        let y = device.linear(
            &nothing,
            &down,
            Some(&bias),
            Activation::Identity,
            Some(&residual),
            None,
        );
        assert_eq!(y.expect("linear").as_slice(), expected, "{path}");
    });
}
