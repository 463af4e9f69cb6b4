//! nomic-bert, dense and with experts; BERT with rotary positions.
//!
//! Post-norm, one stacked projection to queries, keys and values, rotary positions over halves of
//! the head. Expert layers are ungated, both matrices of all experts lie in two tensors
//! `[n_experts · d_ff, d_model]` (the second is not transposed), the softmax over all experts is
//! not renormalised unless the config says so, and one bias is added once, unscaled.
//!
//! Pre-norm is refused: the published code returns the last block's output without its residual
//! and knows no final norm, and no released model uses it.
//!
//! # Source
//! nomic-ai/nomic-embed-text-v2-moe, `modeling_hf_nomic_bert.py`.

use moeshard_tensor::checkpoint::Checkpoint;
use moeshard_tensor::device::{Activation, AttentionShape, Pooling, PositionRule, RouterRule};
use serde_json::Value;

use super::config::{Config, EXPERTS, LAYERS, ROWS, WIDTH, check_top_k, error, head_dim, shown};
use super::{head, layers, names};
use crate::model_error::Result;
use crate::spec::{
    DenseFfnSpec, EmbeddingSpec, EncoderSpec, ExpertSpec, ExpertsSpec, FfnSpec, HeadSpec,
    LayerSpec, LinearSpec, MatrixRef, NormOrder, NormSpec, PositionEmbedding, TensorRef,
};

/// Switches of the published code that change the maths and that no released model uses.
const UNSUPPORTED: [&str; 9] = [
    "prenorm",
    "causal",
    "parallel_block",
    "use_rms_norm",
    "rotary_emb_interleaved",
    "rotary_emb_scale_base",
    "rotary_head_dim",
    "num_shared_experts",
    "expert_choice_router",
];

/// What config.json says.
struct Sizes {
    vocab_size: usize,
    n_types: usize,
    n_positions: usize,
    max_positions: usize,
    d_model: usize,
    d_ff: usize,
    n_layers: usize,
    n_heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    rotary_base: f32,
    eps: f32,
    activation: Activation,
    is_gated: bool,
    qkv_bias: bool,
    up_bias: bool,
    down_bias: bool,
    experts: Option<Experts>,
}

/// What config.json says of expert layers.
struct Experts {
    n_experts: usize,
    top_k: usize,
    every_n_layers: usize,
    normalize: bool,
}

impl Sizes {
    /// Reads the keys of the published code, or those of `transformers`' own `nomic_bert`.
    fn read(config: &Config<'_>) -> Result<Self> {
        config.refuse(&UNSUPPORTED)?;
        if config.value("n_embd").is_none() && config.value("hidden_size").is_some() {
            return Self::read_native(config);
        }
        let d_model = config.size("n_embd", WIDTH)?;
        let n_heads = config.size("n_head", WIDTH)?;
        let head_dim = head_dim("n_head", n_heads, d_model)?;
        let key_value_heads = config.size_or("num_heads_kv", n_heads, WIDTH)?;
        if key_value_heads != n_heads {
            let expected = format!("as many as n_head ({n_heads}), nothing else is supported");
            return Err(error("num_heads_kv", &expected, &key_value_heads));
        }
        let (activation, is_gated) = activation(config)?;
        let n_positions = config.size_or("n_positions", 1024, ROWS)?;
        Ok(Self {
            vocab_size: vocab_size(config)?,
            n_types: config.size_or("type_vocab_size", 2, 0..=*ROWS.end())?,
            n_positions,
            max_positions: max_positions(config, n_positions)?,
            d_model,
            d_ff: config.size_or("n_inner", 4 * d_model, WIDTH)?,
            n_layers: config.size("n_layer", LAYERS)?,
            n_heads,
            head_dim,
            rotary_dim: rotary_dim(config, head_dim)?,
            rotary_base: rotary_base("rotary_emb_base", config.value("rotary_emb_base"))?,
            eps: config.eps_or("layer_norm_epsilon", 1e-5)?,
            activation,
            is_gated,
            qkv_bias: config.flag_or("qkv_proj_bias", true)?,
            up_bias: config.flag_or("mlp_fc1_bias", true)?,
            down_bias: config.flag_or("mlp_fc2_bias", true)?,
            experts: Experts::read(config, is_gated)?,
        })
    }

    /// The native config: always gated, never with biases or experts.
    fn read_native(config: &Config<'_>) -> Result<Self> {
        let d_model = config.size("hidden_size", WIDTH)?;
        let n_heads = config.size("num_attention_heads", WIDTH)?;
        let head_dim = head_dim("num_attention_heads", n_heads, d_model)?;
        let n_positions = config.size_or("max_position_embeddings", 2048, ROWS)?;
        let rope = config.value("rope_parameters");
        let base = rope.and_then(|rope| rope.get("rope_theta"));
        Ok(Self {
            vocab_size: config.size("vocab_size", ROWS)?,
            n_types: config.size_or("type_vocab_size", 2, 0..=*ROWS.end())?,
            n_positions,
            max_positions: n_positions,
            d_model,
            d_ff: config.size("intermediate_size", WIDTH)?,
            n_layers: config.size("num_hidden_layers", LAYERS)?,
            n_heads,
            head_dim,
            rotary_dim: even_rotary_dim("num_attention_heads", head_dim)?,
            rotary_base: rotary_base("rope_parameters.rope_theta", base)?,
            eps: config.eps_or("layer_norm_eps", 1e-12)?,
            activation: config.activation_or("hidden_act", Activation::Silu)?,
            is_gated: true,
            qkv_bias: false,
            up_bias: false,
            down_bias: false,
            experts: Experts::read(config, true)?,
        })
    }

    /// A layer has experts if it is the second of every so many.
    fn experts(&self, layer_idx: usize) -> Option<&Experts> {
        self.experts
            .as_ref()
            .filter(|experts| layer_idx % experts.every_n_layers == 1)
    }
}

impl Experts {
    fn read(config: &Config<'_>, is_gated: bool) -> Result<Option<Self>> {
        let every_n_layers = config.size_or("moe_every_n_layers", 0, 0..=*LAYERS.end())?;
        let n_experts = config.size_or("num_experts", 0, 0..=*EXPERTS.end())?;
        if every_n_layers == 0 || n_experts == 0 {
            return Ok(None);
        }
        if is_gated {
            let expected = "no expert layers, because gated experts are not supported";
            return Err(error("num_experts", expected, &n_experts));
        }
        let top_k = config.size_or("moe_top_k", 1, EXPERTS)?;
        check_top_k("moe_top_k", top_k, n_experts)?;
        let normalize = config.flag_or("moe_normalize_expert_weights", false)?;
        Ok(Some(Self {
            n_experts,
            top_k,
            every_n_layers,
            normalize,
        }))
    }
}

/// The activation and whether there is a gate.
fn activation(config: &Config<'_>) -> Result<(Activation, bool)> {
    match config.text("activation_function")? {
        Some("swiglu") => Ok((Activation::Silu, true)),
        Some("geglu") => Ok((Activation::Gelu, true)),
        _ => Ok((
            config.activation_or("activation_function", Activation::Gelu)?,
            false,
        )),
    }
}

/// Rows of the word embedding, which the published code rounds up.
fn vocab_size(config: &Config<'_>) -> Result<usize> {
    let multiple = config.size_or("pad_vocab_size_multiple", 1, WIDTH)?;
    Ok(config.size("vocab_size", ROWS)?.next_multiple_of(multiple))
}

/// Positions that the model answers for.
///
/// With a scaling factor the published code changes the rotation with the length of the padded
/// batch, but only past the lengths it was trained with; within those there is nothing to scale.
fn max_positions(config: &Config<'_>, n_positions: usize) -> Result<usize> {
    if config.number_or("rotary_scaling_factor", 0.0)? == 0.0 {
        return Ok(n_positions);
    }
    Ok(config
        .size_or("max_trained_positions", 2048, ROWS)?
        .min(n_positions))
}

/// Dimensions of a head that are rotated; 0 if positions are learned.
fn rotary_dim(config: &Config<'_>, head_dim: usize) -> Result<usize> {
    let key = "rotary_emb_fraction";
    let fraction = config.number_or(key, 0.0)?;
    if !(0.0..=1.0).contains(&fraction) {
        return Err(error(key, "a number from 0 to 1", &fraction));
    }
    even_rotary_dim(key, (head_dim as f64 * fraction) as usize)
}

fn even_rotary_dim(key: &str, dim: usize) -> Result<usize> {
    if !dim.is_multiple_of(2) {
        let found = format!("{dim} of them");
        return Err(error(
            key,
            "an even number of rotated dimensions in a head",
            &found,
        ));
    }
    Ok(dim)
}

fn rotary_base(key: &str, value: Option<&Value>) -> Result<f32> {
    let base = value.map_or(Some(10_000.0), Value::as_f64);
    let base = base.filter(|base| (1.0..=1e12).contains(base));
    let found = || value.map_or_else(String::new, shown);
    base.map(|base| base as f32)
        .ok_or_else(|| error(key, "a number from 1 to 1e12", &found()))
}

/// See [`translate`](super::translate).
pub(super) fn translate(config: &Config<'_>, checkpoint: &Checkpoint) -> Result<EncoderSpec> {
    let sizes = Sizes::read(config)?;
    let prefix = names::prefix(checkpoint, "embeddings.word_embeddings.weight")?;
    let layer = |i| {
        layer(
            &sizes,
            &format!("{prefix}encoder.layers.{i}"),
            sizes.experts(i),
        )
    };
    Ok(EncoderSpec {
        family: "nomic_bert".into(),
        d_model: sizes.d_model,
        embedding: embedding(&sizes, &prefix),
        attention: attention(&sizes),
        relative_bias: None,
        norm_order: NormOrder::Post,
        layers: layers(sizes.n_layers, sizes.d_model, checkpoint, layer)?,
        final_norm: None,
        head: classifier(config, checkpoint, &prefix, sizes.d_model)?,
        default_pooling: Pooling::Mean,
        max_positions: Some(sizes.max_positions),
    })
}

fn embedding(sizes: &Sizes, prefix: &str) -> EmbeddingSpec {
    let table = |name: &str| TensorRef::new(format!("{prefix}embeddings.{name}.weight"));
    EmbeddingSpec {
        word: table("word_embeddings"),
        vocab_size: sizes.vocab_size,
        scale: 1.0,
        position: match sizes.rotary_dim {
            0 => PositionEmbedding::Learned {
                table: table("position_embeddings"),
                n_rows: sizes.n_positions,
                offset: 0,
            },
            _ => PositionEmbedding::None,
        },
        token_type: (sizes.n_types > 0).then(|| (table("token_type_embeddings"), sizes.n_types)),
        norm: Some(NormSpec::layer(&format!("{prefix}emb_ln"), sizes.eps)),
    }
}

fn attention(sizes: &Sizes) -> AttentionShape {
    AttentionShape {
        n_heads: sizes.n_heads,
        head_dim: sizes.head_dim,
        scale: (sizes.head_dim as f32).sqrt().recip(),
        position: match sizes.rotary_dim {
            0 => PositionRule::None,
            dim => PositionRule::Rotary {
                base: sizes.rotary_base,
                dim,
            },
        },
    }
}

fn layer(sizes: &Sizes, name: &str, moe: Option<&Experts>) -> LayerSpec {
    let (d_model, bias) = (sizes.d_model, sizes.qkv_bias);
    let mlp = format!("{name}.mlp");
    LayerSpec {
        qkv: LinearSpec::new(&format!("{name}.attn.Wqkv"), 3 * d_model, d_model, bias),
        attention_out: LinearSpec::new(&format!("{name}.attn.out_proj"), d_model, d_model, bias),
        attention_norm: NormSpec::layer(&format!("{name}.norm1"), sizes.eps),
        ffn: match moe {
            Some(moe) => FfnSpec::Experts(experts(sizes, moe, &mlp)),
            None => FfnSpec::Dense(dense(sizes, &mlp)),
        },
        ffn_norm: NormSpec::layer(&format!("{name}.norm2"), sizes.eps),
    }
}

fn dense(sizes: &Sizes, mlp: &str) -> DenseFfnSpec {
    let (d_ff, d_model) = (sizes.d_ff, sizes.d_model);
    let up = |name| LinearSpec::new(&format!("{mlp}.{name}"), d_ff, d_model, sizes.up_bias);
    DenseFfnSpec {
        up: up(if sizes.is_gated { "fc11" } else { "fc1" }),
        gate: sizes.is_gated.then(|| up("fc12")),
        down: LinearSpec::new(&format!("{mlp}.fc2"), d_model, d_ff, sizes.down_bias),
        activation: sizes.activation,
    }
}

fn experts(sizes: &Sizes, moe: &Experts, mlp: &str) -> ExpertsSpec {
    let d_ff = sizes.d_ff;
    let rows = |name, e| {
        TensorRef::rows(
            format!("{mlp}.experts.mlp.{name}"),
            e * d_ff..(e + 1) * d_ff,
        )
    };
    let expert = |e| ExpertSpec {
        w_in: MatrixRef::out_in(rows("w1", e)),
        b_in: None,
        w_out: MatrixRef::in_out(rows("w2", e)),
        b_out: None,
    };
    ExpertsSpec {
        d_ff,
        router: MatrixRef::out_in(TensorRef::new(format!("{mlp}.router.layer.weight"))),
        rule: RouterRule {
            top_k: moe.top_k,
            normalize: moe.normalize,
        },
        activation: sizes.activation,
        experts: (0..moe.n_experts).map(expert).collect(),
        output_scale: 1.0,
        shared_bias: Some(TensorRef::new(format!("{mlp}.experts.bias"))),
    }
}

/// The head of `NomicBertForSequenceClassification`, or one matrix beside the model.
fn classifier(
    config: &Config<'_>,
    checkpoint: &Checkpoint,
    prefix: &str,
    d_model: usize,
) -> Result<Option<HeadSpec>> {
    if !head::is_classifier(config) {
        return head::plain(config, checkpoint, d_model);
    }
    let dense = format!("{prefix}pooler.dense");
    if checkpoint.contains(&format!("{dense}.weight")) {
        return head::pooled(config, checkpoint, &dense, "classifier", d_model).map(Some);
    }
    head::head(
        config,
        checkpoint,
        "classifier",
        d_model,
        Some(Pooling::Cls),
        None,
    )
    .map(Some)
}
