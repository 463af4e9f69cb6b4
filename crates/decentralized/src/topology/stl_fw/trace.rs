//! What learning a topology went through.

use serde::Serialize;

use crate::measures::Heterogeneity;
use crate::mixing::MixingMatrix;

/// A learned mixing matrix and how it came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Learned {
    /// The last matrix within the budget: that of the last iteration of the trace.
    pub mixing: MixingMatrix,
    /// λ of the objective.
    pub lambda: f64,
    /// Every iteration, from the identity on.
    pub trace: Vec<Iteration>,
}

/// The state after an iteration.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Iteration {
    /// `g(W) = bias + λ · variance`.
    pub objective: f64,
    /// Its two terms, the noise being 1.
    pub heterogeneity: Heterogeneity,
    /// The step γ that led here; 0 for the identity.
    pub gamma: f64,
    /// The most neighbours that a node sends to, or receives from.
    pub max_degree: usize,
}
