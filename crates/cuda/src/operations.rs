//! What each operation launches. The kernels' own files say what they take.

use std::rc::Rc;

use moeshard_tensor::cpu::{relative_bucket, rotation};
use moeshard_tensor::device::{
    Activation, AttentionShape, LinearWeights, Norm, NormKind, PositionRule, Result,
};
use moeshard_tensor::dtype::DType;

use crate::arguments::check_shared;
use crate::device::CudaDevice;
use crate::driver::Driver;
use crate::memory::Piece;
use crate::pass::Word;
use crate::product::Product;
use crate::tensor::{Content, Tensor, Weighted, padded, word};
use crate::weights::{Buffer, Matrix, Vector};

/// Threads of most kernels.
const THREADS: u32 = 256;
/// Tokens of a block of the kernels in which a warp has one.
const TOKENS: usize = 8;
/// Queries of a tile of attention, and keys that are there at a time.
const QUERIES: usize = 64;
const KEYS: usize = 64;
/// No such query: a tile without work.
const NO_QUERY: u32 = u32::MAX;

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

    pub(crate) fn input(&self, array: &[u32]) -> Word {
        self.pass.borrow_mut().input(array)
    }

    /// Room for rows in a dtype.
    pub(crate) fn rows(&self, n_rows: usize, n_cols: usize, dtype: DType) -> Rc<Piece> {
        Rc::new(self.piece(n_rows * n_cols * dtype.size()))
    }

    pub(crate) fn piece(&self, n_bytes: usize) -> Piece {
        Piece::take(&self.region, n_bytes)
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
        self.product(&Product {
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
        });
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

    /// Attention over sequences that lie one behind the other.
    pub(crate) fn attend(
        &self,
        qkv: &Tensor,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
        bias: Option<&Vector<R>>,
    ) -> Result<Rc<Piece>> {
        let AttentionShape {
            n_heads, head_dim, ..
        } = *shape;
        let rows = self.summed(qkv);
        let (bias, max_distance) = match (shape.position, bias) {
            (
                PositionRule::RelativeBias {
                    n_buckets,
                    max_distance,
                },
                Some(bias),
            ) => {
                let rule = (n_buckets, max_distance);
                self.biases_by_distance(bias, n_heads, rule, longest(cu_seqlens))?
            }
            _ => (Word::NULL, 0),
        };
        if let PositionRule::Rotary { base, dim } = shape.position {
            self.rotate(qkv, &rows, cu_seqlens, shape, (base, dim))?;
        }
        let out = self.rows(qkv.n_padded, n_heads * head_dim, qkv.dtype);
        let start = self.starts(cu_seqlens, qkv.n_padded);
        let tiles = tiles(cu_seqlens, qkv.n_padded);
        let n_tiles = tiles.len() / 2;
        let tiles = self.input(&tiles);
        let (rows, out_at) = (Word::piece(&rows), Word::piece(&out));
        match fast_attention(qkv.dtype, head_dim) {
            Some(kernel) => self.launch_with(
                kernel,
                [n_tiles, n_heads],
                128,
                (QUERIES + 4 * KEYS) * head_dim * 2,
                &words![
                    rows,
                    start,
                    tiles,
                    n_heads,
                    shape.scale,
                    bias,
                    max_distance,
                    out_at
                ],
            ),
            None => {
                let n_bytes = exact_attention_bytes(head_dim);
                let all = (head_dim, n_bytes + EXACT_STATIC_BYTES);
                check_shared(&*self.driver, "attention", "head_dim", all)?;
                self.launch(
                    named!("attention_exact", qkv.dtype),
                    [n_tiles, n_heads],
                    n_bytes,
                    &words![
                        rows,
                        start,
                        tiles,
                        n_heads,
                        head_dim,
                        shape.scale,
                        bias,
                        max_distance,
                        out_at
                    ],
                );
            }
        }
        Ok(out)
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

    /// f32 `[n_heads, 2 · distance + 1]` of T5's `[n_buckets, n_heads]`, and the largest distance: from
    /// `max_distance` on all have the last bucket, and none is larger than the longest sequence.
    fn biases_by_distance(
        &self,
        bias: &Vector<R>,
        n_heads: usize,
        (n_buckets, max_distance): (usize, usize),
        longest: usize,
    ) -> Result<(Word, usize)> {
        let distance = max_distance.min(longest.next_power_of_two().max(LEAST_POSITIONS));
        let mut tables = bias.by_distance.borrow_mut();
        if let Some((_, table)) = tables.iter().find(|(of, _)| *of == distance) {
            return Ok((Word::address(table.at()), distance));
        }
        let most = distance as i64;
        let mut table = Vec::with_capacity(n_heads * (2 * distance + 1));
        for head in 0..n_heads {
            table.extend((-most..=most).map(|distance| {
                let bucket = relative_bucket(distance, n_buckets, max_distance);
                bias.host[bucket * n_heads + head]
            }));
        }
        let table = Buffer::of(&self.heap, bytemuck::cast_slice(&table))?;
        let at = Word::address(table.at());
        tables.push((distance, table));
        Ok((at, distance))
    }

    /// Turns queries and keys by their positions, where they lie.
    fn rotate(
        &self,
        qkv: &Tensor,
        rows: &Piece,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
        (base, dim): (f32, usize),
    ) -> Result<()> {
        let lengths = cu_seqlens.windows(2).map(|w| w[1] - w[0]);
        let mut positions: Vec<u32> = lengths.flat_map(|n| 0..n as u32).collect();
        positions.resize(qkv.n_padded, 0);
        let rotations = self.rotations(base, dim / 2, longest(cu_seqlens))?;
        let positions = self.input(&positions);
        self.launch(
            named!("rotary", qkv.dtype),
            [qkv.n_padded.div_ceil(TOKENS), 1],
            0,
            &words![
                Word::piece(rows),
                positions,
                rotations,
                qkv.n_padded,
                shape.n_heads,
                shape.head_dim,
                dim
            ],
        );
        Ok(())
    }

    /// f32 `[n_positions, half, 2]`, cosine and sine of at least so many positions.
    fn rotations(&self, base: f32, half: usize, n_positions: usize) -> Result<Word> {
        let mut tables = self.rotations.borrow_mut();
        let fits =
            |t: &&Rotations<R>| t.base == base && t.half == half && t.n_positions >= n_positions;
        if let Some(table) = tables.iter().find(fits) {
            return Ok(Word::address(table.buffer.at()));
        }
        let n_positions = n_positions.next_power_of_two().max(LEAST_POSITIONS);
        let mut table = Vec::with_capacity(n_positions * half * 2);
        for position in 0..n_positions {
            for pair in 0..half {
                let (cos, sin) = rotation(base, half, pair, position);
                table.extend([cos, sin]);
            }
        }
        let buffer = Buffer::of(&self.heap, bytemuck::cast_slice(&table))?;
        let at = Word::address(buffer.at());
        // A smaller one stays: what was noted may use it.
        tables.push(Rotations {
            base,
            half,
            n_positions,
            buffer,
        });
        Ok(at)
    }
}

fn longest(cu_seqlens: &[usize]) -> usize {
    cu_seqlens
        .windows(2)
        .map(|w| w[1] - w[0])
        .max()
        .unwrap_or(0)
}

/// Positions that tables by position or distance have at least, so that they are seldom made anew.
const LEAST_POSITIONS: usize = 512;

/// A table of rotations.
pub(crate) struct Rotations<R: Driver> {
    base: f32,
    half: usize,
    n_positions: usize,
    buffer: Buffer<R>,
}

/// Sequence and first query of each tile, and as many without work as there may be.
fn tiles(cu_seqlens: &[usize], n_padded: usize) -> Vec<u32> {
    let mut tiles = Vec::new();
    for (seq, ends) in cu_seqlens.windows(2).enumerate() {
        for first in (0..ends[1] - ends[0]).step_by(QUERIES) {
            tiles.extend([seq as u32, first as u32]);
        }
    }
    let n_seqs = cu_seqlens.len().saturating_sub(1);
    let most = n_padded.div_ceil(QUERIES) + padded(n_seqs).min(n_padded);
    while tiles.len() < 2 * most {
        tiles.extend([0, NO_QUERY]);
    }
    tiles
}

/// Shared memory of exact attention that does not depend on the head.
const EXACT_STATIC_BYTES: usize = 35_072;

/// Dynamic shared memory of exact attention.
fn exact_attention_bytes(head_dim: usize) -> usize {
    16_384 * head_dim.div_ceil(64)
}

/// The kernel on tensor cores, where there is one.
fn fast_attention(dtype: DType, head_dim: usize) -> Option<&'static str> {
    match (dtype, head_dim) {
        (DType::BF16, 32) => Some("attention_bf16_32"),
        (DType::BF16, 64) => Some("attention_bf16_64"),
        (DType::BF16, 128) => Some("attention_bf16_128"),
        (DType::F16, 32) => Some("attention_f16_32"),
        (DType::F16, 64) => Some("attention_f16_64"),
        (DType::F16, 128) => Some("attention_f16_128"),
        _ => None,
    }
}
