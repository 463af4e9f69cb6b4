//! How far two runs of a model are apart.

use std::fmt;

use moeshard_encoder::spec::EncoderSpec;
use moeshard_tensor::device::Routing;

/// The largest error of a step: `max |found − want| / max |want|` over a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Worst {
    pub(super) relative: f64,
    pub(super) seq: usize,
    pub(super) token: usize,
    pub(super) dim: usize,
}

/// How many tokens were given the same experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreement {
    n_same: usize,
    n_tokens: usize,
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.n_same, self.n_tokens)
    }
}

/// One row of the comparison.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) worst: Worst,
    pub(super) agreement: Option<Agreement>,
}

impl Step {
    fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            worst: Worst::default(),
            agreement: None,
        }
    }

    fn see(&mut self, worst: Worst) {
        if worst.relative > self.worst.relative {
            self.worst = worst;
        }
    }
}

/// All steps of a model, over all sequences.
#[derive(Clone, Debug)]
pub(super) struct Comparison {
    d_model: usize,
    steps: Vec<Step>,
}

impl Comparison {
    pub(super) fn new(spec: &EncoderSpec) -> Self {
        let layers =
            (0..spec.layers.len()).map(|layer_idx| Step::new(format!("layer {layer_idx}")));
        let steps = [Step::new("embedding")].into_iter().chain(layers).collect();
        Self {
            d_model: spec.d_model,
            steps,
        }
    }

    /// The steps in order.
    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The largest error of all steps.
    pub(super) fn worst(&self) -> f64 {
        self.steps
            .iter()
            .map(|step| step.worst.relative)
            .fold(0.0, f64::max)
    }

    /// Compares hidden states after the embedding (step 0) or a layer.
    pub(super) fn step(&mut self, step: usize, seq: usize, found: &[f32], want: &[f32]) {
        let worst = worst(seq, self.d_model, found, want);
        if let Some(step) = self.steps.get_mut(step) {
            step.see(worst);
        }
    }

    /// Compares what comes after the layers, in rows of `width`.
    pub(super) fn last(
        &mut self,
        name: &str,
        seq: usize,
        width: usize,
        found: &[f32],
        want: &[f32],
    ) {
        let worst = worst(seq, width, found, want);
        match self.steps.iter_mut().find(|step| step.name == name) {
            Some(step) => step.see(worst),
            None => {
                let mut step = Step::new(name);
                step.see(worst);
                self.steps.push(step);
            }
        }
    }

    /// Compares the experts chosen at a layer; their order does not matter.
    pub(super) fn routing(&mut self, layer_idx: usize, found: &Routing, want: &Routing) {
        let chosen = |routing: &Routing, token: usize| {
            let slots = token * routing.top_k..(token + 1) * routing.top_k;
            let mut experts = routing.expert_idx.get(slots).unwrap_or_default().to_vec();
            experts.sort_unstable();
            experts
        };
        let n_tokens = want.n_tokens();
        let is_same = |token: &usize| chosen(found, *token) == chosen(want, *token);
        let n_same = (0..n_tokens).filter(is_same).count();
        if let Some(step) = self.steps.get_mut(layer_idx + 1) {
            let agreement = step.agreement.get_or_insert_default();
            agreement.n_same += n_same;
            agreement.n_tokens += n_tokens;
        }
    }
}

/// What is not finite, on either side, counts as an infinite error.
fn worst(seq: usize, width: usize, found: &[f32], want: &[f32]) -> Worst {
    if found.len() != want.len() {
        return Worst {
            relative: f64::INFINITY,
            seq,
            token: 0,
            dim: 0,
        };
    }
    let largest = want
        .iter()
        .fold(0.0_f64, |most, &x| most.max(f64::from(x).abs()));
    let or_infinite = |x: f64| if x.is_nan() { f64::INFINITY } else { x };
    let difference = |(&a, &b): (&f32, &f32)| or_infinite((f64::from(a) - f64::from(b)).abs());
    let differences = found.iter().zip(want).map(difference).enumerate();
    let (i, most) = differences
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap_or((0, 0.0));
    let relative = or_infinite(most / largest.max(f64::MIN_POSITIVE));
    Worst {
        relative,
        seq,
        token: i / width,
        dim: i % width,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_element_is_found() {
        let found = worst(3, 2, &[1.0, 2.0, 3.0, 4.5], &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(
            found,
            Worst {
                relative: 0.125,
                seq: 3,
                token: 1,
                dim: 1
            }
        );
        assert_eq!(worst(0, 2, &[0.0, 0.0], &[0.0, 0.0]).relative, 0.0);
        assert_eq!(
            worst(0, 2, &[f32::NAN, 0.0], &[1.0, 0.0]).relative,
            f64::INFINITY
        );
        assert_eq!(worst(0, 2, &[1.0], &[1.0, 0.0]).relative, f64::INFINITY);
        for found in [f32::INFINITY, 1.0] {
            let worst = worst(0, 2, &[0.0, found], &[0.0, f32::INFINITY]);
            assert_eq!((worst.relative, worst.dim), (f64::INFINITY, 1));
        }
    }
}
