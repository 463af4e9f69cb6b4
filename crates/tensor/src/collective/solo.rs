//! A world of one rank.

use super::{Collective, CollectiveError, check_length};

/// The collective of a single rank: copies.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_gather(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        copy("all_gather", send, counts, recv)
    }

    fn reduce_scatter(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        copy("reduce_scatter", send, counts, recv)
    }

    fn all_reduce(&self, _data: &mut [f32]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn broadcast(&self, _data: &mut [f32], _root: usize) -> Result<(), CollectiveError> {
        Ok(())
    }
}

fn copy(
    op: &'static str,
    send: &[f32],
    counts: &[usize],
    recv: &mut [f32],
) -> Result<(), CollectiveError> {
    check_length(op, "counts", 0, 1, counts.len())?;
    check_length(op, "send", 0, counts[0], send.len())?;
    check_length(op, "recv", 0, counts[0], recv.len())?;
    recv.copy_from_slice(send);
    Ok(())
}
