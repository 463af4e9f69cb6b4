//! Random weights and activations, on the device and in host memory.

use std::borrow::Cow;

use half::{bf16, f16};
use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::device::{
    Activation, Device, EmbeddingRows, ExpertSlice, HostMatrix, LinearWeights, MatrixLayout, Norm,
    NormKind,
};
use moeshard_tensor::dtype::DType;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::reference::{ExpertLayer, Linear};
use crate::suite::{Failure, Outcome};
use crate::tolerance::{Rows, compare};

/// Different rows of activations: more rows than these repeat them, so that plain loops are done in
/// time and every row is still looked at. Prime, so that no tile of a device repeats with them.
pub(crate) const MOST_ROWS: usize = 43;

/// What one case draws its numbers from.
pub(crate) struct Inputs<'a, D> {
    pub(crate) device: &'a D,
    pub(crate) dtype: DType,
    random: ChaCha8Rng,
}

/// Activations on the device and the different ones of their rows.
pub(crate) struct Activations<T> {
    pub(crate) tensor: T,
    pub(crate) n_rows: usize,
    pub(crate) rows: Rows,
}

/// A linear layer on the device and in host memory.
pub(crate) struct LoadedLinear<D: Device> {
    pub(crate) matrix: D::Matrix,
    pub(crate) bias: Option<D::Vector>,
    pub(crate) host: Linear,
}

impl<D: Device> LoadedLinear<D> {
    pub(crate) fn weights(&self) -> LinearWeights<'_, D::Matrix, D::Vector> {
        LinearWeights {
            weight: &self.matrix,
            bias: self.bias.as_ref(),
        }
    }
}

/// A norm on the device and in host memory.
pub(crate) struct LoadedNorm<V> {
    pub(crate) device: Norm<V>,
    pub(crate) host: Norm<Vec<f32>>,
}

/// Which experts a device holds of a layer, and how wide they are.
#[derive(Clone, Debug)]
pub(crate) struct ExpertShape {
    pub(crate) n_experts: usize,
    /// Those that the device holds.
    pub(crate) held: std::ops::Range<usize>,
    pub(crate) d_model: usize,
    pub(crate) n_hidden: usize,
    pub(crate) activation: Activation,
    pub(crate) has_bias: bool,
}

impl<'a, D: Device> Inputs<'a, D> {
    pub(crate) fn new(device: &'a D, dtype: DType, seed: u64) -> Self {
        Self {
            device,
            dtype,
            random: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Whole numbers below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.random.random_range(0..n)
    }

    /// Numbers in −size..size that only f32 holds, as vectors and the router are kept.
    pub(crate) fn exact_numbers(&mut self, n: usize, size: f32) -> Vec<f32> {
        (0..n)
            .map(|_| self.random.random_range(-size..size))
            .collect()
    }

    /// Numbers in −size..size that the device's dtype holds.
    pub(crate) fn numbers(&mut self, n: usize, size: f32) -> Vec<f32> {
        let mut numbers = self.exact_numbers(n, size);
        numbers
            .iter_mut()
            .for_each(|x| *x = rounded(self.dtype, *x));
        numbers
    }

    /// Stored as f32, or in the device's dtype: it loads either.
    pub(crate) fn host_tensor(&mut self, shape: &[usize], numbers: &[f32]) -> HostTensor<'static> {
        let dtype = match self.below(2) {
            0 => DType::F32,
            _ => self.dtype,
        };
        HostTensor {
            dtype,
            shape: shape.to_vec(),
            data: Cow::Owned(bytes(dtype, numbers)),
        }
    }

    /// A stored matrix, either axis first.
    pub(crate) fn host_matrix(&mut self, n_in: usize, numbers: &[f32]) -> HostMatrix<'static> {
        let n_out = numbers.len() / n_in.max(1);
        match self.below(2) {
            0 => HostMatrix {
                tensor: self.host_tensor(&[n_out, n_in], numbers),
                layout: MatrixLayout::OutIn,
            },
            _ => {
                let at = |i: usize| numbers[(i % n_out) * n_in + i / n_out];
                let turned: Vec<f32> = (0..numbers.len()).map(at).collect();
                HostMatrix {
                    tensor: self.host_tensor(&[n_in, n_out], &turned),
                    layout: MatrixLayout::InOut,
                }
            }
        }
    }

    /// A vector, sometimes stacked of two.
    pub(crate) fn vector(&mut self, numbers: &[f32]) -> Result<D::Vector, Failure> {
        let (head, tail) = numbers.split_at(self.below(numbers.len() + 1));
        let part = |part: &[f32]| HostTensor::from_f32(vec![part.len()], part);
        let parts = match (head, tail) {
            ([], all) | (all, []) => vec![part(all)],
            _ => vec![part(head), part(tail)],
        };
        Ok(self.device.load_vector(&parts)?)
    }

    /// A layer whose outputs are about as large as its inputs, sometimes stacked of two matrices.
    pub(crate) fn linear(
        &mut self,
        n_out: usize,
        n_in: usize,
        has_bias: bool,
    ) -> Result<LoadedLinear<D>, Failure> {
        let host = self.host_linear(n_out, n_in, has_bias);
        let split = self.below(2) * n_in * (1 + self.below(n_out));
        let (first, second) = host.weight.split_at(split.min(host.weight.len()));
        let mut parts = Vec::new();
        for part in [first, second] {
            if !part.is_empty() {
                parts.push(self.host_matrix(n_in, part));
            }
        }
        let bias = host.bias.as_ref();
        Ok(LoadedLinear {
            matrix: self.device.load_matrix(&parts)?,
            bias: bias.map(|bias| self.vector(bias)).transpose()?,
            host,
        })
    }

    fn host_linear(&mut self, n_out: usize, n_in: usize, has_bias: bool) -> Linear {
        // Sums of n numbers in −1..1 grow with the root of n / 3.
        let size = (3.0 / n_in as f32).sqrt();
        Linear {
            n_in,
            weight: self.numbers(n_out * n_in, size),
            bias: has_bias.then(|| self.exact_numbers(n_out, 1.0)),
        }
    }

    pub(crate) fn norm(
        &mut self,
        n_cols: usize,
        kind: NormKind,
        has_bias: bool,
    ) -> Result<LoadedNorm<D::Vector>, Failure> {
        let host = Norm {
            kind,
            eps: 1e-5,
            weight: self.exact_numbers(n_cols, 2.0),
            bias: has_bias.then(|| self.exact_numbers(n_cols, 1.0)),
        };
        let bias = host.bias.as_ref();
        Ok(LoadedNorm {
            device: Norm {
                kind,
                eps: host.eps,
                weight: self.vector(&host.weight)?,
                bias: bias.map(|bias| self.vector(bias)).transpose()?,
            },
            host,
        })
    }

    /// Activations in −1..1. A device takes them from nowhere but a table, one that it rounds or one
    /// that it does not.
    pub(crate) fn rows(
        &mut self,
        n_rows: usize,
        n_cols: usize,
    ) -> Result<Activations<D::Tensor>, Failure> {
        self.some_rows(n_rows, n_rows.min(MOST_ROWS), n_cols)
    }

    /// The same, `n_different` of them different.
    pub(crate) fn some_rows(
        &mut self,
        n_rows: usize,
        n_different: usize,
        n_cols: usize,
    ) -> Result<Activations<D::Tensor>, Failure> {
        // A table has a row at least.
        let numbers = self.numbers(n_different.max(1) * n_cols, 1.0);
        let tensor = self.embedded(&numbers, n_cols, n_rows)?;
        Ok(Activations {
            tensor,
            n_rows,
            rows: Rows::exact(n_cols, &numbers[..n_different * n_cols]),
        })
    }

    /// These rows on the device, again and again until there are `n_rows`.
    pub(crate) fn embedded(
        &mut self,
        numbers: &[f32],
        n_cols: usize,
        n_rows: usize,
    ) -> Result<D::Tensor, Failure> {
        let n_different = numbers.len() / n_cols;
        let host = self.host_tensor(&[n_different, n_cols], numbers);
        let table = match self.below(2) {
            0 => self.device.load_table(&host)?,
            _ => self.device.load_exact_table(&host)?,
        };
        let row_idx: Vec<u32> = (0..n_rows).map(|row| (row % n_different) as u32).collect();
        let rows = [EmbeddingRows {
            table: &table,
            row_idx: &row_idx,
            scale: 1.0,
        }];
        Ok(self.device.embed(&rows, None)?)
    }

    pub(crate) fn experts(
        &mut self,
        shape: &ExpertShape,
    ) -> Result<(D::Experts, ExpertLayer), Failure> {
        let ExpertShape {
            d_model, n_hidden, ..
        } = *shape;
        let mut experts = Vec::new();
        for expert_idx in 0..shape.n_experts {
            let is_held = shape.held.contains(&expert_idx);
            experts.push(is_held.then(|| {
                (
                    self.host_linear(n_hidden, d_model, shape.has_bias),
                    self.host_linear(d_model, n_hidden, shape.has_bias),
                )
            }));
        }
        let mut slices = Vec::new();
        for (expert_idx, expert) in experts.iter().enumerate() {
            let Some((up, down)) = expert else { continue };
            let bias = |linear: &Linear| {
                let bias = linear.bias.as_ref()?;
                Some(HostTensor::from_f32(vec![bias.len()], bias))
            };
            slices.push(ExpertSlice {
                expert_idx,
                w_in: self.host_matrix(up.n_in, &up.weight),
                b_in: bias(up),
                w_out: self.host_matrix(down.n_in, &down.weight),
                b_out: bias(down),
            });
        }
        let loaded = (self.device).load_experts(shape.n_experts, slices, shape.activation)?;
        let layer = ExpertLayer {
            experts,
            activation: shape.activation,
        };
        Ok((loaded, layer))
    }

    /// Compares a tensor with what is expected of its rows.
    pub(crate) fn check(&self, found: &D::Tensor, n_rows: usize, expected: &Rows) -> Outcome {
        compare(self.dtype, &self.device.to_host(found)?, n_rows, expected)
    }
}

/// The nearest number of a format.
fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F32 => x,
        DType::BF16 => bf16::from_f32(x).to_f32(),
        DType::F16 => f16::from_f32(x).to_f32(),
    }
}

/// Numbers as a checkpoint stores them.
fn bytes(dtype: DType, numbers: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::BF16 => (numbers.iter())
            .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
            .collect(),
        DType::F16 => (numbers.iter())
            .flat_map(|&x| f16::from_f32(x).to_le_bytes())
            .collect(),
    }
}
