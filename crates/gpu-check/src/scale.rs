//! How large everything is.

use moeshard_cuda::peak::Effort;

use crate::models::ModelShape;

/// How large everything is.
pub(crate) struct Scale {
    /// Whether the conformance suite runs its large shapes as well.
    pub(crate) is_conformance_large: bool,
    pub(crate) effort: Effort,
    pub(crate) d_model: usize,
    pub(crate) d_ff: usize,
    pub(crate) n_tokens: usize,
    pub(crate) n_experts: &'static [usize],
    /// Passes of a round.
    pub(crate) n_passes: usize,
    pub(crate) n_rounds: usize,
    pub(crate) models: &'static [ModelShape],
}

impl Scale {
    /// Shapes of real models, times that can be compared.
    pub(crate) const GPU: Self = Self {
        is_conformance_large: true,
        effort: Effort::GPU,
        d_model: 768,
        d_ff: 3072,
        n_tokens: 30_000,
        n_experts: &[8, 64],
        n_passes: 10,
        n_rounds: 7,
        models: &ModelShape::GPU,
    };

    /// As little as goes through every part.
    #[cfg(feature = "emulated")]
    pub(crate) const TINY: Self = Self {
        is_conformance_large: false,
        effort: Effort {
            n_steps: 1,
            read_bytes: 1 << 12,
        },
        d_model: 16,
        d_ff: 32,
        n_tokens: 40,
        n_experts: &[4],
        n_passes: 1,
        n_rounds: 1,
        models: &ModelShape::TINY,
    };
}
