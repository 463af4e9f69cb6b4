//! One round of each algorithm. In the equations θ are the models of all nodes, one a row, g their
//! gradients, W the mixing matrix and η the step size.

use super::gradients::for_each_node;
use super::settings::{Method, MixOrder};
use super::state::State;
use super::trainer::Trainer;
use super::{Result, TrainError, cliques};
use crate::topology::Schedule;

impl Trainer<'_> {
    /// One round of D-SGD; the batches' mean loss.
    pub(super) fn d_sgd(&mut self, momentum: f32, order: MixOrder) -> Result<f32> {
        match (&self.clique_mixer, order) {
            (None, MixOrder::AfterStep) => self.step_and_mix(momentum),
            _ => self.step_apart(momentum, order),
        }
    }

    /// `v = momentum · v + g`, `θ = W(θ − η·v)`, without keeping any gradient.
    fn step_and_mix(&mut self, momentum: f32) -> Result<f32> {
        let eta = self.settings.learning_rate;
        let State {
            models, direction, ..
        } = &mut self.state;
        let matrices = [models.as_mut_slice(), direction];
        let loss = (self.gradients).of_batches(&self.run, matrices, |gradient, rows| {
            let (Some(gradient), [model, velocity]) = (gradient, rows) else {
                return;
            };
            match velocity.is_empty() {
                true => step_in_place(model, eta, gradient),
                false => {
                    accelerate(velocity, momentum, gradient);
                    step_in_place(model, eta, velocity);
                }
            }
        });
        self.mixer.take_local(models);
        self.mix_models()?;
        Ok(loss)
    }

    /// The same with gradients averaged over cliques, or models averaged before the step.
    fn step_apart(&mut self, momentum: f32, order: MixOrder) -> Result<f32> {
        let eta = self.settings.learning_rate;
        let State {
            models,
            direction,
            gradients,
            ..
        } = &mut self.state;
        let loss = match &mut self.clique_mixer {
            None => self.gradients.copy_of_batches(&self.run, models, gradients),
            Some(cliques) => {
                let send = cliques.mixer.local_mut();
                let loss = self.gradients.copy_of_batches(&self.run, models, send);
                let round = self.run.round_of(0, &cliques.weights);
                let transport = &mut *self.transport;
                (cliques.mixer).mix(&round, &self.run.threads, transport, gradients)?;
                loss
            }
        };
        let has_momentum = !direction.is_empty();
        let matrices = [models, direction, gradients, self.mixer.local_mut()];
        for_each_node(
            &self.run,
            matrices,
            |[model, velocity, gradient, send]| {
                if has_momentum {
                    accelerate(velocity, momentum, gradient);
                    gradient.copy_from_slice(velocity);
                }
                match order {
                    MixOrder::AfterStep => step(model, eta, gradient, send),
                    MixOrder::BeforeStep => send.copy_from_slice(model),
                }
            },
            |[model, _, _, send]| send.copy_from_slice(model),
        );
        self.mix_models()?;
        if order == MixOrder::BeforeStep {
            let State {
                models, gradients, ..
            } = &mut self.state;
            let matrices = [models.as_mut_slice(), gradients];
            let step = |[model, v]: &mut [&mut [f32]; 2]| step_in_place(model, eta, v);
            for_each_node(&self.run, matrices, step, |_| ());
        }
        Ok(loss)
    }

    /// `y = W(y + g − g')` (when it [begins](super::trainer::Run::begins) `y = g`), `θ = W(θ − η·y)`, where
    /// g' is the gradient of the round before.
    pub(super) fn gradient_tracking(&mut self) -> Result<f32> {
        let (eta, begins) = (self.settings.learning_rate, self.run.begins());
        let State {
            models,
            direction,
            previous,
            ..
        } = &mut self.state;
        let matrices = [models, &mut *direction, previous, self.mixer.local_mut()];
        let loss = self.gradients.of_batches(
            &self.run,
            matrices,
            |gradient, [_, tracked, previous, send]| {
                let Some(gradient) = gradient else {
                    return send.copy_from_slice(tracked);
                };
                match begins {
                    true => send.copy_from_slice(gradient),
                    false => {
                        for (i, &g) in gradient.iter().enumerate() {
                            send[i] = tracked[i] + g - previous[i];
                        }
                    }
                }
                previous.copy_from_slice(gradient);
            },
        );
        let round = self.run.round_of(self.run.round, &self.run.weights);
        let transport = &mut *self.transport;
        match begins {
            true => direction.copy_from_slice(self.mixer.local_mut()),
            false => (self.mixer).mix(&round, &self.run.threads, transport, direction)?,
        }
        let matrices = [
            self.state.models.as_mut_slice(),
            &mut self.state.direction,
            self.mixer.local_mut(),
        ];
        for_each_node(
            &self.run,
            matrices,
            |[model, y, send]| step(model, eta, y, send),
            |[model, _, send]| send.copy_from_slice(model),
        );
        self.mix_models()?;
        Ok(loss)
    }

    /// `θ = W(2θ − η·g − (θ' − η·g'))`, where the bracket is where the round before stepped to; when
    /// it [begins](super::trainer::Run::begins) `θ = W(θ − η·g)`.
    pub(super) fn d2(&mut self) -> Result<f32> {
        let eta = self.settings.learning_rate;
        let begins = self.run.begins();
        let State {
            models, previous, ..
        } = &mut self.state;
        let matrices = [models, previous, self.mixer.local_mut()];
        let loss =
            self.gradients
                .of_batches(&self.run, matrices, |gradient, [model, previous, send]| {
                    let Some(gradient) = gradient else {
                        return send.copy_from_slice(model);
                    };
                    for (i, x) in model.iter().enumerate() {
                        let stepped = x - eta * gradient[i];
                        let correction = if begins { 0.0 } else { x - previous[i] };
                        send[i] = stepped + correction;
                        previous[i] = stepped;
                    }
                });
        self.mix_models()?;
        Ok(loss)
    }

    /// `θ = W · sent`
    fn mix_models(&mut self) -> Result<()> {
        let round = self.run.round_of(self.run.round, &self.run.weights);
        let (threads, models) = (&self.run.threads, &mut self.state.models);
        (self.mixer).mix(&round, threads, &mut *self.transport, models)
    }
}

impl Method {
    /// Whether the method goes with a topology, whose mixing matrix has this smallest eigenvalue; directed
    /// and varying ones have none.
    ///
    /// # Errors
    /// [`TrainError::Unsuitable`] if it does not converge on it, or has no cliques to average over.
    pub fn check_topology(
        &self,
        topology: &str,
        schedule: &Schedule,
        smallest_eigenvalue: Option<f64>,
    ) -> Result<()> {
        let Method::D2 = self else {
            return match self {
                Method::DSgd {
                    clique_averaging: true,
                    ..
                } => cliques::check(topology, schedule),
                _ => Ok(()),
            };
        };
        // At −1/3 itself, that of every even ring, one part of the models never decays; rounding may
        // put it on either side.
        let is_above = |smallest: f64| smallest > -1.0 / 3.0 + 1e-9;
        if smallest_eigenvalue.is_some_and(is_above) {
            return Ok(());
        }
        Err(TrainError::Unsuitable {
            method: self.name(),
            needed: "one symmetric mixing matrix with all eigenvalues above -1/3",
            topology: topology.to_owned(),
            got: match smallest_eigenvalue {
                Some(smallest) => format!("a smallest eigenvalue of {smallest:.3}"),
                None => "directed edges or several matrices".to_owned(),
            },
        })
    }
}

/// `to = from − η · direction`
fn step(from: &[f32], eta: f32, direction: &[f32], to: &mut [f32]) {
    for ((to, x), d) in to.iter_mut().zip(from).zip(direction) {
        *to = x - eta * d;
    }
}

/// `x = x − η · direction`
fn step_in_place(x: &mut [f32], eta: f32, direction: &[f32]) {
    for (x, d) in x.iter_mut().zip(direction) {
        *x -= eta * d;
    }
}

/// `v = momentum · v + g`
fn accelerate(velocity: &mut [f32], momentum: f32, gradient: &[f32]) {
    for (v, g) in velocity.iter_mut().zip(gradient) {
        *v = momentum * *v + g;
    }
}
