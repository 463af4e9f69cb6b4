//! Which model to run and with what: from the command line to a model that answers.
//!
//! [`args`] is what clap reads, [`config`] what it means; [`open`](mod@open) finds the files, on
//! the hub if need be; [`load`] starts the engine and hands out the batcher's handle.

pub mod args;
pub mod builtin;
pub mod config;
pub mod load;
pub mod open;

pub use args::ModelArgs;
pub use config::{ModelConfig, Source};
pub use load::{Loaded, load};
pub use open::{Opened, open};
