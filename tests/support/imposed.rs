//! A device whose router has no say.
//!
//! Rounding may turn a near tie of two experts around, and then a text is another one from there on.
//! To see what rounding does apart from that, [`Imposed`] gives every token the experts of a
//! recorded routing, weighted by its own logits. All else is the wrapped device's.

use std::cell::Cell;

use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::device::{
    Activation, AttentionShape, DenseFfn, Device, DeviceStats, EmbeddingRows, ExpertSlice,
    HostMatrix, Norm, Pooling, Result, RouterRule, Routing,
};

/// A device whose experts are chosen beforehand.
pub struct Imposed<D> {
    device: D,
    /// One for each layer of experts, in order.
    routings: Vec<Routing>,
    /// The layer that routes next: a pass asks for every layer once, in order.
    next: Cell<usize>,
}

impl<D> Imposed<D> {
    /// Imposes `routings[s]`, one routing for each layer of experts, on sequence `s` of every
    /// batch.
    pub fn new(device: D, routings: &[&[Routing]]) -> Self {
        let n_layers = routings.first().map_or(0, |layers| layers.len());
        let of_layer = |layer: usize| routings.iter().map(move |layers| &layers[layer]);
        Self {
            device,
            routings: (0..n_layers).map(|l| stacked(of_layer(l))).collect(),
            next: Cell::new(0),
        }
    }

    /// What was recorded of the layer that routes now. A rank without sequences has nothing.
    fn recorded(&self) -> Option<&Routing> {
        let layer = self.next.get();
        self.next.set((layer + 1) % self.routings.len().max(1));
        self.routings.get(layer)
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

impl<D: Device<Routing = Routing>> Device for Imposed<D> {
    type Tensor = D::Tensor;
    type Matrix = D::Matrix;
    type Vector = D::Vector;
    type Table = D::Table;
    type Experts = D::Experts;
    type Routing = Routing;

    fn route(&self, x: &D::Tensor, router: &D::Matrix, rule: RouterRule) -> Result<Routing> {
        let Some(recorded) = self.recorded() else {
            return self.device.route(x, router, rule);
        };
        assert_eq!(recorded.top_k, rule.top_k, "a routing of another model");
        let logits = self
            .device
            .linear(x, router, None, Activation::Identity, None, None)?;
        let logits = self.device.to_host(&logits)?;
        let n_experts = logits.len() / recorded.n_tokens();
        let per_token = recorded.expert_idx.chunks(rule.top_k);
        Ok(Routing {
            top_k: rule.top_k,
            expert_idx: recorded.expert_idx.clone(),
            gate_weight: logits
                .chunks(n_experts)
                .zip(per_token)
                .flat_map(|(logits, experts)| gates(logits, experts, rule.normalize))
                .collect(),
        })
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
        fn recycle(routing: Routing);
        fn limit_capacity(
            routing: &mut Routing,
            segments: &[usize],
            capacity: usize,
            counted: bool,
        ) -> Result<()>;
        fn expert_ffn(
            x: &D::Tensor,
            routing: &Routing,
            experts: &D::Experts,
        ) -> Result<D::Tensor>;
        fn all_gather(x: &D::Tensor, n_rows: &[usize]) -> Result<D::Tensor>;
        fn all_gather_routing(routing: &Routing, n_rows: &[usize]) -> Result<Routing>;
        fn reduce_scatter(x: &D::Tensor, n_rows: &[usize]) -> Result<D::Tensor>;
        fn pool(x: &D::Tensor, cu_seqlens: &[usize], rule: Pooling) -> Result<D::Tensor>;
        fn scale(x: &D::Tensor, factor: f32) -> Result<D::Tensor>;
        fn to_host(x: &D::Tensor) -> Result<Vec<f32>>;
        fn routing_to_host(routing: &Routing) -> Result<Routing>;
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
            crate::compare::assert_close("gates", found, expected, 1e-6);
        };
        close(&gates(&logits, &[1, 0], false), &[2.0 / 8.0, 1.0 / 8.0]);
        close(&gates(&logits, &[1, 0], true), &[2.0 / 3.0, 1.0 / 3.0]);
        close(&gates(&logits, &[2, Routing::DROPPED], true), &[1.0, 0.0]);
    }
}
