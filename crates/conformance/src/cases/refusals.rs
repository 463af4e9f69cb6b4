//! Arguments that do not fit are errors, and do no harm to what comes after.

use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::device::{
    Activation, AttentionShape, DenseFfn, Device, DeviceError, EmbeddingRows, ExpertSlice,
    HostMatrix, MatrixLayout, NormKind, Pooling, PositionRule, Result, RouterRule,
};

use crate::inputs::Inputs;
use crate::suite::{Failure, Outcome, Suite};
use crate::tolerance::equal_bits;

pub(super) fn cases<D: Device>(suite: &mut Suite<'_, D>) {
    suite.case("shapes that disagree: embed and norm", |inputs| {
        unharmed(inputs, embed_and_norm)
    });
    suite.case("shapes that disagree: linear", |inputs| {
        unharmed(inputs, linear)
    });
    suite.case("shapes that disagree: ffn", |inputs| unharmed(inputs, ffn));
    suite.case("shapes that disagree: add", |inputs| unharmed(inputs, add));
    suite.case("shapes that disagree: attention and pool", |inputs| {
        unharmed(inputs, sequences)
    });
    suite.case("shapes that disagree: experts", |inputs| {
        unharmed(inputs, experts)
    });
    suite.case("weights that are not finite", |inputs| {
        unharmed(inputs, not_finite)
    });
}

type Check = std::result::Result<(), Failure>;

/// Fails unless a device refuses a shape.
fn refused<T>(what: &str, found: Result<T>) -> Check {
    let found = match found {
        Err(DeviceError::Shape { .. }) => return Ok(()),
        Err(error) => format!("the error: {error}"),
        Ok(_) => "a result".into(),
    };
    let message = format!("{what}: expected an error of shape, found {found}");
    Err(Failure(message))
}

/// Has a device refuse things, and compares what it computes before and after.
fn unharmed<D: Device>(
    inputs: &mut Inputs<'_, D>,
    refuse: fn(&mut Inputs<'_, D>) -> Check,
) -> Outcome {
    let device = inputs.device;
    let x = inputs.rows(20, 24)?;
    let layer = inputs.linear(16, 24, true)?;
    let run = || {
        let bias = layer.bias.as_ref();
        let y = device.linear(&x.tensor, &layer.matrix, bias, Activation::Silu, None, None)?;
        device.to_host(&y)
    };
    let before = run()?;
    refuse(inputs)?;
    equal_bits("after what was refused", &run()?, &before)?;
    Ok(0.0)
}

fn embed_and_norm<D: Device>(inputs: &mut Inputs<'_, D>) -> Check {
    let device = inputs.device;
    let (narrow, wide) = (inputs.numbers(5 * 16, 1.0), inputs.numbers(5 * 24, 1.0));
    let narrow = device.load_table(&inputs.host_tensor(&[5, 16], &narrow))?;
    let wide = device.load_table(&inputs.host_tensor(&[5, 24], &wide))?;
    fn rows<'a, T>(table: &'a T, row_idx: &'a [u32]) -> EmbeddingRows<'a, T> {
        EmbeddingRows {
            table,
            row_idx,
            scale: 1.0,
        }
    }
    let norm = inputs.norm(24, NormKind::Layer, true)?.device;
    refused("no table", device.embed(&[], None))?;
    let found = device.embed(&[rows(&narrow, &[0, 5])], None);
    refused("a row beyond the table", found)?;
    let found = device.embed(&[rows(&narrow, &[0]), rows(&wide, &[0])], None);
    refused("tables of two widths", found)?;
    let found = device.embed(&[rows(&wide, &[0, 1]), rows(&wide, &[0])], None);
    refused("two numbers of tokens", found)?;
    let found = device.embed(&[rows(&narrow, &[0])], Some(&norm));
    refused("a norm too wide for a table", found)?;
    let x = inputs.rows(3, 16)?.tensor;
    refused("a norm too wide", device.norm(&x, &norm))
}

fn linear<D: Device>(inputs: &mut Inputs<'_, D>) -> Check {
    let device = inputs.device;
    let x = inputs.rows(3, 16)?.tensor;
    let fewer = inputs.rows(2, 24)?.tensor;
    let layer = inputs.linear(24, 16, false)?;
    let wide = inputs.linear(24, 32, false)?;
    let bias = inputs.vector(&[0.5; 16])?;
    let norm = inputs.norm(16, NormKind::Rms, false)?.device;
    let plain = Activation::Identity;
    let w = &layer.matrix;
    let found = device.linear(&x, &wide.matrix, None, plain, None, None);
    refused("a matrix of more inputs", found)?;
    let found = device.linear(&x, w, Some(&bias), plain, None, None);
    refused("a short bias", found)?;
    let found = device.linear(&x, w, None, plain, Some(&fewer), None);
    refused("a residual of fewer rows", found)?;
    let found = device.linear(&x, w, None, plain, Some(&x), None);
    refused("a residual of fewer columns", found)?;
    let found = device.linear(&x, w, None, plain, None, Some(&norm));
    refused("a narrow norm", found)?;
    let rule = RouterRule {
        top_k: 1,
        normalize: false,
    };
    let router = super::routing::router(inputs, 4, 32)?.0;
    refused("a router of more inputs", device.route(&x, &router, rule))?;
    let parts = [16, 24].map(|n_in| HostMatrix {
        tensor: HostTensor::from_f32([8, n_in], &vec![0.5; 8 * n_in]),
        layout: MatrixLayout::OutIn,
    });
    refused("stacked matrices of two widths", device.load_matrix(&parts))
}

fn ffn<D: Device>(inputs: &mut Inputs<'_, D>) -> Check {
    let device = inputs.device;
    let x = inputs.rows(3, 16)?.tensor;
    let fewer = inputs.rows(2, 16)?.tensor;
    let up = inputs.linear(24, 16, false)?;
    let wide_up = inputs.linear(24, 32, false)?;
    let gate = inputs.linear(40, 16, false)?;
    let down = inputs.linear(16, 24, false)?;
    let long_down = inputs.linear(16, 40, false)?;
    let norm = inputs.norm(24, NormKind::Rms, false)?.device;
    let of = |up, gate, down| DenseFfn {
        up,
        gate,
        activation: Activation::Gelu,
        down,
    };
    let plain = of(up.weights(), None, down.weights());
    let other = of(wide_up.weights(), None, down.weights());
    refused("rows too narrow", device.ffn(&x, &other, &x, None))?;
    let other = of(up.weights(), None, long_down.weights());
    refused(
        "two numbers of hidden units",
        device.ffn(&x, &other, &x, None),
    )?;
    let other = of(up.weights(), Some(gate.weights()), down.weights());
    refused("a gate of more units", device.ffn(&x, &other, &x, None))?;
    let found = device.ffn(&x, &plain, &fewer, None);
    refused("a residual of fewer rows", found)?;
    refused("a wide norm", device.ffn(&x, &plain, &x, Some(&norm)))
}

fn add<D: Device>(inputs: &mut Inputs<'_, D>) -> Check {
    let device = inputs.device;
    let mut x = inputs.rows(3, 16)?.tensor;
    let residual = inputs.rows(3, 16)?.tensor;
    let fewer = inputs.rows(2, 16)?.tensor;
    let wide = inputs.rows(3, 24)?.tensor;
    let bias = inputs.vector(&[0.5; 24])?;
    let norm = inputs.norm(24, NormKind::Layer, false)?.device;
    let found = device.add(&mut x, &fewer, None, None);
    refused("a residual of fewer rows", found)?;
    let found = device.add(&mut x, &wide, None, None);
    refused("a wide residual", found)?;
    let found = device.add(&mut x, &residual, Some(&bias), None);
    refused("a long bias", found)?;
    let found = device.add(&mut x, &residual, None, Some(&norm));
    refused("a wide norm", found)
}

fn sequences<D: Device>(inputs: &mut Inputs<'_, D>) -> Check {
    let device = inputs.device;
    let mut x = inputs.rows(3, 24)?.tensor;
    let shape = |head_dim, position| AttentionShape {
        n_heads: 1,
        head_dim,
        scale: 1.0,
        position,
    };
    let plain = shape(8, PositionRule::None);
    for segments in [&[0, 3, 1, 3][..], &[1, 3], &[0, 2], &[0, 4], &[]] {
        let what = format!("segments {segments:?} of 3 rows");
        refused(&what, device.attention(&mut x, segments, &plain, None))?;
        refused(&what, device.pool(&x, segments, Pooling::Mean))?;
    }
    let wide = shape(16, PositionRule::None);
    let found = device.attention(&mut x, &[0, 3], &wide, None);
    refused("heads too wide", found)?;
    let biased = PositionRule::RelativeBias {
        n_buckets: 8,
        max_distance: 20,
    };
    let found = device.attention(&mut x, &[0, 3], &shape(8, biased), None);
    refused("no biases", found)?;
    let bias = inputs.vector(&[0.5; 7])?;
    let found = device.attention(&mut x, &[0, 3], &shape(8, biased), Some(&bias));
    refused("too few biases", found)
}

fn experts<D: Device>(inputs: &mut Inputs<'_, D>) -> Check {
    let device = inputs.device;
    let slice = |expert_idx, d_model: usize, units: [usize; 2]| {
        let matrix = |n_out: usize, n_in: usize| HostMatrix {
            tensor: HostTensor::from_f32([n_out, n_in], &vec![0.5; n_out * n_in]),
            layout: MatrixLayout::OutIn,
        };
        ExpertSlice {
            expert_idx,
            w_in: matrix(units[0], d_model),
            b_in: None,
            w_out: matrix(d_model, units[1]),
            b_out: None,
        }
    };
    let load = |slices| device.load_experts(2, slices, Activation::Relu);
    let found = load(vec![slice(0, 16, [8, 8]), slice(1, 16, [24, 24])]);
    refused("experts of two widths", found)?;
    let found = load(vec![slice(0, 16, [8, 8]), slice(1, 24, [8, 8])]);
    refused("experts of two widths of rows", found)?;
    let found = load(vec![slice(0, 16, [8, 24])]);
    refused("matrices of two widths", found)?;
    refused("an expert too many", load(vec![slice(2, 16, [8, 8])]))?;
    let experts = load(vec![slice(0, 16, [8, 8]), slice(1, 16, [8, 8])])?;
    let (x, wide) = (inputs.rows(3, 16)?.tensor, inputs.rows(3, 24)?.tensor);
    let fewer = inputs.rows(2, 16)?.tensor;
    let rule = RouterRule {
        top_k: 1,
        normalize: false,
    };
    let router = super::routing::router(inputs, 2, 16)?.0;
    let mut routing = device.route(&x, &router, rule)?;
    let found = device.expert_ffn(&wide, &routing, &experts);
    refused("rows too wide", found)?;
    let found = device.expert_ffn(&fewer, &routing, &experts);
    refused("a routing of more tokens", found)?;
    let found = device.limit_capacity(&mut routing, &[0, 9], 1, false);
    refused("segments of more tokens", found)?;
    device.recycle(routing);
    Ok(())
}

fn not_finite<D: Device>(inputs: &mut Inputs<'_, D>) -> Check {
    let device = inputs.device;
    let at = 37;
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let with = |value: f32| {
            let mut numbers = vec![0.5; 5 * 16];
            numbers[at] = value;
            HostTensor::from_f32([5, 16], &numbers)
        };
        let matrix = |value| HostMatrix {
            tensor: with(value),
            layout: MatrixLayout::OutIn,
        };
        let found = device.load_matrix(&[matrix(1.0), matrix(bad)]).err();
        refuses("matrix", found, (1, at), bad)?;
        let found = device.load_exact_matrix(&matrix(bad)).err();
        refuses("exact matrix", found, (0, at), bad)?;
        let found = device.load_table(&with(bad)).err();
        refuses("table", found, (0, at), bad)?;
        let found = device.load_exact_table(&with(bad)).err();
        refuses("exact table", found, (0, at), bad)?;
        let found = device.load_vector(&[with(1.0), with(bad)]).err();
        refuses("vector", found, (1, at), bad)?;
        // A second expert of which one matrix or bias is bad.
        for (part_idx, values) in [
            (2, [bad, 1.0, 1.0, 1.0]),
            (2, [1.0, bad, 1.0, 1.0]),
            (3, [1.0, 1.0, bad, 1.0]),
            (3, [1.0, 1.0, 1.0, bad]),
        ] {
            let slices = vec![expert(0, [1.0; 4]), expert(1, values)];
            let found = device.load_experts(2, slices, Activation::Relu).err();
            refuses("experts", found, (part_idx, 5), bad)?;
        }
    }
    Ok(())
}

/// An expert of eight hidden units whose matrices and biases have these values at the sixth place.
fn expert(expert_idx: usize, values: [f32; 4]) -> ExpertSlice<'static> {
    let tensor = |shape: &[usize], value| {
        let mut numbers = vec![0.5; shape.iter().product()];
        numbers[5] = value;
        HostTensor::from_f32(shape, &numbers)
    };
    let matrix = |shape: &[usize], value| HostMatrix {
        tensor: tensor(shape, value),
        layout: MatrixLayout::OutIn,
    };
    let [w_in, b_in, w_out, b_out] = values;
    ExpertSlice {
        expert_idx,
        w_in: matrix(&[8, 16], w_in),
        b_in: Some(tensor(&[8], b_in)),
        w_out: matrix(&[16, 8], w_out),
        b_out: Some(tensor(&[16], b_out)),
    }
}

/// Fails unless a device says which part and element of the weights is not finite.
fn refuses(
    what: &str,
    found: Option<DeviceError>,
    (part, element): (usize, usize),
    bad: f32,
) -> Check {
    if let Some(DeviceError::NotFinite {
        part_idx,
        element_idx,
        ..
    }) = found
        && (part_idx, element_idx) == (part, Some(element))
    {
        return Ok(());
    }
    let found = found.map_or("a result".into(), |error| error.to_string());
    Err(Failure(format!(
        "{what}: expected element {element} of part {part} to be refused as {bad}, found: {found}"
    )))
}
