//! NLLB-MoE: the encoder, also out of a full encoder-decoder.
//!
//! Pre-norm, biases everywhere but in the router, embeddings times √d_model, fixed sinusoidal
//! positions, two experts for every token weighted by probabilities that sum to one. Evaluation
//! multiplies what the experts say by `1 − moe_token_dropout`.
//!
//! # Source
//! arXiv:2207.04672; `transformers` 4.46, `modeling_nllb_moe.py`.

use moeshard_tensor::checkpoint::Checkpoint;
use moeshard_tensor::device::{Activation, AttentionShape, Pooling, PositionRule, RouterRule};

use super::config::{Config, EXPERTS, LAYERS, ROWS, WIDTH, check_top_k, error, head_dim};
use super::{head, layers, names};
use crate::model_error::Result;
use crate::spec::{
    DenseFfnSpec, EmbeddingSpec, EncoderSpec, ExpertSpec, ExpertsSpec, FfnSpec, LayerSpec,
    LinearSpec, MatrixRef, NormOrder, NormSpec, PositionEmbedding, TensorRef,
};

/// Experts of every token.
const TOP_K: usize = 2;
/// The library's default for its layer normalisation, which the config cannot change.
const EPS: f32 = 1e-5;

/// What config.json says.
struct Sizes {
    vocab_size: usize,
    embedding_scale: f32,
    position_offset: usize,
    n_positions: usize,
    d_model: usize,
    d_ff: usize,
    n_layers: usize,
    n_heads: usize,
    head_dim: usize,
    activation: Activation,
    n_experts: usize,
    sparse_step: usize,
    output_scale: f32,
}

impl Sizes {
    fn read(config: &Config<'_>) -> Result<Self> {
        config.refuse(&["router_bias"])?;
        config.only("second_expert_policy", "all")?;
        let d_model = config.size("d_model", WIDTH)?;
        // Sines fill one half and cosines the other, and their frequencies need two of each.
        if !d_model.is_multiple_of(2) || d_model < 4 {
            return Err(error("d_model", "an even number of at least 4", &d_model));
        }
        let n_heads = config.size("encoder_attention_heads", WIDTH)?;
        let is_scaled = config.flag_or("scale_embedding", true)?;
        Ok(Self {
            vocab_size: config.size("vocab_size", ROWS)?,
            embedding_scale: if is_scaled {
                (d_model as f32).sqrt()
            } else {
                1.0
            },
            position_offset: 1 + config.size_or("pad_token_id", 1, 0..=1 << 16)?,
            // The table is computed, so that no tensor vouches for its size.
            n_positions: config.size_or("max_position_embeddings", 1024, 1..=1 << 16)?,
            d_model,
            d_ff: config.size("encoder_ffn_dim", WIDTH)?,
            n_layers: config.size("encoder_layers", LAYERS)?,
            n_heads,
            head_dim: head_dim("encoder_attention_heads", n_heads, d_model)?,
            activation: config.activation_or("activation_function", Activation::Relu)?,
            n_experts: n_experts(config)?,
            sparse_step: config.size_or("encoder_sparse_step", 4, 0..=*LAYERS.end())?,
            output_scale: output_scale(config)?,
        })
    }

    /// The last layer of every step has experts.
    fn has_experts(&self, layer_idx: usize) -> bool {
        self.sparse_step > 0 && (layer_idx + 1).is_multiple_of(self.sparse_step)
    }
}

fn n_experts(config: &Config<'_>) -> Result<usize> {
    let n_experts = config.size_or("num_experts", 128, EXPERTS)?;
    check_top_k("experts per token", TOP_K, n_experts)?;
    Ok(n_experts)
}

fn output_scale(config: &Config<'_>) -> Result<f32> {
    let key = "moe_token_dropout";
    let dropout = config.number_or(key, 0.2)?;
    if !(0.0..1.0).contains(&dropout) {
        return Err(error(key, "a number from 0 to below 1", &dropout));
    }
    Ok((1.0 - dropout) as f32)
}

/// See [`translate`](super::translate).
pub(super) fn translate(config: &Config<'_>, checkpoint: &Checkpoint) -> Result<EncoderSpec> {
    let sizes = Sizes::read(config)?;
    let outer = names::prefix(checkpoint, "encoder.layer_norm.weight")?;
    let stack = format!("{outer}encoder");
    let word = [
        format!("{outer}shared.weight"),
        format!("{stack}.embed_tokens.weight"),
    ];
    let layer = |i| layer(&sizes, &format!("{stack}.layers.{i}"), sizes.has_experts(i));
    Ok(EncoderSpec {
        family: "nllb-moe".into(),
        d_model: sizes.d_model,
        embedding: embedding(&sizes, names::first_of(checkpoint, word)),
        attention: AttentionShape {
            n_heads: sizes.n_heads,
            head_dim: sizes.head_dim,
            scale: (sizes.head_dim as f32).sqrt().recip(),
            position: PositionRule::None,
        },
        relative_bias: None,
        norm_order: NormOrder::Pre,
        layers: layers(sizes.n_layers, sizes.d_model, checkpoint, layer)?,
        final_norm: Some(NormSpec::layer(&format!("{stack}.layer_norm"), EPS)),
        head: head::plain(config, checkpoint, sizes.d_model)?,
        default_pooling: Pooling::Mean,
        max_positions: Some(sizes.n_positions),
    })
}

fn embedding(sizes: &Sizes, word: String) -> EmbeddingSpec {
    EmbeddingSpec {
        word: TensorRef::new(word),
        vocab_size: sizes.vocab_size,
        scale: sizes.embedding_scale,
        position: PositionEmbedding::Sinusoidal {
            offset: sizes.position_offset,
            n_positions: sizes.n_positions,
        },
        token_type: None,
        norm: None,
    }
}

fn layer(sizes: &Sizes, name: &str, has_experts: bool) -> LayerSpec {
    let d_model = sizes.d_model;
    let qkv = ["q", "k", "v"].map(|part| format!("{name}.self_attn.{part}_proj"));
    let out = format!("{name}.self_attn.out_proj");
    let ffn = format!("{name}.ffn");
    LayerSpec {
        qkv: LinearSpec::stacked(&qkv, 3 * d_model, d_model, true),
        attention_out: LinearSpec::new(&out, d_model, d_model, true),
        attention_norm: NormSpec::layer(&format!("{name}.self_attn_layer_norm"), EPS),
        ffn: if has_experts {
            FfnSpec::Experts(experts(sizes, &ffn))
        } else {
            FfnSpec::Dense(dense(sizes, &ffn))
        },
        ffn_norm: NormSpec::layer(&format!("{name}.ff_layer_norm"), EPS),
    }
}

fn dense(sizes: &Sizes, ffn: &str) -> DenseFfnSpec {
    DenseFfnSpec {
        up: LinearSpec::new(&format!("{ffn}.fc1"), sizes.d_ff, sizes.d_model, true),
        gate: None,
        down: LinearSpec::new(&format!("{ffn}.fc2"), sizes.d_model, sizes.d_ff, true),
        activation: sizes.activation,
    }
}

fn experts(sizes: &Sizes, ffn: &str) -> ExpertsSpec {
    let matrix = |name: String| MatrixRef::out_in(TensorRef::new(name));
    let expert = |e: usize| {
        let name = format!("{ffn}.experts.expert_{e}");
        ExpertSpec {
            w_in: matrix(format!("{name}.fc1.weight")),
            b_in: Some(TensorRef::new(format!("{name}.fc1.bias"))),
            w_out: matrix(format!("{name}.fc2.weight")),
            b_out: Some(TensorRef::new(format!("{name}.fc2.bias"))),
        }
    };
    ExpertsSpec {
        d_ff: sizes.d_ff,
        router: matrix(format!("{ffn}.router.classifier.weight")),
        rule: RouterRule {
            top_k: TOP_K,
            normalize: true,
        },
        activation: sizes.activation,
        experts: (0..sizes.n_experts).map(expert).collect(),
        output_scale: sizes.output_scale,
        shared_bias: None,
    }
}
