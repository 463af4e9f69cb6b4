//! `moeshard topology build`: from a rule to a file.

use std::io;
use std::path::PathBuf;

use anyhow::Result;
use moeshard_decentralized::topology::file::SavedSchedule;

use super::connect::connect;
use super::measure::Measured;
use super::nodes::{NodeArgs, NodesConfig};
use super::{table, write_topology};
use crate::arg_error::ArgError;

/// Flags of `moeshard topology build`.
#[derive(Clone, Debug, clap::Args)]
pub struct BuildArgs {
    /// Who exchanges with whom, such as ring, random:d=10, d-cliques or stl-fw:d=10
    #[arg(long, value_name = "RULE")]
    pub topology: String,

    /// File for it, as JSON
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// Parameters of a model, for bytes a round
    #[arg(long, value_name = "N", default_value_t = 7850)]
    pub n_params: usize,

    /// How many nodes there are, and what each holds
    #[command(flatten)]
    pub nodes: NodeArgs,
}

/// Builds a topology, writes it and shows its measures.
///
/// # Errors
/// If an argument is impossible, or a file cannot be read or written.
pub fn run(args: BuildArgs) -> Result<()> {
    let n_params = ArgError::at_least_one("--n-params", args.n_params)?;
    let nodes = NodesConfig::try_from(args.nodes)?;
    for network in connect(&[args.topology], &nodes)? {
        let measured = Measured::of(&network, n_params);
        let saved = SavedSchedule {
            topology: network.topology,
            schedule: network.schedule,
            classes: network.classes,
        };
        write_topology(&args.out, &saved)?;
        table::write_one(&measured, &mut io::stdout().lock())?;
    }
    Ok(())
}
