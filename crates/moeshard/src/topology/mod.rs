//! `moeshard topology`: who exchanges with whom, made, learned and judged before any training.
//!
//! [`nodes`] says what nodes hold; [`connect`] makes schedules of rules and files; [`measure`] judges
//! them, for [`table`] and [`page`] to show. Each command is a module: [`list`], [`build`], [`learn`],
//! [`inspect`] and [`compare`].

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Subcommand;
use moeshard_decentralized::topology::file::{self, SavedSchedule};

pub mod build;
pub mod compare;
pub mod connect;
pub mod inspect;
pub mod learn;
pub mod list;
pub mod measure;
pub mod nodes;
mod page;
mod table;

/// Flags of `moeshard topology`.
#[derive(Clone, Debug, clap::Args)]
pub struct TopologyArgs {
    /// What to do
    #[command(subcommand)]
    pub action: TopologyAction,
}

/// What to do with topologies.
#[derive(Clone, Debug, Subcommand)]
pub enum TopologyAction {
    /// List the topologies that there are, with their parameters
    List,
    /// Connect nodes and write who exchanges with whom to a file
    Build(build::BuildArgs),
    /// Learn a topology from the classes that nodes hold (STL-FW)
    Learn(learn::LearnArgs),
    /// Measure one topology
    Inspect(inspect::InspectArgs),
    /// Measure several topologies side by side
    Compare(compare::CompareArgs),
}

/// Does it.
///
/// # Errors
/// If an argument is impossible, or a file is missing or not what it should be.
pub fn run(args: TopologyArgs) -> Result<()> {
    match args.action {
        TopologyAction::List => list::run(),
        TopologyAction::Build(args) => build::run(args),
        TopologyAction::Learn(args) => learn::run(args),
        TopologyAction::Inspect(args) => inspect::run(args),
        TopologyAction::Compare(args) => compare::run(args),
    }
}

fn write_topology(path: &Path, saved: &SavedSchedule) -> Result<()> {
    file::write(path, saved)?;
    tracing::info!("topology: {}", path.display());
    Ok(())
}

fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
