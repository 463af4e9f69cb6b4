//! Reads what a spec names from a checkpoint, one rank's slices only, into a device.

use std::ops::Range;

use moeshard_tensor::checkpoint::{Checkpoint, HostTensor};
use moeshard_tensor::device::{
    Activation, Device, DeviceError, ExpertSlice, HostMatrix, MatrixLayout, Norm, RouterRule,
};

use crate::error::EncoderError;
use crate::shard::ShardPlan;
use crate::spec::{
    DenseFfnSpec, EmbeddingSpec, EncoderSpec, ExpertSpec, ExpertsSpec, FfnSpec, HeadSpec,
    LayerSpec, LinearSpec, MatrixRef, NormSpec, PositionEmbedding, TensorRef,
};

type Result<T> = std::result::Result<T, EncoderError>;

/// The loaded weights of an encoder, on one rank.
pub(crate) struct Weights<D: Device> {
    pub(crate) embedding: Embedding<D>,
    pub(crate) relative_bias: Option<D::Vector>,
    pub(crate) layers: Vec<Layer<D>>,
    pub(crate) final_norm: Option<Norm<D::Vector>>,
    pub(crate) head: Option<Head<D>>,
}

/// Tables of the embedding.
pub(crate) struct Embedding<D: Device> {
    pub(crate) word: D::Table,
    pub(crate) position: Option<D::Table>,
    pub(crate) token_type: Option<D::Table>,
    pub(crate) norm: Option<Norm<D::Vector>>,
}

/// A linear layer.
pub(crate) struct Linear<D: Device> {
    pub(crate) weight: D::Matrix,
    pub(crate) bias: Option<D::Vector>,
}

/// One layer.
pub(crate) struct Layer<D: Device> {
    pub(crate) qkv: Linear<D>,
    pub(crate) attention_out: Linear<D>,
    pub(crate) attention_norm: Norm<D::Vector>,
    pub(crate) ffn: Ffn<D>,
    pub(crate) ffn_norm: Norm<D::Vector>,
}

/// A feed-forward network.
pub(crate) enum Ffn<D: Device> {
    Dense {
        up: Linear<D>,
        gate: Option<Linear<D>>,
        down: Linear<D>,
        activation: Activation,
    },
    Experts(ExpertLayer<D>),
}

/// Router and this rank's slices of the experts.
pub(crate) struct ExpertLayer<D: Device> {
    pub(crate) n_experts: usize,
    pub(crate) router: D::Matrix,
    pub(crate) rule: RouterRule,
    pub(crate) experts: D::Experts,
    pub(crate) output_scale: f32,
    pub(crate) shared_bias: Option<D::Vector>,
}

/// A classification head.
pub(crate) struct Head<D: Device> {
    pub(crate) dense: Option<(Linear<D>, Activation)>,
    pub(crate) out: Linear<D>,
}

impl<D: Device> Weights<D> {
    /// Loads everything; `progress` is told the bytes of each tensor as it has been read.
    pub(crate) fn load(
        device: &D,
        spec: &EncoderSpec,
        checkpoint: &Checkpoint,
        plan: ShardPlan,
        progress: &dyn Fn(u64),
    ) -> Result<Self> {
        for (layer_idx, experts) in spec.expert_layers() {
            plan.check(experts.experts.len(), experts.d_ff)
                .map_err(|reason| EncoderError::Layout { layer_idx, reason })?;
        }
        let d_model = spec.d_model;
        let loader = Loader {
            device,
            checkpoint,
            plan,
            d_model,
            progress,
        };
        Ok(Self {
            embedding: loader.embedding(&spec.embedding)?,
            relative_bias: spec
                .relative_bias
                .as_ref()
                .map(|t| loader.any_vector(t))
                .transpose()?,
            layers: spec
                .layers
                .iter()
                .map(|l| loader.layer(l))
                .collect::<Result<_>>()?,
            final_norm: spec
                .final_norm
                .as_ref()
                .map(|n| loader.norm(n))
                .transpose()?,
            head: spec.head.as_ref().map(|h| loader.head(h)).transpose()?,
        })
    }
}

struct Loader<'a, D> {
    device: &'a D,
    checkpoint: &'a Checkpoint,
    plan: ShardPlan,
    d_model: usize,
    progress: &'a dyn Fn(u64),
}

impl<'a, D: Device> Loader<'a, D> {
    fn embedding(&self, spec: &EmbeddingSpec) -> Result<Embedding<D>> {
        let position = match &spec.position {
            PositionEmbedding::None => None,
            PositionEmbedding::Learned { table, n_rows, .. } => Some(self.table(table, *n_rows)?),
            PositionEmbedding::Sinusoidal {
                offset,
                n_positions,
            } => {
                let table = sinusoidal_table(*offset, *n_positions, self.d_model);
                Some(self.device.load_exact_table(&table)?)
            }
        };
        Ok(Embedding {
            word: self.table(&spec.word, spec.vocab_size)?,
            position,
            token_type: match &spec.token_type {
                Some((table, n_rows)) => Some(self.table(table, *n_rows)?),
                None => None,
            },
            norm: spec.norm.as_ref().map(|n| self.norm(n)).transpose()?,
        })
    }

    fn layer(&self, spec: &LayerSpec) -> Result<Layer<D>> {
        Ok(Layer {
            qkv: self.linear(&spec.qkv)?,
            attention_out: self.linear(&spec.attention_out)?,
            attention_norm: self.norm(&spec.attention_norm)?,
            ffn: match &spec.ffn {
                FfnSpec::Dense(dense) => self.dense_ffn(dense)?,
                FfnSpec::Experts(experts) => Ffn::Experts(self.expert_layer(experts)?),
            },
            ffn_norm: self.norm(&spec.ffn_norm)?,
        })
    }

    fn dense_ffn(&self, spec: &DenseFfnSpec) -> Result<Ffn<D>> {
        Ok(Ffn::Dense {
            up: self.linear(&spec.up)?,
            gate: spec.gate.as_ref().map(|g| self.linear(g)).transpose()?,
            down: self.linear(&spec.down)?,
            activation: spec.activation,
        })
    }

    fn expert_layer(&self, spec: &ExpertsSpec) -> Result<ExpertLayer<D>> {
        let n_experts = spec.experts.len();
        let router = self.matrix(&spec.router, 0..n_experts, 0..self.d_model, n_experts)?;
        let mut slices = Vec::with_capacity(n_experts);
        for (expert_idx, expert) in spec.experts.iter().enumerate() {
            let units = self.plan.hidden_units(expert_idx, n_experts, spec.d_ff);
            if !units.is_empty() {
                slices.push(self.expert_slice(expert_idx, expert, units, spec.d_ff)?);
            }
        }
        let held: Vec<_> = slices.iter().map(|slice| slice.expert_idx).collect();
        let experts = self.device.load_experts(n_experts, slices, spec.activation);
        Ok(ExpertLayer {
            n_experts,
            router: self.named(self.device.load_exact_matrix(&router), |_| {
                &spec.router.tensor
            })?,
            rule: spec.rule,
            experts: self.named(experts, |part| {
                let expert = &spec.experts[held[part / 2]];
                &[&expert.w_in, &expert.w_out][part % 2].tensor
            })?,
            output_scale: spec.output_scale,
            shared_bias: self.optional_vector(spec.shared_bias.as_ref())?,
        })
    }

    /// Reads hidden units `units` of one expert. The output bias goes to the rank that holds the
    /// first unit, so that it is added once.
    fn expert_slice(
        &self,
        expert_idx: usize,
        spec: &ExpertSpec,
        units: Range<usize>,
        d_ff: usize,
    ) -> Result<ExpertSlice<'a>> {
        let d_model = self.d_model;
        let b_in = spec
            .b_in
            .as_ref()
            .map(|b| self.slice(b, d_ff, units.clone()))
            .transpose()?;
        let b_out = spec.b_out.as_ref().filter(|_| units.start == 0);
        Ok(ExpertSlice {
            expert_idx,
            w_in: self.matrix(&spec.w_in, units.clone(), 0..d_model, d_ff)?,
            b_in,
            w_out: self.matrix_of_inputs(&spec.w_out, d_model, units, d_ff)?,
            b_out: b_out
                .map(|b| self.slice(b, d_model, 0..d_model))
                .transpose()?,
        })
    }

    fn head(&self, spec: &HeadSpec) -> Result<Head<D>> {
        let dense = match &spec.dense {
            Some((linear, activation)) => Some((self.linear(linear)?, *activation)),
            None => None,
        };
        Ok(Head {
            dense,
            out: self.linear(&spec.out)?,
        })
    }

    fn linear(&self, spec: &LinearSpec) -> Result<Linear<D>> {
        let n_out = spec.n_out / spec.weights.len().max(1);
        let weights = spec
            .weights
            .iter()
            .map(|w| self.matrix(w, 0..n_out, 0..spec.n_in, n_out))
            .collect::<Result<Vec<_>>>()?;
        let biases = spec
            .biases
            .iter()
            .map(|b| self.slice(b, n_out, 0..n_out))
            .collect::<Result<Vec<_>>>()?;
        let name = |part: usize| &spec.weights[part].tensor;
        Ok(Linear {
            weight: self.named(self.device.load_matrix(&weights), name)?,
            bias: match biases.as_slice() {
                [] => None,
                biases => Some(self.named(self.device.load_vector(biases), |i| &spec.biases[i])?),
            },
        })
    }

    fn norm(&self, spec: &NormSpec) -> Result<Norm<D::Vector>> {
        let n = self.d_model;
        Ok(Norm {
            kind: spec.kind,
            eps: spec.eps,
            weight: self.vector(&spec.weight, self.slice(&spec.weight, n, 0..n)?)?,
            bias: self.optional_vector(spec.bias.as_ref())?,
        })
    }

    /// A vector `[d_model]`.
    fn optional_vector(&self, tensor: Option<&TensorRef>) -> Result<Option<D::Vector>> {
        let Some(tensor) = tensor else {
            return Ok(None);
        };
        let host = self.slice(tensor, self.d_model, 0..self.d_model)?;
        self.vector(tensor, host).map(Some)
    }

    /// A tensor of any shape, flattened.
    fn any_vector(&self, tensor: &TensorRef) -> Result<D::Vector> {
        let host = self.told(self.checkpoint.read(&tensor.name, &[])?);
        self.vector(tensor, host)
    }

    fn vector(&self, tensor: &TensorRef, host: HostTensor<'_>) -> Result<D::Vector> {
        self.named(self.device.load_vector(&[host]), |_| tensor)
    }

    fn table(&self, tensor: &TensorRef, n_rows: usize) -> Result<D::Table> {
        let host = self.read(
            tensor,
            &[n_rows, self.d_model],
            &[0..n_rows, 0..self.d_model],
        )?;
        self.named(self.device.load_table(&host), |_| tensor)
    }

    /// Part `range` of a vector of `n`.
    fn slice(&self, tensor: &TensorRef, n: usize, range: Range<usize>) -> Result<HostTensor<'a>> {
        self.read(tensor, &[n], &[range])
    }

    /// Outputs `outs` of `n_out`, all inputs.
    fn matrix(
        &self,
        matrix: &MatrixRef,
        outs: Range<usize>,
        ins: Range<usize>,
        n_out: usize,
    ) -> Result<HostMatrix<'a>> {
        let n_in = ins.end;
        self.matrix_slice(matrix, [n_out, n_in], [outs, ins])
    }

    /// Inputs `ins` of `n_in`, all outputs.
    fn matrix_of_inputs(
        &self,
        matrix: &MatrixRef,
        n_out: usize,
        ins: Range<usize>,
        n_in: usize,
    ) -> Result<HostMatrix<'a>> {
        self.matrix_slice(matrix, [n_out, n_in], [0..n_out, ins])
    }

    /// A slice of a matrix, sizes and ranges given as outputs, inputs.
    fn matrix_slice(
        &self,
        matrix: &MatrixRef,
        mut shape: [usize; 2],
        mut ranges: [Range<usize>; 2],
    ) -> Result<HostMatrix<'a>> {
        if matrix.layout == MatrixLayout::InOut {
            shape.reverse();
            ranges.reverse();
        }
        let tensor = self.read(&matrix.tensor, &shape, &ranges)?;
        Ok(HostMatrix {
            tensor,
            layout: matrix.layout,
        })
    }

    /// Reads `ranges` of a tensor that must have `shape` (after the choice of rows).
    fn read(
        &self,
        tensor: &TensorRef,
        shape: &[usize],
        ranges: &[Range<usize>],
    ) -> Result<HostTensor<'a>> {
        let name = tensor.name.as_str();
        if let Some(info) = self.checkpoint.info(name) {
            let mut found = info.shape.clone();
            if let (Some(rows), Some(first)) = (&tensor.rows, found.first_mut()) {
                *first = first.saturating_sub(rows.start).min(rows.len());
            }
            if found != shape {
                return Err(EncoderError::TensorShape {
                    file: self.checkpoint.file_of(name).to_owned(),
                    tensor: name.to_owned(),
                    expected: shape.to_vec(),
                    found,
                });
            }
        }
        let mut ranges = ranges.to_vec();
        if let (Some(rows), Some(first)) = (&tensor.rows, ranges.first_mut()) {
            *first = first.start + rows.start..first.end + rows.start;
        }
        Ok(self.told(self.checkpoint.read(name, &ranges)?))
    }

    /// Names the tensor that a device refused; `tensor` tells which one each part passed was.
    fn named<'t, T>(
        &self,
        loaded: std::result::Result<T, DeviceError>,
        tensor: impl Fn(usize) -> &'t TensorRef,
    ) -> Result<T> {
        loaded.map_err(|error| match error {
            DeviceError::NotFinite {
                part_idx,
                element_idx,
                dtype,
            } => {
                let tensor = tensor(part_idx).name.clone();
                EncoderError::NotFinite {
                    file: self.checkpoint.file_of(&tensor).to_owned(),
                    tensor,
                    element_idx,
                    dtype,
                }
            }
            other => EncoderError::Device(other),
        })
    }

    /// Tells the progress.
    fn told(&self, host: HostTensor<'a>) -> HostTensor<'a> {
        (self.progress)(host.data.len() as u64);
        host
    }
}

/// Row `p` is `[sin(a·f_0), …, cos(a·f_0), …]` with `a = offset + p` and
/// `f_i = 10000^(−i / (d/2 − 1))`.
fn sinusoidal_table(offset: usize, n_positions: usize, d_model: usize) -> HostTensor<'static> {
    let half = d_model / 2;
    let step = 10_000_f64.ln() / half.saturating_sub(1).max(1) as f64;
    let mut table = vec![0.0_f32; n_positions * d_model];
    for (position, row) in table.chunks_exact_mut(d_model.max(1)).enumerate() {
        for i in 0..half {
            let angle = (position + offset) as f64 * (-(i as f64) * step).exp();
            row[i] = angle.sin() as f32;
            row[half + i] = angle.cos() as f32;
        }
    }
    HostTensor::from_f32(vec![n_positions, d_model], &table)
}

impl From<DeviceError> for EncoderError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}
