//! The expert layer, what is added to it, and what is counted.

use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::device::{
    Activation, Device, HostMatrix, MatrixLayout, NormKind, RouterRule, Routing,
};
use moeshard_tensor::dtype::DType;

use super::routing::router;
use crate::Scale;
use crate::inputs::{Activations, ExpertShape, Inputs};
use crate::reference::{ExpertLayer, normed, sum, times};
use crate::suite::{Failure, Outcome, Suite, same};
use crate::tolerance::{Estimate, Rows, equal_bits};

/// Where tokens go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// Wherever the router sends them.
    Spread,
    /// First choices to one expert.
    OneTakesAll,
    /// As spread, with a capacity that drops some.
    Dropped,
}

#[derive(Clone, Debug)]
struct Setting {
    n_tokens: usize,
    experts: ExpertShape,
    top_k: usize,
    load: Load,
}

fn settings(scale: Scale, dtype: DType) -> Vec<Setting> {
    match scale {
        Scale::Small => small(dtype),
        Scale::Large => large(),
    }
}

fn small(dtype: DType) -> Vec<Setting> {
    let mut all = Vec::new();
    let n_hidden: &[usize] = match dtype {
        DType::F32 => &[8, 24, 40, 13],
        _ => &[8, 24, 40],
    };
    let loads = [Load::Spread, Load::OneTakesAll, Load::Dropped];
    let activations = [Activation::Relu, Activation::Gelu, Activation::Silu];
    for (i, &n_hidden) in n_hidden.iter().enumerate() {
        for top_k in [1, 2] {
            for (j, load) in loads.into_iter().enumerate() {
                let n_experts = [3, 9, 21][(i + j) % 3];
                // With more experts than tokens, most have none.
                for held in [0..n_experts, n_experts / 3..n_experts - 1] {
                    let experts = ExpertShape {
                        n_experts,
                        held,
                        d_model: [16, 48, 88][j],
                        n_hidden,
                        activation: activations[(i + 2 * j) % 3],
                        has_bias: (i + j + top_k) % 2 == 0,
                    };
                    all.push(Setting {
                        n_tokens: [1, 17, 35][(i + 2 * j) % 3],
                        experts,
                        top_k,
                        load,
                    });
                }
            }
        }
    }
    all
}

fn large() -> Vec<Setting> {
    let setting = |n_experts, held, n_hidden, top_k, load| Setting {
        n_tokens: 2049,
        experts: ExpertShape {
            n_experts,
            held,
            d_model: 768,
            n_hidden,
            activation: Activation::Gelu,
            has_bias: true,
        },
        top_k,
        load,
    };
    vec![
        setting(8, 0..8, 3072, 1, Load::Spread),
        setting(8, 2..5, 3072, 2, Load::OneTakesAll),
        setting(128, 0..128, 384, 2, Load::Spread),
    ]
}

pub(super) fn cases<D: Device>(suite: &mut Suite<'_, D>) {
    for setting in settings(suite.scale, suite.dtype) {
        let name = format!("expert_ffn {setting:?}");
        suite.case(name, |inputs| expert_ffn(inputs, &setting));
    }
    for setting in settings(suite.scale, suite.dtype).into_iter().step_by(5) {
        for factor in [None, Some(0.6)] {
            for norm in [None, Some(NormKind::Layer), Some(NormKind::Rms)] {
                suite.case(
                    format!("add to expert_ffn, factor {factor:?}, norm {norm:?}, {setting:?}"),
                    |inputs| add_to_experts(inputs, &setting, factor, norm),
                );
            }
        }
    }
    suite.case("expert_ffn without an expert", nothing_held);
}

/// A layer of experts, tokens, and the routing that a device gives them.
struct Routed<D: Device> {
    x: Activations<D::Tensor>,
    routing: D::Routing,
    host: Routing,
    experts: D::Experts,
    layer: ExpertLayer,
}

impl<D: Device> Routed<D> {
    /// What is expected, by the device's own routing: a choice that is as good as another is no
    /// error of the experts.
    fn expected(&self, dtype: DType) -> Result<Rows, Failure> {
        let top_k = self.host.top_k;
        // Equal rows go to equal experts, unless some were dropped for coming late.
        let n_different = self.x.rows.n_rows() * top_k;
        for (slot, e) in self.host.expert_idx.iter().enumerate() {
            same(
                "expert of an equal row",
                e,
                &self.host.expert_idx[slot % n_different],
            )?;
        }
        Ok(self.layer.rows(dtype, &self.x.rows, &self.host))
    }
}

fn routed<D: Device>(inputs: &mut Inputs<'_, D>, setting: &Setting) -> Result<Routed<D>, Failure> {
    let device = inputs.device;
    let Setting {
        n_tokens, top_k, ..
    } = *setting;
    let ExpertShape {
        n_experts, d_model, ..
    } = setting.experts;
    let x = inputs.rows(n_tokens, d_model)?;
    let rule = RouterRule {
        top_k,
        normalize: top_k > 1,
    };
    let router = match setting.load {
        // All logits are equal: every first choice is the first expert, every second one the next.
        Load::OneTakesAll => device.load_exact_matrix(&HostMatrix {
            tensor: HostTensor::from_f32([n_experts, d_model], &vec![0.0; n_experts * d_model]),
            layout: MatrixLayout::OutIn,
        })?,
        _ => router(inputs, n_experts, d_model)?.0,
    };
    let mut routing = device.route(&x.tensor, &router, rule)?;
    if setting.load == Load::Dropped {
        let segments = [0, n_tokens / 2, n_tokens];
        device.limit_capacity(&mut routing, &segments, 2, false)?;
    }
    let host = device.routing_to_host(&routing)?;
    let bytes_before = device.stats().expert_bytes;
    let (experts, layer) = inputs.experts(&setting.experts)?;
    let numbers = 2 * d_model * setting.experts.n_hidden * setting.experts.held.len();
    let least = (numbers * inputs.dtype.size()) as u64;
    let n_bytes = device.stats().expert_bytes - bytes_before;
    same(
        "at least the weights' bytes are counted",
        &(n_bytes >= least),
        &true,
    )?;
    Ok(Routed {
        x,
        routing,
        host,
        experts,
        layer,
    })
}

fn expert_ffn<D: Device>(inputs: &mut Inputs<'_, D>, setting: &Setting) -> Outcome {
    let device = inputs.device;
    let routed = routed(inputs, setting)?;
    let Routed {
        x,
        routing,
        experts,
        ..
    } = &routed;
    let before = device.stats().expert_multiply_adds;
    let y = device.expert_ffn(&x.tensor, routing, experts)?;
    let found = device.to_host(&y)?;
    let n_spent = device.stats().expert_multiply_adds - before;
    let expected = routed.layer.multiply_adds(&routed.host);
    same("expert_multiply_adds", &n_spent, &expected)?;
    let again = device.expert_ffn(&x.tensor, routing, experts)?;
    equal_bits("a second run", &device.to_host(&again)?, &found)?;
    let worst = inputs.check(&y, x.n_rows, &routed.expected(inputs.dtype)?)?;
    device.recycle(routed.routing);
    Ok(worst)
}

/// `norm(factor · experts(x) + residual + bias)`: what a device may do at once.
fn add_to_experts<D: Device>(
    inputs: &mut Inputs<'_, D>,
    setting: &Setting,
    factor: Option<f32>,
    norm: Option<NormKind>,
) -> Outcome {
    let device = inputs.device;
    let routed = routed(inputs, setting)?;
    let (n_rows, d_model) = (setting.n_tokens, setting.experts.d_model);
    let residual = inputs.rows(n_rows, d_model)?;
    let host_bias = inputs.exact_numbers(d_model, 1.0);
    let bias = inputs.vector(&host_bias)?;
    let norm = norm
        .map(|kind| inputs.norm(d_model, kind, kind == NormKind::Layer))
        .transpose()?;
    let mut y = device.expert_ffn(&routed.x.tensor, &routed.routing, &routed.experts)?;
    let mut expected = routed.expected(inputs.dtype)?.stored(inputs.dtype);
    if let Some(factor) = factor {
        y = device.scale(&y, factor)?;
        let scaled = |x| times(x, Estimate::exact(factor)).stored(inputs.dtype);
        expected = expected.map(scaled);
    }
    let device_norm = norm.as_ref().map(|norm| &norm.device);
    device.add(&mut y, &residual.tensor, Some(&bias), device_norm)?;
    device.recycle(routed.routing);
    let expected = sum(expected, Some(&residual.rows));
    let expected = crate::reference::plus_vector(expected, Some(&host_bias));
    let expected = normed(inputs.dtype, expected, norm.as_ref().map(|norm| &norm.host));
    inputs.check(&y, n_rows, &expected)
}

/// A rank that holds no expert of a layer adds zeros.
fn nothing_held<D: Device>(inputs: &mut Inputs<'_, D>) -> Outcome {
    let setting = Setting {
        n_tokens: 9,
        experts: ExpertShape {
            n_experts: 4,
            held: 0..0,
            d_model: 16,
            n_hidden: 8,
            activation: Activation::Relu,
            has_bias: true,
        },
        top_k: 2,
        load: Load::Spread,
    };
    expert_ffn(inputs, &setting)
}
