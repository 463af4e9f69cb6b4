//! One round of each algorithm. In the equations θ are the models of all nodes, one a row, g their
//! gradients, W the mixing matrix and η the step size.

use super::gradients::for_each_node;
use super::settings::{Method, MixOrder};
use super::trainer::{State, Trainer};
use super::{Result, TrainError};

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
        let (eta, n_local) = (self.settings.learning_rate, self.run.nodes.len());
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
            &self.run.threads,
            n_local,
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
        );
        self.mix_models()?;
        if order == MixOrder::BeforeStep {
            let State {
                models, gradients, ..
            } = &mut self.state;
            let matrices = [models.as_mut_slice(), gradients];
            for_each_node(&self.run.threads, n_local, matrices, |[model, v]| {
                step_in_place(model, eta, v);
            });
        }
        Ok(loss)
    }

    /// `y = W(y + g − g')` (at first `y = g`), `θ = W(θ − η·y)`, where g' is the gradient of the round
    /// before.
    pub(super) fn gradient_tracking(&mut self) -> Result<f32> {
        let (eta, n_local) = (self.settings.learning_rate, self.run.nodes.len());
        let is_first = self.run.round == 0;
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
                for (i, &g) in gradient.iter().enumerate() {
                    send[i] = tracked[i] + g - previous[i];
                }
                previous.copy_from_slice(gradient);
            },
        );
        let round = self.run.round_of(self.run.round, &self.run.weights);
        let transport = &mut *self.transport;
        match is_first {
            // All zeros before the first round, so that what is sent is g.
            true => direction.copy_from_slice(self.mixer.local_mut()),
            false => (self.mixer).mix(&round, &self.run.threads, transport, direction)?,
        }
        let matrices = [
            self.state.models.as_mut_slice(),
            &mut self.state.direction,
            self.mixer.local_mut(),
        ];
        for_each_node(&self.run.threads, n_local, matrices, |[model, y, send]| {
            step(model, eta, y, send);
        });
        self.mix_models()?;
        Ok(loss)
    }

    /// `θ = W(2θ − η·g − (θ' − η·g'))`, where the bracket is where the round before stepped to; at first
    /// `θ = W(θ − η·g)`.
    pub(super) fn d2(&mut self) -> Result<f32> {
        let eta = self.settings.learning_rate;
        let is_first = self.run.round == 0;
        let State {
            models, previous, ..
        } = &mut self.state;
        let matrices = [models, previous, self.mixer.local_mut()];
        let loss =
            self.gradients
                .of_batches(&self.run, matrices, |gradient, [model, previous, send]| {
                    for (i, x) in model.iter().enumerate() {
                        let stepped = x - eta * gradient.map_or(0.0, |g| g[i]);
                        let correction = if is_first { 0.0 } else { x - previous[i] };
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
    /// Whether the method goes with a mixing matrix of this smallest eigenvalue; directed and varying
    /// ones have none.
    ///
    /// # Errors
    /// [`TrainError::Unsuitable`] if it does not converge with it.
    pub fn check_topology(&self, topology: &str, smallest_eigenvalue: Option<f64>) -> Result<()> {
        if *self != Method::D2 || smallest_eigenvalue.is_some_and(|smallest| smallest > -1.0 / 3.0)
        {
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
