//! A timed device computes what the device computes, and counts the work of known shapes; peaks
//! are numbers that a machine can have.

use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::collective::Solo;
use moeshard_tensor::cpu::{CpuConfig, CpuDevice, Isa, peak};
use moeshard_tensor::device::{
    Activation, AttentionShape, DenseFfn, Device, EmbeddingRows, ExpertSlice, HostMatrix,
    LinearWeights, MatrixLayout, Norm, NormKind, Pooling, PositionRule, RouterRule,
};
use moeshard_tensor::dtype::DType;
use moeshard_tensor::timed::{Operation, Record, Timed, Work};

const N_TOKENS: usize = 11;
const D_MODEL: usize = 24;
const D_FF: usize = 40;
const N_EXPERTS: usize = 3;
const N_HEADS: usize = 2;
const CU_SEQLENS: [usize; 3] = [0, 4, N_TOKENS];
const DTYPE: DType = DType::BF16;

fn device(isa: Isa) -> CpuDevice {
    let config = CpuConfig {
        isa,
        ..CpuConfig::new(DTYPE, 2)
    };
    CpuDevice::new(config, Box::new(Solo)).expect("a device")
}

/// Numbers in −1..1 that differ from tensor to tensor.
fn tensor(seed: u32, shape: &[usize]) -> HostTensor<'static> {
    let n = shape.iter().product::<usize>() as u32;
    let number = |i: u32| ((i + 1).wrapping_mul(2_654_435_761) ^ seed) % 1000;
    let data: Vec<u8> = (0..n)
        .flat_map(|i| (number(i) as f32 / 500.0 - 1.0).to_le_bytes())
        .collect();
    HostTensor {
        dtype: DType::F32,
        shape: shape.to_vec(),
        data: data.into(),
    }
}

fn matrix(seed: u32, n_out: usize, n_in: usize) -> HostMatrix<'static> {
    HostMatrix {
        tensor: tensor(seed, &[n_out, n_in]),
        layout: MatrixLayout::OutIn,
    }
}

/// A layer of experts with everything around it, on any device: what it returns, pooled.
fn layer<D: Device>(device: &D) -> Vec<f32> {
    let table = device
        .load_table(&tensor(1, &[50, D_MODEL]))
        .expect("a table");
    let ids: Vec<u32> = (0..N_TOKENS as u32).collect();
    let norm = Norm {
        kind: NormKind::Rms,
        eps: 1e-6,
        weight: device
            .load_vector(&[tensor(2, &[D_MODEL])])
            .expect("a vector"),
        bias: None,
    };
    let qkv = device.load_matrix(&[matrix(3, 2 * D_MODEL, D_MODEL), matrix(4, D_MODEL, D_MODEL)]);
    let qkv = qkv.expect("a matrix");
    let router = device
        .load_exact_matrix(&matrix(5, N_EXPERTS, D_MODEL))
        .expect("a router");
    let expert = |expert_idx: usize| ExpertSlice {
        expert_idx,
        w_in: matrix(6 + expert_idx as u32, D_FF, D_MODEL),
        b_in: None,
        w_out: matrix(16 + expert_idx as u32, D_MODEL, D_FF),
        b_out: None,
    };
    let experts = (0..N_EXPERTS).map(expert).collect();
    let experts = device
        .load_experts(N_EXPERTS, experts, Activation::Relu)
        .expect("experts");
    let shape = AttentionShape {
        n_heads: N_HEADS,
        head_dim: D_MODEL / N_HEADS,
        scale: 0.5,
        position: PositionRule::None,
    };
    let rule = RouterRule {
        top_k: 2,
        normalize: true,
    };
    let rows = [EmbeddingRows {
        table: &table,
        row_idx: &ids,
        scale: 1.0,
    }];
    let dense = |seed, n_out, n_in| device.load_matrix(&[matrix(seed, n_out, n_in)]);
    let up = dense(30, D_FF, D_MODEL).expect("a matrix");
    let down = dense(31, D_MODEL, D_FF).expect("a matrix");
    let linear = |weight| LinearWeights { weight, bias: None };
    let ffn = DenseFfn {
        up: linear(&up),
        gate: None,
        activation: Activation::Gelu,
        down: linear(&down),
    };
    let run = || {
        let x = device.embed(&rows, None)?;
        let h = device.norm(&x, &norm)?;
        let mut qkv = device.linear(&h, &qkv, None, Activation::Identity, None, None)?;
        let h = device.attention(&mut qkv, &CU_SEQLENS, &shape, None)?;
        let mut sum = h;
        device.add(&mut sum, &x, None, None)?;
        let x = device.ffn(&sum, &ffn, &sum, None)?;
        let routing = device.route(&x, &router, rule)?;
        let mut y = device.expert_ffn(&x, &routing, &experts)?;
        device.recycle(routing);
        device.add(&mut y, &x, None, None)?;
        let x = y;
        device.to_host(&device.pool(&x, &CU_SEQLENS, Pooling::Mean)?)
    };
    run().expect("a layer")
}

#[test]
fn a_timed_device_gives_the_same_bits() {
    for isa in Isa::available() {
        let bare = layer(&device(isa));
        let timed = layer(&Timed::new(device(isa), DTYPE, 0));
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&bare), bits(&timed), "{isa}");
        assert_eq!(bare.len(), 2 * D_MODEL);
    }
}

#[test]
fn work_is_counted_from_shapes() {
    let timed = Timed::new(device(Isa::detect()), DTYPE, 0);
    layer(&timed);
    let records = timed.take();
    let check = |name: &str, n_calls: u64, flops: usize, n_bytes: usize| {
        let found = find(&records, name);
        let (flops, n_bytes) = (flops as u64, n_bytes as u64);
        let expect = (n_calls, Work { flops, n_bytes });
        assert_eq!((found.n_calls, found.work), expect, "{name}");
        assert!(!found.elapsed.is_zero(), "{name}");
    };
    let (x, scores) = (4 * N_TOKENS * D_MODEL, 4 * 4 + 7 * 7);
    let row = |n: usize| n * N_TOKENS;
    check("embed", 1, 0, x + x / 2);
    check("norm", 1, 0, 2 * x);
    let qkv = 3 * D_MODEL * D_MODEL;
    check("linear 24→72", 1, row(2 * qkv), x + 2 * qkv + 3 * x);
    check("attention", 1, 4 * scores * D_MODEL, 4 * x);
    check("add", 2, 0, 6 * x);
    let router = N_EXPERTS * D_MODEL;
    check(
        "route 24→3",
        1,
        row(2 * router),
        x + 4 * router + 4 * row(N_EXPERTS),
    );
    let expert = 2 * D_MODEL * D_FF;
    check("ffn 24→40→24", 1, row(2 * expert), 3 * x + 2 * expert);
    let n_bytes = 2 * x + N_EXPERTS * 2 * expert;
    check("expert_ffn 24→40→24", 1, row(2 * 2 * expert), n_bytes);
    check("pool", 1, 0, x + 2 * 4 * D_MODEL);
    check("to_host", 1, 0, 2 * 2 * 4 * D_MODEL);
    assert_eq!(find(&records, "route 24→3").operation.dtype, DType::F32);
    assert_eq!(find(&records, "linear 24→72").operation.dtype, DTYPE);
    assert!(timed.take().is_empty(), "records are taken once");
}

fn find(records: &[Record], name: &str) -> Record {
    let names: Vec<String> = records.iter().map(|r| r.operation.to_string()).collect();
    let found = names.iter().position(|found| found == name);
    records[found.unwrap_or_else(|| panic!("no {name} in {names:?}"))]
}

#[test]
fn an_operation_is_called_by_its_widths() {
    let operation = Operation {
        name: "linear",
        widths: [768, 3072, 0],
        dtype: DType::F32,
    };
    assert_eq!(operation.to_string(), "linear 768→3072");
    let widths = [0; 3];
    assert_eq!(
        Operation {
            widths,
            ..operation
        }
        .to_string(),
        "linear"
    );
}

#[test]
fn peaks_are_what_a_machine_can_have() {
    for isa in Isa::available() {
        let device = device(isa);
        for dtype in [DType::F32, DType::BF16] {
            let flops = peak::flops_per_second(&device, dtype, peak::DURATION);
            assert!((1e8..1e15).contains(&flops), "{isa}, {dtype}: {flops:e}");
        }
    }
    let n_bytes = peak::read_bytes_per_second(&device(Isa::detect()));
    assert!((1e8..1e14).contains(&n_bytes), "{n_bytes:e}");
}
