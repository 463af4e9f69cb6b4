//! Rows on a device.

use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::device::{Device, EmbeddingRows};

use crate::support::numbers;

/// Every row of a table of [`numbers`].
pub(crate) fn rows<D: Device>(device: &D, n_rows: usize, width: usize, seed: usize) -> D::Tensor {
    let table = HostTensor::from_f32([n_rows, width], &numbers(n_rows * width, seed));
    let table = device.load_table(&table).expect("a table");
    let row_idx: Vec<u32> = (0..n_rows as u32).collect();
    let rows = EmbeddingRows {
        table: &table,
        row_idx: &row_idx,
        scale: 1.0,
    };
    device.embed(&[rows], None).expect("rows")
}
