//! Which tensors a spec needs, and whether a checkpoint has them.
//!
//! Checked before anything is loaded, so that a config that contradicts its weights dies in a
//! sentence and not in the middle of a long load.

use std::collections::HashMap;

use moeshard_tensor::checkpoint::Checkpoint;
use moeshard_tensor::device::{MatrixLayout, PositionRule};

use crate::model_error::{ModelError, Result};
use crate::spec::{
    DenseFfnSpec, EmbeddingSpec, EncoderSpec, ExpertsSpec, FfnSpec, HeadSpec, LayerSpec,
    LinearSpec, MatrixRef, NormSpec, PositionEmbedding, TensorRef,
};

/// A tensor as a spec expects to find it in the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Full name in the checkpoint.
    pub name: String,
    /// Shape of the whole tensor, where several things are stacked in it too.
    pub shape: Vec<usize>,
}

impl EncoderSpec {
    /// All tensors that the encoder and its head consist of.
    ///
    /// A tensor that several parts share may be listed more than once; one that is cut into rows
    /// is listed once, up to the last row used.
    pub fn tensors(&self) -> Vec<ExpectedTensor> {
        let mut list = Expected::default();
        list.embedding(&self.embedding, self.d_model);
        if let (Some(table), PositionRule::RelativeBias { n_buckets, .. }) =
            (&self.relative_bias, self.attention.position)
        {
            list.tensor(table, vec![n_buckets, self.attention.n_heads]);
        }
        for layer in &self.layers {
            list.layer(layer, self.d_model);
        }
        if let Some(norm) = &self.final_norm {
            list.norm(norm, self.d_model);
        }
        if let Some(head) = &self.head {
            list.head(head);
        }
        list.tensors
    }

    /// Checks that `checkpoint` has every tensor of this spec, in a format that can be read and
    /// in the shape that it should have.
    ///
    /// # Errors
    /// The first tensor for which that is not so, with what was expected and found.
    pub fn validate(&self, checkpoint: &Checkpoint) -> Result<(), ModelError> {
        self.tensors()
            .iter()
            .try_for_each(|tensor| check(tensor, checkpoint))
    }
}

impl LayerSpec {
    /// Checks the tensors of this layer alone, as [`EncoderSpec::validate`].
    pub(crate) fn validate(&self, d_model: usize, checkpoint: &Checkpoint) -> Result<()> {
        let mut list = Expected::default();
        list.layer(self, d_model);
        list.tensors
            .iter()
            .try_for_each(|tensor| check(tensor, checkpoint))
    }
}

/// Checks one tensor.
fn check(tensor: &ExpectedTensor, checkpoint: &Checkpoint) -> Result<()> {
    let info = checkpoint.info(&tensor.name);
    let readable = info.filter(|info| info.dtype.float().is_some());
    let Some(info) = readable else {
        // Reading says best why it cannot be read.
        checkpoint.read(&tensor.name, &[])?;
        return Ok(());
    };
    if info.shape != tensor.shape {
        return Err(ModelError::TensorShape {
            file: checkpoint.file_of(&tensor.name).to_owned(),
            tensor: tensor.name.clone(),
            expected: tensor.shape.clone(),
            found: info.shape.clone(),
        });
    }
    Ok(())
}

/// Collects tensors while walking over a spec.
#[derive(Default)]
struct Expected {
    tensors: Vec<ExpectedTensor>,
    /// Where in `tensors` those are that are cut into rows.
    cut: HashMap<String, usize>,
}

impl Expected {
    /// A tensor that has `shape` after the choice of rows.
    fn tensor(&mut self, tensor: &TensorRef, mut shape: Vec<usize>) {
        let name = &tensor.name;
        let Some(rows) = &tensor.rows else {
            let name = name.clone();
            return self.tensors.push(ExpectedTensor { name, shape });
        };
        shape[0] = rows.end;
        if let Some(&idx) = self.cut.get(name) {
            let whole = &mut self.tensors[idx].shape[0];
            *whole = rows.end.max(*whole);
            return;
        }
        self.cut.insert(name.clone(), self.tensors.len());
        let name = name.clone();
        self.tensors.push(ExpectedTensor { name, shape });
    }

    fn matrix(&mut self, matrix: &MatrixRef, n_out: usize, n_in: usize) {
        let shape = match matrix.layout {
            MatrixLayout::OutIn => vec![n_out, n_in],
            MatrixLayout::InOut => vec![n_in, n_out],
        };
        self.tensor(&matrix.tensor, shape);
    }

    fn linear(&mut self, linear: &LinearSpec) {
        let n_out = linear.n_out.checked_div(linear.weights.len()).unwrap_or(0);
        for weight in &linear.weights {
            self.matrix(weight, n_out, linear.n_in);
        }
        for bias in &linear.biases {
            self.tensor(bias, vec![n_out]);
        }
    }

    fn norm(&mut self, norm: &NormSpec, d_model: usize) {
        self.tensor(&norm.weight, vec![d_model]);
        self.vector(norm.bias.as_ref(), d_model);
    }

    fn vector(&mut self, vector: Option<&TensorRef>, n: usize) {
        if let Some(vector) = vector {
            self.tensor(vector, vec![n]);
        }
    }

    fn embedding(&mut self, embedding: &EmbeddingSpec, d_model: usize) {
        self.tensor(&embedding.word, vec![embedding.vocab_size, d_model]);
        if let PositionEmbedding::Learned { table, n_rows, .. } = &embedding.position {
            self.tensor(table, vec![*n_rows, d_model]);
        }
        if let Some((table, n_rows)) = &embedding.token_type {
            self.tensor(table, vec![*n_rows, d_model]);
        }
        if let Some(norm) = &embedding.norm {
            self.norm(norm, d_model);
        }
    }

    fn layer(&mut self, layer: &LayerSpec, d_model: usize) {
        self.linear(&layer.qkv);
        self.linear(&layer.attention_out);
        self.norm(&layer.attention_norm, d_model);
        match &layer.ffn {
            FfnSpec::Dense(ffn) => self.dense(ffn),
            FfnSpec::Experts(experts) => self.experts(experts, d_model),
        }
        self.norm(&layer.ffn_norm, d_model);
    }

    fn dense(&mut self, ffn: &DenseFfnSpec) {
        self.linear(&ffn.up);
        if let Some(gate) = &ffn.gate {
            self.linear(gate);
        }
        self.linear(&ffn.down);
    }

    fn experts(&mut self, experts: &ExpertsSpec, d_model: usize) {
        self.matrix(&experts.router, experts.experts.len(), d_model);
        for expert in &experts.experts {
            self.matrix(&expert.w_in, experts.d_ff, d_model);
            self.vector(expert.b_in.as_ref(), experts.d_ff);
            self.matrix(&expert.w_out, d_model, experts.d_ff);
            self.vector(expert.b_out.as_ref(), d_model);
        }
        self.vector(experts.shared_bias.as_ref(), d_model);
    }

    fn head(&mut self, head: &HeadSpec) {
        let n_in = head.dense.as_ref().map_or(head.out.n_in, |(d, _)| d.n_in);
        if let Some(norm) = &head.norm {
            self.norm(norm, n_in);
        }
        if let Some((dense, _)) = &head.dense {
            self.linear(dense);
        }
        self.linear(&head.out);
    }
}
