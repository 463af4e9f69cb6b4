//! Why examples could not be divided.

use crate::data::DataError;

/// Why examples could not be divided over nodes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    /// No rule is written like this.
    #[error("partition {text:?}: expected {expected}")]
    Rule {
        /// The text.
        text: String,
        /// How rules are written.
        expected: String,
    },
    /// A parameter out of range.
    #[error("{rule}: {parameter} is {got}, expected {expected}")]
    Parameter {
        /// Which rule.
        rule: String,
        /// Which of its parameters.
        parameter: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A node without examples.
    #[error("{rule}: node {node} gets no example: {remedy}")]
    EmptyNode {
        /// Which rule.
        rule: String,
        /// The first such node.
        node: usize,
        /// What would help.
        remedy: String,
    },
    /// The file that says who holds what is not what it should be.
    #[error(transparent)]
    File(#[from] DataError),
}
