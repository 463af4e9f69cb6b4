//! Why a topology could not be made.

/// Why a topology could not be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// A parameter does not fit the number of nodes.
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
}
