//! Tensors by name, written as a checkpoint.

use std::collections::HashMap;
use std::path::Path;

use moeshard_tensor::dtype::DType;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use crate::compare::Random;

/// Shape and numbers of each tensor.
pub type Tensors = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes tensors as f32.
///
/// # Panics
/// If a shape does not fit its numbers, or the disk is full.
pub fn write(tensors: &Tensors, file: &Path) {
    let bytes: HashMap<_, _> = tensors
        .iter()
        .map(|(name, (shape, data))| {
            let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
            (name.clone(), (shape.clone(), bytes))
        })
        .collect();
    let views = bytes.iter().map(|(name, (shape, data))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), data).expect("view");
        (name.clone(), view)
    });
    serialize_to_file(views, None, file).expect("write");
}

/// Random tensors from one seed, scaled as `tests/goldens/common.py` does.
#[derive(Debug)]
pub struct RandomWeights {
    random: Random,
    /// Which numbers the weights are.
    dtype: DType,
    /// Those made so far.
    pub tensors: Tensors,
}

impl RandomWeights {
    /// None yet. All will be numbers of bf16 if that is `dtype`, else of f32.
    pub fn new(seed: u64, dtype: DType) -> Self {
        Self {
            random: Random(seed),
            dtype,
            tensors: Tensors::new(),
        }
    }

    /// Numbers of mean 0.
    pub fn normal(&mut self, name: &str, shape: &[usize], std: f32) {
        self.put(name, shape, |random| std * random.normal());
    }

    fn put(&mut self, name: &str, shape: &[usize], number: impl Fn(&mut Random) -> f32) {
        let kept = match self.dtype {
            DType::BF16 => 0xffff_0000,
            _ => u32::MAX,
        };
        let n: usize = shape.iter().product();
        let numbers = (0..n).map(|_| number(&mut self.random));
        let data = numbers
            .map(|x| f32::from_bits(x.to_bits() & kept))
            .collect();
        self.tensors.insert(name.to_owned(), (shape.to_vec(), data));
    }

    /// A matrix `[n_out, n_in]` whose outputs deviate as its inputs do, times `gain`.
    pub fn matrix(&mut self, name: &str, n_out: usize, n_in: usize, gain: f32) {
        let std = gain / (n_in as f32).sqrt();
        self.normal(&format!("{name}.weight"), &[n_out, n_in], std);
    }

    /// As [`RandomWeights::matrix`], with a bias.
    pub fn linear(&mut self, name: &str, n_out: usize, n_in: usize, gain: f32) {
        self.matrix(name, n_out, n_in, gain);
        self.normal(&format!("{name}.bias"), &[n_out], 0.1);
    }

    /// The weight of a normalisation, 0.5 to 1.5.
    pub fn scale(&mut self, name: &str, n: usize) {
        let number = |random: &mut Random| 1.0 + 0.5 * random.signed();
        self.put(&format!("{name}.weight"), &[n], number);
    }

    /// Weight and bias of a normalisation.
    pub fn norm(&mut self, name: &str, n: usize) {
        self.scale(name, n);
        self.normal(&format!("{name}.bias"), &[n], 0.1);
    }
}
