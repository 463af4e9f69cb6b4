//! Why a topology could not be made.

use std::path::PathBuf;

use super::file::ScheduleFileError;

/// Why a topology could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// A parameter does not fit the number of nodes, or cannot be read.
    #[error("{topology}: {parameter} is {got}, expected {expected}")]
    Parameter {
        /// Which topology.
        topology: &'static str,
        /// Which of its parameters.
        parameter: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A topology that minds the data was given none.
    #[error("{topology} needs to know which classes each node holds")]
    NoClasses {
        /// Which topology.
        topology: &'static str,
    },
    /// A name that no topology has.
    #[error("there is no topology `{name}`, expected one of {known}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// A parameter that a topology does not have.
    #[error("{topology} has no parameter `{parameter}`, expected one of {known}")]
    UnknownParameter {
        /// Which topology.
        topology: &'static str,
        /// The parameter.
        parameter: String,
        /// Those that it has, or "none".
        known: String,
    },
    /// No nodes, or more than can be numbered.
    #[error("{topology}: there are {n_nodes} nodes, expected 1 to {}", u32::MAX)]
    Nodes {
        /// Which topology.
        topology: &'static str,
        /// How many nodes there are.
        n_nodes: usize,
    },
    /// Class counts of another number of nodes.
    #[error("{topology}: class counts of {n_rows} nodes were given, expected {n_nodes}")]
    Classes {
        /// Which topology.
        topology: &'static str,
        /// How many nodes there are.
        n_nodes: usize,
        /// Of how many nodes the classes are known.
        n_rows: usize,
    },
    /// The file of a topology is not what it should be.
    #[error(transparent)]
    File(#[from] ScheduleFileError),
    /// The file of a topology is one of another number of nodes.
    #[error("{}: the topology has {found} nodes, expected {n_nodes}", path.display())]
    FileNodes {
        /// The file.
        path: PathBuf,
        /// How many nodes there are.
        n_nodes: usize,
        /// How many the file's topology has.
        found: usize,
    },
    /// More links than memory should be spent on.
    #[error(
        "{topology} over {n_nodes} nodes has some {n_links} links, expected at most {}",
        super::MAX_LINKS
    )]
    Large {
        /// Which topology.
        topology: &'static str,
        /// How many nodes there are.
        n_nodes: usize,
        /// How many weights the matrix would hold.
        n_links: u64,
    },
}
