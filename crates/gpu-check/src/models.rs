//! Models by chance, in the shapes of those that are measured.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value, json};

/// Bytes of random numbers that a checkpoint repeats: what they are makes no difference, that they are no
/// zeroes does.
const BLOCK: usize = 64 << 20;

/// Words of a model's tokenizer.
const WORDS: usize = 1000;

/// Layers, widths and experts.
#[derive(Clone, Copy, Debug)]
pub struct ModelShape {
    /// How reports call it.
    pub name: &'static str,
    /// Of which family it is.
    pub family: Family,
    /// Width of the hidden states.
    pub d_model: usize,
    /// Hidden units of an FFN.
    pub d_ff: usize,
    /// Heads of attention, of `d_model / n_heads` each.
    pub n_heads: usize,
    /// Layers, of which every second has experts.
    pub n_layers: usize,
    /// Experts of a layer.
    pub n_experts: usize,
    /// Token ids.
    pub vocab_size: usize,
    /// Batch and length of what is run.
    pub batches: &'static [(usize, usize)],
    /// Random bytes that are repeated.
    pub block: usize,
}

/// A family of models.
#[derive(Clone, Copy, Debug)]
pub enum Family {
    /// Switch encoder: top-1, no biases.
    Switch,
    /// As nomic-embed-text-v2-moe: top-2.
    Nomic,
}

impl ModelShape {
    /// What the published models have in common, as Switch-base-128 has the rest.
    pub const BASE: Self = Self {
        name: "",
        family: Family::Switch,
        d_model: 768,
        d_ff: 3072,
        n_heads: 12,
        n_layers: 12,
        n_experts: 128,
        vocab_size: 32_128,
        batches: &[(250, 120), (10, 120), (1, 16)],
        block: BLOCK,
    };

    pub(crate) const GPU: [Self; 2] = [
        Self {
            name: "Switch-base-128",
            ..Self::BASE
        },
        Self {
            name: "nomic-embed-text-v2-moe",
            family: Family::Nomic,
            n_experts: 8,
            vocab_size: 250_048,
            batches: &[(1, 16), (16, 128), (128, 128), (256, 128)],
            ..Self::BASE
        },
    ];

    #[cfg(feature = "emulated")]
    const LITTLE: Self = Self {
        d_model: 32,
        d_ff: 32,
        n_heads: 1,
        n_layers: 2,
        n_experts: 4,
        vocab_size: 50,
        batches: &[(2, 3)],
        block: 1 << 12,
        ..Self::BASE
    };

    #[cfg(feature = "emulated")]
    pub(crate) const TINY: [Self; 2] = [
        Self {
            name: "Switch",
            ..Self::LITTLE
        },
        Self {
            name: "nomic",
            family: Family::Nomic,
            ..Self::LITTLE
        },
    ];

    /// Writes config.json, tokenizer.json and model.safetensors, weights in bf16.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        fs::write(folder.join("config.json"), self.config().to_string())?;
        fs::write(folder.join("tokenizer.json"), self.tokenizer().to_string())?;
        let mut header = Map::new();
        let mut at = 0;
        for (name, shape) in self.tensors() {
            let n_bytes = 2 * shape.iter().product::<usize>();
            let entry =
                json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n_bytes]});
            header.insert(name, entry);
            at += n_bytes;
        }
        let header = Value::Object(header).to_string();
        let path = folder.join("model.safetensors");
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        let block = self.numbers();
        while at > 0 {
            let n = at.min(block.len());
            file.write_all(&block[..n])?;
            at -= n;
        }
        file.flush().with_context(|| path.display().to_string())
    }

    /// bf16 numbers between 2⁻⁷ and 2⁻⁴ of either sign: of the size of weights.
    fn numbers(&self) -> Vec<u8> {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let number = |_| {
            let bits: u16 = rng.random();
            let exponent = 127 - 7 + (bits >> 8 & 3);
            ((bits & 0x807f) | exponent << 7).to_le_bytes()
        };
        (0..self.block / 2).flat_map(number).collect()
    }

    /// One word, one id: what a server needs to be asked over HTTP.
    fn tokenizer(&self) -> Value {
        let words = (0..self.vocab_size.min(WORDS)).map(|i| (format!("w{i}"), json!(i)));
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": words.collect::<Map<_, _>>(), "unk_token": "w0"},
        })
    }

    fn config(&self) -> Value {
        let Self {
            d_model,
            d_ff,
            n_heads,
            n_layers,
            n_experts,
            vocab_size,
            ..
        } = *self;
        match self.family {
            Family::Switch => json!({
                "model_type": "switch_transformers", "vocab_size": vocab_size, "d_model": d_model,
                "d_kv": d_model / n_heads, "d_ff": d_ff, "num_heads": n_heads, "num_layers": n_layers,
                "num_sparse_encoder_layers": n_layers / 2, "encoder_sparse_step": 2,
                "num_experts": n_experts, "dense_act_fn": "relu",
            }),
            Family::Nomic => json!({
                "model_type": "nomic_bert", "vocab_size": vocab_size, "n_embd": d_model, "n_head": n_heads,
                "n_inner": d_ff, "n_layer": n_layers, "n_positions": 2048, "type_vocab_size": 1,
                "rotary_emb_fraction": 1.0, "rotary_emb_base": 10000, "activation_function": "gelu",
                "num_experts": n_experts, "moe_top_k": 2, "moe_every_n_layers": 2,
            }),
        }
    }

    /// Names and shapes of all weights.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = Vec::new();
        let mut put = |name: String, shape: &[usize]| list.push((name, shape.to_vec()));
        let (d, f) = (self.d_model, self.d_ff);
        match self.family {
            Family::Switch => {
                put("shared.weight".to_owned(), &[self.vocab_size, d]);
                put("encoder.final_layer_norm.weight".to_owned(), &[d]);
                for i in 0..self.n_layers {
                    self.switch_layer(i, &mut put);
                }
            }
            Family::Nomic => {
                put(
                    "embeddings.word_embeddings.weight".to_owned(),
                    &[self.vocab_size, d],
                );
                put(
                    "embeddings.token_type_embeddings.weight".to_owned(),
                    &[1, d],
                );
                for part in ["weight", "bias"] {
                    put(format!("emb_ln.{part}"), &[d]);
                }
                for i in 0..self.n_layers {
                    self.nomic_layer(i, f, &mut put);
                }
            }
        }
        list
    }

    fn switch_layer(&self, i: usize, put: &mut impl FnMut(String, &[usize])) {
        let (d, f) = (self.d_model, self.d_ff);
        let name = format!("encoder.block.{i}.layer.0");
        for part in ["q", "k", "v", "o"] {
            put(format!("{name}.SelfAttention.{part}.weight"), &[d, d]);
        }
        if i == 0 {
            let table = format!("{name}.SelfAttention.relative_attention_bias.weight");
            put(table, &[32, self.n_heads]);
        }
        put(format!("{name}.layer_norm.weight"), &[d]);
        let name = format!("encoder.block.{i}.layer.1");
        put(format!("{name}.layer_norm.weight"), &[d]);
        if i.is_multiple_of(2) {
            put(format!("{name}.mlp.wi.weight"), &[f, d]);
            put(format!("{name}.mlp.wo.weight"), &[d, f]);
            return;
        }
        put(
            format!("{name}.mlp.router.classifier.weight"),
            &[self.n_experts, d],
        );
        for e in 0..self.n_experts {
            let name = format!("{name}.mlp.experts.expert_{e}");
            put(format!("{name}.wi.weight"), &[f, d]);
            put(format!("{name}.wo.weight"), &[d, f]);
        }
    }

    fn nomic_layer(&self, i: usize, f: usize, put: &mut impl FnMut(String, &[usize])) {
        let d = self.d_model;
        let name = format!("encoder.layers.{i}");
        let linear =
            |put: &mut dyn FnMut(String, &[usize]), part: &str, n_out: usize, n_in: usize| {
                put(format!("{name}.{part}.weight"), &[n_out, n_in]);
                put(format!("{name}.{part}.bias"), &[n_out]);
            };
        linear(put, "attn.Wqkv", 3 * d, d);
        linear(put, "attn.out_proj", d, d);
        for norm in ["norm1", "norm2"] {
            put(format!("{name}.{norm}.weight"), &[d]);
            put(format!("{name}.{norm}.bias"), &[d]);
        }
        if i.is_multiple_of(2) {
            linear(put, "mlp.fc1", f, d);
            linear(put, "mlp.fc2", d, f);
            return;
        }
        put(
            format!("{name}.mlp.router.layer.weight"),
            &[self.n_experts, d],
        );
        for w in ["w1", "w2"] {
            put(
                format!("{name}.mlp.experts.mlp.{w}"),
                &[self.n_experts * f, d],
            );
        }
        put(format!("{name}.mlp.experts.bias"), &[d]);
    }
}
