//! Labels moved apart.

/// Places for labels of one `height` that want to be at `wanted`: as near to that as they can be
/// without overlapping, within `low` to `high` as far as there is room.
///
/// Labels that would overlap become a block, whose middle is at the mean of what they want: no other
/// place makes their squared distances smaller.
pub(crate) fn moved_apart(wanted: &[f64], height: f64, low: f64, high: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));
    let start = |block: &Block| {
        let size = block.n_labels as f64 * height;
        let middle = block.wanted / block.n_labels as f64;
        (middle - size / 2.0).min(high - size).max(low)
    };
    let mut blocks: Vec<Block> = Vec::new();
    for &label_idx in &order {
        let mut block = Block {
            n_labels: 1,
            wanted: wanted[label_idx],
        };
        let overlaps = |above: &Block, block: &Block| {
            start(above) + above.n_labels as f64 * height > start(block)
        };
        while let Some(above) = blocks.pop_if(|above| overlaps(above, &block)) {
            block.n_labels += above.n_labels;
            block.wanted += above.wanted;
        }
        blocks.push(block);
    }
    let mut moved = vec![0.0; wanted.len()];
    let mut labels = order.into_iter();
    for block in &blocks {
        for (i, label_idx) in labels.by_ref().take(block.n_labels).enumerate() {
            moved[label_idx] = start(block) + (i as f64 + 0.5) * height;
        }
    }
    moved
}

// Labels one right below the other.
struct Block {
    n_labels: usize,
    /// The sum of the places that they want.
    wanted: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_apart_and_in_order() {
        let check = |wanted: &[f64], expect: &[f64]| {
            assert_eq!(moved_apart(wanted, 10.0, 0.0, 100.0), expect);
        };
        check(&[], &[]);
        check(&[80.0, 20.0], &[80.0, 20.0]);
        check(&[50.0, 50.0], &[45.0, 55.0]);
        check(&[52.0, 50.0, 51.0], &[61.0, 41.0, 51.0]);
        // Two blocks whose labels would overlap once they are apart become one.
        check(
            &[40.0, 40.0, 54.0],
            &[34.666666666666664, 44.666666666666664, 54.666666666666664],
        );
        // The ends hold.
        check(&[-5.0, 99.0, 99.0], &[5.0, 85.0, 95.0]);
        // Without room, order is all that can be kept.
        let crowd = moved_apart(&[1.0; 12], 10.0, 0.0, 100.0);
        assert!(crowd.is_sorted() && crowd[0] == 5.0);
    }
}
