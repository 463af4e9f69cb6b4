//! Averages the rows of nodes with those of their neighbours.

use std::ops::Range;

use moeshard_tensor::linalg::{Csr, MatMut, MatRef, Scratch, Threads};

use super::Result;
use super::absence::Absence;
use super::transport::{LinkId, Links, Transport, deal};
use crate::mixing::MixingMatrix;

/// The part of `out = W · x` that falls to one rank, for the matrices of a schedule.
///
/// The rows that are to be averaged are written into [`Mixer::local_mut`]. Sums are taken in ascending
/// order of nodes, so their bits do not depend on the number of ranks.
#[derive(Debug)]
pub(super) struct Mixer {
    row_len: usize,
    /// The nodes of this rank.
    nodes: Range<usize>,
    /// The nodes whose rows are in `rows`, ascending: this rank's and its halo.
    needed: Vec<u32>,
    /// Where this rank's rows start in `rows`.
    first_local: usize,
    /// `[needed, row_len]`
    rows: Vec<f32>,
    /// `[halo, row_len]`: where rows from elsewhere arrive.
    halo: Vec<f32>,
    /// Of each matrix of the schedule.
    rounds: Vec<Csr>,
    link: LinkId,
    /// Memory of threads that multiply.
    scratches: Vec<Scratch>,
}

impl Mixer {
    /// # Communication
    /// One [`Transport::link`].
    pub(super) fn new(
        matrices: &[Weights],
        row_len: usize,
        transport: &mut dyn Transport,
    ) -> Result<Self> {
        let n_nodes = matrices.first().map_or(0, Vec::len);
        let ranks = deal(n_nodes, transport.world_size());
        let needs = |nodes: &Range<usize>| halo_of(matrices, nodes);
        let links = Links {
            needs: ranks.iter().map(needs).collect(),
            nodes: ranks,
        };
        let link = transport.link(&links)?;
        let nodes = links.nodes[transport.rank()].clone();
        let halo = &links.needs[transport.rank()];
        let first_local = halo.partition_point(|&node| (node as usize) < nodes.start);
        let mut needed = halo.clone();
        needed.splice(
            first_local..first_local,
            nodes.clone().map(|node| node as u32),
        );
        let mut mixer = Self {
            row_len,
            rows: vec![0.0; needed.len() * row_len],
            halo: vec![0.0; halo.len() * row_len],
            rounds: Vec::new(),
            first_local,
            needed,
            nodes,
            link,
            scratches: Vec::new(),
        };
        let rounds = matrices.iter().map(|w| mixer.local_part(w, None));
        mixer.rounds = rounds.collect::<Result<_>>()?;
        Ok(mixer)
    }

    /// `[n_local, row_len]`: the rows of this rank's nodes that the next [`Mixer::mix`] averages.
    pub(super) fn local_mut(&mut self) -> &mut [f32] {
        let n = self.nodes.len() * self.row_len;
        &mut self.rows[self.first_local * self.row_len..][..n]
    }

    /// Has the next [`Mixer::mix`] average these rows, whose memory is given up for other of the
    /// same size: its content is lost. Where rows come from other ranks it copies instead, because
    /// theirs lie beside these.
    pub(super) fn take_local(&mut self, rows: &mut Vec<f32>) {
        match self.halo.is_empty() && rows.len() == self.rows.len() {
            true => std::mem::swap(&mut self.rows, rows),
            false => self.local_mut().copy_from_slice(rows),
        }
    }

    /// `out = W · x`, of which `out` has this rank's rows.
    ///
    /// # Communication
    /// One exchange.
    pub(super) fn mix(
        &mut self,
        round: &Round<'_>,
        threads: &Threads,
        transport: &mut dyn Transport,
        out: &mut [f32],
    ) -> Result<()> {
        let n_local = self.nodes.len() * self.row_len;
        let start = self.first_local * self.row_len;
        let local = &self.rows[start..][..n_local];
        transport.exchange(self.link, self.row_len, local, &mut self.halo)?;
        let (below, above) = self.halo.split_at(start);
        self.rows[..start].copy_from_slice(below);
        self.rows[start + n_local..].copy_from_slice(above);
        let which = round.idx % self.rounds.len();
        let x = MatRef::new(&self.rows, self.needed.len(), self.row_len)?;
        let out = MatMut::new(out, self.nodes.len(), self.row_len)?;
        match round.absence {
            Some(absence) => {
                let w = self.local_part(&round.weights[which], Some(absence))?;
                w.mul(threads, &mut self.scratches, x, out)?;
            }
            None => self.rounds[which].mul(threads, &mut self.scratches, x, out)?,
        }
        Ok(())
    }

    /// This rank's rows of a matrix, its columns being rows of `rows`.
    fn local_part(&self, weights: &Weights, absence: Option<&Absence>) -> Result<Csr> {
        let (mut offsets, mut cols, mut values) = (vec![0], Vec::new(), Vec::new());
        let mut push = |node: u32, weight: f64| {
            let at = self.needed.binary_search(&node);
            cols.push(at.expect("every neighbour is local or in the halo") as u32);
            values.push(weight as f32);
            cols.len()
        };
        for node in self.nodes.clone() {
            let row = &weights[node];
            let mut end = offsets[offsets.len() - 1];
            match absence {
                None => row.iter().for_each(|&(col, w)| end = push(col, w)),
                Some(absence) => {
                    let row = absence.row(node, row);
                    row.into_iter().for_each(|(col, w)| end = push(col, w));
                }
            }
            offsets.push(end);
        }
        Ok(Csr::new(self.needed.len(), offsets, cols, values)?)
    }
}

/// Weights by which each node averages the rows of others, ascending.
pub(super) type Weights = Vec<Vec<(u32, f64)>>;

/// Which round is mixed.
pub(super) struct Round<'a> {
    pub(super) idx: usize,
    /// The matrices of the schedule.
    pub(super) weights: &'a [Weights],
    /// The nodes that are away, if any is.
    pub(super) absence: Option<&'a Absence>,
}

/// The rows of a mixing matrix.
pub(super) fn rows_of(mixing: &MixingMatrix) -> Weights {
    let row = |node| {
        let (cols, weights) = mixing.row(node);
        cols.iter().copied().zip(weights.iter().copied()).collect()
    };
    (0..mixing.n_nodes()).map(row).collect()
}

/// The nodes outside `nodes` that some matrix has them average with, ascending.
fn halo_of(matrices: &[Weights], nodes: &Range<usize>) -> Vec<u32> {
    let mut halo: Vec<u32> = (matrices.iter())
        .flat_map(|rows| &rows[nodes.clone()])
        .flatten()
        .map(|&(col, _)| col)
        .filter(|&col| !nodes.contains(&(col as usize)))
        .collect();
    halo.sort_unstable();
    halo.dedup();
    halo
}
