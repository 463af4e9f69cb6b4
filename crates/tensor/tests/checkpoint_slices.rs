//! Slices of any shape against a naive slicer, and what reading costs.

use std::borrow::Cow;
use std::ops::Range;

use half::{bf16, f16};
use moeshard_tensor::checkpoint::{Checkpoint, HostTensor};
use moeshard_tensor::dtype::DType;
use proptest::prelude::*;

/// A safetensors file of one tensor `w`; `pad` moves the data off its alignment.
fn file_of(dtype: &str, shape: &[usize], data: &[u8], pad: usize) -> Vec<u8> {
    let header = format!(
        r#"{{"w":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[0,{}]}}}}{:pad$}"#,
        data.len(),
        ""
    );
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

fn open(dir: &tempfile::TempDir, file: &[u8]) -> Checkpoint {
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    Checkpoint::open(dir.path()).unwrap()
}

/// Index by index, the slow way.
fn naive_slice(shape: &[usize], values: &[f32], ranges: &[Range<usize>]) -> Vec<f32> {
    let is_inside = |mut at: usize| {
        shape.iter().zip(ranges).rev().all(|(&dim, range)| {
            let idx = at % dim;
            at /= dim;
            range.contains(&idx)
        })
    };
    let inside = values.iter().enumerate().filter(|(at, _)| is_inside(*at));
    inside.map(|(_, v)| *v).collect()
}

fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    let encode = |v: &f32| match dtype {
        DType::F32 => v.to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(*v).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f32(*v).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(encode).collect()
}

fn shape_and_ranges() -> impl Strategy<Value = (Vec<usize>, Vec<Range<usize>>)> {
    let axis = (1usize..8).prop_flat_map(|dim| {
        (Just(dim), 0..=dim, 0..=dim).prop_map(|(dim, a, b)| (dim, a.min(b)..a.max(b)))
    });
    prop::collection::vec(axis, 0..5).prop_map(|axes| axes.into_iter().unzip())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_slice_equals_the_naive_slice(
        (shape, ranges) in shape_and_ranges(),
        dtype in prop::sample::select(vec![("F32", DType::F32), ("F16", DType::F16), ("BF16", DType::BF16)]),
        pad in 0usize..8,
    ) {
        let n: usize = shape.iter().product();
        // At most 2401 values, made of eight bits of precision: exact in every format.
        let values: Vec<f32> = (0..n).map(|i| (i % 256) as f32 - 100.0).collect();
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = open(&dir, &file_of(dtype.0, &shape, &encode(dtype.1, &values), pad));
        let slice = checkpoint.read("w", &ranges).unwrap();
        // No range at all asks for the whole tensor.
        let want = naive_slice(&shape, &values, &ranges);
        prop_assert_eq!(&slice.shape, &ranges.iter().map(Range::len).collect::<Vec<_>>());
        prop_assert_eq!(slice.n_elements(), want.len());
        prop_assert_eq!(slice.to_f32(), want);
        prop_assert_eq!(checkpoint.n_bytes_read(), slice.data.len() as u64);
        prop_assert_eq!(checkpoint.read("w", &[]).unwrap().to_f32(), values);
    }

    #[test]
    fn splitting_and_joining_shards_is_the_identity(rows in 1usize..40, cols in 1usize..40, n in 1usize..7) {
        let values: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = open(&dir, &file_of("F32", &[rows, cols], &encode(DType::F32, &values), 0));
        let mut joined = vec![f32::NAN; rows * cols];
        for rank in 0..n {
            let range = rank * cols / n..(rank + 1) * cols / n;
            let shard = checkpoint.read("w", &[0..rows, range.clone()]).unwrap().to_f32();
            for row in 0..rows {
                let part = &shard[row * range.len()..][..range.len()];
                joined[row * cols..][range.clone()].copy_from_slice(part);
            }
        }
        prop_assert_eq!(joined, values);
        prop_assert_eq!(checkpoint.n_bytes_read(), (rows * cols * 4) as u64);
    }
}

#[test]
fn a_contiguous_slice_is_borrowed_and_another_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = open(&dir, &file_of("F32", &[4, 3, 2], &[0; 96], 0));
    for (ranges, is_borrowed) in [
        (vec![], true),
        (vec![1..3, 0..3, 0..2], true),
        (vec![2..3, 1..3, 0..2], true),
        (vec![2..3, 1..2, 1..2], true),
        (vec![0..0, 1..2, 0..1], true),
        (vec![0..2, 1..2, 0..2], false),
        (vec![0..4, 0..3, 1..2], false),
    ] {
        let slice = checkpoint.read("w", &ranges).unwrap();
        assert_eq!(
            matches!(slice.data, Cow::Borrowed(_)),
            is_borrowed,
            "{ranges:?}"
        );
    }
}

#[test]
fn a_slice_outside_the_tensor_is_refused_by_name_and_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = open(&dir, &file_of("F32", &[4, 3], &[0; 48], 0));
    let backwards = Range { start: 2, end: 1 };
    for (ranges, want) in [
        (
            vec![0..4, 1..4],
            "expected a range within 0..3 on axis 1, found 1..4",
        ),
        (
            vec![5..5, 0..3],
            "expected a range within 0..4 on axis 0, found 5..5",
        ),
        (
            vec![0..4, backwards],
            "expected a range within 0..3 on axis 1, found 2..1",
        ),
        (vec![0..4; 3], "expected 2 ranges for shape [4, 3], found 3"),
    ] {
        let err = checkpoint.read("w", &ranges).unwrap_err().to_string();
        assert!(
            err.contains("model.safetensors: tensor \"w\"") && err.contains(want),
            "{err}"
        );
    }
}

#[test]
fn the_first_number_that_is_not_finite_is_found_at_any_place() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (n, at) in [(1, 0), (1024, 1023), (1025, 1024), (5000, 3333)] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = vec![-1.5; n];
                let tensor = |values: &[f32]| HostTensor {
                    dtype,
                    shape: vec![n],
                    data: Cow::Owned(encode(dtype, values)),
                };
                assert_eq!(tensor(&values).first_non_finite(), None);
                values[at] = bad;
                values[n - 1] = bad;
                assert_eq!(
                    tensor(&values).first_non_finite(),
                    Some(at),
                    "{dtype} {n} {bad}"
                );
            }
        }
    }
}

#[test]
fn every_half_and_bfloat_widens_exactly_from_any_alignment() {
    let bits: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for pad in 0..2 {
        let bytes: Vec<u8> = [&vec![0; pad], &bits[..]].concat();
        let widen = |dtype| {
            let data = Cow::Borrowed(&bytes[pad..]);
            HostTensor {
                dtype,
                shape: vec![1 << 16],
                data,
            }
            .to_f32()
        };
        let is_same = |got: f32, want: f32| got == want || got.is_nan() && want.is_nan();
        for (word, (half, bfloat)) in
            (0..=u16::MAX).zip(widen(DType::F16).into_iter().zip(widen(DType::BF16)))
        {
            assert!(is_same(half, f16::from_bits(word).to_f32()), "{word:#x}");
            assert!(is_same(bfloat, bf16::from_bits(word).to_f32()), "{word:#x}");
        }
    }
}

#[test]
fn a_checkpoint_is_shared_by_threads() {
    fn assert_shared<T: Send + Sync>() {}
    assert_shared::<Checkpoint>();
    let tensor = HostTensor::from_f32([2, 1], &[1.0, 2.0]);
    assert_eq!(
        (tensor.shape.as_slice(), tensor.to_f32()),
        (&[2, 1][..], vec![1.0, 2.0])
    );
}
