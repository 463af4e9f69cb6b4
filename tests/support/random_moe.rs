//! Mixture-of-experts checkpoints by chance, larger than the goldens.
//!
//! Every second of six layers has eight experts. Numbers are scaled as those of the goldens' scripts.

use std::fs;

use moeshard_encoder::model::Model;
use moeshard_tensor::dtype::DType;
use serde_json::{Value, json};

use crate::weights::{RandomWeights, write};

/// Layers of every model.
const N_LAYERS: usize = 6;
/// Experts of a layer.
const N_EXPERTS: usize = 8;
/// Token ids.
pub const VOCAB_SIZE: usize = 600;

/// Of which family a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Switch encoder: top-1, d 96, d_ff 208.
    Switch,
    /// nomic-embed-v2 style: top-2, gates not renormalised, d 128, n_inner 176.
    NomicMoe,
    /// NLLB-MoE encoder: top-2, d 64, ffn 256.
    NllbMoe,
}

impl Family {
    /// All families with experts.
    pub const ALL: [Self; 3] = [Self::Switch, Self::NomicMoe, Self::NllbMoe];

    /// A random model whose weights are numbers of `dtype`, bf16 or f32; the same seed gives the
    /// same one.
    ///
    /// # Panics
    /// If the disk is full.
    pub fn model(self, seed: u64, dtype: DType) -> Model {
        let mut weights = RandomWeights::new(seed, dtype);
        let config = match self {
            Self::Switch => switch(&mut weights),
            Self::NomicMoe => nomic_moe(&mut weights),
            Self::NllbMoe => nllb_moe(&mut weights),
        };
        // The checkpoint stays mapped when its folder is gone.
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("config.json"), config.to_string()).expect("config.json");
        write(&weights.tensors, &folder.path().join("model.safetensors"));
        Model::open(folder.path()).unwrap_or_else(|e| panic!("{self:?}: {e}"))
    }
}

/// As `tests/goldens/make_switch.py`.
fn switch(w: &mut RandomWeights) -> Value {
    let (d, n_heads, head_dim, d_ff) = (96, 6, 16, 208);
    let inner = n_heads * head_dim;
    w.normal("shared.weight", &[VOCAB_SIZE, d], 1.0);
    for i in 0..N_LAYERS {
        let name = format!("encoder.block.{i}.layer.0");
        for part in ["q", "k", "v"] {
            w.matrix(&format!("{name}.SelfAttention.{part}"), inner, d, 1.0);
        }
        w.matrix(&format!("{name}.SelfAttention.o"), d, inner, 1.0);
        if i == 0 {
            let table = format!("{name}.SelfAttention.relative_attention_bias.weight");
            w.normal(&table, &[32, n_heads], 1.0);
        }
        w.scale(&format!("{name}.layer_norm"), d);
        let name = format!("encoder.block.{i}.layer.1");
        w.scale(&format!("{name}.layer_norm"), d);
        if i % 2 == 0 {
            w.matrix(&format!("{name}.mlp.wi"), d_ff, d, 1.0);
            w.matrix(&format!("{name}.mlp.wo"), d, d_ff, 1.5);
            continue;
        }
        w.matrix(&format!("{name}.mlp.router.classifier"), N_EXPERTS, d, 1.5);
        for e in 0..N_EXPERTS {
            let name = format!("{name}.mlp.experts.expert_{e}");
            w.matrix(&format!("{name}.wi"), d_ff, d, 1.5);
            w.matrix(&format!("{name}.wo"), d, d_ff, 2.0);
        }
    }
    w.scale("encoder.final_layer_norm", d);
    json!({
        "model_type": "switch_transformers", "vocab_size": VOCAB_SIZE, "d_model": d,
        "d_kv": head_dim, "d_ff": d_ff, "num_heads": n_heads, "num_layers": N_LAYERS,
        "num_sparse_encoder_layers": N_LAYERS / 2, "encoder_sparse_step": 2,
        "num_experts": N_EXPERTS, "dense_act_fn": "relu",
    })
}

/// As `tests/goldens/make_nomic.py`.
fn nomic_moe(w: &mut RandomWeights) -> Value {
    let (d, n_heads, inner) = (128, 4, 176);
    w.normal("embeddings.word_embeddings.weight", &[VOCAB_SIZE, d], 1.0);
    w.normal("embeddings.token_type_embeddings.weight", &[1, d], 0.2);
    w.norm("emb_ln", d);
    for i in 0..N_LAYERS {
        let name = format!("encoder.layers.{i}");
        w.linear(&format!("{name}.attn.Wqkv"), 3 * d, d, 1.3);
        w.linear(&format!("{name}.attn.out_proj"), d, d, 1.0);
        w.norm(&format!("{name}.norm1"), d);
        w.norm(&format!("{name}.norm2"), d);
        if i % 2 == 0 {
            w.linear(&format!("{name}.mlp.fc1"), inner, d, 1.0);
            w.linear(&format!("{name}.mlp.fc2"), d, inner, 1.5);
            continue;
        }
        w.matrix(&format!("{name}.mlp.router.layer"), N_EXPERTS, d, 1.5);
        let experts = format!("{name}.mlp.experts");
        let shape = [N_EXPERTS * inner, d];
        w.normal(
            &format!("{experts}.mlp.w1"),
            &shape,
            1.5 / (d as f32).sqrt(),
        );
        w.normal(
            &format!("{experts}.mlp.w2"),
            &shape,
            2.0 / (inner as f32).sqrt(),
        );
        w.normal(&format!("{experts}.bias"), &[d], 0.2);
    }
    json!({
        "model_type": "nomic_bert", "vocab_size": VOCAB_SIZE, "n_embd": d, "n_head": n_heads,
        "n_inner": inner, "n_layer": N_LAYERS, "n_positions": 512, "type_vocab_size": 1,
        "rotary_emb_fraction": 1.0, "rotary_emb_base": 10000, "activation_function": "gelu",
        "num_experts": N_EXPERTS, "moe_top_k": 2, "moe_every_n_layers": 2,
    })
}

/// As `tests/goldens/make_nllb_moe.py`.
fn nllb_moe(w: &mut RandomWeights) -> Value {
    let (d, n_heads, ffn) = (64, 4, 256);
    w.normal("shared.weight", &[VOCAB_SIZE, d], 1.0 / (d as f32).sqrt());
    for i in 0..N_LAYERS {
        let name = format!("encoder.layers.{i}");
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            w.linear(&format!("{name}.self_attn.{part}"), d, d, 1.3);
        }
        w.norm(&format!("{name}.self_attn_layer_norm"), d);
        w.norm(&format!("{name}.ff_layer_norm"), d);
        if i % 2 == 0 {
            w.linear(&format!("{name}.ffn.fc1"), ffn, d, 1.0);
            w.linear(&format!("{name}.ffn.fc2"), d, ffn, 1.5);
            continue;
        }
        w.matrix(&format!("{name}.ffn.router.classifier"), N_EXPERTS, d, 1.5);
        for e in 0..N_EXPERTS {
            let name = format!("{name}.ffn.experts.expert_{e}");
            w.linear(&format!("{name}.fc1"), ffn, d, 1.5);
            w.linear(&format!("{name}.fc2"), d, ffn, 1.5);
        }
    }
    w.norm("encoder.layer_norm", d);
    json!({
        "model_type": "nllb-moe", "vocab_size": VOCAB_SIZE, "d_model": d, "encoder_layers": N_LAYERS,
        "encoder_attention_heads": n_heads, "encoder_ffn_dim": ffn, "encoder_sparse_step": 2,
        "num_experts": N_EXPERTS, "moe_token_dropout": 0.2, "activation_function": "relu",
        "scale_embedding": true, "pad_token_id": 1, "max_position_embeddings": 512,
    })
}
