//! What each operation launches. The kernels' own files say what they take.

use std::rc::Rc;

use moeshard_tensor::device::{Activation, LinearWeights, Norm, NormKind};
use moeshard_tensor::dtype::DType;

use crate::device::CudaDevice;
use crate::driver::Driver;
use crate::memory::Piece;
use crate::pass::Word;
use crate::product::Product;
use crate::tensor::{Content, Tensor, Weighted, padded, word};
use crate::weights::{Matrix, Vector};

/// Threads of most kernels.
const THREADS: u32 = 256;
/// Tokens of a block of the kernels in which a warp has one.
pub(crate) const TOKENS: usize = 8;

/// A kernel's name for a dtype.
macro_rules! named {
    ($name:literal, $dtype:expr) => {
        match $dtype {
            DType::F32 => concat!($name, "_f32"),
            DType::BF16 => concat!($name, "_bf16"),
            DType::F16 => concat!($name, "_f16"),
        }
    };
}
pub(crate) use named;

/// Arguments in the order in which a kernel takes them.
macro_rules! words {
    ($($arg:expr),* $(,)?) => {
        [$(crate::pass::Word::from($arg)),*]
    };
}
pub(crate) use words;

impl From<usize> for Word {
    /// Sizes of what is in memory: [`CudaDevice`] has refused larger ones.
    fn from(n: usize) -> Self {
        Self::from(n as u32)
    }
}

/// A norm's arguments: weight, bias, epsilon, whether there is no mean.
pub(crate) fn norm_words<R: Driver>(norm: Option<&Norm<Vector<R>>>) -> [Word; 4] {
    let vector = |v: &Vector<R>| Word::address(v.buffer.at());
    match norm {
        Some(norm) => [
            vector(&norm.weight),
            norm.bias.as_ref().map_or(Word::NULL, vector),
            norm.eps.into(),
            u32::from(norm.kind == NormKind::Rms).into(),
        ],
        None => [Word::NULL, Word::NULL, 0.0.into(), 0_u32.into()],
    }
}

impl<R: Driver> CudaDevice<R> {
    /// Notes a kernel.
    pub(crate) fn launch(
        &self,
        kernel: &'static str,
        grid: [usize; 2],
        shared_bytes: usize,
        args: &[Word],
    ) {
        self.launch_with(kernel, grid, THREADS, shared_bytes, args);
    }

    pub(crate) fn launch_with(
        &self,
        kernel: &'static str,
        grid: [usize; 2],
        threads: u32,
        shared_bytes: usize,
        args: &[Word],
    ) {
        let mut pass = self.pass.borrow_mut();
        pass.launch(kernel, grid, threads, shared_bytes, args);
    }

    /// In which operations are done.
    pub(crate) fn stream(&self) -> usize {
        self.pass.borrow().stream()
    }

    pub(crate) fn input(&self, array: &[u32]) -> Word {
        self.pass.borrow_mut().input(array)
    }

    /// Room for rows in a dtype.
    pub(crate) fn rows(&self, n_rows: usize, n_cols: usize, dtype: DType) -> Rc<Piece> {
        Rc::new(self.piece(n_rows * n_cols * dtype.size()))
    }

    pub(crate) fn piece(&self, n_bytes: usize) -> Piece {
        self.pass.borrow().piece(n_bytes)
    }

    /// A tensor's rows; what experts have said is summed now.
    pub(crate) fn summed(&self, x: &Tensor) -> Rc<Piece> {
        match &x.content {
            Content::Rows(rows) => Rc::clone(rows),
            Content::Weighted(weighted) => {
                let out = self.rows(x.n_padded, x.n_cols, x.dtype);
                self.combine(x, weighted, Word::NULL, None, None, &out);
                out
            }
        }
    }

    /// `out = norm(weighted sum + residual + bias)`
    pub(crate) fn combine(
        &self,
        x: &Tensor,
        weighted: &Weighted,
        residual: Word,
        bias: Option<&Vector<R>>,
        norm: Option<&Norm<Vector<R>>>,
        out: &Piece,
    ) {
        let Weighted {
            y,
            place,
            gate,
            top_k,
            factor,
        } = weighted;
        let [weight, norm_bias, eps, is_rms] = norm_words(norm);
        let bias = bias.map_or(Word::NULL, |b| Word::address(b.buffer.at()));
        self.launch(
            named!("combine", x.dtype),
            [x.n_padded.div_ceil(TOKENS), 1],
            0,
            &words![
                word(y.as_ref()),
                word(place.as_ref()),
                word(gate.as_ref()),
                *top_k,
                *factor,
                residual,
                bias,
                weight,
                norm_bias,
                eps,
                is_rms,
                x.n_padded,
                x.n_cols,
                Word::piece(out),
            ],
        );
    }

    /// `out = norm(factor · x + y + bias)`
    pub(crate) fn norm_rows(
        &self,
        shape: &Tensor,
        (x, factor): (Word, f32),
        y: Word,
        bias: Option<&Vector<R>>,
        norm: Option<&Norm<Vector<R>>>,
        out: &Piece,
    ) {
        let [weight, norm_bias, eps, is_rms] = norm_words(norm);
        let bias = bias.map_or(Word::NULL, |b| Word::address(b.buffer.at()));
        self.launch(
            named!("norm", shape.dtype),
            [shape.n_padded.div_ceil(TOKENS), 1],
            0,
            &words![
                x,
                factor,
                y,
                bias,
                weight,
                norm_bias,
                eps,
                is_rms,
                shape.n_padded,
                shape.n_cols,
                Word::piece(out),
            ],
        );
    }

    /// `norm(activation(x · wᵀ + bias) ⊙ times + plus)` in rows as many as those of `x`.
    pub(crate) fn multiply(
        &self,
        x: &Tensor,
        w: &LinearWeights<'_, Matrix<R>, Vector<R>>,
        activation: Activation,
        times: Option<&Tensor>,
        plus: Option<&Tensor>,
    ) -> Tensor {
        let matrix = w.weight;
        let out = self.rows(x.n_padded, matrix.n_out, x.dtype);
        let rows = self.summed(x);
        let other = |other: Option<&Tensor>| other.map(|other| self.summed(other));
        let (times, plus) = (other(times), other(plus));
        let product = Product {
            dtype: x.dtype,
            x: Word::piece(&rows),
            weight: Word::address(matrix.buffer.at()),
            map: matrix.map.word(),
            bias: w.bias.map_or(Word::NULL, |b| Word::address(b.buffer.at())),
            groups: None,
            n_rows: x.n_padded,
            n: matrix.n_out,
            k: matrix.n_in,
            activation,
            times: word(times.as_ref()),
            plus: word(plus.as_ref()),
            out: Word::piece(&out),
        };
        if !self.product_of_library(&product, w.bias) {
            self.product(&product);
        }
        Tensor {
            content: Content::Rows(out),
            dtype: x.dtype,
            n_rows: x.n_rows,
            n_padded: x.n_padded,
            n_cols: matrix.n_out,
        }
    }

    /// Normalises rows where they lie.
    pub(crate) fn norm_in_place(&self, x: &Tensor, norm: Option<&Norm<Vector<R>>>) {
        if norm.is_some() {
            let rows = self.summed(x);
            let at = Word::piece(&rows);
            self.norm_rows(x, (at, 1.0), Word::NULL, None, norm, &rows);
        }
    }

    /// Where sequences begin, and as many empty ones behind them as there may be.
    pub(crate) fn starts(&self, cu_seqlens: &[usize], n_padded: usize) -> Word {
        let n_seqs = cu_seqlens.len().saturating_sub(1);
        let last = cu_seqlens.last().copied().unwrap_or(0);
        debug_assert!(last <= n_padded);
        let mut starts: Vec<u32> = cu_seqlens.iter().map(|&at| at as u32).collect();
        starts.resize(padded(n_seqs) + 1, last as u32);
        self.input(&starts)
    }
}
