//! Encoders: what they are made of, how families translate into that, how ranks run it.
//!
//! In reading order: [`spec`] says what an encoder is.

pub mod spec;
pub mod error;
pub mod forward;
pub mod shard;
mod weights;
pub mod families;
pub mod model;
pub mod model_error;
mod spec_tensors;
