//! Every operation of the CPU device against a plain f64 version, on random inputs of odd sizes,
//! on every kernel path, dtype and number of threads.

use half::bf16;
use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::collective::Solo;
use moeshard_tensor::cpu::{CpuConfig, CpuDevice, Isa, Tensor, relative_bucket};
use moeshard_tensor::device::{
    Activation, AttentionShape, Device, DeviceError, EmbeddingRows, ExpertSlice, HostMatrix,
    LinearWeights, MatrixLayout, Norm, NormKind, Pooling, PositionRule, RouterRule, Routing,
};
use moeshard_tensor::dtype::DType;

/// Seeded numbers in −1..1 (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }

    /// Numbers that bf16 and f16 hold exactly.
    fn short(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| (self.next() * 64.0).round() / 64.0)
            .collect()
    }

    fn tensor(&mut self, n_rows: usize, n_cols: usize) -> Tensor {
        Tensor::new(n_rows, n_cols, self.numbers(n_rows * n_cols))
    }
}

fn on_every_path(check: impl Fn(&CpuDevice, &str)) {
    for isa in Isa::available() {
        for n_threads in [1, 3] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let config = CpuConfig {
                    dtype,
                    n_threads,
                    isa,
                };
                let device = CpuDevice::new(config, Box::new(Solo)).expect("device");
                check(&device, &format!("{isa}, {dtype}, {n_threads} threads"));
            }
        }
    }
}

/// Whether this path rounds what it multiplies to bf16.
fn multiplies_bf16(path: &str) -> bool {
    path.starts_with("avx512_bf16, bfloat16")
}

/// The numbers that a path multiplies when it is given `x`.
fn multiplied(path: &str, x: &[f32]) -> Vec<f32> {
    let round = |&x| bf16::from_f32(x).to_f32();
    match multiplies_bf16(path) {
        true => x.iter().map(round).collect(),
        false => x.to_vec(),
    }
}

#[track_caller]
fn assert_close(what: &str, found: &[f32], expected: &[f64]) {
    assert_within(3e-6, what, found, expected);
}

#[track_caller]
fn assert_within(limit: f64, what: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let largest = expected.iter().fold(1e-3, |a: f64, x| a.max(x.abs()));
    for (i, (&a, &b)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(a) - b).abs() / largest;
        assert!(
            error < limit,
            "{what}: element {i} is {a}, expected {b} (relative {error:e})"
        );
    }
}

fn matrix(n_out: usize, n_in: usize, data: &[f32], layout: MatrixLayout) -> HostMatrix<'static> {
    let tensor = match layout {
        MatrixLayout::OutIn => HostTensor::from_f32(vec![n_out, n_in], data),
        MatrixLayout::InOut => {
            let transposed: Vec<f32> = (0..n_in * n_out)
                .map(|i| data[(i % n_out) * n_in + i / n_out])
                .collect();
            HostTensor::from_f32(vec![n_in, n_out], &transposed)
        }
    };
    HostMatrix { tensor, layout }
}

fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            0.5 * x * (1.0 + (c * (x + 0.044_715 * x * x * x)).tanh())
        }
        Activation::Gelu => {
            // Φ by Simpson's rule on the density.
            let n = 2000;
            let h = x / f64::from(n);
            let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let inner: f64 = (1..n)
                .map(|i| density(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 })
                .sum();
            x * (0.5 + h / 3.0 * (density(0.0) + inner + density(x)))
        }
    }
}

/// `x · wᵀ` in f64.
fn product(x: &[f32], w: &[f32], n_in: usize) -> Vec<f64> {
    x.chunks_exact(n_in)
        .flat_map(|x| w.chunks_exact(n_in).map(move |w| (x, w)))
        .map(|(x, w)| {
            x.iter()
                .zip(w)
                .map(|(&x, &w)| f64::from(x) * f64::from(w))
                .sum()
        })
        .collect()
}

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
                .linear(&x, &weight, Some(&bias), activation, Some(&residual))
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
    on_every_path(|device, path| {
        let mut random = Random(7);
        for (m, d_model, d_ff) in [(1, 5, 3), (2, 33, 47), (7, 64, 96), (41, 19, 130)] {
            let x = random.tensor(m, d_model);
            let residual = random.tensor(m, d_model);
            let (w_in, w_out) = (random.short(d_ff * d_model), random.short(d_ff * d_model));
            let (b_in, b_out) = (random.numbers(d_ff), random.numbers(d_model));
            let load = |n_out, n_in, data: &[f32]| {
                let host = matrix(n_out, n_in, data, MatrixLayout::OutIn);
                device.load_matrix(&[host]).expect("load")
            };
            let (up, down) = (load(d_ff, d_model, &w_in), load(d_model, d_ff, &w_out));
            let weights = |weight, bias| LinearWeights {
                weight,
                bias: Some(bias),
            };
            let found = device
                .ffn(
                    &x,
                    weights(&up, &b_in),
                    Activation::Silu,
                    weights(&down, &b_out),
                    &residual,
                )
                .expect("ffn");
            let hidden: Vec<f32> = product(&multiplied(path, x.as_slice()), &w_in, d_model)
                .into_iter()
                .enumerate()
                .map(|(i, h)| activated(Activation::Silu, h + f64::from(b_in[i % d_ff])) as f32)
                .collect();
            let expected: Vec<f64> = product(&multiplied(path, &hidden), &w_out, d_ff)
                .into_iter()
                .enumerate()
                .map(|(i, y)| y + f64::from(b_out[i % d_model]) + f64::from(residual.as_slice()[i]))
                .collect();
            // A hidden unit on the border between two bf16 may fall to either side.
            let limit = if multiplies_bf16(path) { 1e-3 } else { 3e-6 };
            let what = format!("{m}×{d_model}×{d_ff} on {path}");
            assert_within(limit, &what, found.as_slice(), &expected);
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
        let (up, down_weights) = (weights(&up, &none), weights(&down, &bias));
        let y = device.ffn(&x, up, Activation::Gelu, down_weights, &residual);
        let expected = [1.5, 1.0, 0.5, 1.5, 1.0, 0.5];
        assert_eq!(y.expect("ffn").as_slice(), expected, "{path}");
        let nothing = Tensor::new(2, 0, vec![]);
        let y = device.linear(
            &nothing,
            &down,
            Some(&bias),
            Activation::Identity,
            Some(&residual),
        );
        assert_eq!(y.expect("linear").as_slice(), expected, "{path}");
    });
}

#[test]
fn scores_of_minus_infinity_leave_the_finite_ones_their_weight() {
    on_every_path(|device, path| {
        // Query 0 meets −∞ at the first 299 keys and 0 at the last.
        let n = 300;
        let mut qkv = vec![0.0; 3 * n];
        for (token, row) in qkv.chunks_exact_mut(3).enumerate() {
            let key = if token < n - 1 { -1e30 } else { 0.0 };
            row.copy_from_slice(&[if token == 0 { 1e30 } else { 0.0 }, key, token as f32]);
        }
        let shape = AttentionShape {
            n_heads: 1,
            head_dim: 1,
            scale: 1.0,
            position: PositionRule::None,
        };
        let out = device.attention(&Tensor::new(n, 3, qkv), &[0, n], &shape, None);
        assert_eq!(out.expect("attention").as_slice()[0], 299.0, "{path}");
    });
}

#[test]
fn experts_that_do_not_fit_are_refused() {
    on_every_path(|device, path| {
        let slice = |expert_idx, f: usize, b_in: f32| ExpertSlice {
            expert_idx,
            w_in: matrix(f, 4, &vec![0.5; 4 * f], MatrixLayout::OutIn),
            b_in: Some(HostTensor::from_f32(vec![f], &vec![b_in; f])),
            w_out: matrix(4, f, &vec![0.5; 4 * f], MatrixLayout::OutIn),
            b_out: None,
        };
        let load = |slices| device.load_experts(2, slices, Activation::Relu);
        let error = load(vec![slice(0, 16, 0.0), slice(1, 40, 0.0)]).expect_err("unequal widths");
        assert!(
            error
                .to_string()
                .contains("hidden units is 40, expected 16"),
            "{path}: {error}"
        );
        let error = load(vec![slice(0, 3, 0.0), slice(1, 3, f32::NAN)]).expect_err("NaN bias");
        assert!(
            matches!(error, DeviceError::NotFinite { part_idx: 2, .. }),
            "{path}: {error}"
        );
        let experts = load(vec![slice(0, 3, 0.0), slice(1, 3, 0.0)]).expect("load");
        let routing = Routing {
            top_k: 1,
            expert_idx: vec![1; 5],
            gate_weight: vec![1.0; 5],
        };
        let x = Tensor::new(5, 3, vec![0.0; 15]);
        let error = device
            .expert_ffn(&x, &routing, &experts)
            .expect_err("narrow rows");
        assert!(
            error.to_string().contains("d_model is 3, expected 4"),
            "{path}: {error}"
        );
    });
}

#[test]
fn norms_match_f64() {
    on_every_path(|device, path| {
        let mut random = Random(2);
        for (n_rows, n) in [(1, 1), (3, 7), (5, 48), (2, 770)] {
            for kind in [NormKind::Layer, NormKind::Rms] {
                let x = random.tensor(n_rows, n);
                let (weight, bias) = (random.numbers(n), random.numbers(n));
                let with_bias = (kind == NormKind::Layer).then(|| bias.clone());
                let norm = Norm {
                    kind,
                    eps: 1e-5,
                    weight: weight.clone(),
                    bias: with_bias,
                };
                let found = device.norm(&x, &norm).expect("norm");
                let mut expected = Vec::new();
                for row in x.as_slice().chunks_exact(n) {
                    let row: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
                    let mean = match kind {
                        NormKind::Layer => row.iter().sum::<f64>() / n as f64,
                        NormKind::Rms => 0.0,
                    };
                    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
                    expected.extend(row.iter().enumerate().map(|(i, x)| {
                        let y = (x - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i]);
                        let biased = kind == NormKind::Layer;
                        y + if biased { f64::from(bias[i]) } else { 0.0 }
                    }));
                }
                assert_close(
                    &format!("{kind:?} of {n} on {path}"),
                    found.as_slice(),
                    &expected,
                );
            }
        }
    });
}

/// Attention written as its formula, one sequence after the other.
fn plain_attention(
    qkv: &[f32],
    cu_seqlens: &[usize],
    shape: &AttentionShape,
    bias: &[f32],
) -> Vec<f64> {
    let AttentionShape {
        n_heads,
        head_dim,
        scale,
        position,
    } = *shape;
    let width = n_heads * head_dim;
    let mut out = vec![0.0; cu_seqlens[cu_seqlens.len() - 1] * width];
    let rotated = |token: usize, position_idx: usize, part: usize, head: usize| -> Vec<f64> {
        let at = token * 3 * width + part * width + head * head_dim;
        let mut x: Vec<f64> = qkv[at..at + head_dim]
            .iter()
            .map(|&x| f64::from(x))
            .collect();
        if let (PositionRule::Rotary { base, dim }, true) = (position, part < 2) {
            for i in 0..dim / 2 {
                let angle =
                    position_idx as f64 * f64::from(base).powf(-2.0 * i as f64 / dim as f64);
                let (a, b) = (x[i], x[i + dim / 2]);
                x[i] = a * angle.cos() - b * angle.sin();
                x[i + dim / 2] = b * angle.cos() + a * angle.sin();
            }
        }
        x
    };
    for seq in cu_seqlens.windows(2) {
        for head in 0..n_heads {
            for i in seq[0]..seq[1] {
                let q = rotated(i, i - seq[0], 0, head);
                let scores: Vec<f64> = (seq[0]..seq[1])
                    .map(|j| {
                        let k = rotated(j, j - seq[0], 1, head);
                        let dot: f64 = q.iter().zip(&k).map(|(q, k)| q * k).sum();
                        let bias = match position {
                            PositionRule::RelativeBias {
                                n_buckets,
                                max_distance,
                            } => {
                                let distance = j as i64 - i as i64;
                                let bucket = relative_bucket(distance, n_buckets, max_distance);
                                f64::from(bias[bucket * n_heads + head])
                            }
                            _ => 0.0,
                        };
                        dot * f64::from(scale) + bias
                    })
                    .collect();
                let largest = scores.iter().fold(f64::MIN, |a, &b| a.max(b));
                let powers: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let sum: f64 = powers.iter().sum();
                for (j, p) in (seq[0]..seq[1]).zip(&powers) {
                    let v = rotated(j, 0, 2, head);
                    for (d, v) in v.iter().enumerate() {
                        out[i * width + head * head_dim + d] += p / sum * v;
                    }
                }
            }
        }
    }
    out
}

#[test]
fn attention_matches_its_formula() {
    let rules = [
        PositionRule::None,
        PositionRule::Rotary {
            base: 10_000.0,
            dim: 6,
        },
        PositionRule::RelativeBias {
            n_buckets: 32,
            max_distance: 128,
        },
    ];
    on_every_path(|device, path| {
        let mut random = Random(3);
        for position in rules {
            for (n_heads, head_dim) in [(1, 7), (3, 12), (2, 33)] {
                let shape = AttentionShape {
                    n_heads,
                    head_dim,
                    scale: 0.7,
                    position,
                };
                // One token, an odd length, one query block and a bit, and nothing at all.
                let cu_seqlens = [0, 1, 18, 18, 67];
                let qkv = random.tensor(67, 3 * n_heads * head_dim);
                let bias = matches!(position, PositionRule::RelativeBias { .. })
                    .then(|| random.numbers(32 * n_heads));
                let found = device.attention(&qkv, &cu_seqlens, &shape, bias.as_ref());
                let bias = bias.clone().unwrap_or_default();
                let expected = plain_attention(qkv.as_slice(), &cu_seqlens, &shape, &bias);
                let what = format!("{shape:?} on {path}");
                assert_close(&what, found.expect("attention").as_slice(), &expected);
            }
        }
    });
}

#[test]
fn experts_match_their_formula_whoever_gets_the_tokens() {
    const N_EXPERTS: usize = 5;
    let (d_model, f, n_tokens) = (19, 23, 31);
    // Spread, one expert taking all, and a dropped choice.
    let routings: [fn(usize) -> u32; 3] = [
        |slot| (slot * 7 % N_EXPERTS) as u32,
        |slot| if slot % 2 == 0 { 3 } else { 4 },
        |slot| {
            if slot % 5 == 0 {
                Routing::DROPPED
            } else {
                1 + (slot % 2) as u32
            }
        },
    ];
    on_every_path(|device, path| {
        let mut random = Random(4);
        let w_in: Vec<_> = (0..N_EXPERTS).map(|_| random.short(f * d_model)).collect();
        let w_out: Vec<_> = (0..N_EXPERTS).map(|_| random.short(f * d_model)).collect();
        let b_in: Vec<_> = (0..N_EXPERTS).map(|_| random.numbers(f)).collect();
        let b_out: Vec<_> = (0..N_EXPERTS).map(|_| random.numbers(d_model)).collect();
        let slices = (0..N_EXPERTS)
            .map(|e| ExpertSlice {
                expert_idx: e,
                w_in: matrix(f, d_model, &w_in[e], MatrixLayout::OutIn),
                b_in: Some(HostTensor::from_f32(vec![f], &b_in[e])),
                w_out: matrix(d_model, f, &w_out[e], MatrixLayout::InOut),
                b_out: Some(HostTensor::from_f32(vec![d_model], &b_out[e])),
            })
            .collect();
        let experts = device
            .load_experts(N_EXPERTS, slices, Activation::Relu)
            .expect("load");
        for (case, expert_of) in routings.iter().enumerate() {
            let x = random.tensor(n_tokens, d_model);
            let expert_idx: Vec<_> = (0..2 * n_tokens).map(expert_of).collect();
            let gates = expert_idx
                .iter()
                .map(|&e| {
                    if e == Routing::DROPPED {
                        0.0
                    } else {
                        random.next()
                    }
                })
                .collect();
            let routing = Routing {
                top_k: 2,
                expert_idx,
                gate_weight: gates,
            };
            let found = device
                .expert_ffn(&x, &routing, &experts)
                .expect("expert_ffn");
            let mut expected = vec![0.0_f64; n_tokens * d_model];
            for (slot, &e) in routing.expert_idx.iter().enumerate() {
                if e == Routing::DROPPED {
                    continue;
                }
                let (token, e) = (slot / 2, e as usize);
                let x = &x.as_slice()[token * d_model..(token + 1) * d_model];
                let hidden = product(&multiplied(path, x), &w_in[e], d_model);
                let hidden: Vec<f32> = hidden
                    .iter()
                    .zip(&b_in[e])
                    .map(|(h, &b)| (h + f64::from(b)).max(0.0) as f32)
                    .collect();
                let hidden = multiplied(path, &hidden);
                for d in 0..d_model {
                    let row = &w_out[e][d * f..(d + 1) * f];
                    let y: f64 = (hidden.iter().zip(row))
                        .map(|(&h, &w)| f64::from(h) * f64::from(w))
                        .sum();
                    let gate = f64::from(routing.gate_weight[slot]);
                    expected[token * d_model + d] += gate * (y + f64::from(b_out[e][d]));
                }
            }
            // A hidden unit on the border between two bf16 may fall to either side.
            let limit = if multiplies_bf16(path) { 1e-3 } else { 3e-6 };
            let what = format!("routing {case} on {path}");
            assert_within(limit, &what, found.as_slice(), &expected);
        }
    });
}

#[test]
fn embed_and_pool_match_their_formulas() {
    on_every_path(|device, path| {
        let mut random = Random(5);
        let (words, positions) = (random.short(11 * 9), random.short(4 * 9));
        let table = |rows: usize, data: &[f32]| {
            device
                .load_table(&HostTensor::from_f32(vec![rows, 9], data))
                .expect("load")
        };
        let (word_table, position_table) = (table(11, &words), table(4, &positions));
        let (ids, at) = ([10, 0, 3, 3], [0, 1, 2, 0]);
        let parts = [
            EmbeddingRows {
                table: &word_table,
                row_idx: &ids,
                scale: 3.0,
            },
            EmbeddingRows {
                table: &position_table,
                row_idx: &at,
                scale: 1.0,
            },
        ];
        let x = device.embed(&parts).expect("embed");
        let expected: Vec<f64> = (0..4 * 9)
            .map(|i| {
                let (word, position) = (ids[i / 9] as usize, at[i / 9] as usize);
                3.0 * f64::from(words[word * 9 + i % 9])
                    + f64::from(positions[position * 9 + i % 9])
            })
            .collect();
        assert_close(&format!("embed on {path}"), x.as_slice(), &expected);
        let pooled = |rule| device.pool(&x, &[0, 3, 4], rule).expect("pool");
        let row = |i: usize| expected[i * 9..(i + 1) * 9].to_vec();
        assert_close(
            "cls",
            pooled(Pooling::Cls).as_slice(),
            &[row(0), row(3)].concat(),
        );
        assert_close(
            "last",
            pooled(Pooling::LastToken).as_slice(),
            &[row(2), row(3)].concat(),
        );
        let mean: Vec<f64> = (0..9)
            .map(|d| (0..3).map(|t| row(t)[d]).sum::<f64>() / 3.0)
            .collect();
        assert_close(
            "mean",
            pooled(Pooling::Mean).as_slice(),
            &[mean, row(3)].concat(),
        );
    });
}

#[test]
fn disagreeing_shapes_are_errors_that_name_the_dimension() {
    let config = CpuConfig {
        dtype: DType::F32,
        n_threads: 1,
        isa: Isa::detect(),
    };
    let device = CpuDevice::new(config, Box::new(Solo)).expect("device");
    let x = Tensor::new(2, 3, vec![0.0; 6]);
    let w = device
        .load_matrix(&[matrix(4, 5, &[0.0; 20], MatrixLayout::OutIn)])
        .expect("load");
    let error = device
        .linear(&x, &w, None, Activation::Identity, None)
        .unwrap_err();
    assert_eq!(
        error,
        DeviceError::Shape {
            op: "linear",
            dim: "n_in",
            expected: 5,
            got: 3
        }
    );
    assert_eq!(error.to_string(), "linear: n_in is 3, expected 5");
    let table = device
        .load_table(&HostTensor::from_f32(vec![2, 3], &[0.0; 6]))
        .expect("load");
    let rows = [EmbeddingRows {
        table: &table,
        row_idx: &[2],
        scale: 1.0,
    }];
    assert!(
        device
            .embed(&rows)
            .unwrap_err()
            .to_string()
            .contains("n_rows")
    );
    assert!(device.pool(&x, &[0, 5], Pooling::Mean).is_err());
    let router = device
        .load_exact_matrix(&matrix(3, 3, &[0.0; 9], MatrixLayout::OutIn))
        .expect("load");
    let rule = RouterRule {
        top_k: 2,
        normalize: false,
    };
    let mut routing = device.route(&x, &router, rule).expect("route");
    assert!(
        device
            .limit_capacity(&mut routing, &[0, 9], 1, false)
            .is_err()
    );
}

#[test]
fn weights_that_are_not_numbers_are_refused() {
    let load = |dtype, value: f32, layout| {
        let config = CpuConfig {
            dtype,
            n_threads: 2,
            isa: Isa::detect(),
        };
        let device = CpuDevice::new(config, Box::new(Solo)).expect("device");
        let mut data = vec![1.0; 20 * 3];
        data[37] = value;
        let good = matrix(5, 3, &[1.0; 15], layout);
        let error = device.load_matrix(&[good, matrix(20, 3, &data, layout)]);
        let table = device.load_table(&HostTensor::from_f32(vec![20, 3], &data));
        (error.err(), table.err())
    };
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for value in [f32::NAN, f32::INFINITY] {
            let (of_matrix, of_table) = load(dtype, value, MatrixLayout::OutIn);
            let refused = |part_idx| {
                Some(DeviceError::NotFinite {
                    part_idx,
                    element_idx: Some(37),
                    dtype,
                })
            };
            assert_eq!((of_matrix, of_table), (refused(1), refused(0)));
            assert!(load(dtype, value, MatrixLayout::InOut).0.is_some());
        }
        assert_eq!(load(dtype, 2.0, MatrixLayout::InOut), (None, None));
    }
    // Finite as stored, but not in half precision.
    let (error, _) = load(DType::F16, 70_000.0, MatrixLayout::OutIn);
    let message = error.expect("too large").to_string();
    assert!(message.contains("too large for float16"), "{message}");
    assert_eq!(
        load(DType::BF16, 70_000.0, MatrixLayout::OutIn),
        (None, None)
    );
}

#[test]
fn overlapping_segments_are_refused() {
    let config = CpuConfig {
        dtype: DType::F32,
        n_threads: 2,
        isa: Isa::Portable,
    };
    let device = CpuDevice::new(config, Box::new(Solo)).expect("device");
    let x = Tensor::new(3, 6, vec![0.0; 18]);
    let shape = AttentionShape {
        n_heads: 1,
        head_dim: 2,
        scale: 1.0,
        position: PositionRule::None,
    };
    for segments in [&[0, 3, 1, 3][..], &[1, 3], &[0, 2], &[]] {
        assert!(
            device.attention(&x, segments, &shape, None).is_err(),
            "{segments:?}"
        );
        assert!(
            device.pool(&x, segments, Pooling::Mean).is_err(),
            "{segments:?}"
        );
    }
}
