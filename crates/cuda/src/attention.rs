//! Attention: which kernel, its list of tiles, and what it knows of positions.

use std::rc::Rc;

use moeshard_tensor::cpu::{relative_bucket, rotation};
use moeshard_tensor::device::{AttentionShape, PositionRule, Result};
use moeshard_tensor::dtype::DType;

use crate::arguments::check_shared;
use crate::device::CudaDevice;
use crate::driver::Driver;
use crate::memory::Piece;
use crate::operations::{TOKENS, named, words};
use crate::pass::Word;
use crate::tensor::{Tensor, padded};
use crate::weights::{Buffer, Vector};

/// Queries of a tile, and keys that are there at a time.
const QUERIES: usize = 64;
const KEYS: usize = 64;
/// No such query: a tile without work.
const NO_QUERY: u32 = u32::MAX;
/// Positions that tables by position or distance have at least, so that they are seldom made anew.
const LEAST_POSITIONS: usize = 512;

/// A kernel, and how it is launched.
struct Kernel {
    name: &'static str,
    threads: u32,
    /// Dynamic shared memory.
    shared_bytes: usize,
    /// The same of every head.
    static_bytes: usize,
    /// Whether it is told the width of a head, which is else in its name.
    takes_head_dim: bool,
}

impl Kernel {
    /// On tensor cores, where there is one for the head.
    fn of(dtype: DType, head_dim: usize) -> Self {
        let name = match (dtype, head_dim) {
            (DType::BF16, 32) => "attention_bf16_32",
            (DType::BF16, 64) => "attention_bf16_64",
            (DType::BF16, 128) => "attention_bf16_128",
            (DType::F16, 32) => "attention_f16_32",
            (DType::F16, 64) => "attention_f16_64",
            (DType::F16, 128) => "attention_f16_128",
            _ => return Self::exact(dtype, head_dim),
        };
        Self {
            name,
            threads: 128,
            shared_bytes: (QUERIES + 4 * KEYS) * head_dim * dtype.size(),
            static_bytes: 0,
            takes_head_dim: false,
        }
    }

    /// For heads of any width.
    fn exact(dtype: DType, head_dim: usize) -> Self {
        Self {
            name: named!("attention_exact", dtype),
            threads: 256,
            shared_bytes: 16_384 * head_dim.div_ceil(64),
            static_bytes: 35_072,
            takes_head_dim: true,
        }
    }
}

impl<R: Driver> CudaDevice<R> {
    /// Attention over sequences that lie one behind the other; `qkv` may be overwritten.
    ///
    /// # Shapes
    /// - `qkv`: `[n_padded, 3 · n_heads · head_dim]`
    /// - returns `[n_padded, n_heads · head_dim]`
    pub(crate) fn attend(
        &self,
        qkv: &Tensor,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
        bias: Option<&Vector<R>>,
    ) -> Result<Rc<Piece>> {
        let (n_heads, head_dim) = (shape.n_heads, shape.head_dim);
        let kernel = Kernel::of(qkv.dtype, head_dim);
        let n_bytes = kernel.shared_bytes + kernel.static_bytes;
        check_shared(&*self.driver, "attention", "head_dim", (head_dim, n_bytes))?;
        let rows = self.summed(qkv);
        let (bias, max_distance) = match bias {
            Some(bias) => self.biases_by_distance(bias, shape, longest(cu_seqlens))?,
            None => (Word::NULL, 0),
        };
        if let PositionRule::Rotary { base, dim } = shape.position {
            self.rotate(qkv, &rows, cu_seqlens, shape, (base, dim))?;
        }
        let out = self.rows(qkv.n_padded, n_heads * head_dim, qkv.dtype);
        let tiles = tiles(cu_seqlens, qkv.n_padded);
        let mut args = words![
            Word::piece(&rows),
            self.starts(cu_seqlens, qkv.n_padded),
            self.input(&tiles),
            n_heads
        ]
        .to_vec();
        if kernel.takes_head_dim {
            args.push(head_dim.into());
        }
        args.extend(words![shape.scale, bias, max_distance, Word::piece(&out)]);
        let grid = [tiles.len() / 2, n_heads];
        self.launch_with(
            kernel.name,
            grid,
            kernel.threads,
            kernel.shared_bytes,
            &args,
        );
        Ok(out)
    }

    /// f32 `[n_heads, 2 · distance + 1]` of T5's `[n_buckets, n_heads]`, and the largest distance: from
    /// `max_distance` on all have the last bucket, and none is larger than the longest sequence.
    fn biases_by_distance(
        &self,
        bias: &Vector<R>,
        shape: &AttentionShape,
        longest: usize,
    ) -> Result<(Word, usize)> {
        let PositionRule::RelativeBias {
            n_buckets,
            max_distance,
        } = shape.position
        else {
            return Ok((Word::NULL, 0));
        };
        let n_heads = shape.n_heads;
        let distance = max_distance.min(longest.next_power_of_two().max(LEAST_POSITIONS));
        let mut tables = bias.by_distance.borrow_mut();
        if let Some((of, table)) = tables.iter().find(|(of, _)| *of >= distance) {
            return Ok((Word::address(table.at()), *of));
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
