//! The same encoders in plain candle, one sequence at a time: what a device is compared with.
//!
//! Nothing here is fast and no formula is shared with a device: weights are read whole, one matrix
//! a layer, and every formula is written as in its paper. f32 throughout.

use candle_core::{D, Device, IndexOp, Result, Tensor};
use candle_nn::ops::softmax;
use moeshard_tensor::checkpoint::Checkpoint;
use moeshard_tensor::device::{
    Activation, AttentionShape, MatrixLayout, NormKind, Pooling, PositionRule, Routing,
};

use crate::spec::{
    DenseFfnSpec, EncoderSpec, ExpertsSpec, FfnSpec, LayerSpec, LinearSpec, MatrixRef, NormOrder,
    NormSpec, PositionEmbedding, TensorRef,
};

/// The plain model: weights are read from the checkpoint when they are needed.
pub struct Reference<'a> {
    spec: &'a EncoderSpec,
    checkpoint: &'a Checkpoint,
    sequence_capacity: Option<usize>,
}

/// What the reference computed for one sequence.
#[derive(Clone, Debug)]
pub struct ReferenceOutput {
    /// `[n_tokens · d_model]` after the embedding and after each layer.
    pub layers: Vec<Vec<f32>>,
    /// `[n_tokens · d_model]` after the final norm.
    pub hidden: Vec<f32>,
    /// Layer index and routing of every layer of experts.
    pub routing: Vec<(usize, Routing)>,
}

impl<'a> Reference<'a> {
    /// `sequence_capacity` limits the tokens that an expert takes from a sequence.
    pub fn new(
        spec: &'a EncoderSpec,
        checkpoint: &'a Checkpoint,
        sequence_capacity: Option<usize>,
    ) -> Self {
        Self {
            spec,
            checkpoint,
            sequence_capacity,
        }
    }

    /// Runs one sequence.
    ///
    /// # Errors
    /// If a tensor is missing or shapes disagree.
    pub fn forward(&self, ids: &[u32], type_ids: &[u32]) -> Result<ReferenceOutput> {
        let mut x = self.embed(ids, type_ids)?;
        let bias = self.attention_bias(ids.len())?;
        let mut layers = vec![flat(&x)?];
        let mut routing = Vec::new();
        for (layer_idx, layer) in self.spec.layers.iter().enumerate() {
            let routed;
            (x, routed) = self.layer(layer, &x, bias.as_ref())?;
            routing.extend(routed.map(|r| (layer_idx, r)));
            layers.push(flat(&x)?);
        }
        if let Some(norm) = &self.spec.final_norm {
            x = self.norm(norm, &x)?;
        }
        Ok(ReferenceOutput {
            layers,
            hidden: flat(&x)?,
            routing,
        })
    }

    /// One pooled vector of `[n_tokens · d_model]` hidden states.
    ///
    /// # Errors
    /// If `hidden` is not whole rows.
    pub fn pool(&self, hidden: &[f32], pooling: Pooling) -> Result<Vec<f32>> {
        flat(&self.pooled(hidden, pooling)?)
    }

    /// Logits of `[n_tokens · d_model]` hidden states.
    ///
    /// # Errors
    /// If the model has no head.
    pub fn logits(&self, hidden: &[f32], pooling: Pooling) -> Result<Vec<f32>> {
        let Some(head) = &self.spec.head else {
            candle_core::bail!("the model has no head")
        };
        let mut x = self.pooled(hidden, head.pooling.unwrap_or(pooling))?;
        if let Some(norm) = &head.norm {
            x = self.norm(norm, &x)?;
        }
        if let Some((dense, activation)) = &head.dense {
            x = activate(*activation, &self.linear(dense, &x)?)?;
        }
        flat(&self.linear(&head.out, &x)?)
    }

    /// `[1, d_model]`
    fn pooled(&self, hidden: &[f32], pooling: Pooling) -> Result<Tensor> {
        let d_model = self.spec.d_model;
        let n_tokens = hidden.len() / d_model;
        let x = Tensor::from_slice(hidden, (n_tokens, d_model), &Device::Cpu)?;
        match pooling {
            Pooling::Cls => x.narrow(0, 0, 1),
            Pooling::LastToken => x.narrow(0, n_tokens - 1, 1),
            Pooling::Mean => x.mean_keepdim(0),
        }
    }

    /// `[n_tokens, d_model]`
    fn embed(&self, ids: &[u32], type_ids: &[u32]) -> Result<Tensor> {
        let spec = &self.spec.embedding;
        let rows = |table: &TensorRef, idx: &[u32]| {
            self.tensor(table)?
                .index_select(&Tensor::new(idx, &Device::Cpu)?, 0)
        };
        let mut x = (rows(&spec.word, ids)? * f64::from(spec.scale))?;
        match &spec.position {
            PositionEmbedding::None => {}
            PositionEmbedding::Learned { table, offset, .. } => {
                let idx: Vec<u32> = (0..ids.len()).map(|p| (p + offset) as u32).collect();
                x = (x + rows(table, &idx)?)?;
            }
            PositionEmbedding::Sinusoidal { offset, .. } => {
                x = (x + sinusoids(*offset, ids.len(), self.spec.d_model)?)?;
            }
        }
        if let Some((table, n_rows)) = &spec.token_type {
            let idx: Vec<u32> = type_ids
                .iter()
                .map(|&t| t.min(*n_rows as u32 - 1))
                .collect();
            x = (x + rows(table, &idx)?)?;
        }
        match &spec.norm {
            Some(norm) => self.norm(norm, &x),
            None => Ok(x),
        }
    }

    fn layer(
        &self,
        layer: &LayerSpec,
        x: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<(Tensor, Option<Routing>)> {
        match self.spec.norm_order {
            NormOrder::Pre => {
                let h = self.norm(&layer.attention_norm, x)?;
                let x = (x + self.attention(layer, &h, bias)?)?;
                let (y, routing) = self.ffn(&layer.ffn, &self.norm(&layer.ffn_norm, &x)?)?;
                Ok(((x + y)?, routing))
            }
            NormOrder::Post => {
                let sum = (x + self.attention(layer, x, bias)?)?;
                let x = self.norm(&layer.attention_norm, &sum)?;
                let (y, routing) = self.ffn(&layer.ffn, &x)?;
                Ok((self.norm(&layer.ffn_norm, &(x + y)?)?, routing))
            }
        }
    }

    /// `softmax(scale · q · kᵀ + bias) · v`, then the output projection.
    fn attention(&self, layer: &LayerSpec, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let AttentionShape {
            n_heads,
            head_dim,
            scale,
            position,
        } = self.spec.attention;
        let n_tokens = x.dim(0)?;
        // [n_tokens, 3 · n_heads · head_dim] -> [3, n_heads, n_tokens, head_dim]
        let qkv = self.linear(&layer.qkv, x)?;
        let qkv = qkv
            .reshape((n_tokens, 3, n_heads, head_dim))?
            .permute((1, 2, 0, 3))?;
        let (mut q, mut k) = (qkv.i(0)?.contiguous()?, qkv.i(1)?.contiguous()?);
        if let PositionRule::Rotary { base, dim } = position {
            (q, k) = (rotate(&q, base, dim)?, rotate(&k, base, dim)?);
        }
        let mut scores = (q.matmul(&k.t()?.contiguous()?)? * f64::from(scale))?;
        if let Some(bias) = bias {
            scores = scores.add(bias)?;
        }
        let mixed = softmax(&scores, D::Minus1)?.matmul(&qkv.i(2)?.contiguous()?)?;
        // [n_heads, n_tokens, head_dim] -> [n_tokens, n_heads · head_dim]
        let mixed = mixed
            .transpose(0, 1)?
            .reshape((n_tokens, n_heads * head_dim))?;
        self.linear(&layer.attention_out, &mixed)
    }

    /// `[n_heads, n_tokens, n_tokens]`: the learned bias of every bucketed distance key − query.
    fn attention_bias(&self, n_tokens: usize) -> Result<Option<Tensor>> {
        let (
            Some(table),
            PositionRule::RelativeBias {
                n_buckets,
                max_distance,
            },
        ) = (&self.spec.relative_bias, self.spec.attention.position)
        else {
            return Ok(None);
        };
        let n = n_tokens as i64;
        let buckets: Vec<u32> = (0..n)
            .flat_map(|query| (0..n).map(move |key| key - query))
            .map(|distance| relative_bucket(distance, n_buckets, max_distance))
            .collect();
        let rows = self
            .tensor(table)?
            .index_select(&Tensor::new(buckets, &Device::Cpu)?, 0)?;
        let n_heads = self.spec.attention.n_heads;
        Ok(Some(
            rows.reshape((n_tokens, n_tokens, n_heads))?
                .permute((2, 0, 1))?
                .contiguous()?,
        ))
    }

    fn ffn(&self, ffn: &FfnSpec, x: &Tensor) -> Result<(Tensor, Option<Routing>)> {
        match ffn {
            FfnSpec::Dense(dense) => Ok((self.dense_ffn(dense, x)?, None)),
            FfnSpec::Experts(experts) => {
                let (y, routing) = self.experts(experts, x)?;
                Ok((y, Some(routing)))
            }
        }
    }

    fn dense_ffn(&self, ffn: &DenseFfnSpec, x: &Tensor) -> Result<Tensor> {
        let up = self.linear(&ffn.up, x)?;
        let hidden = match &ffn.gate {
            None => activate(ffn.activation, &up)?,
            Some(gate) => (up * activate(ffn.activation, &self.linear(gate, x)?)?)?,
        };
        self.linear(&ffn.down, &hidden)
    }

    /// Token by token, choice by choice.
    fn experts(&self, layer: &ExpertsSpec, x: &Tensor) -> Result<(Tensor, Routing)> {
        let routing = self.route(layer, x)?;
        let zero = Tensor::zeros((1, self.spec.d_model), x.dtype(), x.device())?;
        let mut rows = Vec::new();
        for token in 0..x.dim(0)? {
            let mut sum = zero.clone();
            for slot in token * routing.top_k..(token + 1) * routing.top_k {
                if routing.expert_idx[slot] == Routing::DROPPED {
                    continue;
                }
                let expert = &layer.experts[routing.expert_idx[slot] as usize];
                let h = x
                    .narrow(0, token, 1)?
                    .matmul(&self.matrix(&expert.w_in)?.t()?)?;
                let h = activate(layer.activation, &self.add_bias(h, expert.b_in.as_ref())?)?;
                let y = h.matmul(&self.matrix(&expert.w_out)?.t()?)?;
                let y = self.add_bias(y, expert.b_out.as_ref())?;
                sum = (sum + y * f64::from(routing.gate_weight[slot]))?;
            }
            rows.push(sum);
        }
        let y = (Tensor::cat(&rows, 0)? * f64::from(layer.output_scale))?;
        Ok((self.add_bias(y, layer.shared_bias.as_ref())?, routing))
    }

    /// The `top_k` most probable experts of every token, within the capacity.
    fn route(&self, layer: &ExpertsSpec, x: &Tensor) -> Result<Routing> {
        let logits = x.matmul(&self.matrix(&layer.router)?.t()?)?;
        let probabilities: Vec<Vec<f32>> = softmax(&logits, D::Minus1)?.to_vec2()?;
        let top_k = layer.rule.top_k;
        let mut routing = Routing {
            top_k,
            expert_idx: Vec::new(),
            gate_weight: Vec::new(),
        };
        for row in probabilities {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            let chosen = &order[..top_k];
            let sum: f32 = chosen.iter().map(|&e| row[e]).sum();
            let divisor = if layer.rule.normalize { sum } else { 1.0 };
            routing.expert_idx.extend(chosen.iter().map(|&e| e as u32));
            routing
                .gate_weight
                .extend(chosen.iter().map(|&e| row[e] / divisor));
        }
        if let Some(capacity) = self.sequence_capacity {
            drop_overflow(&mut routing, layer.experts.len(), capacity);
        }
        Ok(routing)
    }

    fn norm(&self, norm: &NormSpec, x: &Tensor) -> Result<Tensor> {
        let x = match norm.kind {
            NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
            NormKind::Rms => x.clone(),
        };
        let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
        let x = x.broadcast_div(&(variance + f64::from(norm.eps))?.sqrt()?)?;
        let x = x.broadcast_mul(&self.tensor(&norm.weight)?)?;
        self.add_bias(x, norm.bias.as_ref())
    }

    fn linear(&self, linear: &LinearSpec, x: &Tensor) -> Result<Tensor> {
        let mut parts = Vec::new();
        for (i, weight) in linear.weights.iter().enumerate() {
            let y = x.matmul(&self.matrix(weight)?.t()?)?;
            parts.push(self.add_bias(y, linear.biases.get(i))?);
        }
        Tensor::cat(&parts, D::Minus1)
    }

    fn add_bias(&self, x: Tensor, bias: Option<&TensorRef>) -> Result<Tensor> {
        match bias {
            Some(bias) => x.broadcast_add(&self.tensor(bias)?),
            None => Ok(x),
        }
    }

    /// `[n_out, n_in]`
    fn matrix(&self, matrix: &MatrixRef) -> Result<Tensor> {
        let tensor = self.tensor(&matrix.tensor)?;
        match matrix.layout {
            MatrixLayout::OutIn => Ok(tensor),
            MatrixLayout::InOut => tensor.t()?.contiguous(),
        }
    }

    fn tensor(&self, tensor: &TensorRef) -> Result<Tensor> {
        let whole = self
            .checkpoint
            .info(&tensor.name)
            .map(|info| info.shape.clone());
        let mut ranges: Vec<_> = whole.unwrap_or_default().iter().map(|&n| 0..n).collect();
        if let (Some(rows), Some(first)) = (&tensor.rows, ranges.first_mut()) {
            *first = rows.clone();
        }
        let host = self
            .checkpoint
            .read(&tensor.name, &ranges)
            .map_err(candle_core::Error::wrap)?;
        Tensor::from_vec(host.to_f32(), host.shape, &Device::Cpu)
    }
}

fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Identity => Ok(x.clone()),
        Activation::Relu => x.relu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Silu => x.silu(),
        Activation::Tanh => x.tanh(),
    }
}

/// Half of the buckets for each direction; in each, half are single distances and the others grow
/// by equal factors up to `max_distance`.
fn relative_bucket(distance: i64, n_buckets: usize, max_distance: usize) -> u32 {
    let per_direction = n_buckets / 2;
    let direction = if distance > 0 { per_direction } else { 0 };
    let n_single = per_direction / 2;
    let n = distance.unsigned_abs() as usize;
    let within = if n < n_single {
        n
    } else {
        let factor = (n as f32 / n_single as f32).ln();
        let longest = (max_distance as f32 / n_single as f32).ln();
        let step = factor / longest * (per_direction - n_single) as f32;
        (n_single + step as usize).min(per_direction - 1)
    };
    (direction + within) as u32
}

/// Rotates pairs `(x[i], x[i + dim/2])` of every head by `position · base^(−2i/dim)`.
fn rotate(x: &Tensor, base: f32, dim: usize) -> Result<Tensor> {
    let (_, n_tokens, head_dim) = x.dims3()?;
    let half = dim / 2;
    let angles: Vec<f32> = (0..n_tokens * half)
        .map(|i| {
            let exponent = -2.0 * (i % half) as f64 / dim as f64;
            ((i / half) as f64 * f64::from(base).powf(exponent)) as f32
        })
        .collect();
    let angles = Tensor::from_vec(angles, (n_tokens, half), x.device())?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let (low, high) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let rotated_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
    let rotated_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
    let rest = x.narrow(2, dim, head_dim - dim)?;
    Tensor::cat(&[rotated_low, rotated_high, rest], 2)
}

/// `[n_tokens, d_model]`: sines in the first half, cosines in the second.
fn sinusoids(offset: usize, n_tokens: usize, d_model: usize) -> Result<Tensor> {
    let half = d_model / 2;
    let values: Vec<f32> = (0..n_tokens * d_model)
        .map(|i| {
            let (position, column) = (i / d_model + offset, i % d_model);
            let power = (column % half) as f64 / (half as f64 - 1.0);
            let angle = position as f64 / 10_000_f64.powf(power);
            (if column < half {
                angle.sin()
            } else {
                angle.cos()
            }) as f32
        })
        .collect();
    Tensor::from_vec(values, (n_tokens, d_model), &Device::Cpu)
}

/// First choices before second ones, each in token order, as the device does.
fn drop_overflow(routing: &mut Routing, n_experts: usize, capacity: usize) {
    let mut n_taken = vec![0; n_experts];
    for choice in 0..routing.top_k {
        for slot in (choice..routing.expert_idx.len()).step_by(routing.top_k) {
            let taken = &mut n_taken[routing.expert_idx[slot] as usize];
            *taken += 1;
            if *taken > capacity {
                routing.expert_idx[slot] = Routing::DROPPED;
                routing.gate_weight[slot] = 0.0;
            }
        }
    }
}

fn flat(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}
