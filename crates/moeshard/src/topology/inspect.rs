//! `moeshard topology inspect`: every measure of one topology.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;

use super::connect::connect;
use super::measure::Measured;
use super::nodes::{NodeArgs, NodesConfig};
use super::{page, table};
use crate::arg_error::ArgError;

/// Flags of `moeshard topology inspect`.
#[derive(Clone, Debug, clap::Args)]
pub struct InspectArgs {
    /// A file of `moeshard topology build`, or a rule such as ring
    #[arg(value_name = "FILE|RULE")]
    pub topology: String,

    /// What to show, and where
    #[command(flatten)]
    pub show: ShowArgs,

    /// How many nodes there are, and what each holds
    #[command(flatten)]
    pub nodes: NodeArgs,
}

/// What to show, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct ShowArgs {
    /// Show JSON instead of a table
    #[arg(long)]
    pub json: bool,

    /// Write a page with the graph drawn as well
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Parameters of a model, for bytes a round
    #[arg(long, value_name = "N", default_value_t = 7850)]
    pub n_params: usize,
}

/// Shows the measures of a topology.
///
/// # Errors
/// If an argument is impossible, or a file cannot be read or written.
pub fn run(args: InspectArgs) -> Result<()> {
    let n_params = ArgError::at_least_one("--n-params", args.show.n_params)?;
    let nodes = NodesConfig::try_from(args.nodes)?;
    let networks = connect(&[args.topology], &nodes)?;
    let measured: Vec<Measured> = (networks.iter())
        .map(|network| Measured::of(network, n_params))
        .collect();
    let mut out = io::stdout().lock();
    for (network, measured) in networks.iter().zip(&measured) {
        match args.show.json {
            true => {
                serde_json::to_writer_pretty(&mut out, measured)?;
                writeln!(out)?;
            }
            false => table::write_one(measured, &mut out)?,
        }
        if let Some(path) = &args.show.html {
            page::write(
                path,
                &network.name,
                &networks,
                std::slice::from_ref(measured),
                nodes.seed,
            )?;
        }
    }
    Ok(())
}
