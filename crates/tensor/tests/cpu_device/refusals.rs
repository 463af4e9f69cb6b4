//! Arguments that do not fit one another.

use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::collective::Solo;
use moeshard_tensor::cpu::{CpuConfig, CpuDevice, Isa, Tensor};
use moeshard_tensor::device::{
    Activation, AttentionShape, Device, DeviceError, EmbeddingRows, MatrixLayout, Norm, NormKind,
    Pooling, PositionRule, RouterRule,
};
use moeshard_tensor::dtype::DType;

use crate::support::matrix;

#[test]
fn disagreeing_shapes_are_errors_that_name_the_dimension() {
    let config = CpuConfig::new(DType::F32, 1);
    let device = CpuDevice::new(config, Box::new(Solo)).expect("device");
    let x = Tensor::new(2, 3, vec![0.0; 6]);
    let w = device
        .load_matrix(&[matrix(4, 5, &[0.0; 20], MatrixLayout::OutIn)])
        .expect("load");
    let error = device
        .linear(&x, &w, None, Activation::Identity, None, None)
        .unwrap_err();
    assert_eq!(
        error,
        DeviceError::Shape {
            op: "linear",
            dim: "n_in",
            expected: 5,
            got: 3
        }
    );
    assert_eq!(error.to_string(), "linear: n_in is 3, expected 5");
    let w = device
        .load_matrix(&[matrix(4, 3, &[0.0; 12], MatrixLayout::OutIn)])
        .expect("load");
    let norm = Norm {
        kind: NormKind::Rms,
        eps: 0.0,
        weight: vec![1.0; 3],
        bias: None,
    };
    let error = device
        .linear(&x, &w, None, Activation::Identity, None, Some(&norm))
        .unwrap_err();
    assert_eq!(error.to_string(), "linear: d_model is 3, expected 4");
    let table = device
        .load_table(&HostTensor::from_f32(vec![2, 3], &[0.0; 6]))
        .expect("load");
    let rows = [EmbeddingRows {
        table: &table,
        row_idx: &[2],
        scale: 1.0,
    }];
    assert!(
        device
            .embed(&rows, None)
            .unwrap_err()
            .to_string()
            .contains("n_rows")
    );
    assert!(device.pool(&x, &[0, 5], Pooling::Mean).is_err());
    let router = device
        .load_exact_matrix(&matrix(3, 3, &[0.0; 9], MatrixLayout::OutIn))
        .expect("load");
    let rule = RouterRule {
        top_k: 2,
        normalize: false,
    };
    let mut routing = device.route(&x, &router, rule).expect("route");
    assert!(
        device
            .limit_capacity(&mut routing, &[0, 9], 1, false)
            .is_err()
    );
}

#[test]
fn weights_that_are_not_numbers_are_refused() {
    let load = |dtype, value: f32, layout| {
        let config = CpuConfig::new(dtype, 2);
        let device = CpuDevice::new(config, Box::new(Solo)).expect("device");
        let mut data = vec![1.0; 20 * 3];
        data[37] = value;
        let good = matrix(5, 3, &[1.0; 15], layout);
        let error = device.load_matrix(&[good, matrix(20, 3, &data, layout)]);
        let table = device.load_table(&HostTensor::from_f32(vec![20, 3], &data));
        (error.err(), table.err())
    };
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for value in [f32::NAN, f32::INFINITY] {
            let (of_matrix, of_table) = load(dtype, value, MatrixLayout::OutIn);
            let refused = |part_idx| {
                Some(DeviceError::NotFinite {
                    part_idx,
                    element_idx: Some(37),
                    dtype,
                })
            };
            assert_eq!((of_matrix, of_table), (refused(1), refused(0)));
            assert!(load(dtype, value, MatrixLayout::InOut).0.is_some());
        }
        assert_eq!(load(dtype, 2.0, MatrixLayout::InOut), (None, None));
    }
    // Finite as stored, but not in half precision.
    let (error, _) = load(DType::F16, 70_000.0, MatrixLayout::OutIn);
    let message = error.expect("too large").to_string();
    assert!(message.contains("too large for float16"), "{message}");
    assert_eq!(
        load(DType::BF16, 70_000.0, MatrixLayout::OutIn),
        (None, None)
    );
}

#[test]
fn overlapping_segments_are_refused() {
    let config = CpuConfig {
        isa: Isa::Portable,
        ..CpuConfig::new(DType::F32, 2)
    };
    let device = CpuDevice::new(config, Box::new(Solo)).expect("device");
    let mut x = Tensor::new(3, 6, vec![0.0; 18]);
    let shape = AttentionShape {
        n_heads: 1,
        head_dim: 2,
        scale: 1.0,
        position: PositionRule::None,
    };
    for segments in [&[0, 3, 1, 3][..], &[1, 3], &[0, 2], &[]] {
        assert!(
            device.attention(&mut x, segments, &shape, None).is_err(),
            "{segments:?}"
        );
        assert!(
            device.pool(&x, segments, Pooling::Mean).is_err(),
            "{segments:?}"
        );
    }
}
