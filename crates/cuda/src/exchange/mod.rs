//! Exchange with other ranks: by reading each other's memory, by a library, or through the host.

mod host;
mod nccl;
mod peers;

use std::rc::Rc;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use moeshard_tensor::device::{Result, Routing as HostRouting};
use moeshard_tensor::dtype::DType;

use crate::device::CudaDevice;
use crate::driver::{Driver, N_STREAMS};
use crate::memory::Piece;
use crate::operations::{named, words};
use crate::pass::Word;
use crate::tensor::{Content, Routing, Tensor, padded};
use crate::weights::Buffer;

use nccl::Ring;
pub use peers::PeerWorld;
use peers::Peers;

/// A word of an index or a gate.
const WORD: usize = size_of::<u32>();
/// What a block of the kernels that copy and sum does at a time: 256 threads, 16 bytes each.
const BLOCK_BYTES: usize = 256 * 16;
/// What a rank sends begins at a multiple of this.
const ALIGNMENT: usize = 16;

/// How this rank exchanges with the others.
pub(crate) enum Link<R: Driver> {
    Host,
    Peers(Peers<R>),
    Nccl(Ring<R>),
}

/// What a rank gives to the others: rows somewhere, so many bytes, to begin at an offset.
struct Part<'a> {
    rows: &'a Piece,
    n_bytes: usize,
    offset: usize,
}

/// Where all ranks' rows can be read once those noted before are there; see `kernels/cuda/exchange.cu`.
struct Source {
    buffers: Word,
    stride: usize,
    half_bytes: usize,
    state: Word,
}

impl<R: Driver> Link<R> {
    /// Streams that can wait for other ranks while another computes.
    pub(crate) fn n_streams(&self) -> usize {
        match self {
            // The host waits.
            Self::Host => 1,
            Self::Peers(peers) => peers.n_streams(),
            Self::Nccl(_) => N_STREAMS,
        }
    }

    /// That the others have come whenever they were waited for. Everything that was started is done.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Peers(peers) => peers.check(),
            Self::Host | Self::Nccl(_) => Ok(()),
        }
    }
}

impl<R: Driver> CudaDevice<R> {
    /// Has ranks exchange by reading each other's memory, if all of them can. Every rank of the world calls it.
    ///
    /// # Errors
    /// If a rank is gone, or a device has no memory left.
    pub fn meet_peers(mut self, world: &Arc<PeerWorld>) -> Result<Self> {
        if let Some(peers) = Peers::of(&self, world)? {
            self.heap.holds_back.set(true);
            self.link = Link::Peers(peers);
        }
        Ok(self)
    }

    /// Has ranks exchange by NCCL, if all of them have it and none reaches the others' memory. Every rank of the
    /// world calls it.
    ///
    /// # Errors
    /// If a rank is gone, or the library fails.
    pub fn join_nccl(mut self, deadline: Duration) -> Result<Self> {
        if matches!(self.link, Link::Host)
            && let Some(ring) = Ring::of(&self, deadline)?
        {
            self.heap.holds_back.set(true);
            self.link = Link::Nccl(ring);
        }
        Ok(self)
    }

    /// How rows travel between ranks.
    pub fn exchange(&self) -> &'static str {
        match self.link {
            Link::Host => "host",
            Link::Peers(_) => "peers",
            Link::Nccl(_) => "nccl",
        }
    }

    pub(crate) fn gather_rows(&self, x: &Tensor, n_rows: &[usize]) -> Result<Tensor> {
        if let Link::Host = self.link {
            return self.gather_through_host(x, n_rows);
        }
        let row_bytes = x.n_cols * x.dtype.size();
        let part = Part {
            rows: &self.summed(x),
            n_bytes: x.n_padded * row_bytes,
            offset: 0,
        };
        let n_padded = padded(n_rows.iter().sum());
        let out = self.rows(n_padded, x.n_cols, x.dtype);
        if !self.gather_once(slice::from_ref(&part), (n_rows, row_bytes, 0), &[&out])? {
            let slot = (largest(n_rows) * row_bytes).next_multiple_of(ALIGNMENT);
            let source = self.give(&[part], slot)?;
            self.collect(&source, n_rows, (row_bytes, 0, 0), &out);
        }
        let shape = (n_rows.iter().sum(), n_padded, x.n_cols);
        self.tensor(Content::Rows(out), x.dtype, shape)
    }

    pub(crate) fn gather_routing(&self, routing: &Routing, n_rows: &[usize]) -> Result<Routing> {
        if let Link::Host = self.link {
            return self.gather_routing_through_host(routing, n_rows);
        }
        let Routing {
            top_k, n_experts, ..
        } = *routing;
        let row_bytes = top_k * WORD;
        let n_bytes = routing.n_padded * row_bytes;
        // Gates lie behind the indices of the rank that has most.
        let second = (largest(n_rows) * row_bytes).next_multiple_of(ALIGNMENT);
        let part = |rows, offset| Part {
            rows,
            n_bytes,
            offset,
        };
        let parts = [part(&*routing.idx, 0), part(&*routing.gate, second)];
        let n_tokens = n_rows.iter().sum();
        let n_padded = padded(n_tokens);
        let words = || Rc::new(self.piece(n_padded * row_bytes));
        let (idx, gate) = (words(), words());
        // Tokens that are not there go nowhere.
        let nowhere = HostRouting::DROPPED;
        if !self.gather_once(&parts, (n_rows, row_bytes, nowhere), &[&idx, &gate])? {
            let source = self.give(&parts, 2 * second)?;
            self.collect(&source, n_rows, (row_bytes, 0, nowhere), &idx);
            self.collect(&source, n_rows, (row_bytes, second, 0), &gate);
        }
        Ok(Routing {
            idx,
            gate,
            n_tokens,
            n_padded,
            top_k,
            n_experts,
        })
    }

    pub(crate) fn scatter_rows(&self, x: &Tensor, n_rows: &[usize]) -> Result<Tensor> {
        if let Link::Host = self.link {
            return self.scatter_through_host(x, n_rows);
        }
        let rank = self.collective.rank();
        let mine = n_rows.get(rank).copied().unwrap_or(0);
        let n_padded = padded(mine);
        let out = self.rows(n_padded, x.n_cols, x.dtype);
        if let Link::Peers(peers) = &self.link
            && peers.sum_once(self, x, (n_rows, n_padded), &out)?
        {
            return self.tensor(Content::Rows(out), x.dtype, (mine, n_padded, x.n_cols));
        }
        let source = match &self.link {
            Link::Peers(_) => {
                let n_bytes = x.n_padded * x.n_cols * x.dtype.size();
                let part = Part {
                    rows: &self.summed(x),
                    n_bytes,
                    offset: 0,
                };
                self.give(&[part], n_bytes)?
            }
            Link::Nccl(ring) => ring.spread(self, x, n_rows)?,
            Link::Host => unreachable!("the host has ways of its own"),
        };
        self.launch(
            named!("exchange_sum", x.dtype),
            [
                (n_padded * x.n_cols * x.dtype.size()).div_ceil(BLOCK_BYTES),
                1,
            ],
            0,
            &words![
                source.buffers,
                Word::address(source.stride as u64),
                Word::address(source.half_bytes as u64),
                source.state,
                self.ranks_starts(n_rows),
                rank,
                n_rows.len(),
                x.n_cols,
                n_padded,
                Word::piece(&out),
            ],
        );
        self.tensor(Content::Rows(out), x.dtype, (mine, n_padded, x.n_cols))
    }

    /// In one launch, where that can be done.
    fn gather_once(
        &self,
        parts: &[Part<'_>],
        rows: (&[usize], usize, u32),
        outs: &[&Piece],
    ) -> Result<bool> {
        match &self.link {
            Link::Peers(peers) => peers.gather_once(self, parts, rows, outs),
            Link::Nccl(_) | Link::Host => Ok(false),
        }
    }

    /// Gives parts to all ranks, which together take `slot` bytes of the rank that gives most.
    fn give(&self, parts: &[Part<'_>], slot: usize) -> Result<Source> {
        match &self.link {
            Link::Peers(peers) => peers.give(self, parts, slot),
            Link::Nccl(ring) => ring.give(self, parts, slot),
            Link::Host => unreachable!("the host has ways of its own"),
        }
    }

    /// Copies a part to where the others will have it from.
    fn publish(&self, part: &Part<'_>, buffer: Word, half_bytes: usize, state: Word) {
        self.launch(
            "exchange_publish",
            [part.n_bytes.div_ceil(BLOCK_BYTES), 1],
            0,
            &words![
                Word::piece(part.rows),
                Word::address((part.n_bytes / WORD) as u64),
                buffer,
                Word::address(half_bytes as u64),
                Word::address(part.offset as u64),
                state,
            ],
        );
    }

    /// All ranks' rows of `row_bytes` bytes, from `offset` on, and `fill` in rows beyond the last.
    fn collect(
        &self,
        source: &Source,
        n_rows: &[usize],
        (row_bytes, offset, fill): (usize, usize, u32),
        out: &Piece,
    ) {
        let n_padded = padded(n_rows.iter().sum());
        self.launch(
            "exchange_gather",
            [(n_padded * row_bytes).div_ceil(BLOCK_BYTES), 1],
            0,
            &words![
                source.buffers,
                Word::address(source.stride as u64),
                Word::address(source.half_bytes as u64),
                Word::address(offset as u64),
                source.state,
                self.ranks_starts(n_rows),
                n_rows.len(),
                row_bytes / WORD,
                n_padded,
                fill,
                Word::piece(out),
            ],
        );
    }

    /// Where each rank's rows begin.
    fn ranks_starts(&self, n_rows: &[usize]) -> Word {
        let mut starts = vec![0_u32];
        for n in n_rows {
            starts.push(starts[starts.len() - 1] + *n as u32);
        }
        self.input(&starts)
    }

    /// A word of every rank, through the host.
    fn gather_words(&self, word: u64) -> Result<Vec<u64>> {
        let n_ranks = self.collective.world_size();
        let mut all = vec![0_u64; n_ranks];
        // Gathering copies bits, so words may travel as two floats each.
        self.collective.all_gather(
            bytemuck::cast_slice(&[word]),
            &vec![2; n_ranks],
            bytemuck::cast_slice_mut(&mut all),
        )?;
        Ok(all)
    }
}

/// Rows that a rank gives, at most.
fn largest(n_rows: &[usize]) -> usize {
    n_rows.iter().map(|&n| padded(n)).max().unwrap_or(0)
}

/// Where a buffer is, if there is one yet.
fn at<R: Driver>(buffer: Option<&Buffer<R>>) -> Word {
    buffer.map_or(Word::NULL, |buffer| Word::address(buffer.at()))
}
