//! The layer that inference and training share: checkpoints on disk, the seams to devices and to
//! other ranks, and the CPU device.
//!
//! In reading order: [`dtype`] and [`checkpoint`] are weights at rest; [`device`] is what one rank
//! computes with; [`collective`] is how ranks talk; [`cpu`] implements the device; [`timed`] measures
//! what a device does, [`imposed`] decides where tokens go; [`linalg`] is the float32 math of training.
//!
//! This crate uses no other crate of the workspace.

pub mod checkpoint;
pub mod checks;
pub mod collective;
pub mod cpu;
pub mod device;
pub mod dtype;
pub mod imposed;
pub mod linalg;
pub mod timed;
