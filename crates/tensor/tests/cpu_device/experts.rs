//! The expert layer.

use std::ops::Range;

use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::cpu::{CpuDevice, Experts, Tensor};
use moeshard_tensor::device::{
    Activation, Device, DeviceError, ExpertSlice, MatrixLayout, Routing,
};

use crate::support::{
    Random, assert_within, bits, matrix, multiplied, multiplies_bf16, on_every_path, product,
};

/// The weights of a layer, one entry an expert.
struct Layer {
    /// `[f, d_model]`
    w_in: Vec<Vec<f32>>,
    /// `[f]`
    b_in: Vec<Vec<f32>>,
    /// `[d_model, f]`
    w_out: Vec<Vec<f32>>,
    /// `[d_model]`
    b_out: Vec<Vec<f32>>,
}

impl Layer {
    fn random(random: &mut Random, d_model: usize, f: usize) -> Self {
        Self {
            w_in: (0..N_EXPERTS).map(|_| random.short(f * d_model)).collect(),
            w_out: (0..N_EXPERTS).map(|_| random.short(f * d_model)).collect(),
            b_in: (0..N_EXPERTS).map(|_| random.numbers(f)).collect(),
            b_out: (0..N_EXPERTS).map(|_| random.numbers(d_model)).collect(),
        }
    }

    fn load(&self, device: &CpuDevice) -> Experts {
        self.load_some(device, 0..N_EXPERTS)
    }

    /// Those of `here`; the others live elsewhere.
    fn load_some(&self, device: &CpuDevice, here: Range<usize>) -> Experts {
        let (d_model, f) = (self.b_out[0].len(), self.b_in[0].len());
        let slices = here
            .map(|e| ExpertSlice {
                expert_idx: e,
                w_in: matrix(f, d_model, &self.w_in[e], MatrixLayout::OutIn),
                b_in: Some(HostTensor::from_f32(vec![f], &self.b_in[e])),
                w_out: matrix(d_model, f, &self.w_out[e], MatrixLayout::InOut),
                b_out: Some(HostTensor::from_f32(vec![d_model], &self.b_out[e])),
            })
            .collect();
        device
            .load_experts(N_EXPERTS, slices, Activation::Relu)
            .expect("load")
    }
}

/// The expert layer written as its formula, with ReLU, one choice after the other.
fn plain_experts(path: &str, x: &[f32], routing: &Routing, layer: &Layer) -> Vec<f64> {
    let (d_model, f) = (layer.b_out[0].len(), layer.b_in[0].len());
    let mut expected = vec![0.0_f64; x.len()];
    for (slot, &e) in routing.expert_idx.iter().enumerate() {
        if e == Routing::DROPPED {
            continue;
        }
        let (token, e) = (slot / routing.top_k, e as usize);
        let x = &x[token * d_model..(token + 1) * d_model];
        let hidden: Vec<f32> = product(&multiplied(path, x), &layer.w_in[e], d_model)
            .iter()
            .zip(&layer.b_in[e])
            .map(|(h, &b)| (h + f64::from(b)).max(0.0) as f32)
            .collect();
        let y = product(&multiplied(path, &hidden), &layer.w_out[e], f);
        let gate = f64::from(routing.gate_weight[slot]);
        for (d, y) in y.into_iter().enumerate() {
            expected[token * d_model + d] += gate * (y + f64::from(layer.b_out[e][d]));
        }
    }
    expected
}

const N_EXPERTS: usize = 5;

/// Compares a random layer of `[d_model, f]` with its formula, two choices a token.
fn check_layer(
    device: &CpuDevice,
    path: &str,
    (d_model, f, n_tokens): (usize, usize, usize),
    routings: &[fn(usize) -> u32],
) {
    let mut random = Random(4);
    let layer = Layer::random(&mut random, d_model, f);
    let experts = layer.load(device);
    for (case, expert_of) in routings.iter().enumerate() {
        let x = random.tensor(n_tokens, d_model);
        let expert_idx: Vec<_> = (0..2 * n_tokens).map(expert_of).collect();
        let gate = |&e: &u32| match e {
            Routing::DROPPED => 0.0,
            _ => random.next(),
        };
        let routing = Routing {
            top_k: 2,
            gate_weight: expert_idx.iter().map(gate).collect(),
            expert_idx,
        };
        let found = device
            .expert_ffn(&x, &routing, &experts)
            .expect("expert_ffn");
        let expected = plain_experts(path, x.as_slice(), &routing, &layer);
        // A hidden unit on the border between two bf16 may fall to either side.
        let limit = if multiplies_bf16(path) { 1e-3 } else { 3e-6 };
        let what = format!("routing {case} of {n_tokens} tokens on {path}");
        assert_within(limit, &what, found.as_slice(), &expected);
    }
}

#[test]
fn experts_match_their_formula_whoever_gets_the_tokens() {
    // Spread, one expert taking all, and a dropped choice.
    let routings: [fn(usize) -> u32; 3] = [
        |slot| (slot * 7 % N_EXPERTS) as u32,
        |slot| if slot % 2 == 0 { 3 } else { 4 },
        |slot| match slot % 5 {
            0 => Routing::DROPPED,
            _ => 1 + (slot % 2) as u32,
        },
    ];
    on_every_path(|device, path| check_layer(device, path, (19, 23, 31), &routings));
}

#[test]
fn more_rows_than_are_multiplied_at_once_give_the_same() {
    // An expert that takes most, three with a handful of rows, and one without any.
    let skewed = |slot: usize| match slot % 50 {
        0 => 1,
        7 | 8 => 2,
        49 => 4,
        _ => 3,
    };
    on_every_path(|device, path| check_layer(device, path, (3, 2500, 451), &[skewed]));
}

/// More than are multiplied at once even by three threads, the first of each part and the last.
#[test]
fn a_token_alone_and_among_many_is_bit_for_bit_the_same() {
    const N_TOKENS: usize = 2600;
    let (d_model, f) = (3, 2500);
    on_every_path(|device, path| {
        let mut random = Random(9);
        let experts = Layer::random(&mut random, d_model, f).load(device);
        let x = random.tensor(N_TOKENS, d_model);
        let skewed = |token: usize| match token % 9 {
            0 => (token % N_EXPERTS) as u32,
            _ => 3,
        };
        let routing = Routing {
            top_k: 1,
            expert_idx: (0..N_TOKENS).map(skewed).collect(),
            gate_weight: random.numbers(N_TOKENS),
        };
        let all = device.expert_ffn(&x, &routing, &experts).expect("experts");
        for token in [0, 9, 18, 650, 867, 1299, 1300, 1733, 2599] {
            let row = token * d_model..(token + 1) * d_model;
            let alone = Tensor::new(1, d_model, x.as_slice()[row.clone()].to_vec());
            let routing = Routing {
                top_k: 1,
                expert_idx: vec![routing.expert_idx[token]],
                gate_weight: vec![routing.gate_weight[token]],
            };
            let alone = device.expert_ffn(&alone, &routing, &experts);
            assert_eq!(
                bits(alone.expect("experts").as_slice()),
                bits(&all.as_slice()[row]),
                "token {token} on {path}"
            );
        }
    });
}

/// A token's experts one at a time, each a layer of one choice, added in the order of choices.
fn one_choice_at_a_time(
    device: &CpuDevice,
    x: &Tensor,
    routing: &Routing,
    experts: &Experts,
    here: &Range<usize>,
) -> Vec<f32> {
    let top_k = routing.top_k;
    let d_model = x.as_slice().len() / routing.n_tokens();
    let mut sum = vec![0.0; x.as_slice().len()];
    for k in 0..top_k {
        let choice = Routing {
            top_k: 1,
            expert_idx: routing.expert_idx[k..]
                .iter()
                .step_by(top_k)
                .copied()
                .collect(),
            gate_weight: routing.gate_weight[k..]
                .iter()
                .step_by(top_k)
                .copied()
                .collect(),
        };
        let y = device.expert_ffn(x, &choice, experts).expect("experts");
        for (token, y) in y.as_slice().chunks_exact(d_model).enumerate() {
            if here.contains(&(choice.expert_idx[token] as usize)) {
                let sum = &mut sum[token * d_model..][..d_model];
                sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += y);
            } else {
                assert!(
                    y.iter().all(|y| y.to_bits() == 0),
                    "token {token} has no slot"
                );
            }
        }
    }
    sum
}

#[test]
fn choices_are_added_in_their_order_whoever_is_done_first() {
    // The last two have more rows than even three threads multiply at once: a token's choices are
    // in different parts.
    let sizes = [
        (1, 3, 1),
        (19, 23, 31),
        (48, 64, 257),
        (3, 2500, 1301),
        (17, 3001, 901),
    ];
    on_every_path(|device, path| {
        let mut random = Random(12);
        for (case, (d_model, f, n_tokens)) in sizes.into_iter().enumerate() {
            let here = if case % 2 == 0 { 0..N_EXPERTS } else { 1..4 };
            let experts = Layer::random(&mut random, d_model, f).load_some(device, here.clone());
            for top_k in [2, 3] {
                let x = random.tensor(n_tokens, d_model);
                // A third of the choices goes to one expert; some tokens lose some of theirs, or all.
                let expert_of = |choice: usize| match (choice / top_k, choice % top_k) {
                    (token, _) if token % 7 == 6 => Routing::DROPPED,
                    (token, k) if token % 5 == k => Routing::DROPPED,
                    (_, 1) => 3,
                    (token, k) => ((token * 3 + k) % N_EXPERTS) as u32,
                };
                let routing = Routing {
                    top_k,
                    expert_idx: (0..n_tokens * top_k).map(expert_of).collect(),
                    gate_weight: random.numbers(n_tokens * top_k),
                };
                let expected = one_choice_at_a_time(device, &x, &routing, &experts, &here);
                let what = format!("{top_k} of {here:?} for {n_tokens}×{d_model} on {path}");
                for _ in 0..3 {
                    let found = device.expert_ffn(&x, &routing, &experts).expect("experts");
                    assert_eq!(bits(found.as_slice()), bits(&expected), "{what}");
                }
            }
        }
    });
}

#[test]
fn experts_that_do_not_fit_are_refused() {
    on_every_path(|device, path| {
        let slice = |expert_idx, f: usize, b_in: f32| ExpertSlice {
            expert_idx,
            w_in: matrix(f, 4, &vec![0.5; 4 * f], MatrixLayout::OutIn),
            b_in: Some(HostTensor::from_f32(vec![f], &vec![b_in; f])),
            w_out: matrix(4, f, &vec![0.5; 4 * f], MatrixLayout::OutIn),
            b_out: None,
        };
        let load = |slices| device.load_experts(2, slices, Activation::Relu);
        let error = load(vec![slice(0, 16, 0.0), slice(1, 40, 0.0)]).expect_err("unequal widths");
        assert!(
            error
                .to_string()
                .contains("hidden units is 40, expected 16"),
            "{path}: {error}"
        );
        let error = load(vec![slice(0, 3, 0.0), slice(1, 3, f32::NAN)]).expect_err("NaN bias");
        assert!(
            matches!(error, DeviceError::NotFinite { part_idx: 2, .. }),
            "{path}: {error}"
        );
        let experts = load(vec![slice(0, 3, 0.0), slice(1, 3, 0.0)]).expect("load");
        let routing = Routing {
            top_k: 1,
            expert_idx: vec![1; 5],
            gate_weight: vec![1.0; 5],
        };
        let x = Tensor::new(5, 3, vec![0.0; 15]);
        let error = device
            .expert_ffn(&x, &routing, &experts)
            .expect_err("narrow rows");
        assert!(
            error.to_string().contains("d_model is 3, expected 4"),
            "{path}: {error}"
        );
    });
}
