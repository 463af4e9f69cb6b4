//! The forward pass of every encoder, on one rank.

use std::sync::{Mutex, PoisonError};

use moeshard_tensor::checkpoint::Checkpoint;
use moeshard_tensor::device::{
    Activation, DenseFfn, Device, EmbeddingRows, Norm, Pooling, Result as DeviceResult,
};

use crate::error::EncoderError;
use crate::shard::ShardPlan;
use crate::spec::{EncoderSpec, NormOrder, PositionEmbedding};
use crate::weights::{ExpertLayer, Ffn, Layer, Linear, Weights};

/// An encoder on one rank.
pub struct Encoder<D: Device> {
    device: D,
    spec: EncoderSpec,
    weights: Weights<D>,
    plan: ShardPlan,
    sequence_capacity: Option<usize>,
    rows: Mutex<TableRows>,
}

/// The sequences of one rank, packed without padding.
#[derive(Clone, Copy, Debug)]
pub struct RankBatch<'a> {
    /// `[n_tokens]`
    pub ids: &'a [u32],
    /// `[n_tokens]`
    pub type_ids: &'a [u32],
    /// `[n_seqs + 1]`
    pub cu_seqlens: &'a [usize],
    /// `[world_size]`: tokens of every rank in this pass.
    pub n_tokens_per_rank: &'a [usize],
}

/// A layer that may have to wait for other ranks.
enum Begun<D: Device> {
    /// It has nothing to wait for.
    Done(D::Tensor),
    /// Its tokens are on their way to the experts.
    Routed {
        /// What the experts' sums are added to.
        residual: D::Tensor,
        /// What the experts take, if it is not that.
        normed: Option<D::Tensor>,
        routing: D::Routing,
        gathered: Option<Gathered<D>>,
    },
}

/// All ranks' tokens.
struct Gathered<D: Device> {
    rows: D::Tensor,
    routing: D::Routing,
}

/// What a [`Encoder::forward_traced`] shows after each layer.
pub struct Step<'a, D: Device> {
    /// `None` after the embedding.
    pub layer_idx: Option<usize>,
    /// `[n_tokens, d_model]`
    pub hidden: &'a D::Tensor,
    /// Of this rank's tokens, at a layer of experts.
    pub routing: Option<&'a D::Routing>,
}

impl<D: Device> Encoder<D> {
    /// Loads one rank's part of a model.
    ///
    /// `sequence_capacity` limits the tokens that an expert takes from one sequence.
    ///
    /// # Errors
    /// If the experts cannot be laid out as planned, or a tensor is missing, of another shape or
    /// not finite.
    pub fn load(
        device: D,
        spec: &EncoderSpec,
        checkpoint: &Checkpoint,
        plan: ShardPlan,
        sequence_capacity: Option<usize>,
        progress: &dyn Fn(u64),
    ) -> Result<Self, EncoderError> {
        let weights = Weights::load(&device, spec, checkpoint, plan, progress)?;
        Ok(Self {
            device,
            spec: spec.clone(),
            weights,
            plan,
            sequence_capacity,
            rows: Mutex::default(),
        })
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// What the encoder is made of.
    pub fn spec(&self) -> &EncoderSpec {
        &self.spec
    }

    /// Runs one batch.
    ///
    /// # Shapes
    /// - returns `[n_tokens, d_model]`
    ///
    /// # Communication
    /// At each layer of experts, unless they are replicated, two all-gathers and one
    /// reduce-scatter; every rank must call it, also one without tokens.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary, or a collective fails.
    pub fn forward(&self, batch: &RankBatch<'_>) -> Result<D::Tensor, EncoderError> {
        self.forward_traced(batch, &mut |_| Ok(()))
    }

    /// As [`Encoder::forward`], showing the hidden states after the embedding and each layer.
    pub fn forward_traced(
        &self,
        batch: &RankBatch<'_>,
        trace: &mut dyn FnMut(Step<'_, D>) -> DeviceResult<()>,
    ) -> Result<D::Tensor, EncoderError> {
        check_batch(&self.spec, batch.ids, batch.cu_seqlens)?;
        let mut x = self.embed(batch)?;
        trace(Step {
            layer_idx: None,
            hidden: &x,
            routing: None,
        })?;
        for (layer_idx, layer) in self.weights.layers.iter().enumerate() {
            let begun = self.begin_layer(layer, &x, batch)?;
            let routing;
            (x, routing) = self.end_layer(layer, begun, batch)?;
            trace(Step {
                layer_idx: Some(layer_idx),
                hidden: &x,
                routing: routing.as_ref(),
            })?;
            if let Some(routing) = routing {
                self.device.recycle(routing);
            }
        }
        self.final_norm(x)
    }

    /// Runs the micro-batches of one batch, layer by layer in turns, each in a stream of its own where the device
    /// has as many: what one of them waits for other ranks in, another computes in.
    ///
    /// # Communication
    /// As for each by [`Encoder::forward`]; every rank must call it with as many.
    ///
    /// # Errors
    /// As for [`Encoder::forward`].
    pub fn forward_in_turns(
        &self,
        batches: &[RankBatch<'_>],
    ) -> Result<Vec<D::Tensor>, EncoderError> {
        let device = &self.device;
        for batch in batches {
            check_batch(&self.spec, batch.ids, batch.cu_seqlens)?;
        }
        let in_stream = |(i, batch)| {
            device.enter_stream(i);
            self.embed(batch)
        };
        let mut xs: Vec<_> = (batches.iter().enumerate())
            .map(in_stream)
            .collect::<DeviceResult<_>>()?;
        for layer in &self.weights.layers {
            let mut begun = Vec::with_capacity(batches.len());
            for (i, (x, batch)) in xs.iter().zip(batches).enumerate() {
                device.enter_stream(i);
                begun.push(self.begin_layer(layer, x, batch)?);
            }
            xs = Vec::with_capacity(batches.len());
            for (i, (begun, batch)) in begun.into_iter().zip(batches).enumerate() {
                device.enter_stream(i);
                let (x, routing) = self.end_layer(layer, begun, batch)?;
                xs.push(x);
                routing.into_iter().for_each(|r| device.recycle(r));
            }
        }
        let in_stream = |(i, x)| {
            device.enter_stream(i);
            self.final_norm(x)
        };
        xs.into_iter().enumerate().map(in_stream).collect()
    }

    fn final_norm(&self, x: D::Tensor) -> Result<D::Tensor, EncoderError> {
        match &self.weights.final_norm {
            Some(norm) => Ok(self.device.norm(&x, norm)?),
            None => Ok(x),
        }
    }

    /// One pooled vector per sequence, in host memory: `[n_seqs, d_model]`.
    ///
    /// # Errors
    /// If shapes disagree.
    pub fn pool(
        &self,
        hidden: &D::Tensor,
        cu_seqlens: &[usize],
        pooling: Pooling,
    ) -> Result<Vec<f32>, EncoderError> {
        let pooled = self.device.pool(hidden, cu_seqlens, pooling)?;
        Ok(self.device.to_host(&pooled)?)
    }

    /// One row of logits per sequence, in host memory: `[n_seqs, n_labels]`.
    ///
    /// # Errors
    /// [`EncoderError::NoHead`] if the model has none.
    pub fn logits(
        &self,
        hidden: &D::Tensor,
        cu_seqlens: &[usize],
        pooling: Pooling,
    ) -> Result<Vec<f32>, EncoderError> {
        let logits = self.classify(hidden, cu_seqlens, pooling)?;
        Ok(self.device.to_host(&logits)?)
    }

    /// One row of logits per sequence, `[n_seqs, n_labels]`.
    ///
    /// # Errors
    /// [`EncoderError::NoHead`] if the model has none.
    pub fn classify(
        &self,
        hidden: &D::Tensor,
        cu_seqlens: &[usize],
        pooling: Pooling,
    ) -> Result<D::Tensor, EncoderError> {
        let head = self.weights.head.as_ref().ok_or(EncoderError::NoHead)?;
        let own = self.spec.head.as_ref().and_then(|head| head.pooling);
        let mut x = self
            .device
            .pool(hidden, cu_seqlens, own.unwrap_or(pooling))?;
        if let Some(norm) = &head.norm {
            x = self.device.norm(&x, norm)?;
        }
        if let Some((dense, activation)) = &head.dense {
            x = self.linear(&x, dense, *activation)?;
        }
        Ok(self.linear(&x, &head.out, Activation::Identity)?)
    }

    fn embed(&self, batch: &RankBatch<'_>) -> DeviceResult<D::Tensor> {
        let (spec, weights) = (&self.spec.embedding, &self.weights.embedding);
        let offset = match spec.position {
            PositionEmbedding::Learned { offset, .. } => offset,
            // The table starts at the offset.
            PositionEmbedding::Sinusoidal { .. } | PositionEmbedding::None => 0,
        };
        // A model with one segment gives it to every token.
        let last_type = spec
            .token_type
            .as_ref()
            .map_or(0, |(_, n)| (*n as u32).saturating_sub(1));
        let memory = &mut *self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        memory.fill(batch, offset, last_type);
        let word = EmbeddingRows {
            table: &weights.word,
            row_idx: batch.ids,
            scale: spec.scale,
        };
        let more = [
            (&weights.position, &memory.positions),
            (&weights.token_type, &memory.type_ids),
        ];
        let (mut tables, mut n_tables) = ([word; 3], 1);
        for (table, row_idx) in more {
            if let Some(table) = table {
                tables[n_tables] = EmbeddingRows {
                    table,
                    row_idx,
                    scale: 1.0,
                };
                n_tables += 1;
            }
        }
        let tables = &tables[..n_tables];
        self.device.embed(tables, weights.norm.as_ref())
    }

    /// A layer up to where it waits for other ranks: `x + f(norm(x))` or `norm(x + f(x))`, first attention, then
    /// the FFN, which is begun.
    fn begin_layer(
        &self,
        layer: &Layer<D>,
        x: &D::Tensor,
        batch: &RankBatch<'_>,
    ) -> DeviceResult<Begun<D>> {
        let device = &self.device;
        let (residual, normed) = match self.spec.norm_order {
            NormOrder::Pre => {
                let h = device.norm(x, &layer.attention_norm)?;
                let x = self.attention(layer, &h, x, None, batch)?;
                let h = device.norm(&x, &layer.ffn_norm)?;
                (x, Some(h))
            }
            NormOrder::Post => {
                let norm = Some(&layer.attention_norm);
                (self.attention(layer, x, x, norm, batch)?, None)
            }
        };
        let x = normed.as_ref().unwrap_or(&residual);
        match &layer.ffn {
            Ffn::Dense {
                up,
                gate,
                down,
                activation,
            } => {
                let ffn = DenseFfn {
                    up: up.weights(),
                    gate: gate.as_ref().map(Linear::weights),
                    activation: *activation,
                    down: down.weights(),
                };
                let norm = self.ffn_norm(layer);
                Ok(Begun::Done(device.ffn(x, &ffn, &residual, norm)?))
            }
            Ffn::Experts(experts) => {
                let (routing, gathered) = self.route(experts, x, batch)?;
                Ok(Begun::Routed {
                    residual,
                    normed,
                    routing,
                    gathered,
                })
            }
        }
    }

    /// The rest of a layer, and where its experts' tokens went.
    fn end_layer(
        &self,
        layer: &Layer<D>,
        begun: Begun<D>,
        batch: &RankBatch<'_>,
    ) -> DeviceResult<(D::Tensor, Option<D::Routing>)> {
        let (residual, normed, routing, gathered) = match begun {
            Begun::Done(y) => return Ok((y, None)),
            Begun::Routed {
                residual,
                normed,
                routing,
                gathered,
            } => (residual, normed, routing, gathered),
        };
        let Ffn::Experts(experts) = &layer.ffn else {
            unreachable!("only experts are routed to")
        };
        let x = normed.as_ref().unwrap_or(&residual);
        let mut y = self.run_experts(experts, x, &routing, gathered, batch)?;
        let bias = experts.shared_bias.as_ref();
        (self.device).add(&mut y, &residual, bias, self.ffn_norm(layer))?;
        Ok((y, Some(routing)))
    }

    /// What an FFN's result is normalised by.
    fn ffn_norm<'a>(&self, layer: &'a Layer<D>) -> Option<&'a Norm<D::Vector>> {
        (self.spec.norm_order == NormOrder::Post).then_some(&layer.ffn_norm)
    }

    /// `residual + attention(x)`, normalised if asked.
    fn attention(
        &self,
        layer: &Layer<D>,
        x: &D::Tensor,
        residual: &D::Tensor,
        norm: Option<&Norm<D::Vector>>,
        batch: &RankBatch<'_>,
    ) -> DeviceResult<D::Tensor> {
        let mut qkv = self.linear(x, &layer.qkv, Activation::Identity)?;
        let bias = self.weights.relative_bias.as_ref();
        let heads =
            self.device
                .attention(&mut qkv, batch.cu_seqlens, &self.spec.attention, bias)?;
        let Linear { weight, bias } = &layer.attention_out;
        let (bias, plain) = (bias.as_ref(), Activation::Identity);
        self.device
            .linear(&heads, weight, bias, plain, Some(residual), norm)
    }

    /// Where tokens go, and where experts are shared, all ranks' tokens.
    fn route(
        &self,
        layer: &ExpertLayer<D>,
        x: &D::Tensor,
        batch: &RankBatch<'_>,
    ) -> DeviceResult<(D::Routing, Option<Gathered<D>>)> {
        let device = &self.device;
        let mut routing = device.route(x, &layer.router, layer.rule)?;
        if let Some(capacity) = self.sequence_capacity {
            device.limit_capacity(&mut routing, batch.cu_seqlens, capacity, true)?;
        }
        if !self.plan.strategy.communicates() {
            return Ok((routing, None));
        }
        let n_rows = batch.n_tokens_per_rank;
        let rows = device.all_gather(x, n_rows)?;
        let mut all_routing = device.all_gather_routing(&routing, n_rows)?;
        self.limit_batch(layer, &mut all_routing, n_rows.iter().sum())?;
        let gathered = Gathered {
            rows,
            routing: all_routing,
        };
        Ok((routing, Some(gathered)))
    }

    /// Runs this rank's slices for all tokens, and returns the sums to the owners.
    fn run_experts(
        &self,
        layer: &ExpertLayer<D>,
        x: &D::Tensor,
        routing: &D::Routing,
        gathered: Option<Gathered<D>>,
        batch: &RankBatch<'_>,
    ) -> DeviceResult<D::Tensor> {
        let device = &self.device;
        let y = match gathered {
            Some(all) => {
                let partial = device.expert_ffn(&all.rows, &all.routing, &layer.experts)?;
                device.recycle(all.routing);
                device.reduce_scatter(&partial, batch.n_tokens_per_rank)?
            }
            None => device.expert_ffn(x, routing, &layer.experts)?,
        };
        if layer.output_scale == 1.0 {
            return Ok(y);
        }
        device.scale(&y, layer.output_scale)
    }

    /// Applies the strategy's capacity to the whole batch. Every rank decides the same; the first
    /// one counts.
    fn limit_batch(
        &self,
        layer: &ExpertLayer<D>,
        routing: &mut D::Routing,
        n_tokens: usize,
    ) -> DeviceResult<()> {
        let ExpertLayer {
            n_experts, rule, ..
        } = layer;
        match self
            .plan
            .strategy
            .batch_capacity(n_tokens, rule.top_k, *n_experts)
        {
            Some(capacity) => {
                let counted = self.plan.rank == 0;
                self.device
                    .limit_capacity(routing, &[0, n_tokens], capacity, counted)
            }
            None => Ok(()),
        }
    }

    fn linear(
        &self,
        x: &D::Tensor,
        linear: &Linear<D>,
        activation: Activation,
    ) -> DeviceResult<D::Tensor> {
        let Linear { weight, bias } = linear;
        self.device
            .linear(x, weight, bias.as_ref(), activation, None, None)
    }
}

/// Checks that a batch can be run: every rank would refuse it otherwise, each at its own time.
///
/// # Errors
/// If offsets do not cover the ids in order, an id is outside the vocabulary, or a sequence is longer
/// than positions allow.
pub fn check_batch(
    spec: &EncoderSpec,
    ids: &[u32],
    cu_seqlens: &[usize],
) -> Result<(), EncoderError> {
    let ordered = cu_seqlens.is_sorted() && cu_seqlens.first() == Some(&0);
    if !ordered || cu_seqlens.last() != Some(&ids.len()) {
        let n_tokens = ids.len();
        return Err(EncoderError::Offsets { n_tokens });
    }
    let vocab_size = spec.embedding.vocab_size;
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
        return Err(EncoderError::TokenId { id, vocab_size });
    }
    let longest = cu_seqlens.windows(2).map(|w| w[1] - w[0]).max();
    match spec.max_positions.zip(longest) {
        Some((max_length, n_tokens)) if n_tokens > max_length => Err(EncoderError::TooLong {
            n_tokens,
            max_length,
        }),
        _ => Ok(()),
    }
}

/// Rows of the embedding tables beside the words', in memory that one batch leaves to the next.
#[derive(Default)]
struct TableRows {
    /// `[n_tokens]`: position within the sequence, plus the table's offset.
    positions: Vec<u32>,
    /// `[n_tokens]`: segment, at most the last that the table has.
    type_ids: Vec<u32>,
}

impl TableRows {
    fn fill(&mut self, batch: &RankBatch<'_>, offset: usize, last_type: u32) {
        self.positions.clear();
        for w in batch.cu_seqlens.windows(2) {
            self.positions
                .extend((0..w[1] - w[0]).map(|p| (p + offset) as u32));
        }
        self.type_ids.clear();
        self.type_ids
            .extend(batch.type_ids.iter().map(|&t| t.min(last_type)));
    }
}
