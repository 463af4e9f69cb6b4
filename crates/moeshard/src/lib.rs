//! The parts of the program `moeshard`, in a library so that tests can reach them.
//!
//! [`cli`] is the command line; each of its actions is a module: [`serve`], [`embed`] and
//! [`classify`] (both by [`bulk`]), [`inspect`], [`verify`], [`bench`], [`doctor`], [`loadtest`],
//! [`train`] and [`topology`].
//! What they share is [`model`] (from `--model` to a model that answers, by way of [`hub`]),
//! [`launch`] (the processes that a launcher has started), [`footprint`], [`machine`], [`arg_error`] and
//! [`sentence`].
//!
//! Arguments come in two stages: clap fills a raw struct, and `try_from` makes a checked
//! configuration of it before anything is downloaded or loaded.

pub mod arg_error;
pub mod batch_args;
pub mod bench;
pub mod bulk;
pub mod classify;
pub mod cli;
pub mod cost;
mod display;
pub mod doctor;
pub mod embed;
pub mod footprint;
pub mod hub;
pub mod inspect;
pub mod launch;
pub mod loadtest;
pub mod logging;
pub mod machine;
pub mod model;
pub mod progress;
mod random;
pub mod secret;
pub mod sentence;
pub mod serve;
pub mod topology;
pub mod train;
pub mod verify;
