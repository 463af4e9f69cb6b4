//! Many logical nodes a rank: which rank holds which, and what ranks must exchange so that each
//! node sees its neighbours.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::links::{Links, Receive, Send};

/// Nodes dealt out to ranks in consecutive blocks whose sizes differ by at most one. Ranks beyond the
/// number of nodes hold none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    n_nodes: usize,
    world_size: usize,
}

/// One rank's links of a graph over nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLinks {
    /// What to hand to `World::exchange`.
    pub links: Links,
    /// The node whose row arrives in each row of the halo, ascending.
    pub halo: Vec<usize>,
}

impl Placement {
    /// Deals `n_nodes` out to `world_size` ranks; none is taken for one.
    pub fn new(n_nodes: usize, world_size: usize) -> Self {
        let world_size = world_size.max(1);
        Self {
            n_nodes,
            world_size,
        }
    }

    /// Number of nodes.
    pub fn n_nodes(&self) -> usize {
        self.n_nodes
    }

    /// The nodes of a rank: the first `n_nodes mod world_size` ranks hold one more than the others.
    pub fn nodes(&self, rank: usize) -> Range<usize> {
        let start = |rank: usize| {
            let (each, n_larger) = self.block();
            (each * rank + n_larger.min(rank)).min(self.n_nodes)
        };
        start(rank)..start(rank + 1)
    }

    /// The rank that holds a node below [`Placement::n_nodes`].
    pub fn owner(&self, node: usize) -> usize {
        let (each, n_larger) = self.block();
        let in_larger = n_larger * (each + 1);
        if node < in_larger {
            node / (each + 1)
        } else {
            n_larger + (node - in_larger) / each.max(1)
        }
    }

    /// Nodes a rank, and how many ranks hold one more.
    fn block(&self) -> (usize, usize) {
        (
            self.n_nodes / self.world_size,
            self.n_nodes % self.world_size,
        )
    }

    /// What `rank` exchanges so that each of its nodes sees the rows of its in-neighbours.
    ///
    /// `in_neighbors` tells them for any node; it must be the same on every rank. A row crosses once
    /// however many nodes of the receiving rank need it. Costs one pass over all edges.
    pub fn links<I>(&self, rank: usize, in_neighbors: impl Fn(usize) -> I) -> NodeLinks
    where
        I: IntoIterator<Item = usize>,
    {
        let here = self.nodes(rank);
        let needed = self.needed_by(rank, &in_neighbors);
        let receive = runs(needed.iter().map(|&node| self.owner(node)));
        let others = (0..self.world_size).filter(|other| *other != rank);
        let send = others.filter_map(|to| {
            let theirs = self.needed_by(to, &in_neighbors);
            let rows: Vec<usize> = theirs
                .range(here.clone())
                .map(|node| node - here.start)
                .collect();
            (!rows.is_empty()).then_some(Send { to, rows })
        });
        NodeLinks {
            links: Links {
                n_local: here.len(),
                receive,
                send: send.collect(),
            },
            halo: needed.into_iter().collect(),
        }
    }

    /// In-neighbours of a rank's nodes that it does not hold itself.
    fn needed_by<I>(&self, rank: usize, in_neighbors: &impl Fn(usize) -> I) -> BTreeSet<usize>
    where
        I: IntoIterator<Item = usize>,
    {
        let here = self.nodes(rank);
        let all = here.clone().flat_map(in_neighbors);
        all.filter(|node| !here.contains(node)).collect()
    }
}

/// Counts equal neighbours of an ascending sequence of ranks.
fn runs(ranks: impl Iterator<Item = usize>) -> Vec<Receive> {
    let mut runs: Vec<Receive> = Vec::new();
    for from in ranks {
        match runs.last_mut() {
            Some(last) if last.from == from => last.n_rows += 1,
            _ => runs.push(Receive { from, n_rows: 1 }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_lies_on_exactly_one_rank() {
        for (n_nodes, world_size) in [(0, 3), (1, 1), (2, 5), (10, 4), (96, 8), (97, 8), (5, 5)] {
            let placement = Placement::new(n_nodes, world_size);
            let mut expected = 0;
            for rank in 0..world_size {
                let nodes = placement.nodes(rank);
                assert_eq!(nodes.start, expected, "{n_nodes} nodes, rank {rank}");
                assert!(nodes.len().abs_diff(n_nodes / world_size) <= 1);
                assert!(nodes.clone().all(|node| placement.owner(node) == rank));
                expected = nodes.end;
            }
            assert_eq!(expected, n_nodes);
        }
    }

    #[test]
    fn a_ring_crosses_at_the_ends_of_blocks_only() {
        let n = 6;
        let ring = |node: usize| [(node + 1) % n, (node + n - 1) % n];
        let placement = Placement::new(n, 3);
        let found = placement.links(1, ring);
        let expected = Links {
            n_local: 2,
            receive: vec![
                Receive { from: 0, n_rows: 1 },
                Receive { from: 2, n_rows: 1 },
            ],
            send: vec![
                Send {
                    to: 0,
                    rows: vec![0],
                },
                Send {
                    to: 2,
                    rows: vec![1],
                },
            ],
        };
        assert_eq!((found.links, found.halo), (expected, vec![1, 4]));
    }

    #[test]
    fn a_row_crosses_once_however_many_nodes_need_it() {
        // Everybody hears node 0, and nobody else.
        let star = |_node: usize| [0];
        let placement = Placement::new(9, 3);
        let owner = placement.links(0, star);
        assert_eq!(owner.links.receive, []);
        let sent: Vec<_> = owner
            .links
            .send
            .iter()
            .map(|link| (link.to, &link.rows[..]))
            .collect();
        assert_eq!(sent, [(1, &[0][..]), (2, &[0][..])]);
        let hearer = placement.links(2, star);
        assert_eq!((hearer.halo, hearer.links.n_halo()), (vec![0], 1));
        assert_eq!(hearer.links.send, []);
    }
}
