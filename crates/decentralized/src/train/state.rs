//! What rounds change.

use std::ops::Range;

use super::settings::{Method, MixOrder, Settings};
use super::trainer::Task;
use crate::seed;

/// The rows of this rank's nodes, `[n_local, n_params]` but for the losses; empty where the method has
/// no need of them.
#[derive(Debug, Default)]
pub(super) struct State {
    /// θ
    pub(super) models: Vec<f32>,
    /// The momentum's velocity, or the gradient tracked.
    pub(super) direction: Vec<f32>,
    /// The gradient of the round before, or (D²) where its step alone led.
    pub(super) previous: Vec<f32>,
    /// Gradients of the round, where they have to be kept for a while.
    pub(super) gradients: Vec<f32>,
    /// `[n_local, 2]`: the sum of the batches' losses since the last evaluation, and their number.
    pub(super) losses: Vec<f32>,
    /// Values of a row of what is saved, in its order. A rank without nodes has no rows to tell by.
    row_lens: [usize; 4],
}

/// Part of a state that a run that goes on needs.
pub(super) struct Saved<'a> {
    pub(super) name: &'static str,
    pub(super) row_len: usize,
    /// `[n_local, row_len]`
    pub(super) rows: &'a mut [f32],
}

impl State {
    pub(super) fn new(settings: &Settings, task: &Task<'_>, nodes: &Range<usize>) -> Self {
        let n_params = task.model.n_params();
        let mut models = vec![0.0; nodes.len() * n_params];
        let starts_alike = settings.start_alike.unwrap_or(task.model.starts_alike());
        for (node, model) in nodes.clone().zip(models.chunks_exact_mut(n_params)) {
            let stream = if starts_alike { 0 } else { node as u64 };
            (task.model).init(&mut seed::rng(settings.seed, stream), model);
        }
        let (direction, previous, gradients) = match settings.method {
            Method::DSgd {
                momentum,
                order,
                clique_averaging,
            } => {
                let is_kept = clique_averaging || order == MixOrder::BeforeStep;
                (momentum > 0.0, false, is_kept)
            }
            Method::GradientTracking => (true, true, false),
            Method::D2 => (false, true, false),
        };
        let row_len = |wanted: bool| if wanted { n_params } else { 0 };
        let zeros = |wanted: bool| vec![0.0; nodes.len() * row_len(wanted)];
        Self {
            direction: zeros(direction),
            previous: zeros(previous),
            gradients: zeros(gradients),
            losses: vec![0.0; nodes.len() * 2],
            row_lens: [n_params, row_len(direction), row_len(previous), 2],
            models,
        }
    }

    /// What a run that goes on needs.
    pub(super) fn saved_mut(&mut self) -> [Saved<'_>; 4] {
        let rows = [
            ("models", &mut self.models),
            ("direction", &mut self.direction),
            ("previous", &mut self.previous),
            ("losses", &mut self.losses),
        ];
        let mut row_lens = self.row_lens.into_iter();
        rows.map(|(name, rows)| Saved {
            name,
            row_len: row_lens.next().unwrap_or_default(),
            rows,
        })
    }
}
