//! Switch Transformers: the encoder, also out of a full encoder-decoder.
//!
//! Pre-norm with root mean squares, attention without scale and with one table of relative
//! positions, ReLU without gate or biases, top-1 routing weighted by the probability.
//! `expert_capacity` of the config is not followed: no token is dropped unless the user asks.
//!
//! # Source
//! arXiv:2101.03961; `transformers`, `modeling_switch_transformers.py`.

use moeshard_tensor::checkpoint::Checkpoint;
use moeshard_tensor::device::{Activation, AttentionShape, Pooling, PositionRule, RouterRule};

use super::config::{Config, EXPERTS, LAYERS, ROWS, WIDTH, error};
use super::{head, layers, names};
use crate::model_error::Result;
use crate::spec::{
    DenseFfnSpec, EmbeddingSpec, EncoderSpec, ExpertSpec, ExpertsSpec, FfnSpec, LayerSpec,
    LinearSpec, MatrixRef, NormOrder, NormSpec, PositionEmbedding, TensorRef,
};

/// What config.json says.
struct Sizes {
    vocab_size: usize,
    d_model: usize,
    d_ff: usize,
    n_layers: usize,
    n_heads: usize,
    head_dim: usize,
    n_experts: usize,
    sparse_step: usize,
    n_buckets: usize,
    max_distance: usize,
    eps: f32,
    activation: Activation,
}

impl Sizes {
    fn read(config: &Config<'_>) -> Result<Self> {
        config.refuse(&["is_gated_act", "router_bias"])?;
        let n_layers = config.size("num_layers", LAYERS)?;
        let n_buckets = config.size_or("relative_attention_num_buckets", 32, 4..=65_536)?;
        if !n_buckets.is_multiple_of(2) {
            return Err(error(
                "relative_attention_num_buckets",
                "an even number",
                &n_buckets,
            ));
        }
        let max_distance = config.size_or(
            "relative_attention_max_distance",
            128,
            1 + n_buckets / 4..=1 << 28,
        )?;
        Ok(Self {
            vocab_size: config.size("vocab_size", ROWS)?,
            d_model: config.size("d_model", WIDTH)?,
            d_ff: config.size("d_ff", WIDTH)?,
            n_layers,
            n_heads: config.size("num_heads", WIDTH)?,
            head_dim: config.size_or("d_kv", 64, WIDTH)?,
            n_experts: config.size_or("num_experts", 8, EXPERTS)?,
            sparse_step: sparse_step(config, n_layers)?,
            n_buckets,
            max_distance,
            eps: config.eps_or("layer_norm_epsilon", 1e-6)?,
            activation: config.activation_or("dense_act_fn", Activation::Relu)?,
        })
    }

    /// A layer has experts if the step is 1 or it is the second of a step.
    fn has_experts(&self, layer_idx: usize) -> bool {
        match self.sparse_step {
            0 => false,
            1 => true,
            step => layer_idx % step == 1,
        }
    }
}

/// Layers per expert layer; 0 if there are none. Without a step of its own, a config with no sparse
/// layers means one step over all layers, as in `transformers`.
fn sparse_step(config: &Config<'_>, n_layers: usize) -> Result<usize> {
    let key = "num_sparse_encoder_layers";
    let n_sparse = config.size_or(key, 3, 0..=*LAYERS.end())?;
    if n_sparse > n_layers {
        let expected = format!("at most as many as there are layers ({n_layers})");
        return Err(error(key, &expected, &n_sparse));
    }
    let derived = n_layers.checked_div(n_sparse).unwrap_or(n_layers);
    config.size_or("encoder_sparse_step", derived, 0..=*LAYERS.end())
}

/// See [`translate`](super::translate).
pub(super) fn translate(config: &Config<'_>, checkpoint: &Checkpoint) -> Result<EncoderSpec> {
    let sizes = Sizes::read(config)?;
    // The decoder has blocks too, so that an encoder's must be told by its own name.
    let outer = match names::find_prefix(checkpoint, "encoder.final_layer_norm.weight") {
        Some(outer) => outer,
        None if checkpoint.contains("final_layer_norm.weight") => {
            return spec(config, checkpoint, &sizes, "", "");
        }
        None => String::new(),
    };
    let stack = format!("{outer}encoder.");
    spec(config, checkpoint, &sizes, &outer, &stack)
}

/// The spec of the stack of blocks under `stack`, within a model under `outer`.
fn spec(
    config: &Config<'_>,
    checkpoint: &Checkpoint,
    sizes: &Sizes,
    outer: &str,
    stack: &str,
) -> Result<EncoderSpec> {
    let word = [
        format!("{outer}shared.weight"),
        format!("{stack}embed_tokens.weight"),
    ];
    let word = names::first_of(checkpoint, word);
    let table = format!("{stack}block.0.layer.0.SelfAttention.relative_attention_bias.weight");
    let layer = |i| {
        layer(
            sizes,
            &format!("{stack}block.{i}.layer"),
            sizes.has_experts(i),
        )
    };
    Ok(EncoderSpec {
        family: "switch_transformers".into(),
        d_model: sizes.d_model,
        embedding: EmbeddingSpec {
            word: TensorRef::new(word),
            vocab_size: sizes.vocab_size,
            scale: 1.0,
            position: PositionEmbedding::None,
            token_type: None,
            norm: None,
        },
        attention: attention(sizes),
        relative_bias: Some(TensorRef::new(table)),
        norm_order: NormOrder::Pre,
        layers: layers(sizes.n_layers, sizes.d_model, checkpoint, layer)?,
        final_norm: Some(NormSpec::rms(
            &format!("{stack}final_layer_norm"),
            sizes.eps,
        )),
        head: head::plain(config, checkpoint, sizes.d_model)?,
        default_pooling: Pooling::Mean,
        max_positions: None,
    })
}

fn attention(sizes: &Sizes) -> AttentionShape {
    AttentionShape {
        n_heads: sizes.n_heads,
        head_dim: sizes.head_dim,
        scale: 1.0,
        position: PositionRule::RelativeBias {
            n_buckets: sizes.n_buckets,
            max_distance: sizes.max_distance,
        },
    }
}

/// The layer whose two halves are `{name}.0` and `{name}.1`.
fn layer(sizes: &Sizes, name: &str, has_experts: bool) -> LayerSpec {
    let (d_model, inner) = (sizes.d_model, sizes.n_heads * sizes.head_dim);
    let qkv = ["q", "k", "v"].map(|part| format!("{name}.0.SelfAttention.{part}"));
    let out = format!("{name}.0.SelfAttention.o");
    let mlp = format!("{name}.1.mlp");
    LayerSpec {
        qkv: LinearSpec::stacked(&qkv, 3 * inner, d_model, false),
        attention_out: LinearSpec::new(&out, d_model, inner, false),
        attention_norm: NormSpec::rms(&format!("{name}.0.layer_norm"), sizes.eps),
        ffn: if has_experts {
            FfnSpec::Experts(experts(sizes, &mlp))
        } else {
            FfnSpec::Dense(dense(sizes, &mlp))
        },
        ffn_norm: NormSpec::rms(&format!("{name}.1.layer_norm"), sizes.eps),
    }
}

fn dense(sizes: &Sizes, mlp: &str) -> DenseFfnSpec {
    DenseFfnSpec {
        up: LinearSpec::new(&format!("{mlp}.wi"), sizes.d_ff, sizes.d_model, false),
        gate: None,
        down: LinearSpec::new(&format!("{mlp}.wo"), sizes.d_model, sizes.d_ff, false),
        activation: sizes.activation,
    }
}

fn experts(sizes: &Sizes, mlp: &str) -> ExpertsSpec {
    let matrix = |name: String| MatrixRef::out_in(TensorRef::new(name));
    let expert = |e: usize| ExpertSpec {
        w_in: matrix(format!("{mlp}.experts.expert_{e}.wi.weight")),
        b_in: None,
        w_out: matrix(format!("{mlp}.experts.expert_{e}.wo.weight")),
        b_out: None,
    };
    ExpertsSpec {
        d_ff: sizes.d_ff,
        router: matrix(format!("{mlp}.router.classifier.weight")),
        rule: RouterRule {
            top_k: 1,
            normalize: false,
        },
        activation: sizes.activation,
        experts: (0..sizes.n_experts).map(expert).collect(),
        output_scale: 1.0,
        shared_bias: None,
    }
}
