//! What stands in for MPI where the feature `mpi` is off: types of which there is no value, with the
//! same methods. Their documentation is that of the types they stand in for.
#![allow(missing_docs, reason = "these types have no value; see the module")]

use moeshard_tensor::collective::{self, CollectiveError};

use crate::element::{Element, Number};
use crate::error::MpiError;
use crate::links::Links;

/// Would be the ranks of a job; the crate was built without its feature `mpi`, so there is none.
#[derive(Debug)]
pub enum World {}

/// Would be a graph communicator; the crate was built without its feature `mpi`, so there is none.
#[derive(Debug)]
pub enum Exchange {}

/// Would be a collective on MPI; the crate was built without its feature `mpi`, so there is none.
#[derive(Debug)]
pub enum Collective {}

impl World {
    /// Says that the program was built without MPI.
    ///
    /// # Errors
    /// Always [`MpiError::NotBuilt`].
    pub fn init() -> Result<Self, MpiError> {
        Err(MpiError::NotBuilt)
    }

    pub fn rank(&self) -> usize {
        match *self {}
    }

    pub fn world_size(&self) -> usize {
        match *self {}
    }

    pub fn processor(&self) -> &str {
        match *self {}
    }

    pub fn barrier(&self) -> Result<(), MpiError> {
        match *self {}
    }

    pub fn broadcast(&self, _bytes: &mut Vec<u8>) -> Result<(), MpiError> {
        match *self {}
    }

    pub fn gather_rows<T: Element>(
        &self,
        _local: &[T],
        _row_len: usize,
    ) -> Result<Option<Vec<T>>, MpiError> {
        match *self {}
    }

    pub fn all_min<T: Number>(&self, _values: &mut [T]) -> Result<(), MpiError> {
        match *self {}
    }

    pub fn all_max<T: Number>(&self, _values: &mut [T]) -> Result<(), MpiError> {
        match *self {}
    }

    pub fn agree(&self, _what: &'static str, _value: u64) -> Result<(), MpiError> {
        match *self {}
    }

    pub fn all_ok<T, E: From<MpiError>>(
        &self,
        _op: &'static str,
        _result: Result<T, E>,
    ) -> Result<T, E> {
        match *self {}
    }

    pub fn exchange(&self, _links: &Links) -> Result<Exchange, MpiError> {
        match *self {}
    }

    pub fn collective(&self) -> Result<Collective, MpiError> {
        match *self {}
    }

    pub fn into_collective(self) -> Result<Collective, MpiError> {
        match self {}
    }

    pub fn advise_when_ended(&self, _advice: &str) -> Result<(), MpiError> {
        match *self {}
    }

    pub fn abort(&self, _code: i32) -> ! {
        match *self {}
    }
}

impl Exchange {
    pub fn n_halo(&self) -> usize {
        match *self {}
    }

    pub fn n_sent(&self) -> usize {
        match *self {}
    }

    pub fn run(
        &mut self,
        _local: &[f32],
        _row_len: usize,
        _halo: &mut [f32],
    ) -> Result<(), MpiError> {
        match *self {}
    }
}

impl collective::Collective for Collective {
    fn rank(&self) -> usize {
        match *self {}
    }

    fn world_size(&self) -> usize {
        match *self {}
    }

    fn all_gather(
        &self,
        _send: &[f32],
        _counts: &[usize],
        _recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        match *self {}
    }

    fn reduce_scatter(
        &self,
        _send: &[f32],
        _counts: &[usize],
        _recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        match *self {}
    }

    fn all_reduce(&self, _data: &mut [f32]) -> Result<(), CollectiveError> {
        match *self {}
    }

    fn broadcast(&self, _data: &mut [f32], _root: usize) -> Result<(), CollectiveError> {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_world_and_a_sentence_says_why() {
        let error = World::init().expect_err("built without MPI");
        assert_eq!(
            error.to_string(),
            "this program was built without MPI: build it with the cargo feature `mpi`"
        );
    }
}
