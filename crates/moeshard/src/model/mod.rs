//! Which model to run and with what: from the command line to a model that answers.
//!
//! [`ModelArgs`] and [`HeadArgs`] are what clap reads, [`ModelConfig`] what they mean; [`open`] finds the
//! files, on the hub if need be; [`load`] starts the ranks on devices of the chosen [`DeviceKind`] and
//! hands out the batcher's handle; [`Processes`] are ranks that a launcher has started.

mod args;
mod builtin;
mod config;
mod devices;
mod load;
mod open;
mod processes;

pub use args::{ComputeArgs, HeadArgs, ModelArgs};
pub use config::{ComputeConfig, ModelConfig, Source};
pub use devices::DeviceKind;
#[cfg(feature = "emulated")]
pub(crate) use devices::emulated_ranks;
pub(crate) use devices::{cpu_ranks, gpu_ranks};
pub use load::{Loaded, describe, dtype, load, load_over, settled};
pub use open::{Opened, open};
pub use processes::{Processes, follow};
