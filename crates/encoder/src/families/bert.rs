//! BERT, and RoBERTa with its multilingual sisters: encoders without experts.
//!
//! Post-norm, learned positions, biases everywhere. The two differ in where positions start, and
//! in their classification heads.
//!
//! # Source
//! arXiv:1810.04805, arXiv:1911.02116; `transformers`, `modeling_bert.py`, `modeling_xlm_roberta.py`.

use moeshard_tensor::checkpoint::Checkpoint;
use moeshard_tensor::device::{Activation, AttentionShape, NormKind, Pooling, PositionRule};

use super::config::{Config, LAYERS, ROWS, WIDTH, error, head_dim};
use super::{head, layers, names};
use crate::model_error::Result;
use crate::spec::{
    DenseFfnSpec, EmbeddingSpec, EncoderSpec, FfnSpec, HeadSpec, LayerSpec, LinearSpec, NormOrder,
    NormSpec, PositionEmbedding, TensorRef,
};

/// What config.json says.
struct Sizes {
    vocab_size: usize,
    n_types: usize,
    n_position_rows: usize,
    d_model: usize,
    d_ff: usize,
    n_layers: usize,
    n_heads: usize,
    head_dim: usize,
    eps: f32,
    activation: Activation,
}

impl Sizes {
    fn read(config: &Config<'_>) -> Result<Self> {
        config.refuse(&["is_decoder", "add_cross_attention"])?;
        config.only("position_embedding_type", "absolute")?;
        let d_model = config.size("hidden_size", WIDTH)?;
        let n_heads = config.size("num_attention_heads", WIDTH)?;
        Ok(Self {
            vocab_size: config.size("vocab_size", ROWS)?,
            n_types: config.size_or("type_vocab_size", 2, 0..=*ROWS.end())?,
            n_position_rows: config.size_or("max_position_embeddings", 512, ROWS)?,
            d_model,
            d_ff: config.size("intermediate_size", WIDTH)?,
            n_layers: config.size("num_hidden_layers", LAYERS)?,
            n_heads,
            head_dim: head_dim("num_attention_heads", n_heads, d_model)?,
            eps: config.eps_or("layer_norm_eps", 1e-12)?,
            activation: config.activation_or("hidden_act", Activation::Gelu)?,
        })
    }
}

/// See [`translate`](super::translate).
pub(super) fn translate(config: &Config<'_>, checkpoint: &Checkpoint) -> Result<EncoderSpec> {
    let sizes = Sizes::read(config)?;
    let mut spec = encoder("bert", &sizes, 0, checkpoint)?;
    spec.head = if head::is_classifier(config) {
        // The pooler belongs to the model and wears its prefix; the classifier does not.
        let prefix = names::prefix(checkpoint, "embeddings.word_embeddings.weight")?;
        let dense = format!("{prefix}pooler.dense");
        Some(head::pooled(
            config,
            checkpoint,
            &dense,
            "classifier",
            sizes.d_model,
        )?)
    } else {
        head::plain(config, checkpoint, sizes.d_model)?
    };
    Ok(spec)
}

/// As [`translate`], for RoBERTa: positions start behind that of the padding.
pub(super) fn translate_roberta(
    config: &Config<'_>,
    checkpoint: &Checkpoint,
) -> Result<EncoderSpec> {
    let sizes = Sizes::read(config)?;
    let pad = config.size_or("pad_token_id", 1, 0..=*ROWS.end())?;
    if pad + 1 >= sizes.n_position_rows {
        let expected = format!("a number of positions above pad_token_id + 1 ({})", pad + 1);
        return Err(error(
            "max_position_embeddings",
            &expected,
            &sizes.n_position_rows,
        ));
    }
    let mut spec = encoder("roberta", &sizes, pad + 1, checkpoint)?;
    spec.head = roberta_head(config, checkpoint, sizes.d_model)?;
    Ok(spec)
}

fn roberta_head(
    config: &Config<'_>,
    checkpoint: &Checkpoint,
    d_model: usize,
) -> Result<Option<HeadSpec>> {
    if !head::is_classifier(config) {
        return head::plain(config, checkpoint, d_model);
    }
    let (dense, out) = ("classifier.dense", "classifier.out_proj");
    head::pooled(config, checkpoint, dense, out, d_model).map(Some)
}

/// The encoder without a head.
fn encoder(
    family: &str,
    sizes: &Sizes,
    offset: usize,
    checkpoint: &Checkpoint,
) -> Result<EncoderSpec> {
    let prefix = names::prefix(checkpoint, "embeddings.word_embeddings.weight")?;
    let norm = Norms {
        checkpoint,
        eps: sizes.eps,
    };
    let layer = |i| layer(sizes, &norm, &format!("{prefix}encoder.layer.{i}"));
    Ok(EncoderSpec {
        family: family.into(),
        d_model: sizes.d_model,
        embedding: embedding(sizes, &norm, &prefix, offset),
        attention: AttentionShape {
            n_heads: sizes.n_heads,
            head_dim: sizes.head_dim,
            scale: (sizes.head_dim as f32).sqrt().recip(),
            position: PositionRule::None,
        },
        relative_bias: None,
        norm_order: NormOrder::Post,
        layers: layers(sizes.n_layers, sizes.d_model, checkpoint, layer)?,
        final_norm: None,
        head: None,
        default_pooling: Pooling::Mean,
        max_positions: Some(sizes.n_position_rows - offset),
    })
}

fn embedding(sizes: &Sizes, norm: &Norms<'_>, prefix: &str, offset: usize) -> EmbeddingSpec {
    let table = |name: &str| TensorRef::new(format!("{prefix}embeddings.{name}.weight"));
    EmbeddingSpec {
        word: table("word_embeddings"),
        vocab_size: sizes.vocab_size,
        scale: 1.0,
        position: PositionEmbedding::Learned {
            table: table("position_embeddings"),
            n_rows: sizes.n_position_rows,
            offset,
        },
        token_type: (sizes.n_types > 0).then(|| (table("token_type_embeddings"), sizes.n_types)),
        norm: Some(norm.named(&format!("{prefix}embeddings.LayerNorm"))),
    }
}

fn layer(sizes: &Sizes, norm: &Norms<'_>, name: &str) -> LayerSpec {
    let (d_model, d_ff) = (sizes.d_model, sizes.d_ff);
    let qkv = ["query", "key", "value"].map(|part| format!("{name}.attention.self.{part}"));
    let out = format!("{name}.attention.output.dense");
    LayerSpec {
        qkv: LinearSpec::stacked(&qkv, 3 * d_model, d_model, true),
        attention_out: LinearSpec::new(&out, d_model, d_model, true),
        attention_norm: norm.named(&format!("{name}.attention.output.LayerNorm")),
        ffn: FfnSpec::Dense(DenseFfnSpec {
            up: LinearSpec::new(&format!("{name}.intermediate.dense"), d_ff, d_model, true),
            gate: None,
            down: LinearSpec::new(&format!("{name}.output.dense"), d_model, d_ff, true),
            activation: sizes.activation,
        }),
        ffn_norm: norm.named(&format!("{name}.output.LayerNorm")),
    }
}

/// Layer normalisations, which early checkpoints call `gamma` and `beta`.
struct Norms<'a> {
    checkpoint: &'a Checkpoint,
    eps: f32,
}

impl Norms<'_> {
    fn named(&self, name: &str) -> NormSpec {
        if self.checkpoint.contains(&format!("{name}.gamma")) {
            return NormSpec {
                kind: NormKind::Layer,
                eps: self.eps,
                weight: TensorRef::new(format!("{name}.gamma")),
                bias: Some(TensorRef::new(format!("{name}.beta"))),
            };
        }
        NormSpec::layer(name, self.eps)
    }
}
