//! Exchange with other ranks: by reading each other's memory where that can be done, else through the host.

mod host;
mod peers;

use std::rc::Rc;
use std::sync::Arc;

use moeshard_tensor::device::{Result, Routing as HostRouting};

use crate::device::CudaDevice;
use crate::driver::Driver;
use crate::tensor::{Content, Routing, Tensor, padded};

pub use peers::PeerWorld;
pub(crate) use peers::Peers;

/// A word of an index or a gate.
const WORD: usize = size_of::<u32>();

impl<R: Driver> CudaDevice<R> {
    /// Has ranks exchange by reading each other's memory, if all of them can. Every rank of the world calls it.
    ///
    /// # Errors
    /// If a rank is gone, or a device has no memory left.
    pub fn meet_peers(mut self, world: &Arc<PeerWorld>) -> Result<Self> {
        self.peers = Peers::of(&self, world)?;
        Ok(self)
    }

    /// How rows travel between ranks.
    pub fn exchange(&self) -> &'static str {
        match self.peers {
            Some(_) => "peers",
            None => "host",
        }
    }

    pub(crate) fn gather_rows(&self, x: &Tensor, n_rows: &[usize]) -> Result<Tensor> {
        let Some(peers) = &self.peers else {
            return self.gather_through_host(x, n_rows);
        };
        let row_bytes = x.n_cols * x.dtype.size();
        peers.make_room(self, largest(n_rows) * row_bytes)?;
        let rows = self.summed(x);
        self.publish(peers, &rows, x.n_padded * row_bytes, 0);
        self.meet(peers);
        let n_padded = padded(n_rows.iter().sum());
        let out = self.rows(n_padded, x.n_cols, x.dtype);
        self.collect(peers, n_rows, (row_bytes, 0, 0), &out);
        let shape = (n_rows.iter().sum(), n_padded, x.n_cols);
        self.tensor(Content::Rows(out), x.dtype, shape)
    }

    pub(crate) fn scatter_rows(&self, x: &Tensor, n_rows: &[usize]) -> Result<Tensor> {
        let Some(peers) = &self.peers else {
            return self.scatter_through_host(x, n_rows);
        };
        let n_bytes = x.n_padded * x.n_cols * x.dtype.size();
        peers.make_room(self, n_bytes)?;
        let rows = self.summed(x);
        self.publish(peers, &rows, n_bytes, 0);
        self.meet(peers);
        let mine = n_rows.get(self.collective.rank()).copied().unwrap_or(0);
        let n_padded = padded(mine);
        let out = self.rows(n_padded, x.n_cols, x.dtype);
        self.sum(peers, n_rows, x, n_padded, &out);
        self.tensor(Content::Rows(out), x.dtype, (mine, n_padded, x.n_cols))
    }

    pub(crate) fn gather_routing(&self, routing: &Routing, n_rows: &[usize]) -> Result<Routing> {
        let Some(peers) = &self.peers else {
            return self.gather_routing_through_host(routing, n_rows);
        };
        let Routing {
            top_k, n_experts, ..
        } = *routing;
        let row_bytes = top_k * WORD;
        // Gates lie behind the indices of the rank that has most.
        let second = (largest(n_rows) * row_bytes).next_multiple_of(16);
        peers.make_room(self, 2 * second)?;
        let n_bytes = routing.n_padded * row_bytes;
        self.publish(peers, &routing.idx, n_bytes, 0);
        self.publish(peers, &routing.gate, n_bytes, second);
        self.meet(peers);
        let n_tokens = n_rows.iter().sum();
        let n_padded = padded(n_tokens);
        let words = || Rc::new(self.piece(n_padded * row_bytes));
        let (idx, gate) = (words(), words());
        // Tokens that are not there go nowhere.
        self.collect(peers, n_rows, (row_bytes, 0, HostRouting::DROPPED), &idx);
        self.collect(peers, n_rows, (row_bytes, second, 0), &gate);
        Ok(Routing {
            idx,
            gate,
            n_tokens,
            n_padded,
            top_k,
            n_experts,
        })
    }
}

/// Rows that a rank publishes, at most.
fn largest(n_rows: &[usize]) -> usize {
    n_rows.iter().map(|&n| padded(n)).max().unwrap_or(0)
}
