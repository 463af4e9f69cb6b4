//! Encoders: what they are made of, how families translate into that, how ranks run it.
//!
//! In reading order: [`spec`] says what an encoder is; [`families`] translate a checkpoint's
//! config into a spec; [`model`] opens a folder; [`shard`] says which part of every expert a rank
//! holds; [`forward`] runs a spec on a device; [`reference`](mod@reference) runs the same spec in
//! plain candle, to compare with. [`fingerprint`] tells encoders apart, and [`trained_head`] puts a
//! head on one that was trained apart from it.
//!
//! This crate never names a particular device.

pub mod error;
pub mod families;
pub mod fingerprint;
pub mod forward;
pub mod model;
pub mod model_error;
pub mod reference;
pub mod shard;
pub mod spec;
mod spec_tensors;
pub mod trained_head;
mod weights;
