//! A device whose router has no say.
//!
//! Rounding may turn a near tie of two experts around, and then a text is another one from there on;
//! and an experiment on skewed routing needs a skew of its choice. [`Imposed`] gives every token the
//! experts of a [`Script`]. All else is the wrapped device's.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, PoisonError};

use crate::checkpoint::HostTensor;
use crate::device::{
    Activation, AttentionShape, DenseFfn, Device, DeviceStats, EmbeddingRows, ExpertSlice,
    HostMatrix, Norm, Pooling, Result, RouterRule, Routing,
};

/// A device that takes a routing from the host.
pub trait TakesRouting: Device {
    /// A routing over `n_experts` experts in the device's memory.
    ///
    /// # Errors
    /// If it names an expert that there is not, or the device has failed.
    fn routing_from_host(&self, routing: &Routing, n_experts: usize) -> Result<Self::Routing>;

    /// The same routing once more, for one layer of one pass. It may share memory with the first,
    /// which only [`Device::limit_capacity`] would change.
    fn routing_again(&self, routing: &Self::Routing) -> Self::Routing;
}

/// What the router of a rank is to say, changed between passes by whoever has a copy.
#[derive(Clone, Debug, Default)]
pub struct Script(Arc<Mutex<Part>>);

#[derive(Clone, Debug, Default)]
struct Part {
    /// One for each layer of experts, in order.
    routings: Arc<[Routing]>,
    n_experts: usize,
    /// How often it was changed.
    version: u64,
}

impl Script {
    /// Imposes one routing on each layer of experts, in order, from the next pass on. None leave the
    /// router its say.
    pub fn set(&self, routings: Arc<[Routing]>, n_experts: usize) {
        let mut part = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        part.routings = routings;
        part.n_experts = n_experts;
        part.version += 1;
    }

    fn read(&self) -> Part {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Where the weights of imposed experts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gates {
    /// The router's own probabilities of these experts.
    OfRouter,
    /// The script. The router runs all the same, so that a pass takes as long as one.
    OfScript,
}

/// A device whose experts are chosen beforehand.
pub struct Imposed<D: Device> {
    device: D,
    script: Script,
    gates: Gates,
    /// The layer that routes next: a pass asks for every layer once, in order.
    next: Cell<usize>,
    /// The script as it was when the pass began.
    part: RefCell<Part>,
    /// Its routings in the device's memory.
    held: RefCell<Vec<D::Routing>>,
}

impl<D: TakesRouting> Imposed<D> {
    /// Imposes what `script` says whenever a pass begins.
    pub fn new(device: D, script: Script, gates: Gates) -> Self {
        Self {
            device,
            script,
            gates,
            next: Cell::new(0),
            part: RefCell::default(),
            held: RefCell::default(),
        }
    }

    /// Imposes `routings[s]`, one routing for each layer of experts, on sequence `s` of every
    /// batch, weighted by the router.
    pub fn always(device: D, routings: &[&[Routing]]) -> Self {
        let n_layers = routings.first().map_or(0, |layers| layers.len());
        let of_layer = |layer: usize| routings.iter().map(move |layers| &layers[layer]);
        let script = Script::default();
        script.set((0..n_layers).map(|l| stacked(of_layer(l))).collect(), 0);
        Self::new(device, script, Gates::OfRouter)
    }

    /// The wrapped device.
    pub fn inner(&self) -> &D {
        &self.device
    }

    /// The layer that routes now, which of so many it is: none without a script.
    fn layer(&self) -> Result<Option<usize>> {
        let layer = self.next.get();
        if layer == 0 {
            self.begin()?;
        }
        let n_layers = self.part.borrow().routings.len();
        self.next.set((layer + 1) % n_layers.max(1));
        Ok((layer < n_layers).then_some(layer))
    }

    /// Takes over the script, if it has changed.
    fn begin(&self) -> Result<()> {
        let part = self.script.read();
        if part.version == self.part.borrow().version {
            return Ok(());
        }
        let mut held = self.held.borrow_mut();
        held.drain(..).for_each(|old| self.device.recycle(old));
        if self.gates == Gates::OfScript {
            for routing in part.routings.iter() {
                held.push(self.device.routing_from_host(routing, part.n_experts)?);
            }
        }
        self.part.replace(part);
        Ok(())
    }

    /// The experts of the script, with the gates that the router gives them.
    fn weighted(
        &self,
        layer: usize,
        x: &D::Tensor,
        router: &D::Matrix,
        rule: RouterRule,
    ) -> Result<D::Routing> {
        let part = self.part.borrow();
        let recorded = &part.routings[layer];
        assert_eq!(recorded.top_k, rule.top_k, "a routing of another model");
        let logits = self
            .device
            .linear(x, router, None, Activation::Identity, None, None)?;
        let logits = self.device.to_host(&logits)?;
        let n_experts = logits.len().checked_div(recorded.n_tokens()).unwrap_or(0);
        let per_token = recorded.expert_idx.chunks(rule.top_k);
        let routing = Routing {
            top_k: rule.top_k,
            expert_idx: recorded.expert_idx.clone(),
            gate_weight: logits
                .chunks(n_experts.max(1))
                .zip(per_token)
                .flat_map(|(logits, experts)| gates(logits, experts, rule.normalize))
                .collect(),
        };
        self.device.routing_from_host(&routing, n_experts)
    }
}

fn stacked<'a>(routings: impl Iterator<Item = &'a Routing>) -> Routing {
    let mut all = Routing::default();
    for routing in routings {
        all.top_k = routing.top_k;
        all.expert_idx.extend(&routing.expert_idx);
        all.gate_weight.extend(&routing.gate_weight);
    }
    all
}

/// Gates of the experts in `expert_idx`, from the logits of one token.
fn gates(logits: &[f32], expert_idx: &[u32], normalize: bool) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| (logit - largest).exp();
    let chosen = expert_idx.iter().map(|&e| {
        // A dropped choice has no expert and no weight.
        logits.get(e as usize).map_or(0.0, |&logit| weight(logit))
    });
    let sum: f32 = match normalize {
        true => chosen.clone().sum(),
        false => logits.iter().map(|&logit| weight(logit)).sum(),
    };
    chosen.map(|w| w / sum.max(f32::MIN_POSITIVE)).collect()
}

/// Methods that the wrapped device answers.
macro_rules! delegate {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)?;)*) => {
        $(fn $name(&self, $($arg: $ty),*) $(-> $out)? {
            self.device.$name($($arg),*)
        })*
    };
}

impl<D: TakesRouting> Device for Imposed<D> {
    type Tensor = D::Tensor;
    type Matrix = D::Matrix;
    type Vector = D::Vector;
    type Table = D::Table;
    type Experts = D::Experts;
    type Routing = D::Routing;

    fn route(&self, x: &D::Tensor, router: &D::Matrix, rule: RouterRule) -> Result<D::Routing> {
        let Some(layer) = self.layer()? else {
            return self.device.route(x, router, rule);
        };
        match self.gates {
            Gates::OfRouter => self.weighted(layer, x, router, rule),
            Gates::OfScript => {
                self.device.recycle(self.device.route(x, router, rule)?);
                Ok(self.device.routing_again(&self.held.borrow()[layer]))
            }
        }
    }

    delegate! {
        fn load_matrix(parts: &[HostMatrix<'_>]) -> Result<D::Matrix>;
        fn load_exact_matrix(host: &HostMatrix<'_>) -> Result<D::Matrix>;
        fn load_vector(parts: &[HostTensor<'_>]) -> Result<D::Vector>;
        fn load_table(host: &HostTensor<'_>) -> Result<D::Table>;
        fn load_exact_table(host: &HostTensor<'_>) -> Result<D::Table>;
        fn load_experts(
            n_experts: usize,
            slices: Vec<ExpertSlice<'_>>,
            activation: Activation,
        ) -> Result<D::Experts>;
        fn embed(
            rows: &[EmbeddingRows<'_, D::Table>],
            norm: Option<&Norm<D::Vector>>,
        ) -> Result<D::Tensor>;
        fn norm(x: &D::Tensor, norm: &Norm<D::Vector>) -> Result<D::Tensor>;
        fn linear(
            x: &D::Tensor,
            w: &D::Matrix,
            bias: Option<&D::Vector>,
            activation: Activation,
            residual: Option<&D::Tensor>,
            norm: Option<&Norm<D::Vector>>,
        ) -> Result<D::Tensor>;
        fn ffn(
            x: &D::Tensor,
            ffn: &DenseFfn<'_, D::Matrix, D::Vector>,
            residual: &D::Tensor,
            norm: Option<&Norm<D::Vector>>,
        ) -> Result<D::Tensor>;
        fn add(
            x: &mut D::Tensor,
            residual: &D::Tensor,
            bias: Option<&D::Vector>,
            norm: Option<&Norm<D::Vector>>,
        ) -> Result<()>;
        fn attention(
            qkv: &mut D::Tensor,
            cu_seqlens: &[usize],
            shape: &AttentionShape,
            bias: Option<&D::Vector>,
        ) -> Result<D::Tensor>;
        fn recycle(routing: D::Routing);
        fn limit_capacity(
            routing: &mut D::Routing,
            segments: &[usize],
            capacity: usize,
            counted: bool,
        ) -> Result<()>;
        fn expert_ffn(
            x: &D::Tensor,
            routing: &D::Routing,
            experts: &D::Experts,
        ) -> Result<D::Tensor>;
        fn all_gather(x: &D::Tensor, n_rows: &[usize]) -> Result<D::Tensor>;
        fn all_gather_routing(routing: &D::Routing, n_rows: &[usize]) -> Result<D::Routing>;
        fn reduce_scatter(x: &D::Tensor, n_rows: &[usize]) -> Result<D::Tensor>;
        fn pool(x: &D::Tensor, cu_seqlens: &[usize], rule: Pooling) -> Result<D::Tensor>;
        fn scale(x: &D::Tensor, factor: f32) -> Result<D::Tensor>;
        fn to_host(x: &D::Tensor) -> Result<Vec<f32>>;
        fn routing_to_host(routing: &D::Routing) -> Result<Routing>;
        fn stats() -> DeviceStats;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_of_all_experts_unless_normalised() {
        let logits = [1.0_f32.ln(), 2.0_f32.ln(), 5.0_f32.ln()];
        let close = |found: &[f32], expected: &[f32]| {
            let errors = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
            assert!(errors.fold(0.0, f32::max) <= 1e-6, "{found:?}");
        };
        close(&gates(&logits, &[1, 0], false), &[2.0 / 8.0, 1.0 / 8.0]);
        close(&gates(&logits, &[1, 0], true), &[2.0 / 3.0, 1.0 / 3.0]);
        close(&gates(&logits, &[2, Routing::DROPPED], true), &[1.0, 0.0]);
    }
}
