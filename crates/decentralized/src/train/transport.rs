//! How the ranks of a run reach one another.
//!
//! Logical nodes are dealt out to ranks in consecutive ranges. Each round a rank needs the rows of
//! some nodes that live elsewhere: its *halo*.

use std::ops::Range;

use moeshard_mpi::Placement;

use super::Result;

/// Who needs which rows in one kind of round. The same on every rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    /// `[world_size]`: the nodes of each rank.
    pub nodes: Vec<Range<usize>>,
    /// `[world_size]`: the nodes of other ranks that each rank needs, ascending.
    pub needs: Vec<Vec<u32>>,
}

/// Names an exchange that was set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkId(pub usize);

/// Moves rows between ranks.
pub trait Transport {
    /// This rank.
    fn rank(&self) -> usize;

    /// Ranks in all.
    fn world_size(&self) -> usize;

    /// Sets up an exchange. Every rank calls it, in the same order.
    ///
    /// # Errors
    /// If a rank is lost.
    fn link(&mut self, links: &Links) -> Result<LinkId>;

    /// Fills `halo` with the rows that this rank needs, in ascending order of their nodes.
    ///
    /// # Shapes
    /// - `local`: `[n_local, row_len]`, the rows of this rank's nodes
    /// - `halo`: `[needs[rank].len(), row_len]`
    ///
    /// # Communication
    /// One neighbourhood exchange; every rank must call it.
    ///
    /// # Errors
    /// If a rank is lost.
    fn exchange(
        &mut self,
        link: LinkId,
        row_len: usize,
        local: &[f32],
        halo: &mut [f32],
    ) -> Result<()>;

    /// All rows in the order of nodes on rank 0, nothing elsewhere.
    ///
    /// # Communication
    /// One gather; every rank must call it.
    ///
    /// # Errors
    /// If a rank is lost.
    fn gather(&mut self, row_len: usize, local: &[f32]) -> Result<Option<Vec<f32>>>;

    /// Sends `data` of rank 0 to all.
    ///
    /// # Communication
    /// One broadcast; every rank must call it, with as many values.
    ///
    /// # Errors
    /// If a rank is lost.
    fn broadcast(&mut self, data: &mut [f32]) -> Result<()>;
}

/// All nodes in this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

impl Transport for InProcess {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn link(&mut self, _links: &Links) -> Result<LinkId> {
        Ok(LinkId(0))
    }

    fn exchange(&mut self, _: LinkId, _: usize, _: &[f32], _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn gather(&mut self, _row_len: usize, local: &[f32]) -> Result<Option<Vec<f32>>> {
        Ok(Some(local.to_vec()))
    }

    fn broadcast(&mut self, _data: &mut [f32]) -> Result<()> {
        Ok(())
    }
}

/// The nodes of each rank.
#[must_use]
pub fn deal(n_nodes: usize, world_size: usize) -> Vec<Range<usize>> {
    let placement = Placement::new(n_nodes, world_size);
    (0..world_size).map(|rank| placement.nodes(rank)).collect()
}
