//! Links made ready for MPI: neighbours in rank order, with counts and offsets in rows.

use crate::error::MpiError;
use crate::links::Links;

const OP: &str = "exchange";

/// One direction of a rank's links. Neighbours without rows are left out, on both sides alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Side {
    /// Ascending.
    pub(crate) ranks: Vec<i32>,
    /// Rows per neighbour, at least 1.
    pub(crate) counts: Vec<i32>,
    /// Rows before each neighbour's.
    pub(crate) offsets: Vec<i32>,
}

/// What a rank does in every round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) n_local: usize,
    pub(crate) n_halo: usize,
    pub(crate) receive: Side,
    pub(crate) send: Side,
    /// Local rows in the order in which they are packed.
    pub(crate) packed: Vec<usize>,
}

impl Plan {
    /// Checks one rank's links by themselves; whether the ranks' links fit is found out together.
    pub(crate) fn new(rank: usize, world_size: usize, links: &Links) -> Result<Self, MpiError> {
        let receives = links.receive.iter().map(|link| (link.from, link.n_rows));
        let receives = in_order(rank, world_size, "receive from", receives.collect())?;
        let sends = links.send.iter().map(|link| (link.to, &link.rows[..]));
        let sends = in_order(rank, world_size, "send to", sends.collect())?;
        check_rows(rank, links)?;
        let receive = side(rank, receives.into_iter())?;
        let send = side(rank, sends.iter().map(|(to, rows)| (*to, rows.len())))?;
        Ok(Self {
            n_local: links.n_local,
            n_halo: links.n_halo(),
            receive,
            send,
            packed: sends.iter().flat_map(|(_, rows)| *rows).copied().collect(),
        })
    }

    /// Rows sent to every rank, `[world_size]`.
    pub(crate) fn sent(&self, world_size: usize) -> Vec<u64> {
        by_rank(&self.send, world_size)
    }

    /// Compares what every rank sends here (`[world_size]`) with what the links expect.
    pub(crate) fn check_received(&self, rank: usize, sent: &[u64]) -> Result<(), MpiError> {
        let expected = by_rank(&self.receive, sent.len());
        let pairs = expected.iter().zip(sent).enumerate();
        for (from, (&expected, &got)) in pairs {
            if expected != got {
                return Err(MpiError::Mismatch {
                    rank,
                    from,
                    expected,
                    got,
                });
            }
        }
        Ok(())
    }
}

fn by_rank(side: &Side, world_size: usize) -> Vec<u64> {
    let mut rows = vec![0; world_size];
    for (&rank, &count) in side.ranks.iter().zip(&side.counts) {
        // Both were checked to be in range and positive when the plan was made.
        rows[rank.unsigned_abs() as usize] = u64::from(count.unsigned_abs());
    }
    rows
}

/// Sorts links by rank; refuses ranks that do not exist or are named twice.
fn in_order<T>(
    rank: usize,
    world_size: usize,
    direction: &'static str,
    mut links: Vec<(usize, T)>,
) -> Result<Vec<(usize, T)>, MpiError> {
    links.sort_by_key(|(other, _)| *other);
    if let Some(&(other, _)) = links.last().filter(|(other, _)| *other >= world_size) {
        return Err(MpiError::UnknownRank {
            rank,
            other,
            world_size,
        });
    }
    if let Some(pair) = links.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(MpiError::TwiceNamed {
            rank,
            direction,
            other: pair[0].0,
        });
    }
    Ok(links)
}

fn check_rows(rank: usize, links: &Links) -> Result<(), MpiError> {
    let n_local = links.n_local;
    for link in &links.send {
        if let Some(&row) = link.rows.iter().find(|row| **row >= n_local) {
            let to = link.to;
            return Err(MpiError::UnknownRow {
                rank,
                row,
                to,
                n_local,
            });
        }
    }
    Ok(())
}

/// Counts and offsets of neighbours in rank order.
fn side(rank: usize, links: impl Iterator<Item = (usize, usize)>) -> Result<Side, MpiError> {
    let mut side = Side::default();
    let mut n_rows = 0;
    for (other, count) in links.filter(|(_, count)| *count > 0) {
        side.ranks.push(count_of(OP, rank, "ranks", other)?);
        side.counts.push(count_of(OP, rank, "rows", count)?);
        side.offsets.push(count_of(OP, rank, "rows", n_rows)?);
        n_rows += count;
    }
    Ok(side)
}

/// A count as MPI takes it.
pub(crate) fn count_of(
    op: &'static str,
    rank: usize,
    what: &'static str,
    n: usize,
) -> Result<i32, MpiError> {
    i32::try_from(n).map_err(|_| MpiError::TooMany {
        op,
        rank,
        what,
        got: n,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::{Receive, Send};

    fn links(receive: &[(usize, usize)], send: &[(usize, &[usize])]) -> Links {
        Links {
            n_local: 4,
            receive: receive
                .iter()
                .map(|&(from, n_rows)| Receive { from, n_rows })
                .collect(),
            send: send
                .iter()
                .map(|&(to, rows)| Send {
                    to,
                    rows: rows.to_vec(),
                })
                .collect(),
        }
    }

    #[test]
    fn neighbours_come_in_rank_order_and_those_without_rows_are_left_out() {
        let links = links(
            &[(3, 2), (0, 1), (2, 0)],
            &[(2, &[3, 3, 0]), (1, &[]), (0, &[1])],
        );
        let plan = Plan::new(1, 4, &links).expect("plan");
        assert_eq!(plan.receive.ranks, [0, 3]);
        assert_eq!(plan.receive.counts, [1, 2]);
        assert_eq!(plan.receive.offsets, [0, 1]);
        assert_eq!(plan.n_halo, links.n_halo());
        assert_eq!(plan.send.ranks, [0, 2]);
        assert_eq!(plan.send.offsets, [0, 1]);
        assert_eq!(plan.packed, [1, 3, 3, 0]);
        assert_eq!(plan.sent(4), [1, 0, 3, 0]);
    }

    #[test]
    fn links_that_cannot_be_are_refused() {
        let refused = |links: &Links| Plan::new(1, 4, links).expect_err("refused").to_string();
        let cases = [
            (
                links(&[(4, 1)], &[]),
                "the links of rank 1 name rank 4, and there are 4 ranks",
            ),
            (
                links(&[(2, 1), (0, 1), (2, 1)], &[]),
                "the links of rank 1 receive from rank 2 twice",
            ),
            (
                links(&[], &[(0, &[0]), (0, &[])]),
                "the links of rank 1 send to rank 0 twice",
            ),
            (
                links(&[], &[(0, &[3, 4])]),
                "the links of rank 1 send row 4 to rank 0, and it holds 4 rows",
            ),
            (
                links(&[(0, 1 << 31)], &[]),
                "exchange on rank 1: 2147483648 rows do not fit the 32-bit counts of MPI",
            ),
            (
                links(&[(0, (1 << 31) - 1), (2, 2), (3, 1)], &[]),
                "exchange on rank 1: 2147483649 rows do not fit the 32-bit counts of MPI",
            ),
        ];
        for (links, message) in cases {
            assert_eq!(refused(&links), message);
        }
    }

    #[test]
    fn what_the_others_send_must_be_what_is_expected() {
        let plan = Plan::new(0, 3, &links(&[(1, 2)], &[])).expect("plan");
        assert_eq!(plan.check_received(0, &[0, 2, 0]), Ok(()));
        for (sent, from) in [([0, 1, 0], 1), ([0, 2, 1], 2), ([5, 2, 0], 0)] {
            let error = plan.check_received(0, &sent).expect_err("mismatch");
            assert!(
                matches!(error, MpiError::Mismatch { rank: 0, from: f, .. } if f == from),
                "{error}"
            );
        }
    }
}
