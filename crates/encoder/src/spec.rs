//! What every supported encoder is made of.
//!
//! A family translates its config and its tensor names into an [`EncoderSpec`]; one forward pass
//! and one reference run every spec. Nothing here does arithmetic on activations.

use std::ops::Range;

use moeshard_tensor::device::{
    Activation, AttentionShape, MatrixLayout, NormKind, Pooling, RouterRule,
};

/// A tensor of a checkpoint, or some of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRef {
    /// Full name in the checkpoint.
    pub name: String,
    /// Range of the first axis, where several things are stacked in one tensor; all if `None`.
    pub rows: Option<Range<usize>>,
}

impl TensorRef {
    /// The whole tensor of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            rows: None,
        }
    }

    /// Some rows of the tensor of this name.
    pub fn rows(name: impl Into<String>, rows: Range<usize>) -> Self {
        Self {
            name: name.into(),
            rows: Some(rows),
        }
    }
}

/// A weight matrix of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixRef {
    /// Two axes (after the choice of rows).
    pub tensor: TensorRef,
    /// Which axis is which.
    pub layout: MatrixLayout,
}

impl MatrixRef {
    /// A matrix stored `[n_out, n_in]`, as PyTorch's `Linear` does.
    pub fn out_in(tensor: TensorRef) -> Self {
        Self {
            tensor,
            layout: MatrixLayout::OutIn,
        }
    }

    /// A matrix stored `[n_in, n_out]`.
    pub fn in_out(tensor: TensorRef) -> Self {
        Self {
            tensor,
            layout: MatrixLayout::InOut,
        }
    }
}

/// `y = x · Wᵀ + b`, where W may be stored in several parts stacked along its outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearSpec {
    /// Outputs of all parts together; every part has the same number.
    pub n_out: usize,
    /// Inputs.
    pub n_in: usize,
    /// The parts, in order.
    pub weights: Vec<MatrixRef>,
    /// One bias a part, or none at all.
    pub biases: Vec<TensorRef>,
}

impl LinearSpec {
    /// PyTorch's `Linear` layers `names`, stacked: `{name}.weight` and, if `bias`, `{name}.bias`.
    pub fn stacked(names: &[String], n_out: usize, n_in: usize, bias: bool) -> Self {
        let weight = |n: &String| MatrixRef::out_in(TensorRef::new(format!("{n}.weight")));
        let bias_of = |n: &String| TensorRef::new(format!("{n}.bias"));
        Self {
            n_out,
            n_in,
            weights: names.iter().map(weight).collect(),
            biases: if bias {
                names.iter().map(bias_of).collect()
            } else {
                Vec::new()
            },
        }
    }

    /// PyTorch's `Linear` layer `name`.
    pub fn new(name: &str, n_out: usize, n_in: usize, bias: bool) -> Self {
        Self::stacked(&[name.to_owned()], n_out, n_in, bias)
    }
}

/// A normalisation of rows of `d_model`.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    /// Which statistics are taken.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f32,
    /// `[d_model]`
    pub weight: TensorRef,
    /// `[d_model]`
    pub bias: Option<TensorRef>,
}

impl NormSpec {
    /// Layer normalisation `{name}.weight`, `{name}.bias`.
    pub fn layer(name: &str, eps: f32) -> Self {
        Self {
            kind: NormKind::Layer,
            eps,
            weight: TensorRef::new(format!("{name}.weight")),
            bias: Some(TensorRef::new(format!("{name}.bias"))),
        }
    }

    /// Root-mean-square normalisation `{name}.weight`.
    pub fn rms(name: &str, eps: f32) -> Self {
        let weight = TensorRef::new(format!("{name}.weight"));
        Self {
            kind: NormKind::Rms,
            eps,
            weight,
            bias: None,
        }
    }
}

/// What is added to a word's embedding for its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PositionEmbedding {
    /// Nothing: attention knows positions.
    None,
    /// Row `offset + position` of a learned table.
    Learned {
        /// `[n_rows, d_model]`
        table: TensorRef,
        /// Number of rows.
        n_rows: usize,
        /// Row of the first position.
        offset: usize,
    },
    /// `sin` in the first half and `cos` in the second of `(offset + position) · frequency`, the
    /// frequencies falling geometrically from 1 to 1/10,000.
    Sinusoidal {
        /// Added to the position.
        offset: usize,
        /// Positions for which the table is made.
        n_positions: usize,
    },
}

/// How token ids become hidden states.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingSpec {
    /// `[vocab_size, d_model]`
    pub word: TensorRef,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Factor of the word's embedding.
    pub scale: f32,
    /// What is added for the position.
    pub position: PositionEmbedding,
    /// Table of segments and its number of rows.
    pub token_type: Option<(TensorRef, usize)>,
    /// Applied to the sum.
    pub norm: Option<NormSpec>,
}

/// Where the norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOrder {
    /// `x + f(norm(x))`
    Pre,
    /// `norm(x + f(x))`
    Post,
}

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// To queries, keys and values, stacked: `[3 · n_heads · head_dim, d_model]`.
    pub qkv: LinearSpec,
    /// From the heads back to `d_model`.
    pub attention_out: LinearSpec,
    /// The norm of the attention block.
    pub attention_norm: NormSpec,
    /// The feed-forward network.
    pub ffn: FfnSpec,
    /// The norm of the feed-forward block.
    pub ffn_norm: NormSpec,
}

/// A feed-forward network.
#[derive(Clone, Debug, PartialEq)]
pub enum FfnSpec {
    /// One for all tokens.
    Dense(DenseFfnSpec),
    /// A router chooses among many.
    Experts(ExpertsSpec),
}

/// `down(activation(up(x)))`, or with a gate `down(up(x) ⊙ activation(gate(x)))`.
#[derive(Clone, Debug, PartialEq)]
pub struct DenseFfnSpec {
    /// `d_model` to `d_ff`.
    pub up: LinearSpec,
    /// `d_model` to `d_ff`.
    pub gate: Option<LinearSpec>,
    /// `d_ff` to `d_model`.
    pub down: LinearSpec,
    /// See above.
    pub activation: Activation,
}

/// A layer of experts:
/// `y = output_scale · Σ_k gate_k · (W_out · activation(W_in · x + b_in) + b_out) + shared_bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsSpec {
    /// Hidden units of an expert.
    pub d_ff: usize,
    /// `[n_experts, d_model]`
    pub router: MatrixRef,
    /// How gates follow from the router's logits.
    pub rule: RouterRule,
    /// Between the two matrices.
    pub activation: Activation,
    /// The experts in order.
    pub experts: Vec<ExpertSpec>,
    /// Factor of the combined output.
    pub output_scale: f32,
    /// `[d_model]`: added once, unscaled.
    pub shared_bias: Option<TensorRef>,
}

/// The weights of one expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertSpec {
    /// `d_model` to `d_ff`.
    pub w_in: MatrixRef,
    /// `[d_ff]`
    pub b_in: Option<TensorRef>,
    /// `d_ff` to `d_model`.
    pub w_out: MatrixRef,
    /// `[d_model]`
    pub b_out: Option<TensorRef>,
}

/// What the scores of a head mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemType {
    /// One label is right: softmax.
    SingleLabel,
    /// Each label may be: sigmoid.
    MultiLabel,
    /// The scores are the answer.
    Regression,
}

/// A classification head: `out(activation(dense(norm(pooled))))`.
///
/// Its matrices are kept in f32 whatever the encoder's format: they are small, and what they tell
/// apart may be close.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadSpec {
    /// What it looks at; `None`: the model's own pooling.
    pub pooling: Option<Pooling>,
    /// What is done to that first.
    pub norm: Option<NormSpec>,
    /// A layer before the last, with its activation.
    pub dense: Option<(LinearSpec, Activation)>,
    /// To one score a label.
    pub out: LinearSpec,
    /// In the order of the scores.
    pub labels: Vec<String>,
    /// What the scores mean.
    pub problem_type: ProblemType,
}

/// A whole encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderSpec {
    /// The family that made it, for people.
    pub family: String,
    /// Width of the hidden state.
    pub d_model: usize,
    /// From ids to hidden states.
    pub embedding: EmbeddingSpec,
    /// Heads, scale and position rule, the same in all layers.
    pub attention: AttentionShape,
    /// `[n_buckets, n_heads]`, shared by all layers.
    pub relative_bias: Option<TensorRef>,
    /// Where the norms stand.
    pub norm_order: NormOrder,
    /// The layers in order.
    pub layers: Vec<LayerSpec>,
    /// After the last layer.
    pub final_norm: Option<NormSpec>,
    /// For classification.
    pub head: Option<HeadSpec>,
    /// Pooling if the folder names none.
    pub default_pooling: Pooling,
    /// Longest sequence that positions allow; `None` if they allow any.
    pub max_positions: Option<usize>,
}

impl EncoderSpec {
    /// The expert layers with their positions.
    pub fn expert_layers(&self) -> impl Iterator<Item = (usize, &ExpertsSpec)> {
        self.layers
            .iter()
            .enumerate()
            .filter_map(|(i, layer)| match &layer.ffn {
                FfnSpec::Experts(experts) => Some((i, experts)),
                FfnSpec::Dense(_) => None,
            })
    }
}
