//! Elementwise functions written so that the compiler can vectorise them.
//!
//! The standard library's `exp` and `tanh` are scalar calls. These are branch-free polynomials
//! with errors near one unit in the last place of f32, inlined into loops that are compiled for
//! the instruction set at hand.

use crate::device::Activation;

/// `eˣ`, within 2 ulp; 0 below −87.3, infinity where f32 ends.
///
/// # Source
/// Cephes `expf`: range reduction by `ln 2` in two parts, degree-5 polynomial.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    const LEAST: f32 = -87.3;
    const MOST: f32 = 88.722_8;
    // Comparisons that NaN fails, so that NaN stays NaN; the ends are selected below.
    let clamped = if x < LEAST { LEAST } else { x };
    let clamped = if clamped > MOST { MOST } else { clamped };
    // Adding 1.5 · 2²³ rounds to an integer, which then is the low bits: a conversion would check
    // for numbers that no integer holds.
    const ROUND: f32 = 12_582_912.0;
    let rounded = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let integer = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let n = rounded - ROUND;
    let r = (-n).mul_add(LN2_LO, (-n).mul_add(LN2_HI, clamped));
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = r.mul_add(p, c);
    }
    let p = (r * r).mul_add(p, r + 1.0);
    // 2ⁿ in two factors: n can be 128, which one exponent cannot hold.
    let half = integer >> 1;
    let y = p * power_of_two(half) * power_of_two(integer.wrapping_sub(half));
    let y = if x < LEAST { 0.0 } else { y };
    if x > MOST { f32::INFINITY } else { y }
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

/// The error function, within 3.4e-7 absolutely and 6.5e-7 relatively.
///
/// A quotient of polynomials in x², fitted to erf(x) / x on [0, 4] by weighted least squares with
/// the weights moved until the largest error no longer fell (5.5e-8 before rounding).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let t = x * x;
    let mut p = 1.921_689_4e-8;
    for c in [
        -1.990_068_6e-6,
        1.554_898_7e-4,
        4.291_271e-3,
        5.242_799e-2,
        0.213_904_17,
        1.128_378_7,
    ] {
        p = t.mul_add(p, c);
    }
    let mut q = 1.097_591_8e-3;
    for c in [1.554_754_6e-2, 0.120_782_755, 0.522_895_3, 1.0] {
        q = t.mul_add(q, c);
    }
    let y = x * p / q;
    // From here on it is 1 in f32; a comparison that NaN fails, so that NaN stays NaN.
    if x.abs() >= 4.0 { 1_f32.copysign(x) } else { y }
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    // 1 − 2 / (e²ˣ + 1) loses digits near zero, where the odd polynomial is exact enough.
    let a = x.abs();
    // A comparison that NaN fails, so that NaN stays NaN.
    let e = exp(2.0 * if a > 20.0 { 20.0 } else { a });
    let far = 1.0 - 2.0 / (e + 1.0);
    let x2 = x * x;
    let near = x.abs()
        * x2.mul_add(
            x2.mul_add(x2.mul_add(-17.0 / 315.0, 2.0 / 15.0), -1.0 / 3.0),
            1.0,
        );
    let y = if x.abs() < 0.2 { near } else { far };
    y.copysign(x)
}

/// Applies `activation` to every element.
///
/// In plain loops: a closure would be compiled without the caller's instructions wherever the
/// compiler does not inline it.
#[inline(always)]
pub(crate) fn activate(activation: Activation, xs: &mut [f32]) {
    match activation {
        Activation::Identity => {}
        Activation::Relu => {
            for x in xs {
                // `max` would turn NaN into 0.
                *x = if *x < 0.0 { 0.0 } else { *x };
            }
        }
        Activation::Gelu => {
            for x in xs {
                *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
            }
        }
        Activation::GeluTanh => {
            for x in xs {
                let inner = 0.797_884_6 * 0.044_715_f32.mul_add(*x * *x * *x, *x);
                *x = 0.5 * *x * (1.0 + tanh(inner));
            }
        }
        Activation::Silu => {
            for x in xs {
                *x /= 1.0 + exp(-*x);
            }
        }
        Activation::Tanh => {
            for x in xs {
                *x = tanh(*x);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `erf` in f64 by its Maclaurin series, exact enough for |x| < 4.
    fn erf64(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    fn sweep(from: f32, to: f32) -> impl Iterator<Item = f32> {
        (0..=20_000).map(move |i| from + (to - from) * i as f32 / 20_000.0)
    }

    #[test]
    fn exp_is_within_two_ulp() {
        for x in sweep(-87.0, 88.72) {
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) / exact - 1.0).abs();
            assert!(error < 2.5e-7, "exp({x}) = {}, expected {exact}", exp(x));
        }
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(1000.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn erf_matches_its_series() {
        for x in sweep(-3.9, 3.9) {
            let error = (f64::from(erf(x)) - erf64(f64::from(x))).abs();
            assert!(
                error < 5e-7,
                "erf({x}) = {}, expected {}",
                erf(x),
                erf64(f64::from(x))
            );
        }
        assert_eq!(erf(30.0), 1.0);
        assert_eq!(erf(-30.0), -1.0);
    }

    #[test]
    fn activations_match_f64() {
        type Exact = fn(f64) -> f64;
        let cases: [(Activation, Exact); 6] = [
            (Activation::Identity, |x| x),
            (Activation::Relu, |x| x.max(0.0)),
            (Activation::Gelu, |x| {
                0.5 * x * (1.0 + erf64(x / 2f64.sqrt()))
            }),
            (Activation::GeluTanh, |x| {
                let c = (2.0 / std::f64::consts::PI).sqrt();
                0.5 * x * (1.0 + (c * (x + 0.044715 * x * x * x)).tanh())
            }),
            (Activation::Silu, |x| x / (1.0 + (-x).exp())),
            (Activation::Tanh, f64::tanh),
        ];
        for (activation, exact) in cases {
            for x in sweep(-5.0, 5.0) {
                let mut y = [x];
                activate(activation, &mut y);
                let error = (f64::from(y[0]) - exact(f64::from(x))).abs();
                assert!(
                    error < 2e-6,
                    "{activation:?}({x}) = {}, error {error}",
                    y[0]
                );
            }
        }
    }

    #[test]
    fn no_activation_hides_nan() {
        use Activation::{Gelu, GeluTanh, Identity, Relu, Silu, Tanh};
        for activation in [Identity, Relu, Gelu, GeluTanh, Silu, Tanh] {
            let mut y = [f32::NAN];
            activate(activation, &mut y);
            assert!(y[0].is_nan(), "{activation:?}(NaN) = {}", y[0]);
        }
    }
}
