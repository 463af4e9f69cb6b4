//! `moeshard topology compare`: measures of several topologies side by side.

use std::io::{self, Write};

use anyhow::Result;

use super::connect::connect;
use super::inspect::ShowArgs;
use super::measure::Measured;
use super::nodes::{NodeArgs, NodesConfig};
use super::{page, table};
use crate::arg_error::ArgError;

/// Flags of `moeshard topology compare`.
#[derive(Clone, Debug, clap::Args)]
pub struct CompareArgs {
    /// Rules such as ring, or files of `moeshard topology build`, all of as many nodes
    #[arg(value_name = "RULE|FILE", required = true)]
    pub topologies: Vec<String>,

    /// What to show, and where
    #[command(flatten)]
    pub show: ShowArgs,

    /// How many nodes there are, and what each holds
    #[command(flatten)]
    pub nodes: NodeArgs,
}

/// Shows the measures of topologies, in the order given.
///
/// # Errors
/// If an argument is impossible, or a file cannot be read or written.
pub fn run(args: CompareArgs) -> Result<()> {
    let n_params = ArgError::at_least_one("--n-params", args.show.n_params)?;
    let nodes = NodesConfig::try_from(args.nodes)?;
    let networks = connect(&args.topologies, &nodes)?;
    let measured: Vec<Measured> = (networks.iter())
        .map(|network| Measured::of(network, n_params))
        .collect();
    let mut out = io::stdout().lock();
    match args.show.json {
        true => {
            serde_json::to_writer_pretty(&mut out, &measured)?;
            writeln!(out)?;
        }
        false => table::write_all(&measured, &mut out)?,
    }
    if let Some(path) = &args.show.html {
        let n_nodes = measured.first().map_or(0, |measured| measured.n_nodes);
        let title = format!("Topologies of {n_nodes} nodes");
        page::write(path, &title, &networks, &measured, nodes.seed)?;
    }
    Ok(())
}
