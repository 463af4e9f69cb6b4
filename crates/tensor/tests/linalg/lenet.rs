//! The shapes of GN-LeNet, as its layers find them.

use moeshard_tensor::linalg::{ConvShape, MaxPool2d};

#[test]
fn gn_lenet_has_576_features_and_85_354_parameters() {
    let (mut n_in, mut side, mut n_parameters) = (3, 32, 0);
    let mut sides = Vec::new();
    for n_out in [32, 32, 64] {
        let conv = ConvShape {
            n_in,
            n_out,
            height: side,
            width: side,
            kernel: 5,
            padding: 2,
        };
        assert_eq!((conv.out_height(), conv.out_width()), (side, side));
        let norm = 2 * n_out;
        n_parameters += conv.weight_len() + n_out + norm;
        // (32 − 3) / 2 + 1 = 15, then 7, then 3: windows beyond the edge are left out.
        let pool = MaxPool2d::new(side, side, 3, 2).expect("a shape");
        assert_eq!(pool.out_height(), pool.out_width());
        side = pool.out_width();
        sides.push(side);
        n_in = n_out;
    }
    let n_features = n_in * side * side;
    assert_eq!(sides, [15, 7, 3]);
    assert_eq!(n_features, 576);
    assert_eq!(n_parameters + 10 * n_features + 10, 85_354);
}
