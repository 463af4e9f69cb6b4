//! What is trained how.

use std::num::NonZeroUsize;

use super::absence::Absences;
use super::{Result, TrainError};

/// When models are averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MixOrder {
    /// `θ ← W(θ − η·g)`
    #[default]
    AfterStep,
    /// `θ ← Wθ − η·g`
    BeforeStep,
}

/// By which algorithm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// D-SGD (Lian et al. 2017, arXiv 1705.09056).
    DSgd {
        /// When models are averaged.
        order: MixOrder,
        /// `v ← momentum · v + g`, and steps along `v`.
        momentum: f32,
        /// Gradients are averaged over the clique first (D-Cliques, arXiv 2104.07365, algorithm 3).
        clique_averaging: bool,
    },
    /// Gradient tracking (DIGing, arXiv 1607.03218; adapt, then combine):
    /// `y ← W(y + g − g')`, `θ ← W(θ − η·y)`.
    GradientTracking,
    /// D² (Tang et al. 2018, arXiv 1803.07068): `θ ← W(2θ − θ' − η·g + η·g')`. Needs a symmetric W
    /// whose smallest eigenvalue is above −1/3.
    D2,
}

impl Method {
    /// Its name on the command line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Method::DSgd { .. } => "d-sgd",
            Method::GradientTracking => "gradient-tracking",
            Method::D2 => "d2",
        }
    }
}

/// What is trained how.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// By which algorithm.
    pub method: Method,
    /// Step size η.
    pub learning_rate: f32,
    /// Examples of a step on one node.
    pub batch_size: NonZeroUsize,
    /// Everything random follows from it.
    pub seed: u64,
    /// Whether all nodes start from the same parameters; the model decides where it is not said.
    pub start_alike: Option<bool>,
    /// Who misses rounds.
    pub absences: Absences,
    /// Threads to compute with.
    pub n_threads: usize,
}

impl Settings {
    /// That training with them can begin.
    ///
    /// # Errors
    /// [`TrainError::Setting`] names the first that is out of range.
    pub fn check(&self) -> Result<()> {
        let wrong = |setting, expected, got: String| {
            Err(TrainError::Setting {
                setting,
                expected,
                got,
            })
        };
        let Settings { learning_rate, .. } = *self;
        if !(learning_rate > 0.0 && learning_rate.is_finite()) {
            return wrong(
                "learning rate",
                "a positive number",
                learning_rate.to_string(),
            );
        }
        if let Method::DSgd { momentum, .. } = self.method
            && !(0.0..1.0).contains(&momentum)
        {
            return wrong("momentum", "from 0 to below 1", momentum.to_string());
        }
        let Absences {
            straggle,
            leave,
            come_back,
        } = self.absences;
        for (setting, p) in [
            ("straggle", straggle),
            ("leave", leave),
            ("come back", come_back),
        ] {
            if !(0.0..=1.0).contains(&p) {
                return wrong(setting, "a probability from 0 to 1", p.to_string());
            }
        }
        Ok(())
    }
}
