//! How many numbers a model has, by what they are for, and what a rank holds of them.

use moeshard_encoder::model::Model;
use moeshard_encoder::shard::{ShardPlan, Strategy};
use moeshard_encoder::spec::{
    DenseFfnSpec, EmbeddingSpec, EncoderSpec, ExpertSpec, ExpertsSpec, FfnSpec, HeadSpec,
    LinearSpec, NormSpec, PositionEmbedding,
};
use moeshard_tensor::dtype::DType;

use crate::display::size;

/// Parameters by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// Tables of words, positions and segments.
    pub embedding: u64,
    /// Queries, keys, values and output.
    pub attention: u64,
    /// Feed-forward networks for all tokens.
    pub dense_ffn: u64,
    /// Routers.
    pub routers: u64,
    /// All experts.
    pub experts: u64,
    /// Norms.
    pub norms: u64,
    /// The classification head.
    pub head: u64,
}

impl Parameters {
    /// Counts them.
    #[must_use]
    pub fn of(spec: &EncoderSpec) -> Self {
        let d_model = spec.d_model as u64;
        let mut n = Self {
            embedding: embedding(&spec.embedding, d_model),
            head: spec.head.as_ref().map_or(0, head),
            ..Self::default()
        };
        n.norms += spec
            .embedding
            .norm
            .iter()
            .chain(&spec.final_norm)
            .map(|x| norm(x, d_model))
            .sum::<u64>();
        for layer in &spec.layers {
            n.attention += linear(&layer.qkv) + linear(&layer.attention_out);
            n.norms += norm(&layer.attention_norm, d_model) + norm(&layer.ffn_norm, d_model);
            match &layer.ffn {
                FfnSpec::Dense(ffn) => n.dense_ffn += dense_ffn(ffn),
                FfnSpec::Experts(layer) => {
                    n.routers += layer.experts.len() as u64 * d_model;
                    n.experts += experts(layer, d_model, ShardPlan::SOLO);
                }
            }
        }
        n
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.rows().iter().map(|(_, n)| n).sum()
    }

    /// Each with its name.
    #[must_use]
    pub fn rows(&self) -> [(&'static str, u64); 7] {
        [
            ("embedding", self.embedding),
            ("attention", self.attention),
            ("dense FFN", self.dense_ffn),
            ("routers", self.routers),
            ("experts", self.experts),
            ("norms", self.norms),
            ("head", self.head),
        ]
    }
}

/// Parameters of experts that each rank holds.
fn expert_parameters(
    spec: &EncoderSpec,
    strategy: Strategy,
    world_size: usize,
) -> impl Iterator<Item = u64> {
    let d_model = spec.d_model as u64;
    let of_rank = move |rank| {
        let plan = ShardPlan {
            strategy,
            rank,
            world_size,
        };
        let layers = spec.expert_layers();
        layers.map(|(_, layer)| experts(layer, d_model, plan)).sum()
    };
    (0..world_size).map(of_rank)
}

/// Weights of the rank that holds most, in bytes; `Err` says why the layout is impossible.
///
/// Routers, norms and the head are kept in f32 whatever the format; biases are too few to matter.
///
/// # Errors
/// A sentence with both numbers.
pub fn largest_rank(
    spec: &EncoderSpec,
    strategy: Strategy,
    world_size: usize,
    dtype: DType,
) -> Result<u64, String> {
    for (_, layer) in spec.expert_layers() {
        let plan = ShardPlan {
            strategy,
            rank: 0,
            world_size,
        };
        plan.check(layer.experts.len(), layer.d_ff)?;
    }
    let n = Parameters::of(spec);
    let exact = n.routers + n.norms + n.head;
    let common = n.total() - n.experts - exact;
    let most = expert_parameters(spec, strategy, world_size).max();
    Ok((common + most.unwrap_or(0)) * dtype.size() as u64 + exact * 4)
}

/// How weights are held by GPUs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Held {
    /// How experts are laid out.
    pub strategy: Strategy,
    /// Ranks, dealt out to GPUs in turn.
    pub n_ranks: usize,
    /// GPUs.
    pub n_gpus: usize,
    /// In which weights are kept.
    pub dtype: DType,
}

impl Held {
    /// Bytes on the fullest GPU; `None` if the layout is impossible.
    #[must_use]
    pub fn bytes(&self, spec: &EncoderSpec) -> Option<u64> {
        let of_rank = largest_rank(spec, self.strategy, self.n_ranks, self.dtype).ok()?;
        Some(of_rank * self.n_ranks.div_ceil(self.n_gpus.max(1)) as u64)
    }

    /// That they fit into `memory` bytes of each.
    ///
    /// # Errors
    /// A sentence that says what would fit.
    pub fn check(&self, spec: &EncoderSpec, memory: u64) -> Result<(), String> {
        let Some(bytes) = self.bytes(spec).filter(|&bytes| bytes > memory) else {
            return Ok(());
        };
        let sharded = |n_gpus, dtype| Self {
            strategy: Strategy::Sharded,
            n_ranks: n_gpus,
            n_gpus,
            dtype,
        };
        let fits = |held: &Self| held.bytes(spec).is_some_and(|bytes| bytes <= memory);
        let narrow = Self {
            dtype: DType::BF16,
            ..*self
        };
        let enough = (self.n_gpus..=64).find(|&n| fits(&sharded(n, self.dtype)));
        let advice = match (fits(&narrow), enough) {
            (true, _) => "--dtype bf16 would fit".to_owned(),
            (false, Some(n)) if n == self.n_gpus => {
                format!("--experts sharded with --ranks {n} would fit")
            }
            (false, Some(n)) => format!("--gpus {n} would fit, experts sharded"),
            (false, None) => "it does not fit on 64 such GPUs either".to_owned(),
        };
        Err(format!(
            "the weights take {} of a GPU that has {}, in {}: {advice}",
            size(bytes),
            size(memory),
            self.dtype
        ))
    }
}

/// Bytes of the checkpoint that all ranks together read.
#[must_use]
pub fn bytes_to_read(model: &Model, strategy: Strategy, world_size: usize) -> u64 {
    let n = Parameters::of(&model.spec);
    let expert_reads: u64 = expert_parameters(&model.spec, strategy, world_size).sum();
    let common = (n.total() - n.experts) * world_size as u64;
    (common + expert_reads) * model.settings.weights_dtype.size() as u64
}

fn embedding(spec: &EmbeddingSpec, d_model: u64) -> u64 {
    let positions = match spec.position {
        PositionEmbedding::Learned { n_rows, .. } => n_rows,
        PositionEmbedding::Sinusoidal { .. } | PositionEmbedding::None => 0,
    };
    let types = spec.token_type.as_ref().map_or(0, |(_, n)| *n);
    (spec.vocab_size + positions + types) as u64 * d_model
}

fn linear(spec: &LinearSpec) -> u64 {
    let bias = if spec.biases.is_empty() {
        0
    } else {
        spec.n_out
    };
    spec.n_out as u64 * spec.n_in as u64 + bias as u64
}

fn norm(spec: &NormSpec, d_model: u64) -> u64 {
    d_model * (1 + u64::from(spec.bias.is_some()))
}

fn dense_ffn(spec: &DenseFfnSpec) -> u64 {
    linear(&spec.up) + spec.gate.as_ref().map_or(0, linear) + linear(&spec.down)
}

fn head(spec: &HeadSpec) -> u64 {
    let dense = spec.dense.as_ref().map(|(dense, _)| dense);
    let n_in = dense.unwrap_or(&spec.out).n_in as u64;
    let scales = spec.norm.as_ref().map_or(0, |spec| norm(spec, n_in));
    scales + dense.map_or(0, linear) + linear(&spec.out)
}

/// Parameters of a layer's experts that the plan's rank holds; the bias they share counts on each.
fn experts(layer: &ExpertsSpec, d_model: u64, plan: ShardPlan) -> u64 {
    let n_experts = layer.experts.len();
    let of_expert = |(expert_idx, expert): (usize, &ExpertSpec)| {
        let units = plan.hidden_units(expert_idx, n_experts, layer.d_ff).len() as u64;
        let holds = u64::from(units > 0);
        let biases = units * u64::from(expert.b_in.is_some())
            + holds * d_model * u64::from(expert.b_out.is_some());
        2 * units * d_model + biases
    };
    let shared_bias = layer.shared_bias.as_ref().map_or(0, |_| d_model);
    shared_bias + layer.experts.iter().enumerate().map(of_expert).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelArgs, ModelConfig, open};

    #[test]
    fn weights_that_do_not_fit_come_with_what_would() {
        let config = ModelConfig::try_from(ModelArgs::default()).expect("defaults");
        let spec = open(&config).expect("the built-in model").model.spec;
        let held = |n_gpus, dtype| Held {
            strategy: Strategy::Replicated,
            n_ranks: n_gpus,
            n_gpus,
            dtype,
        };
        let check = |memory: u64, dtype, expected: &str| {
            let error = held(1, dtype).check(&spec, memory).expect_err("too large");
            assert!(error.ends_with(expected), "{error}");
        };
        // 38.0 MiB in f32 and 19.1 in 16 bits, of which 5.0 are experts that can be split.
        assert_eq!(held(1, DType::F32).check(&spec, 39 << 20), Ok(()));
        check(
            30 << 20,
            DType::F32,
            "38.01 MiB of a GPU that has 30.00 MiB, in float32: --dtype bf16 would fit",
        );
        check(17 << 20, DType::BF16, "--gpus 2 would fit, experts sharded");
        check(
            1 << 20,
            DType::BF16,
            "it does not fit on 64 such GPUs either",
        );
        // Two ranks on one GPU take twice as much, and one is enough.
        let two = Held {
            n_ranks: 2,
            ..held(1, DType::BF16)
        };
        let error = two.check(&spec, 30 << 20).expect_err("twice too much");
        assert!(
            error.ends_with("--experts sharded with --ranks 1 would fit"),
            "{error}"
        );
    }
}
