//! The router, and capacities of experts.

use moeshard_tensor::device::{Device, RouterRule, Routing};

use crate::Scale;
use crate::inputs::{Activations, Inputs};
use crate::reference::{Linear, limited};
use crate::suite::{Failure, Outcome, Suite, same};
use crate::tolerance::{Estimate, Rows, compare};

/// Tokens, width and experts.
type Size = (usize, usize, usize);

pub(super) fn cases<D: Device>(suite: &mut Suite<'_, D>) {
    let sizes: &[Size] = match suite.scale {
        Scale::Small => &[(1, 16, 2), (37, 40, 5), (33, 96, 33), (20, 64, 65)],
        Scale::Large => &[(4099, 768, 8), (4099, 768, 128)],
    };
    for &size in sizes {
        for top_k in (1..=3).filter(|&k| k <= size.2) {
            for normalize in [false, true] {
                let rule = RouterRule { top_k, normalize };
                suite.case(format!("route {size:?} {rule:?}"), |inputs| {
                    route(inputs, size, rule)
                });
            }
        }
    }
    for capacity in [0, 1, 3, 10, 1 << 40] {
        for top_k in [1, 2] {
            suite.case(
                format!("limit_capacity {capacity}, {top_k} experts a token"),
                |inputs| limit(inputs, capacity, top_k),
            );
        }
    }
}

/// A router of which some rows are equal, so that there are ties. It keeps all digits.
pub(super) fn router<D: Device>(
    inputs: &mut Inputs<'_, D>,
    n_experts: usize,
    d_model: usize,
) -> Result<(D::Matrix, Linear), Failure> {
    let mut weight = inputs.exact_numbers(n_experts * d_model, (6.0 / d_model as f32).sqrt());
    for (copy, of) in [(3, 1), (4, 1), (32, 7), (64, 0)] {
        if copy < n_experts {
            let from = of * d_model;
            weight.copy_within(from..from + d_model, copy * d_model);
        }
    }
    // Stored in f32, whatever the device's dtype.
    let tensor = moeshard_tensor::checkpoint::HostTensor::from_f32([n_experts, d_model], &weight);
    let host = moeshard_tensor::device::HostMatrix {
        tensor,
        layout: moeshard_tensor::device::MatrixLayout::OutIn,
    };
    let linear = Linear {
        n_in: d_model,
        weight,
        bias: None,
    };
    Ok((inputs.device.load_exact_matrix(&host)?, linear))
}

fn route<D: Device>(
    inputs: &mut Inputs<'_, D>,
    (n_tokens, d_model, n_experts): Size,
    rule: RouterRule,
) -> Outcome {
    let device = inputs.device;
    let x = inputs.rows(n_tokens, d_model)?;
    let (matrix, linear) = router(inputs, n_experts, d_model)?;
    let routing = device.route(&x.tensor, &matrix, rule)?;
    let found = device.routing_to_host(&routing)?;
    device.recycle(routing);
    let again = device.route(&x.tensor, &matrix, rule)?;
    same("a second run", &device.routing_to_host(&again)?, &found)?;
    device.recycle(again);
    check_routing(&x, &linear, rule, &found)
}

/// Compares chosen experts where it is clear which they are, and gate weights.
fn check_routing<T>(
    x: &Activations<T>,
    router: &Linear,
    rule: RouterRule,
    found: &Routing,
) -> Outcome {
    let top_k = rule.top_k;
    let n_slots = x.n_rows * top_k;
    same("top_k", &found.top_k, &top_k)?;
    same("length of expert_idx", &found.expert_idx.len(), &n_slots)?;
    same("length of gate_weight", &found.gate_weight.len(), &n_slots)?;
    let logits = router.rows(&x.rows);
    let mut worst = 0.0_f64;
    for token in 0..x.n_rows {
        let slots = token * top_k..(token + 1) * top_k;
        let logits = logits.row(token % x.rows.n_rows());
        let chosen = &found.expert_idx[slots.clone()];
        let what = |Failure(why)| Failure(format!("token {token}: {why}"));
        check_choices(logits, router, chosen).map_err(what)?;
        let expected = gates(logits, chosen, rule);
        let gates = &found.gate_weight[slots];
        // The gate is f32 whatever the dtype is.
        let f32 = moeshard_tensor::dtype::DType::F32;
        worst = worst.max(compare(f32, gates, 1, &expected).map_err(what)?);
    }
    Ok(worst)
}

/// Fails if an expert was passed over that is surely more probable, or as probable with a lower index.
fn check_choices(logits: &[Estimate], router: &Linear, chosen: &[u32]) -> Result<(), Failure> {
    let row = |e: usize| &router.weight[e * router.n_in..][..router.n_in];
    for (k, &expert) in chosen.iter().enumerate() {
        let e = expert as usize;
        if e >= logits.len() || chosen[..k].contains(&expert) {
            return Err(Failure(format!(
                "choice {k}: expected one of {} experts that is not chosen yet, found {expert}",
                logits.len()
            )));
        }
        for (other, logit) in logits.iter().enumerate() {
            if other == e || chosen[..k].contains(&(other as u32)) {
                continue;
            }
            let unclear = 6.0 * (logit.spread + logits[e].spread);
            let is_tie = row(other) == row(e);
            if (is_tie && other < e) || (!is_tie && logit.value > logits[e].value + unclear) {
                return Err(Failure(format!(
                    "choice {k}: expected expert {other} of logit {}, found {e} of {}",
                    logit.value, logits[e].value
                )));
            }
        }
    }
    Ok(())
}

/// The gate weights of what was chosen.
fn gates(logits: &[Estimate], chosen: &[u32], rule: RouterRule) -> Rows {
    let largest = logits.iter().fold(f64::MIN, |a, x| a.max(x.value));
    let power = |x: &Estimate| (x.value - largest).exp();
    let all: f64 = logits.iter().map(power).sum();
    let of_chosen: f64 = chosen.iter().map(|&e| power(&logits[e as usize])).sum();
    let total = if rule.normalize { of_chosen } else { all };
    let gate = |&e: &u32| {
        let logit = &logits[e as usize];
        let value = power(logit) / total;
        // Of the chosen one and of those that it is divided by.
        Estimate {
            value,
            spread: 2.0 * value * (logit.spread + crate::tolerance::FUNCTION),
        }
    };
    Rows {
        n_cols: chosen.len(),
        data: chosen.iter().map(gate).collect(),
    }
}

fn limit<D: Device>(inputs: &mut Inputs<'_, D>, capacity: usize, top_k: usize) -> Outcome {
    let device = inputs.device;
    let (n_tokens, d_model, n_experts) = (41, 16, 3);
    let x = inputs.rows(n_tokens, d_model)?;
    let (matrix, _) = router(inputs, n_experts, d_model)?;
    let rule = RouterRule {
        top_k,
        normalize: false,
    };
    // Sequences; then the whole batch, of which some is gone already.
    let segments = [&[0, 1, 1, 25, 41][..], &[0, 41]];
    let mut routing = device.route(&x.tensor, &matrix, rule)?;
    for (segments, counted) in segments.into_iter().zip([true, false]) {
        let before = device.routing_to_host(&routing)?;
        let n_before = device.stats().n_dropped;
        device.limit_capacity(&mut routing, segments, capacity, counted)?;
        let after = device.routing_to_host(&routing)?;
        let (expected, n_dropped) = limited(&before, segments, capacity);
        same("expert_idx", &after.expert_idx, &expected)?;
        let n_counted = device.stats().n_dropped - n_before;
        same("n_dropped", &n_counted, &(u64::from(counted) * n_dropped))?;
        let gates = before.gate_weight.iter().zip(&after.gate_weight);
        for ((before, after), &e) in gates.zip(&after.expert_idx) {
            if e != Routing::DROPPED {
                same("gate weight of what is kept", after, before)?;
            }
        }
    }
    device.recycle(routing);
    Ok(0.0)
}
