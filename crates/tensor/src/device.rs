//! The seam between a model and the hardware that runs it.
//!
//! A [`Device`] is what one rank computes with: it loads slices of a checkpoint into its own
//! layout and runs about a dozen encoder operations on opaque tensors. It is not a tensor library:
//! an operation is here because an encoder needs it, and it is as large as a device can fuse.
//!
//! Activations are rows of tokens, `[n_tokens, n]`, accumulated in f32. Sequences are packed one
//! after the other; `cu_seqlens[i] .. cu_seqlens[i + 1]` are the rows of sequence `i`.

use crate::checkpoint::HostTensor;
use crate::collective::CollectiveError;
use crate::dtype::DType;

/// Elementwise function applied to the result of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x`
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `x · Φ(x)` with the exact error function.
    Gelu,
    /// GELU by its tanh approximation, for checkpoints that were trained with it.
    GeluTanh,
    /// `x · sigmoid(x)`
    Silu,
    /// `tanh(x)`
    Tanh,
}

/// How a row is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Mean and variance; weight and bias.
    Layer,
    /// Root mean square only; weight.
    Rms,
}

/// A normalisation with its loaded weights, `V` being the device's vector.
#[derive(Debug)]
pub struct Norm<V> {
    /// Which statistics are taken.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f32,
    /// `[d_model]`
    pub weight: V,
    /// `[d_model]`
    pub bias: Option<V>,
}

/// What attention knows of positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PositionRule {
    /// Nothing: positions are in the embeddings.
    None,
    /// A learned bias per head and bucketed distance (T5), the same for all layers.
    RelativeBias {
        /// Number of buckets, both directions together.
        n_buckets: usize,
        /// Distances from here on share the last bucket.
        max_distance: usize,
    },
    /// Rotation of query and key by their position, halves of the head as pairs (NeoX).
    Rotary {
        /// Base of the geometric series of wavelengths.
        base: f32,
        /// Leading dimensions of a head that are rotated; even.
        dim: usize,
    },
}

/// Shape and rule of one attention operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Number of heads.
    pub n_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of `q · k` before the bias.
    pub scale: f32,
    /// What it knows of positions.
    pub position: PositionRule,
}

/// How gate weights follow from the router's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterRule {
    /// Experts per token.
    pub top_k: usize,
    /// Divide the chosen probabilities by their sum.
    pub normalize: bool,
}

/// How hidden states become one vector for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token.
    Cls,
    /// The mean of all tokens.
    Mean,
    /// The last token.
    LastToken,
}

/// One table of an embedding sum: `scale · table[row_idx[t]]`.
#[derive(Debug)]
pub struct EmbeddingRows<'a, T> {
    /// `[n_rows, d_model]`
    pub table: &'a T,
    /// `[n_tokens]`, each below `n_rows`.
    pub row_idx: &'a [u32],
    /// Factor of this table.
    pub scale: f32,
}

impl<T> Clone for EmbeddingRows<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for EmbeddingRows<'_, T> {}

/// Where each token goes: `[n_tokens, top_k]`, row by row, in host memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    /// Experts per token.
    pub top_k: usize,
    /// Chosen experts, most probable first; [`Routing::DROPPED`] where a capacity dropped one.
    pub expert_idx: Vec<u32>,
    /// Weight of each chosen expert's output.
    pub gate_weight: Vec<f32>,
}

impl Routing {
    /// Marks a token-expert assignment that found its expert full.
    pub const DROPPED: u32 = u32::MAX;

    /// Number of tokens routed.
    pub fn n_tokens(&self) -> usize {
        self.expert_idx.len().checked_div(self.top_k).unwrap_or(0)
    }
}

/// Which axis of a stored matrix is which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixLayout {
    /// `[n_out, n_in]`, as PyTorch's `Linear` stores it.
    OutIn,
    /// `[n_in, n_out]`.
    InOut,
}

/// A weight matrix as read from a checkpoint.
#[derive(Debug)]
pub struct HostMatrix<'a> {
    /// Two axes.
    pub tensor: HostTensor<'a>,
    /// Which is which.
    pub layout: MatrixLayout,
}

impl HostMatrix<'_> {
    /// Number of outputs.
    pub fn n_out(&self) -> usize {
        self.tensor.shape[usize::from(self.layout == MatrixLayout::InOut)]
    }

    /// Number of inputs.
    pub fn n_in(&self) -> usize {
        self.tensor.shape[usize::from(self.layout == MatrixLayout::OutIn)]
    }
}

/// One rank's slice of one expert, as read from a checkpoint.
#[derive(Debug)]
pub struct ExpertSlice<'a> {
    /// Which expert of the layer.
    pub expert_idx: usize,
    /// From `d_model` to the rank's `f` hidden units.
    pub w_in: HostMatrix<'a>,
    /// `[f]`
    pub b_in: Option<HostTensor<'a>>,
    /// From the rank's `f` hidden units to `d_model`.
    pub w_out: HostMatrix<'a>,
    /// `[d_model]`: only on the rank that adds this expert's output bias.
    pub b_out: Option<HostTensor<'a>>,
}

/// The weights of a linear layer on a device: `x · weightᵀ + bias`.
#[derive(Debug)]
pub struct LinearWeights<'a, M, V> {
    /// `[n_out, n_in]`
    pub weight: &'a M,
    /// `[n_out]`
    pub bias: Option<&'a V>,
}

/// A dense FFN on a device: `down(activation(up(x)))`, or `down(up(x) ⊙ activation(gate(x)))`.
#[derive(Debug)]
pub struct DenseFfn<'a, M, V> {
    /// From `d_model` to `d_ff`.
    pub up: LinearWeights<'a, M, V>,
    /// From `d_model` to `d_ff`.
    pub gate: Option<LinearWeights<'a, M, V>>,
    /// Of `up` where there is no gate, of the gate otherwise.
    pub activation: Activation,
    /// From `d_ff` to `d_model`.
    pub down: LinearWeights<'a, M, V>,
}

/// What a device has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Bytes of expert weights held.
    pub expert_bytes: u64,
    /// Multiply-adds spent in expert matrices.
    pub expert_multiply_adds: u64,
    /// Token-expert assignments dropped by a capacity, counted once over all ranks.
    pub n_dropped: u64,
}

/// Why a device could not do what it was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Two arguments disagree on a dimension.
    #[error("{op}: {dim} is {got}, expected {expected}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The dimension's name.
        dim: &'static str,
        /// What the other argument says.
        expected: usize,
        /// What was found.
        got: usize,
    },
    /// A weight is NaN or infinite, or becomes so in the device's dtype.
    #[error("part {part_idx} of the weights holds {}", not_finite(*.element_idx, *.dtype))]
    NotFinite {
        /// Which of the tensors that were passed; an expert's W_in and W_out count as two.
        part_idx: usize,
        /// First such element in row-major order; `None` if all are finite as stored but too large
        /// for `dtype`.
        element_idx: Option<usize>,
        /// The device's dtype.
        dtype: DType,
    },
    /// A collective failed.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The device could not be set up.
    #[error("cannot set up the device: {0}")]
    SetUp(String),
    /// What the device was asked for did not work: memory has run out, or the hardware failed.
    #[error("{op} failed on the device: {reason}")]
    Failed {
        /// What was asked for.
        op: &'static str,
        /// In the driver's words.
        reason: String,
    },
}

/// What a tensor holds that is not a number of `dtype`.
pub fn not_finite(element_idx: Option<usize>, dtype: DType) -> String {
    match element_idx {
        Some(idx) => format!("NaN or infinity at element {idx} of the part read"),
        None => format!("numbers too large for {dtype}"),
    }
}

/// Result of a device operation.
pub type Result<T> = std::result::Result<T, DeviceError>;

/// What one rank computes with.
///
/// Loading takes tensors of any dtype and stores matrices and tables in the device's own, refusing
/// what is not finite there; vectors and the router stay in f32, because rounding there changes
/// results and saves nothing. Every
/// operation is deterministic, and a row's result does not depend on the other rows.
pub trait Device {
    /// Activations `[n_rows, n_cols]`.
    type Tensor;
    /// A weight matrix `[n_out, n_in]` in the device's layout.
    type Matrix;
    /// A vector in f32.
    type Vector;
    /// An embedding table `[n_rows, n_cols]`.
    type Table;
    /// One rank's slices of all experts of a layer.
    type Experts;
    /// Routing of a batch, wherever the device keeps it.
    type Routing;

    /// How many streams operations may be asked for in. Those of a stream are done one after the other; one stream
    /// may compute while another waits for other ranks.
    fn n_streams(&self) -> usize {
        1
    }

    /// Has operations done in this stream from now on, or in one that there is. Tensors and routings stay in the
    /// stream that they were made in.
    fn enter_stream(&self, _idx: usize) {}

    /// Loads matrices of the same `n_in`, stacked along `n_out`, into one.
    fn load_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Self::Matrix>;

    /// Loads a matrix that keeps full precision whatever the device's dtype (the router).
    fn load_exact_matrix(&self, host: &HostMatrix<'_>) -> Result<Self::Matrix>;

    /// Loads vectors stacked end to end into one.
    fn load_vector(&self, parts: &[HostTensor<'_>]) -> Result<Self::Vector>;

    /// Loads an embedding table `[n_rows, d_model]`.
    fn load_table(&self, host: &HostTensor<'_>) -> Result<Self::Table>;

    /// Loads a table that keeps full precision whatever the device's dtype (computed positions).
    fn load_exact_table(&self, host: &HostTensor<'_>) -> Result<Self::Table>;

    /// Loads this rank's slices of the experts of one layer; experts that are absent live
    /// elsewhere.
    fn load_experts(
        &self,
        n_experts: usize,
        slices: Vec<ExpertSlice<'_>>,
        activation: Activation,
    ) -> Result<Self::Experts>;

    /// Sum of embedding rows, `[n_tokens, d_model]`, normalised if asked.
    fn embed(
        &self,
        rows: &[EmbeddingRows<'_, Self::Table>],
        norm: Option<&Norm<Self::Vector>>,
    ) -> Result<Self::Tensor>;

    /// Normalises row by row.
    fn norm(&self, x: &Self::Tensor, norm: &Norm<Self::Vector>) -> Result<Self::Tensor>;

    /// `norm(activation(x · wᵀ + bias) + residual)`, `[n_tokens, n_out]`, with what there is of it.
    fn linear(
        &self,
        x: &Self::Tensor,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        activation: Activation,
        residual: Option<&Self::Tensor>,
        norm: Option<&Norm<Self::Vector>>,
    ) -> Result<Self::Tensor>;

    /// `ffn(x) + residual`, `[n_tokens, d_model]`, normalised if asked.
    fn ffn(
        &self,
        x: &Self::Tensor,
        ffn: &DenseFfn<'_, Self::Matrix, Self::Vector>,
        residual: &Self::Tensor,
        norm: Option<&Norm<Self::Vector>>,
    ) -> Result<Self::Tensor>;

    /// `x = norm(x + residual + bias)`, with the bias and the norm that there are.
    fn add(
        &self,
        x: &mut Self::Tensor,
        residual: &Self::Tensor,
        bias: Option<&Self::Vector>,
        norm: Option<&Norm<Self::Vector>>,
    ) -> Result<()>;

    /// Bidirectional attention within each sequence.
    ///
    /// # Shapes
    /// - `qkv`: `[n_tokens, 3 · n_heads · head_dim]`, queries then keys then values; what it holds
    ///   afterwards is arbitrary
    /// - `bias`: `[n_buckets · n_heads]` for [`PositionRule::RelativeBias`]
    /// - returns `[n_tokens, n_heads · head_dim]`
    fn attention(
        &self,
        qkv: &mut Self::Tensor,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
        bias: Option<&Self::Vector>,
    ) -> Result<Self::Tensor>;

    /// Softmax over all experts in f32, then the `top_k` most probable; ties go to the lower
    /// index.
    fn route(
        &self,
        x: &Self::Tensor,
        router: &Self::Matrix,
        rule: RouterRule,
    ) -> Result<Self::Routing>;

    /// Takes back a routing that nobody needs any more, so that its memory serves the next.
    fn recycle(&self, routing: Self::Routing);

    /// Drops assignments beyond `capacity` per expert within each segment of tokens, first choices
    /// before second ones, each in token order. Counts what it drops if `counted`.
    fn limit_capacity(
        &self,
        routing: &mut Self::Routing,
        segments: &[usize],
        capacity: usize,
        counted: bool,
    ) -> Result<()>;

    /// This rank's part of `Σ_k gate_weight[t, k] · expert[expert_idx[t, k]](x[t])`.
    ///
    /// Partial in two ways: a slice of hidden units, or only some of the experts. The sum over
    /// ranks is the layer's output.
    fn expert_ffn(
        &self,
        x: &Self::Tensor,
        routing: &Self::Routing,
        experts: &Self::Experts,
    ) -> Result<Self::Tensor>;

    /// Rows of all ranks in rank order. `n_rows[r]` is the number of rows that rank `r` brings.
    ///
    /// # Communication
    /// One all-gather; every rank must call it.
    fn all_gather(&self, x: &Self::Tensor, n_rows: &[usize]) -> Result<Self::Tensor>;

    /// Routing of all ranks in rank order, as [`Device::all_gather`].
    fn all_gather_routing(
        &self,
        routing: &Self::Routing,
        n_rows: &[usize],
    ) -> Result<Self::Routing>;

    /// Sums `x` over ranks and keeps this rank's rows.
    ///
    /// # Communication
    /// One reduce-scatter; every rank must call it.
    fn reduce_scatter(&self, x: &Self::Tensor, n_rows: &[usize]) -> Result<Self::Tensor>;

    /// One row per sequence, `[n_seqs, d_model]`.
    fn pool(&self, x: &Self::Tensor, cu_seqlens: &[usize], rule: Pooling) -> Result<Self::Tensor>;

    /// `factor · x`.
    fn scale(&self, x: &Self::Tensor, factor: f32) -> Result<Self::Tensor>;

    /// Copies a tensor to the host, row by row.
    fn to_host(&self, x: &Self::Tensor) -> Result<Vec<f32>>;

    /// Copies a routing to the host.
    fn routing_to_host(&self, routing: &Self::Routing) -> Result<Routing>;

    /// What this device has counted.
    fn stats(&self) -> DeviceStats;
}
