//! Rectified linear units.

use super::Result;
use super::error::check;
use crate::cpu::isa::{Isa, per_isa};

/// `x = max(x, 0)`; NaN stays.
pub fn relu(x: &mut [f32]) {
    rectify(Isa::detect(), x);
}

/// Sets the gradient to zero wherever the result `y` of [`relu`] is.
///
/// # Errors
/// [`LinalgError::Shape`](super::LinalgError::Shape) if they differ in length.
pub fn relu_backward(y: &[f32], d: &mut [f32]) -> Result<()> {
    check("relu", "values of the gradient", y.len(), d.len())?;
    block_gradient(Isa::detect(), y, d);
    Ok(())
}

per_isa! {
    fn rectify(x: &mut [f32]) {
        for x in x {
            // `max` would turn NaN into 0.
            *x = if *x < 0.0 { 0.0 } else { *x };
        }
    }
}

per_isa! {
    fn block_gradient(y: &[f32], d: &mut [f32]) {
        for (d, y) in d.iter_mut().zip(y) {
            *d = if *y <= 0.0 { 0.0 } else { *d };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_numbers_and_their_gradients_vanish_on_every_instruction_set() {
        let x: Vec<_> = (0..1001).map(|i| (i % 7) as f32 - 3.0).collect();
        for isa in Isa::available() {
            let (mut y, mut d) = (x.clone(), vec![2.0; x.len()]);
            rectify(isa, &mut y);
            block_gradient(isa, &y, &mut d);
            for i in 0..x.len() {
                assert_eq!(y[i], if x[i] > 0.0 { x[i] } else { 0.0 });
                assert_eq!(d[i], if x[i] > 0.0 { 2.0 } else { 0.0 });
            }
        }
        let mut nan = [f32::NAN];
        relu(&mut nan);
        assert!(nan[0].is_nan());
        assert!(relu_backward(&nan, &mut []).is_err());
    }
}
