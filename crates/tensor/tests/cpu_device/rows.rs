//! What works row by row: embeddings, norms, pooling.

use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::device::Device;
use moeshard_tensor::device::{EmbeddingRows, Norm, NormKind, Pooling};

use crate::support::{Random, assert_close, on_every_path};

#[test]
fn norms_match_f64() {
    on_every_path(|device, path| {
        let mut random = Random(2);
        for (n_rows, n) in [(1, 1), (3, 7), (5, 48), (2, 770)] {
            for kind in [NormKind::Layer, NormKind::Rms] {
                let x = random.tensor(n_rows, n);
                let (weight, bias) = (random.numbers(n), random.numbers(n));
                let with_bias = (kind == NormKind::Layer).then(|| bias.clone());
                let norm = Norm {
                    kind,
                    eps: 1e-5,
                    weight: weight.clone(),
                    bias: with_bias,
                };
                let found = device.norm(&x, &norm).expect("norm");
                let mut expected = Vec::new();
                for row in x.as_slice().chunks_exact(n) {
                    let row: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
                    let mean = match kind {
                        NormKind::Layer => row.iter().sum::<f64>() / n as f64,
                        NormKind::Rms => 0.0,
                    };
                    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
                    expected.extend(row.iter().enumerate().map(|(i, x)| {
                        let y = (x - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i]);
                        let biased = kind == NormKind::Layer;
                        y + if biased { f64::from(bias[i]) } else { 0.0 }
                    }));
                }
                assert_close(
                    &format!("{kind:?} of {n} on {path}"),
                    found.as_slice(),
                    &expected,
                );
            }
        }
    });
}

#[test]
fn sums_are_normalised_as_if_they_had_been_stored() {
    on_every_path(|device, path| {
        let mut random = Random(6);
        let n = 37;
        let norm = Norm {
            kind: NormKind::Layer,
            eps: 1e-5,
            weight: random.numbers(n),
            bias: Some(random.numbers(n)),
        };
        let (x, residual, bias) = (random.tensor(5, n), random.tensor(5, n), random.numbers(n));
        let plain: Vec<f32> = (0..5 * n)
            .map(|i| x.as_slice()[i] + residual.as_slice()[i] + bias[i % n])
            .collect();
        let mut sum = x.clone();
        device
            .add(&mut sum, &residual, Some(&bias), None)
            .expect("add");
        assert_eq!(sum.as_slice(), plain, "{path}");
        let mut found = x;
        device
            .add(&mut found, &residual, Some(&bias), Some(&norm))
            .expect("add");
        assert_eq!(found, device.norm(&sum, &norm).expect("norm"), "{path}");

        let table = HostTensor::from_f32(vec![5, n], residual.as_slice());
        let rows = [EmbeddingRows {
            table: &device.load_exact_table(&table).expect("load"),
            row_idx: &[4, 0, 2],
            scale: 2.0,
        }];
        let plain = device.embed(&rows, None).expect("embed");
        let found = device.embed(&rows, Some(&norm)).expect("embed");
        assert_eq!(found, device.norm(&plain, &norm).expect("norm"), "{path}");
    });
}

#[test]
fn embed_and_pool_match_their_formulas() {
    on_every_path(|device, path| {
        let mut random = Random(5);
        let (words, positions) = (random.short(11 * 9), random.short(4 * 9));
        let table = |rows: usize, data: &[f32]| {
            device
                .load_table(&HostTensor::from_f32(vec![rows, 9], data))
                .expect("load")
        };
        let (word_table, position_table) = (table(11, &words), table(4, &positions));
        let (ids, at) = ([10, 0, 3, 3], [0, 1, 2, 0]);
        let parts = [
            EmbeddingRows {
                table: &word_table,
                row_idx: &ids,
                scale: 3.0,
            },
            EmbeddingRows {
                table: &position_table,
                row_idx: &at,
                scale: 1.0,
            },
        ];
        let x = device.embed(&parts, None).expect("embed");
        let expected: Vec<f64> = (0..4 * 9)
            .map(|i| {
                let (word, position) = (ids[i / 9] as usize, at[i / 9] as usize);
                3.0 * f64::from(words[word * 9 + i % 9])
                    + f64::from(positions[position * 9 + i % 9])
            })
            .collect();
        assert_close(&format!("embed on {path}"), x.as_slice(), &expected);
        let pooled = |rule| device.pool(&x, &[0, 3, 4], rule).expect("pool");
        let row = |i: usize| expected[i * 9..(i + 1) * 9].to_vec();
        assert_close(
            "cls",
            pooled(Pooling::Cls).as_slice(),
            &[row(0), row(3)].concat(),
        );
        assert_close(
            "last",
            pooled(Pooling::LastToken).as_slice(),
            &[row(2), row(3)].concat(),
        );
        let mean: Vec<f64> = (0..9)
            .map(|d| (0..3).map(|t| row(t)[d]).sum::<f64>() / 3.0)
            .collect();
        assert_close(
            "mean",
            pooled(Pooling::Mean).as_slice(),
            &[mean, row(3)].concat(),
        );
    });
}
