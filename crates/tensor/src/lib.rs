//! placeholder

pub mod checkpoint;
pub mod dtype;
