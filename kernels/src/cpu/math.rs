//! exp and what is made of it, on vectors, with stated error bounds.
//!
//! The same instruction sequence for every lane and any number of rows. Range reduction and
//! polynomial of exp after Cephes (`expf`), erfc after Abramowitz and Stegun 7.1.26.

use crate::cpu::simd::Simd;
use crate::ops::Activation;

/// 1.5 · 2²³: adding it rounds |x| < 2²² to the nearest integer, held in the low mantissa bits.
const SHIFT: f32 = 12_582_912.0;

/// Below this, `exp` is 0: its value would be denormal.
const EXP_MIN: f32 = -87.336_54;

/// Above this, `exp` stays at about 1.65e38 instead of reaching infinity.
const EXP_MAX: f32 = 88.0;

/// `eˣ` with a relative error below 2.5e-7 on −87.3..=88; 0 below (−∞ too), `e⁸⁸` above; NaN of
/// NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: S::F32) -> S::F32 {
    let low = S::splat(EXP_MIN);
    let clamped = S::min(S::splat(EXP_MAX), S::max(low, x));
    let shifted = S::fma(clamped, S::splat(std::f32::consts::LOG2_E), S::splat(SHIFT));
    let n = S::sub(shifted, S::splat(SHIFT));
    // x − n·ln 2 with ln 2 in two parts: the first product is exact.
    let r = S::fma(n, S::splat(-0.693_359_4), clamped);
    let r = S::fma(n, S::splat(2.121_944_4e-4), r);
    let mut p = S::splat(1.987_569_1e-4);
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = S::fma(p, r, S::splat(coefficient));
    }
    let p = S::fma(p, S::mul(r, r), S::add(r, S::splat(1.0)));
    let value = S::mul(p, S::exp2_of_shifted(shifted));
    S::select_less(x, low, S::splat(0.0), value)
}

/// `1 / (1 + e⁻ˣ)`, relative error below 5e-7 for x ≥ −87.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(x: S::F32) -> S::F32 {
    let one = S::splat(1.0);
    S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
}

/// `tanh x`, error below 3e-7 relative.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(x: S::F32) -> S::F32 {
    let size = S::abs(x);
    // Small arguments: odd polynomial (Cephes `tanhf`). Large ones: 1 − 2 / (e²ˣ + 1).
    let square = S::mul(x, x);
    let mut p = S::splat(-5.704_988_7e-3);
    for coefficient in [2.063_909e-2, -5.373_971_5e-2, 0.133_314_42, -0.333_332_8] {
        p = S::fma(p, square, S::splat(coefficient));
    }
    let small = S::fma(S::mul(p, square), x, x);
    let grown = S::add(exp::<S>(S::add(size, size)), S::splat(1.0));
    let large = S::sub(S::splat(1.0), S::div(S::splat(2.0), grown));
    let zero = S::splat(0.0);
    let large = S::select_less(x, zero, S::sub(zero, large), large);
    S::select_less(size, S::splat(0.625), small, large)
}

/// `cap · tanh(x / cap)`.
#[inline(always)]
pub(crate) fn soft_cap<S: Simd>(x: S::F32, cap: f32) -> S::F32 {
    S::mul(S::splat(cap), tanh::<S>(S::div(x, S::splat(cap))))
}

/// An activation function. Errors: SiLU and GELU-tanh 1e-6 relative to |x|, GELU 5e-7 of |x|.
#[inline(always)]
pub(crate) fn activate<S: Simd>(activation: Activation, x: S::F32) -> S::F32 {
    match activation {
        Activation::Silu => S::mul(x, sigmoid::<S>(x)),
        Activation::GeluTanh => {
            // 0.5 (1 + tanh u) = sigmoid(2u), u = √(2/π) (x + 0.044715 x³).
            let cubic = S::fma(S::mul(x, x), S::splat(0.044_715), S::splat(1.0));
            let twice_u = S::mul(S::mul(x, cubic), S::splat(1.595_769));
            S::mul(x, sigmoid::<S>(twice_u))
        }
        Activation::Gelu => gelu_erf::<S>(x),
    }
}

/// `x Φ(x)`: with q = erfc(|x|/√2) / 2, that is `x q` left of zero and `x − x q` right of it.
#[inline(always)]
fn gelu_erf<S: Simd>(x: S::F32) -> S::F32 {
    let z = S::mul(S::abs(x), S::splat(std::f32::consts::FRAC_1_SQRT_2));
    let one = S::splat(1.0);
    let t = S::div(one, S::fma(z, S::splat(0.327_591_1), one));
    let mut p = S::splat(1.061_405_4);
    for coefficient in [-1.453_152, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        p = S::fma(p, t, S::splat(coefficient));
    }
    let minus_square = S::sub(S::splat(0.0), S::mul(z, z));
    let half_erfc = S::mul(S::mul(p, t), S::mul(S::splat(0.5), exp::<S>(minus_square)));
    let part = S::mul(x, half_erfc);
    S::select_less(x, S::splat(0.0), part, S::sub(x, part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::{Isa, Kernel};

    /// Applies a function to many points with the lanes of an instruction set.
    struct Map<'a> {
        what: What,
        values: &'a mut [f32],
    }

    #[derive(Clone, Copy)]
    enum What {
        Exp,
        Tanh,
        Sigmoid,
        Act(Activation),
    }

    impl Kernel for Map<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self) {
            for chunk in self.values.chunks_exact_mut(S::LANES) {
                // SAFETY: a chunk holds LANES elements.
                unsafe {
                    let x = S::load(chunk.as_ptr());
                    let y = match self.what {
                        What::Exp => exp::<S>(x),
                        What::Tanh => tanh::<S>(x),
                        What::Sigmoid => sigmoid::<S>(x),
                        What::Act(activation) => activate::<S>(activation, x),
                    };
                    S::store(chunk.as_mut_ptr(), y);
                }
            }
        }
    }

    fn points(from: f32, to: f32) -> Vec<f32> {
        let count = 1 << 16;
        (0..count).map(|i| from + (to - from) * (i as f32 + 0.37) / count as f32).collect()
    }

    /// Largest |got − want| / scale(x, want) over the points, over all instruction sets.
    fn worst(
        what: What,
        range: (f32, f32),
        want: impl Fn(f64) -> f64,
        scale: impl Fn(f64, f64) -> f64,
    ) -> f64 {
        let xs = points(range.0, range.1);
        let mut worst = 0.0f64;
        for isa in Isa::available() {
            let mut values = xs.clone();
            isa.dispatch(Map { what, values: &mut values });
            for (&x, &got) in xs.iter().zip(&values) {
                let want = want(f64::from(x));
                worst = worst.max((f64::from(got) - want).abs() / scale(f64::from(x), want));
            }
        }
        worst
    }

    #[test]
    fn errors_are_within_the_stated_bounds() {
        let relative = |_: f64, want: f64| want.abs();
        let to_input = |x: f64, _: f64| x.abs().max(1e-30);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        assert!(worst(What::Exp, (-87.3, 88.0), f64::exp, relative) < 2.5e-7);
        assert!(worst(What::Exp, (-1.0, 1.0), f64::exp, relative) < 2.5e-7);
        assert!(worst(What::Tanh, (-12.0, 12.0), f64::tanh, relative) < 3e-7);
        assert!(worst(What::Tanh, (-0.7, 0.7), f64::tanh, relative) < 3e-7);
        assert!(worst(What::Sigmoid, (-80.0, 80.0), sigmoid, relative) < 5e-7);
        let silu = worst(What::Act(Activation::Silu), (-30.0, 30.0), |x| x * sigmoid(x), to_input);
        assert!(silu < 1e-6);
        let gelu_tanh = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        };
        assert!(worst(What::Act(Activation::GeluTanh), (-10.0, 10.0), gelu_tanh, to_input) < 1e-6);
        let gelu = |x: f64| x * crate::reference::normal_cdf(x);
        assert!(worst(What::Act(Activation::Gelu), (-10.0, 10.0), gelu, to_input) < 5e-7);
    }

    #[test]
    fn exp_keeps_its_edges() {
        for isa in Isa::available() {
            let mut values = [0.0f32; 16];
            let edges = [f32::NEG_INFINITY, -1e30, -88.0, 0.0, 88.0, 1e30, f32::INFINITY, f32::NAN];
            values[..8].copy_from_slice(&edges);
            isa.dispatch(Map { what: What::Exp, values: &mut values });
            assert_eq!(values[..4], [0.0, 0.0, 0.0, 1.0]);
            assert!(values[4].is_finite() && values[4] > 1.6e38);
            assert_eq!([values[5]; 2], [values[4], values[6]]);
            assert!(values[7].is_nan());
        }
    }
}
