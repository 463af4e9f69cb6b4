//! A whole layer: memory that goes round, launches that are kept and replayed, rows that must not
//! know of one another.

use moeshard_tensor::device::{
    Activation, AttentionShape, Device, NormKind, PositionRule, RouterRule, Routing,
};
use moeshard_tensor::dtype::DType;

use super::attention::offsets;
use super::routing::router;
use crate::inputs::{ExpertShape, Inputs, LoadedLinear, LoadedNorm};
use crate::reference::{ExpertLayer, attention, norm_row, plus_vector, sum};
use crate::suite::{Failure, Outcome, Suite, same};
use crate::tolerance::{Rows, compare, equal_bits};
use crate::{Paths, Scale};

/// Of a token in 16 bits that went through other kernels.
const LEAST_COSINE: f64 = 0.9999;

/// What a layer is made of.
#[derive(Clone, Copy, Debug)]
struct Shape {
    n_heads: usize,
    head_dim: usize,
    position: PositionRule,
    n_experts: usize,
    n_hidden: usize,
    top_k: usize,
    /// Tokens that an expert takes of a sequence.
    capacity: Option<usize>,
}

const SMALL: [Shape; 2] = [
    Shape {
        n_heads: 2,
        head_dim: 32,
        position: PositionRule::Rotary {
            base: 10_000.0,
            dim: 32,
        },
        n_experts: 5,
        n_hidden: 40,
        top_k: 2,
        capacity: None,
    },
    Shape {
        n_heads: 3,
        head_dim: 8,
        position: PositionRule::RelativeBias {
            n_buckets: 8,
            max_distance: 20,
        },
        n_experts: 3,
        n_hidden: 24,
        top_k: 1,
        capacity: Some(4),
    },
];

const LARGE: [Shape; 1] = [Shape {
    n_heads: 12,
    head_dim: 64,
    position: PositionRule::RelativeBias {
        n_buckets: 32,
        max_distance: 128,
    },
    n_experts: 8,
    n_hidden: 768,
    top_k: 2,
    capacity: None,
}];

pub(super) fn cases<D: Device>(suite: &mut Suite<'_, D>) {
    let (shapes, batches): (&[Shape], [&[usize]; 4]) = match suite.scale {
        Scale::Small => (&SMALL, [&[3, 17], &[9, 1, 0, 20], &[2], &[33, 15, 1]]),
        Scale::Large => (&LARGE, [&[40, 7], &[512, 1, 300], &[64], &[900, 128, 700]]),
    };
    let paths = match suite.dtype {
        DType::F32 => Paths::One,
        DType::BF16 | DType::F16 => suite.paths,
    };
    for shape in shapes {
        suite.case(format!("layer {shape:?}"), |inputs| {
            formula(inputs, *shape, batches[0])
        });
        suite.case(
            format!("layer three times, other batches in between, {shape:?}"),
            |inputs| three_times(inputs, *shape, batches),
        );
        suite.case(
            format!("invariance: sequences alone and among others, {shape:?}"),
            |inputs| alone_and_among_others(inputs, *shape, batches[3], paths),
        );
    }
}

struct Layer<D: Device> {
    shape: Shape,
    d_model: usize,
    attention_norm: LoadedNorm<D::Vector>,
    qkv: LoadedLinear<D>,
    attention: AttentionShape,
    bias: Option<D::Vector>,
    host_bias: Option<Vec<f32>>,
    out: LoadedLinear<D>,
    ffn_norm: LoadedNorm<D::Vector>,
    router: D::Matrix,
    experts: D::Experts,
    host_experts: ExpertLayer,
    shared_bias: D::Vector,
    host_shared_bias: Vec<f32>,
}

impl<D: Device> Layer<D> {
    fn load(inputs: &mut Inputs<'_, D>, shape: Shape) -> Result<Self, Failure> {
        let Shape {
            n_heads, head_dim, ..
        } = shape;
        let d_model = n_heads * head_dim;
        let host_bias = match shape.position {
            PositionRule::RelativeBias { n_buckets, .. } => {
                Some(inputs.exact_numbers(n_buckets * n_heads, 1.0))
            }
            _ => None,
        };
        let bias = host_bias.as_ref();
        let (experts, host_experts) = inputs.experts(&ExpertShape {
            n_experts: shape.n_experts,
            held: 0..shape.n_experts,
            d_model,
            n_hidden: shape.n_hidden,
            activation: Activation::Gelu,
            has_bias: true,
        })?;
        let host_shared_bias = inputs.exact_numbers(d_model, 1.0);
        Ok(Self {
            shape,
            d_model,
            attention_norm: inputs.norm(d_model, NormKind::Layer, true)?,
            qkv: inputs.linear(3 * d_model, d_model, true)?,
            attention: AttentionShape {
                n_heads,
                head_dim,
                scale: 1.0 / (head_dim as f32).sqrt(),
                position: shape.position,
            },
            bias: bias.map(|bias| inputs.vector(bias)).transpose()?,
            host_bias,
            out: inputs.linear(d_model, d_model, true)?,
            ffn_norm: inputs.norm(d_model, NormKind::Rms, false)?,
            router: router(inputs, shape.n_experts, d_model)?.0,
            experts,
            host_experts,
            shared_bias: inputs.vector(&host_shared_bias)?,
            host_shared_bias,
        })
    }

    /// `x + attention(norm(x))`, then the same with experts; the result and the routing on the host.
    fn run(
        &self,
        inputs: &mut Inputs<'_, D>,
        numbers: &[f32],
        cu_seqlens: &[usize],
    ) -> Result<(Vec<f32>, Routing), Failure> {
        let device = inputs.device;
        let n_rows = cu_seqlens[cu_seqlens.len() - 1];
        let x = inputs.embedded(numbers, self.d_model, n_rows)?;
        let plain = Activation::Identity;
        let h = device.norm(&x, &self.attention_norm.device)?;
        let (w, b) = (&self.qkv.matrix, self.qkv.bias.as_ref());
        let mut qkv = device.linear(&h, w, b, plain, None, None)?;
        let heads = device.attention(&mut qkv, cu_seqlens, &self.attention, self.bias.as_ref())?;
        let (w, b) = (&self.out.matrix, self.out.bias.as_ref());
        let x = device.linear(&heads, w, b, plain, Some(&x), None)?;
        let h = device.norm(&x, &self.ffn_norm.device)?;
        let rule = RouterRule {
            top_k: self.shape.top_k,
            normalize: true,
        };
        let mut routing = device.route(&h, &self.router, rule)?;
        if let Some(capacity) = self.shape.capacity {
            device.limit_capacity(&mut routing, cu_seqlens, capacity, true)?;
        }
        let mut y = device.expert_ffn(&h, &routing, &self.experts)?;
        device.add(&mut y, &x, Some(&self.shared_bias), None)?;
        let found = device.to_host(&y)?;
        let host = device.routing_to_host(&routing)?;
        device.recycle(routing);
        Ok((found, host))
    }

    /// The same as plain loops, with the device's routing.
    fn expected(
        &self,
        inputs: &Inputs<'_, D>,
        x: &Rows,
        cu_seqlens: &[usize],
        routing: &Routing,
    ) -> Rows {
        let dtype = inputs.dtype;
        let normed = |x: &Rows, norm| {
            let row = |row| norm_row(x.row(row), norm);
            Rows::from_fn(x.n_rows(), x.n_cols, row).stored(dtype)
        };
        let h = normed(x, &self.attention_norm.host);
        let qkv = self.qkv.host.rows(&h).stored(dtype);
        let bias = self.host_bias.as_ref();
        let heads = attention(dtype, &qkv, cu_seqlens, &self.attention, bias).stored(dtype);
        let x = sum(self.out.host.rows(&heads), Some(x)).stored(dtype);
        let h = normed(&x, &self.ffn_norm.host);
        let y = self.host_experts.rows(dtype, &h, routing);
        plus_vector(sum(y, Some(&x)), Some(&self.host_shared_bias))
    }
}

fn formula<D: Device>(inputs: &mut Inputs<'_, D>, shape: Shape, lengths: &[usize]) -> Outcome {
    let layer = Layer::load(inputs, shape)?;
    let cu_seqlens = offsets(lengths);
    let n_rows = lengths.iter().sum::<usize>();
    let numbers = inputs.numbers(n_rows * layer.d_model, 1.0);
    let (found, routing) = layer.run(inputs, &numbers, &cu_seqlens)?;
    let x = Rows::exact(layer.d_model, &numbers);
    let expected = layer.expected(inputs, &x, &cu_seqlens, &routing);
    compare(inputs.dtype, &found, n_rows, &expected)
}

/// A device takes memory again and keeps what it launched: neither may show.
fn three_times<D: Device>(
    inputs: &mut Inputs<'_, D>,
    shape: Shape,
    batches: [&[usize]; 4],
) -> Outcome {
    let layer = Layer::load(inputs, shape)?;
    let batches: Vec<_> = (batches.iter())
        .map(|lengths| {
            let n_rows = lengths.iter().sum::<usize>();
            let numbers = inputs.numbers(n_rows * layer.d_model, 1.0);
            (numbers, offsets(lengths))
        })
        .collect();
    let mut first = Vec::new();
    for time in 0..3 {
        for (batch_idx, (numbers, cu_seqlens)) in batches.iter().enumerate() {
            let (found, routing) = layer.run(inputs, numbers, cu_seqlens)?;
            if time == 0 {
                first.push((found, routing));
                continue;
            }
            let what = format!("batch {batch_idx}, time {}", time + 1);
            equal_bits(&what, &found, &first[batch_idx].0)?;
            same(&what, &routing, &first[batch_idx].1)?;
        }
    }
    Ok(0.0)
}

fn alone_and_among_others<D: Device>(
    inputs: &mut Inputs<'_, D>,
    shape: Shape,
    lengths: &[usize],
    paths: Paths,
) -> Outcome {
    let layer = Layer::load(inputs, shape)?;
    let cu_seqlens = offsets(lengths);
    let n_rows = lengths.iter().sum::<usize>();
    let numbers = inputs.numbers(n_rows * layer.d_model, 1.0);
    let (together, routing) = layer.run(inputs, &numbers, &cu_seqlens)?;
    for (seq, ends) in cu_seqlens.windows(2).enumerate() {
        let rows = ends[0] * layer.d_model..ends[1] * layer.d_model;
        let alone = &[0, ends[1] - ends[0]];
        let (found, alone) = layer.run(inputs, &numbers[rows.clone()], alone)?;
        let what = format!("sequence {seq} of {}", lengths.len());
        let slots = ends[0] * shape.top_k..ends[1] * shape.top_k;
        let routes = &routing.expert_idx[slots];
        if paths == Paths::Several {
            alike(
                &what,
                &layer,
                (&found, &alone.expert_idx),
                (&together[rows], routes),
            )?;
            continue;
        }
        same(&what, &alone.expert_idx[..], routes)?;
        equal_bits(&what, &found, &together[rows])?;
    }
    Ok(0.0)
}

/// Fails unless tokens point in the same direction. A rounding may send one of sixteen to another expert.
fn alike<D: Device>(
    what: &str,
    layer: &Layer<D>,
    (found, found_experts): (&[f32], &[u32]),
    (expected, expected_experts): (&[f32], &[u32]),
) -> Result<(), Failure> {
    let of_token = layer.shape.top_k;
    let tokens = (found
        .chunks(layer.d_model)
        .zip(found_experts.chunks(of_token)))
    .zip(
        expected
            .chunks(layer.d_model)
            .zip(expected_experts.chunks(of_token)),
    );
    let mut n_elsewhere = 0;
    for (token, ((a, of_a), (b, of_b))) in tokens.enumerate() {
        if of_a != of_b {
            n_elsewhere += 1;
            continue;
        }
        let cosine = cosine(a, b);
        if cosine.is_nan() || cosine < LEAST_COSINE {
            return Err(Failure(format!(
                "{what}: token {token}: expected a cosine of at least {LEAST_COSINE}, found {cosine}"
            )));
        }
    }
    let most = found_experts.len() / of_token / 16;
    match n_elsewhere <= most {
        true => Ok(()),
        false => Err(Failure(format!(
            "{what}: expected at most {most} tokens with other experts, found {n_elsewhere}"
        ))),
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
