//! Ranks as processes of an MPI job.

use moeshard_mpi::links::{Receive, Send};
use moeshard_mpi::{Exchange, MpiError, World};

use super::transport::{LinkId, Links, Transport};
use super::{Result, TrainError};

/// The ranks of an MPI job; the graph over nodes becomes a graph communicator over ranks.
#[derive(Debug)]
pub struct MpiTransport<'w> {
    world: &'w World,
    exchanges: Vec<Exchange>,
}

impl<'w> MpiTransport<'w> {
    /// The ranks of a job that has begun.
    #[must_use]
    pub fn new(world: &'w World) -> Self {
        Self {
            world,
            exchanges: Vec::new(),
        }
    }

    fn failed(&self, error: &MpiError) -> TrainError {
        TrainError::Transport {
            rank: self.world.rank(),
            world_size: self.world.world_size(),
            reason: error.to_string(),
        }
    }
}

impl Transport for MpiTransport<'_> {
    fn rank(&self) -> usize {
        self.world.rank()
    }

    fn world_size(&self) -> usize {
        self.world.world_size()
    }

    fn link(&mut self, links: &Links) -> Result<LinkId> {
        let links = of_rank(links, self.world.rank());
        let exchange = self.world.exchange(&links).map_err(|e| self.failed(&e))?;
        self.exchanges.push(exchange);
        Ok(LinkId(self.exchanges.len() - 1))
    }

    fn exchange(
        &mut self,
        link: LinkId,
        row_len: usize,
        local: &[f32],
        halo: &mut [f32],
    ) -> Result<()> {
        let exchange = &mut self.exchanges[link.0];
        let result = exchange.run(local, row_len, halo);
        result.map_err(|e| self.failed(&e))
    }

    fn gather(&mut self, row_len: usize, local: &[f32]) -> Result<Option<Vec<f32>>> {
        let gathered = self.world.gather_rows(local, row_len);
        gathered.map_err(|e| self.failed(&e))
    }

    fn broadcast(&mut self, data: &mut [f32]) -> Result<()> {
        let mut bytes: Vec<u8> = bytemuck::cast_slice(data).to_vec();
        self.world
            .broadcast(&mut bytes)
            .map_err(|e| self.failed(&e))?;
        let values = bytes.chunks_exact(4);
        for (to, b) in data.iter_mut().zip(values) {
            *to = f32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
        }
        Ok(())
    }
}

/// What one rank sends and receives. Nodes are consecutive over ranks, so rows that arrive rank by rank
/// are in the order of their nodes.
fn of_rank(links: &Links, rank: usize) -> moeshard_mpi::Links {
    let mine = &links.nodes[rank];
    let wanted_from = |from: usize| {
        let nodes = &links.nodes[from];
        let needs = links.needs[rank].iter().map(|&node| node as usize);
        needs.filter(|node| nodes.contains(node)).count()
    };
    let sent_to = |to: usize| -> Vec<usize> {
        let needs = links.needs[to].iter().map(|&node| node as usize);
        let sent = needs.filter(|node| mine.contains(node));
        sent.map(|node| node - mine.start).collect()
    };
    let others = || (0..links.nodes.len()).filter(|&other| other != rank);
    moeshard_mpi::Links {
        n_local: mine.len(),
        receive: others()
            .map(|from| Receive {
                from,
                n_rows: wanted_from(from),
            })
            .filter(|receive| receive.n_rows > 0)
            .collect(),
        send: others()
            .map(|to| Send {
                to,
                rows: sent_to(to),
            })
            .filter(|send| !send.rows.is_empty())
            .collect(),
    }
}
