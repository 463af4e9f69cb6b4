//! Reads what a spec names from a checkpoint, one rank's slices only, into a device.

use std::ops::Range;

use moeshard_tensor::checkpoint::{Checkpoint, HostTensor};
use moeshard_tensor::device::{
    Activation, Device, DeviceError, ExpertSlice, HostMatrix, LinearWeights, MatrixLayout, Norm,
    RouterRule,
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

impl<D: Device> Linear<D> {
    pub(crate) fn weights(&self) -> LinearWeights<'_, D::Matrix, D::Vector> {
        LinearWeights {
            weight: &self.weight,
            bias: self.bias.as_ref(),
        }
    }
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
    pub(crate) norm: Option<Norm<D::Vector>>,
    pub(crate) dense: Option<(Linear<D>, Activation)>,
    pub(crate) out: Linear<D>,
}

impl<D: Device> Weights<D> {
    /// Loads everything, once the spec has been found to fit the checkpoint; `progress` is told the
    /// bytes of each tensor as it has been read.
    pub(crate) fn load(
        device: &D,
        spec: &EncoderSpec,
        checkpoint: &Checkpoint,
        plan: ShardPlan,
        progress: &dyn Fn(u64),
    ) -> Result<Self> {
        spec.validate(checkpoint)?;
        for (layer_idx, experts) in spec.expert_layers() {
            plan.check(experts.experts.len(), experts.d_ff)
                .map_err(|reason| EncoderError::Layout { layer_idx, reason })?;
        }
        let loader = Loader {
            device,
            checkpoint,
            plan,
            progress,
        };
        Ok(Self {
            embedding: loader.embedding(&spec.embedding, spec.d_model)?,
            relative_bias: loader.optional_vector(spec.relative_bias.as_ref())?,
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

/// Every tensor that it is asked for exists and has the shape that the spec gives it.
struct Loader<'a, D> {
    device: &'a D,
    checkpoint: &'a Checkpoint,
    plan: ShardPlan,
    progress: &'a dyn Fn(u64),
}

impl<'a, D: Device> Loader<'a, D> {
    fn embedding(&self, spec: &EmbeddingSpec, d_model: usize) -> Result<Embedding<D>> {
        let position = match &spec.position {
            PositionEmbedding::None => None,
            PositionEmbedding::Learned { table, .. } => Some(self.table(table)?),
            PositionEmbedding::Sinusoidal {
                offset,
                n_positions,
            } => {
                let table = sinusoidal_table(*offset, *n_positions, d_model);
                Some(self.device.load_exact_table(&table)?)
            }
        };
        Ok(Embedding {
            word: self.table(&spec.word)?,
            position,
            token_type: match &spec.token_type {
                Some((table, _)) => Some(self.table(table)?),
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
        let router = self.matrix(&spec.router)?;
        let mut slices = Vec::with_capacity(n_experts);
        for (expert_idx, expert) in spec.experts.iter().enumerate() {
            let units = self.plan.hidden_units(expert_idx, n_experts, spec.d_ff);
            if !units.is_empty() {
                slices.push(self.expert_slice(expert_idx, expert, units)?);
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
    ) -> Result<ExpertSlice<'a>> {
        // Hidden units are W_in's outputs and W_out's inputs.
        let (outputs, inputs) = (output_axis(&spec.w_in), 1 - output_axis(&spec.w_out));
        let b_in = spec.b_in.as_ref();
        let b_out = spec.b_out.as_ref().filter(|_| units.start == 0);
        Ok(ExpertSlice {
            expert_idx,
            w_in: HostMatrix {
                tensor: self.part(&spec.w_in.tensor, outputs, units.clone())?,
                layout: spec.w_in.layout,
            },
            b_in: b_in.map(|b| self.part(b, 0, units.clone())).transpose()?,
            w_out: HostMatrix {
                tensor: self.part(&spec.w_out.tensor, inputs, units)?,
                layout: spec.w_out.layout,
            },
            b_out: b_out.map(|b| self.whole(b)).transpose()?,
        })
    }

    fn head(&self, spec: &HeadSpec) -> Result<Head<D>> {
        let dense = match &spec.dense {
            Some((linear, activation)) => Some((self.exact_linear(linear)?, *activation)),
            None => None,
        };
        Ok(Head {
            norm: spec.norm.as_ref().map(|n| self.norm(n)).transpose()?,
            dense,
            out: self.exact_linear(&spec.out)?,
        })
    }

    /// A layer of a head: one matrix, in full precision.
    fn exact_linear(&self, spec: &LinearSpec) -> Result<Linear<D>> {
        let [weight] = &spec.weights[..] else {
            return self.linear(spec);
        };
        let matrix = self.matrix(weight)?;
        let biases = spec.biases.first();
        Ok(Linear {
            weight: self.named(self.device.load_exact_matrix(&matrix), |_| &weight.tensor)?,
            bias: self.optional_vector(biases)?,
        })
    }

    fn linear(&self, spec: &LinearSpec) -> Result<Linear<D>> {
        let weights = spec.weights.iter().map(|w| self.matrix(w));
        let weights = weights.collect::<Result<Vec<_>>>()?;
        let biases = spec.biases.iter().map(|b| self.whole(b));
        let biases = biases.collect::<Result<Vec<_>>>()?;
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
        Ok(Norm {
            kind: spec.kind,
            eps: spec.eps,
            weight: self.vector(&spec.weight)?,
            bias: self.optional_vector(spec.bias.as_ref())?,
        })
    }

    fn optional_vector(&self, tensor: Option<&TensorRef>) -> Result<Option<D::Vector>> {
        tensor.map(|tensor| self.vector(tensor)).transpose()
    }

    /// A tensor of any shape, row after row.
    fn vector(&self, tensor: &TensorRef) -> Result<D::Vector> {
        let host = self.whole(tensor)?;
        self.named(self.device.load_vector(&[host]), |_| tensor)
    }

    fn table(&self, tensor: &TensorRef) -> Result<D::Table> {
        let host = self.whole(tensor)?;
        self.named(self.device.load_table(&host), |_| tensor)
    }

    fn matrix(&self, matrix: &MatrixRef) -> Result<HostMatrix<'a>> {
        Ok(HostMatrix {
            tensor: self.whole(&matrix.tensor)?,
            layout: matrix.layout,
        })
    }

    fn whole(&self, tensor: &TensorRef) -> Result<HostTensor<'a>> {
        self.read(tensor, |_| {})
    }

    /// Part `range` of one axis, all of the others.
    fn part(&self, tensor: &TensorRef, axis: usize, range: Range<usize>) -> Result<HostTensor<'a>> {
        self.read(tensor, |ranges| {
            let start = ranges[axis].start;
            ranges[axis] = start + range.start..start + range.end;
        })
    }

    /// Reads what `choose` leaves of a tensor's ranges (after the choice of rows), and tells the
    /// progress.
    fn read(
        &self,
        tensor: &TensorRef,
        choose: impl FnOnce(&mut [Range<usize>]),
    ) -> Result<HostTensor<'a>> {
        let shape = self.checkpoint.info(&tensor.name).map(|info| &info.shape);
        let mut ranges: Vec<_> = shape.into_iter().flatten().map(|&n| 0..n).collect();
        if let (Some(rows), Some(first)) = (&tensor.rows, ranges.first_mut()) {
            *first = rows.clone();
        }
        choose(&mut ranges);
        let host = self.checkpoint.read(&tensor.name, &ranges)?;
        (self.progress)(host.data.len() as u64);
        Ok(host)
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
}

/// The axis of a matrix's outputs.
fn output_axis(matrix: &MatrixRef) -> usize {
    usize::from(matrix.layout == MatrixLayout::InOut)
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
