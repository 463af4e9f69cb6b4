//! The operations as plain loops in f64, each with the spread of its result.
//!
//! A spread follows from how an operation depends on its inputs: `f(x)` is off by `f'(x)` times what
//! `x` is off by.

use moeshard_tensor::cpu::relative_bucket;
use moeshard_tensor::device::{
    Activation, AttentionShape, Norm, NormKind, Pooling, PositionRule, Routing,
};
use moeshard_tensor::dtype::DType;

use crate::tolerance::{Estimate, F32, FUNCTION, Rows, SUM};

/// A linear layer: `[n_out, n_in]`, row by row, and `[n_out]`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) n_in: usize,
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Linear {
    pub(crate) fn n_out(&self) -> usize {
        self.weight.len() / self.n_in
    }

    /// `x · weightᵀ + bias` of one row.
    pub(crate) fn row(&self, x: &[Estimate]) -> Vec<Estimate> {
        let weights = self.weight.chunks_exact(self.n_in);
        let dot = |(out, w): (usize, &[f32])| {
            let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[out]));
            // Several sums side by side: one alone waits for each of its additions.
            let mut lanes = [[0.0; 3]; 8];
            for (x, w) in x.chunks(8).zip(w.chunks(8)) {
                for ((x, &w), [sum, size, variance]) in x.iter().zip(w).zip(&mut lanes) {
                    let product = x.value * f64::from(w);
                    *sum += product;
                    *size += product.abs();
                    *variance += (x.spread * f64::from(w)).powi(2);
                }
            }
            let total = |i: usize| lanes.iter().map(|lane| lane[i]).sum::<f64>();
            let size = total(1) + bias.abs();
            Estimate::new(total(0) + bias, total(2) + (SUM * size).powi(2))
        };
        weights.enumerate().map(dot).collect()
    }

    pub(crate) fn rows(&self, x: &Rows) -> Rows {
        Rows::from_fn(x.n_rows(), self.n_out(), |row| self.row(x.row(row)))
    }
}

/// `activation(x)`
pub(crate) fn activated(activation: Activation, x: Estimate) -> Estimate {
    let (value, steepest) = match activation {
        Activation::Identity => return x,
        Activation::Relu => {
            let value = x.value.max(0.0);
            return Estimate { value, ..x };
        }
        Activation::Tanh => (x.value.tanh(), 1.0),
        Activation::Silu => (x.value / (1.0 + (-x.value).exp()), 1.1),
        Activation::Gelu => (gelu(x.value), 1.13),
        Activation::GeluTanh => (gelu_tanh(x.value), 1.13),
    };
    let function = FUNCTION * value.abs().max(x.value.abs()).max(1.0);
    Estimate::new(value, (steepest * x.spread).powi(2) + function.powi(2))
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn gelu_tanh(x: f64) -> f64 {
    let c = (2.0 / std::f64::consts::PI).sqrt();
    0.5 * x * (1.0 + (c * (x + 0.044_715 * x * x * x)).tanh())
}

/// The error function by the series whose terms are all positive:
/// `2 / √π · exp(−x²) · Σ 2ⁿ x²ⁿ⁺¹ / (1 · 3 · … · (2n + 1))`.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        odd += 2.0;
        term *= 2.0 * x * x / odd;
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

pub(crate) fn times(a: Estimate, b: Estimate) -> Estimate {
    let variance = (a.value * b.spread).powi(2) + (b.value * a.spread).powi(2);
    let value = a.value * b.value;
    Estimate::new(value, variance + (F32 * value).powi(2))
}

pub(crate) fn plus(a: Estimate, b: Estimate) -> Estimate {
    let rounding = F32 * (a.value.abs() + b.value.abs());
    let variance = a.spread.powi(2) + b.spread.powi(2);
    Estimate::new(a.value + b.value, variance + rounding.powi(2))
}

/// `a + b`, with what there is of it.
pub(crate) fn sum(a: Rows, b: Option<&Rows>) -> Rows {
    let Some(b) = b else { return a };
    let pairs = a.data.iter().zip(&b.data);
    Rows {
        data: pairs.map(|(&a, &b)| plus(a, b)).collect(),
        ..a
    }
}

/// Adds a vector to every row.
pub(crate) fn plus_vector(a: Rows, vector: Option<&Vec<f32>>) -> Rows {
    let Some(vector) = vector else { return a };
    let pairs = a.data.iter().zip(vector.iter().cycle());
    Rows {
        data: pairs.map(|(&a, &b)| plus(a, Estimate::exact(b))).collect(),
        ..a
    }
}

/// `norm(x)`, if there is one. A device may store what it normalises.
pub(crate) fn normed(dtype: DType, x: Rows, norm: Option<&Norm<Vec<f32>>>) -> Rows {
    let Some(norm) = norm else { return x };
    let x = x.stored(dtype);
    Rows::from_fn(x.n_rows(), x.n_cols, |row| norm_row(x.row(row), norm))
}

/// `norm(x)` of rows that are stored as they are.
pub(crate) fn norm_row(x: &[Estimate], norm: &Norm<Vec<f32>>) -> Vec<Estimate> {
    let n = x.len() as f64;
    let mean = match norm.kind {
        NormKind::Layer => x.iter().map(|x| x.value).sum::<f64>() / n,
        NormKind::Rms => 0.0,
    };
    let square = x.iter().map(|x| (x.value - mean).powi(2)).sum::<f64>();
    let factor = 1.0 / (square / n + f64::from(norm.eps)).sqrt();
    // What the errors of the whole row do to its mean and to its factor.
    let of_mean = match norm.kind {
        NormKind::Layer => x.iter().map(|x| x.spread.powi(2)).sum::<f64>() / (n * n),
        NormKind::Rms => 0.0,
    };
    let scaled = |x: &Estimate| (x.value - mean) * factor;
    let of_factor = x
        .iter()
        .map(|x| (scaled(x) * x.spread).powi(2))
        .sum::<f64>()
        / (n * n);
    let element = |(i, x): (usize, &Estimate)| {
        let weight = f64::from(norm.weight[i]);
        let bias = norm.bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]));
        let y = scaled(x);
        let of_inputs = x.spread.powi(2) + of_mean + y * y * of_factor;
        let size = (x.value.abs() + mean.abs()) * factor + y.abs();
        let rounding = SUM * (size * weight.abs() + bias.abs());
        let variance = (factor * weight).powi(2) * of_inputs + rounding.powi(2);
        Estimate::new(y * weight + bias, variance)
    };
    x.iter().enumerate().map(element).collect()
}

/// A dense FFN without its residual.
pub(crate) fn ffn(
    dtype: DType,
    x: &Rows,
    (up, gate, down): (&Linear, Option<&Linear>, &Linear),
    activation: Activation,
) -> Rows {
    let up = up.rows(x);
    let activated = |x| activated(activation, x);
    let hidden = match gate {
        None => up.map(activated),
        Some(gate) => {
            let gate = gate.rows(x).map(activated).stored(dtype);
            let pairs = up.data.iter().zip(&gate.data);
            Rows {
                data: pairs.map(|(&up, &gate)| times(up, gate)).collect(),
                ..gate
            }
        }
    };
    down.rows(&hidden.stored(dtype))
}

/// The slices of the experts that a device holds.
pub(crate) struct ExpertLayer {
    /// Each with its two layers; `None` for one that lives elsewhere.
    pub(crate) experts: Vec<Option<(Linear, Linear)>>,
    pub(crate) activation: Activation,
}

impl ExpertLayer {
    /// `Σ_k gate_weight[t, k] · expert[expert_idx[t, k]](x[t])` of as many tokens as `x` has.
    pub(crate) fn rows(&self, dtype: DType, x: &Rows, routing: &Routing) -> Rows {
        let top_k = routing.top_k;
        Rows::from_fn(x.n_rows(), x.n_cols, |token| {
            let mut out = vec![Estimate::default(); x.n_cols];
            for slot in token * top_k..(token + 1) * top_k {
                let expert = self.experts.get(routing.expert_idx[slot] as usize);
                let Some(Some((up, down))) = expert else {
                    continue;
                };
                let hidden: Vec<_> = (up.row(x.row(token)).into_iter())
                    .map(|x| activated(self.activation, x).stored(dtype))
                    .collect();
                let gate = Estimate::exact(routing.gate_weight[slot]);
                for (out, y) in out.iter_mut().zip(down.row(&hidden)) {
                    *out = plus(*out, times(y.stored(dtype), gate));
                }
            }
            out
        })
    }

    /// Multiply-adds of a routing.
    pub(crate) fn multiply_adds(&self, routing: &Routing) -> u64 {
        let of = |&e: &u32| match self.experts.get(e as usize) {
            Some(Some((up, down))) => (up.weight.len() + down.weight.len()) as u64,
            _ => 0,
        };
        routing.expert_idx.iter().map(of).sum()
    }
}

/// Attention within each sequence, one query after the other.
pub(crate) fn attention(
    dtype: DType,
    qkv: &Rows,
    cu_seqlens: &[usize],
    shape: &AttentionShape,
    bias: Option<&Vec<f32>>,
) -> Rows {
    let width = shape.n_heads * shape.head_dim;
    let mut out = Rows::exact(width, &vec![0.0; qkv.n_rows() * width]);
    for seq in cu_seqlens.windows(2) {
        for head in 0..shape.n_heads {
            let part = |part: usize| -> Vec<Vec<Estimate>> {
                let at = part * width + head * shape.head_dim;
                let of = |row| qkv.row(row)[at..at + shape.head_dim].to_vec();
                (seq[0]..seq[1]).map(of).collect()
            };
            let (mut q, mut k, v) = (part(0), part(1), part(2));
            if let PositionRule::Rotary { base, dim } = shape.position {
                for rows in [&mut q, &mut k] {
                    for (position, x) in rows.iter_mut().enumerate() {
                        rotate(dtype, x, position, f64::from(base), dim);
                    }
                }
            }
            for (i, q) in q.iter().enumerate() {
                let scores = scores(q, &k, shape, |j| distance_bias(shape, bias, head, i, j));
                let at = (seq[0] + i) * width + head * shape.head_dim;
                let y = weighted(dtype, &scores, &v, shape.head_dim);
                out.data[at..at + shape.head_dim].copy_from_slice(&y);
            }
        }
    }
    out
}

/// Turns pairs of halves by an angle. A device may store what comes of it.
fn rotate(dtype: DType, x: &mut [Estimate], position: usize, base: f64, dim: usize) {
    for i in 0..dim / 2 {
        let angle = position as f64 * base.powf(-2.0 * i as f64 / dim as f64);
        let (sin, cos) = angle.sin_cos();
        let (a, b) = (x[i], x[i + dim / 2]);
        let turned = |a: Estimate, b: Estimate, sin: f64| {
            let rounding = 2.0 * F32 * (a.value.abs() + b.value.abs());
            let variance = (a.spread * cos).powi(2) + (b.spread * sin).powi(2);
            Estimate::new(a.value * cos - b.value * sin, variance + rounding.powi(2)).stored(dtype)
        };
        (x[i], x[i + dim / 2]) = (turned(a, b, sin), turned(b, a, -sin));
    }
}

fn distance_bias(
    shape: &AttentionShape,
    bias: Option<&Vec<f32>>,
    head: usize,
    i: usize,
    j: usize,
) -> f64 {
    match (shape.position, bias) {
        (
            PositionRule::RelativeBias {
                n_buckets,
                max_distance,
            },
            Some(bias),
        ) => {
            let bucket = relative_bucket(j as i64 - i as i64, n_buckets, max_distance);
            f64::from(bias[bucket * shape.n_heads + head])
        }
        _ => 0.0,
    }
}

/// `scale · q · k + bias` for every key.
fn scores(
    q: &[Estimate],
    k: &[Vec<Estimate>],
    shape: &AttentionShape,
    bias: impl Fn(usize) -> f64,
) -> Vec<Estimate> {
    let scale = f64::from(shape.scale);
    let score = |(j, k): (usize, &Vec<Estimate>)| {
        let (mut sum, mut size, mut variance) = (0.0, 0.0, 0.0);
        for (q, k) in q.iter().zip(k) {
            let product = q.value * k.value;
            sum += product;
            size += product.abs();
            variance += (q.value * k.spread).powi(2) + (k.value * q.spread).powi(2);
        }
        let value = sum * scale + bias(j);
        let rounding = SUM * (size * scale).abs() + FUNCTION * value.abs().max(1.0);
        Estimate::new(value, variance * scale * scale + rounding.powi(2))
    };
    k.iter().enumerate().map(score).collect()
}

/// `Σ_j softmax(scores)[j] · v[j]`. A device may round the probabilities before they meet the values.
fn weighted(
    dtype: DType,
    scores: &[Estimate],
    v: &[Vec<Estimate>],
    head_dim: usize,
) -> Vec<Estimate> {
    let largest = scores.iter().fold(f64::MIN, |a, s| a.max(s.value));
    let power = |s: &Estimate| {
        let value = (s.value - largest).exp();
        Estimate::exact(value).stored(dtype)
    };
    let powers: Vec<_> = scores.iter().map(power).collect();
    let total: f64 = powers.iter().map(|p| p.value).sum();
    let column = |d: usize| {
        let sum: f64 = powers
            .iter()
            .zip(v)
            .map(|(p, v)| p.value * v[d].value)
            .sum();
        let mean = sum / total;
        let (mut size, mut variance) = (0.0, 0.0);
        for ((p, s), v) in powers.iter().zip(scores).zip(v) {
            let v = v[d];
            size += (p.value * v.value).abs();
            // The sum of probabilities moves with a score, but not with the rounding of one.
            variance += (p.value * s.spread * (v.value - mean)).powi(2)
                + (p.spread * v.value).powi(2)
                + (p.value * v.spread).powi(2);
        }
        let rounding = SUM * size;
        Estimate::new(mean, (variance + rounding.powi(2)) / (total * total))
    };
    (0..head_dim).map(column).collect()
}

/// One row per sequence; zeros for an empty one.
pub(crate) fn pool(x: &Rows, cu_seqlens: &[usize], rule: Pooling) -> Rows {
    Rows::from_fn(cu_seqlens.len() - 1, x.n_cols, |seq| {
        let (start, end) = (cu_seqlens[seq], cu_seqlens[seq + 1]);
        let rows = match rule {
            _ if start == end => start..end,
            Pooling::Cls => start..start + 1,
            Pooling::Mean => start..end,
            Pooling::LastToken => end - 1..end,
        };
        let n = rows.len().max(1) as f64;
        let column = |col: usize| {
            let (mut sum, mut size, mut variance) = (0.0, 0.0, 0.0);
            for x in rows.clone().map(|row| x.row(row)[col]) {
                sum += x.value;
                size += x.value.abs();
                variance += x.spread.powi(2);
            }
            Estimate::new(sum / n, (variance + (SUM * size).powi(2)) / (n * n))
        };
        (0..x.n_cols).map(column).collect()
    })
}

/// What [`Device::limit_capacity`](moeshard_tensor::device::Device::limit_capacity) leaves, and how
/// many assignments it drops.
pub(crate) fn limited(routing: &Routing, segments: &[usize], capacity: usize) -> (Vec<u32>, u64) {
    let mut idx = routing.expert_idx.clone();
    let mut n_dropped = 0;
    for segment in segments.windows(2) {
        let mut taken = std::collections::HashMap::<u32, usize>::new();
        for choice in 0..routing.top_k {
            for token in segment[0]..segment[1] {
                let expert = &mut idx[token * routing.top_k + choice];
                if *expert == Routing::DROPPED {
                    continue;
                }
                let taken = taken.entry(*expert).or_default();
                *taken += 1;
                if *taken > capacity {
                    *expert = Routing::DROPPED;
                    n_dropped += 1;
                }
            }
        }
    }
    (idx, n_dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_what_tables_say() {
        for (x, expected) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (-1.0, -0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.5, 0.999_999_256_901_627_7),
            (7.0, 1.0),
        ] {
            assert!((erf(x) - expected).abs() < 1e-14, "erf({x}) = {}", erf(x));
        }
    }

    #[test]
    fn capacity_takes_first_choices_first_within_a_segment() {
        let routing = Routing {
            top_k: 2,
            expert_idx: vec![0, 1, 1, 0, 0, 1, 0, 1],
            gate_weight: vec![1.0; 8],
        };
        let x = Routing::DROPPED;
        let (idx, n_dropped) = limited(&routing, &[0, 3, 4], 2);
        assert_eq!((&idx[..], n_dropped), (&[0, 1, 1, x, 0, x, 0, 1][..], 2));
    }

    /// The spread of a norm against what moving its inputs really does. That a number moves its own
    /// row's mean and factor is neglected: in short rows the spread is too large.
    #[test]
    fn a_spread_is_about_what_errors_do() {
        const N: usize = 32;
        const STEP: f64 = 1e-3;
        let norm = Norm {
            kind: NormKind::Layer,
            eps: 1e-5,
            weight: vec![1.0; N],
            bias: None,
        };
        let row = |moved: Option<usize>| -> Vec<Estimate> {
            let number = |i: usize| Estimate {
                value: (i as f64 * 1.7).sin() + if moved == Some(i) { STEP } else { 0.0 },
                spread: STEP,
            };
            norm_row(&(0..N).map(number).collect::<Vec<_>>(), &norm)
        };
        let plain = row(None);
        let variance: f64 = (0..N)
            .map(|i| (row(Some(i))[1].value - plain[1].value).powi(2))
            .sum();
        let ratio = plain[1].spread / variance.sqrt();
        assert!((1.0..1.2).contains(&ratio), "{ratio}");
    }
}
