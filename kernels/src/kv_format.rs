//! How the KV cache stores its elements: as a plain number type, or in eight bits.
//!
//! One definition for every device. In fp8 a head's key or value of one token, D numbers of f32, is:
//!
//! ```text
//! scale   a byte s, for 2^(s − 127): the least with max|x| ≤ 448 · scale, s within 16..=246
//! codes   D × e4m3: x / scale, to nearest, ties to even, at most 448 in magnitude, never NaN
//!         x ≈ value(code) · scale
//! ```
//!
//! A head that is not finite has s = 255 and codes of 0, and stands for NaN as a whole. s = 0 is a
//! cache that nobody wrote: zeros. A number below 2⁻¹²¹ is 0.
//!
//! Scales are powers of two, since then a product with one is exact: x / scale rounds nothing, what
//! is stored is exact in bf16 too, and whether a device multiplies keys or scores, values or weights
//! by them changes no bit. It costs no precision, as that of a code does not depend on its exponent.
//! Bounds of s keep all products normal numbers of f32 and bf16.
//!
//! In the cache a (block, KV head) has the codes of its tokens, in the device's order, then their
//! scales in the order of tokens: a block stays one piece of memory, whoever copies it.

use crate::dtype::DType;
use crate::quantize::e4m3;

/// How the elements of a KV cache are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvFormat {
    /// Each element by itself.
    Plain(DType),
    /// One e4m3 byte an element, one byte of scale for each token, head, K and V.
    Fp8,
}

impl KvFormat {
    /// As users write it.
    pub const fn name(self) -> &'static str {
        match self {
            KvFormat::Plain(dtype) => dtype.name(),
            KvFormat::Fp8 => "fp8",
        }
    }

    /// Bytes of an element without its share of a scale.
    pub const fn element_bytes(self) -> usize {
        match self {
            KvFormat::Plain(dtype) => dtype.bytes(),
            KvFormat::Fp8 => 1,
        }
    }

    /// Bytes of a token's scale, of K or V of one KV head.
    const fn scale_bytes(self) -> usize {
        match self {
            KvFormat::Plain(_) => 0,
            KvFormat::Fp8 => 1,
        }
    }

    /// Bytes of the keys (or values) of `tokens` tokens of one KV head; the largest number where it
    /// is too large for one.
    pub const fn head_bytes(self, tokens: usize, head_dim: usize) -> usize {
        let token_bytes = head_dim.saturating_mul(self.element_bytes());
        tokens.saturating_mul(token_bytes.saturating_add(self.scale_bytes()))
    }
}

impl From<DType> for KvFormat {
    fn from(dtype: DType) -> Self {
        KvFormat::Plain(dtype)
    }
}

/// The scale of a head that is not finite.
const NOT_FINITE: u8 = 255;
/// Bounds of the others.
const LEAST: u32 = 16;
const MOST: u32 = 246;

/// The byte of scale of a head's key or value.
pub(crate) fn scale_of(head: &[f32]) -> u8 {
    let magnitude = head.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
    if magnitude >= f32::INFINITY.to_bits() {
        return NOT_FINITE;
    }
    // 448 is 1.75 · 2⁸: a larger fraction than .75 carries into the exponent.
    let exponent = (magnitude + 0x1f_ffff) >> 23;
    exponent.saturating_sub(8).clamp(LEAST, MOST) as u8
}

/// The code of an element under its head's scale.
pub(crate) fn code_of(x: f32, scale: u8) -> u8 {
    if scale == NOT_FINITE {
        return 0;
    }
    e4m3(x * f32::from_bits((254 - u32::from(scale)) << 23))
}

/// The number that a byte of scale stands for.
#[inline(always)]
pub(crate) fn scale_value(scale: u8) -> f32 {
    if scale == NOT_FINITE { f32::NAN } else { f32::from_bits(u32::from(scale) << 23) }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;
    use crate::quantize::e4m3_value;
    use crate::reference::quantized;

    fn values(head: &[f32]) -> Vec<f32> {
        let scale = scale_of(head);
        head.iter().map(|&x| e4m3_value(code_of(x, scale)) * scale_value(scale)).collect()
    }

    /// Heads of all magnitudes, with elements of very different ones; often the largest is on a
    /// border between two scales, or beside it.
    fn heads() -> impl Strategy<Value = Vec<f32>> {
        let element = (-1.0f32..1.0, -24..1i32).prop_map(|(x, spread)| x * 2f32.powi(spread));
        let heads = prop::collection::vec(element, 1..40);
        (heads, -125..127i32, 0..5u32).prop_map(|(head, exponent, border)| {
            let mut head: Vec<f32> = head.into_iter().map(|x| x * 2f32.powi(exponent)).collect();
            if border < 3 {
                head[0] = f32::from_bits((1.75 * 2f32.powi(exponent)).to_bits() + border - 1);
            }
            head
        })
    }

    proptest! {
        #[test]
        fn heads_are_what_the_reference_says_and_exact_in_bf16(head in heads()) {
            let wide: Vec<f64> = head.iter().map(|&x| x.into()).collect();
            for (got, want) in values(&head).into_iter().zip(quantized::kv_head(&wide)) {
                prop_assert_eq!(f64::from(got), want);
                prop_assert_eq!(bf16::from_f32(got).to_f32(), got);
                prop_assert!(got == 0.0 || got.is_normal());
            }
        }

        #[test]
        fn an_element_moves_by_a_sixteenth_at_most(head in heads()) {
            let most = head.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            for (got, &x) in values(&head).into_iter().zip(&head) {
                // Where codes are subnormal, by a share of the largest; below that, to zero.
                let bound = (x.abs() / 16.0).max(most * 2f32.powi(-17)).max(2f32.powi(-121));
                prop_assert!((got - x).abs() <= bound, "{} became {} beside {}", x, got, most);
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_nan_as_a_whole_and_nothing_is_zero() {
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            let head = [1.0, x, -2.0];
            assert!(values(&head).iter().all(|value| value.is_nan()));
            assert!(head.iter().all(|&x| code_of(x, scale_of(&head)) == 0));
        }
        assert_eq!(values(&[0.0, -0.0, 1e-40]), [0.0; 3]);
        assert_eq!(scale_value(0), 0.0);
        let most = 448.0 * 2f32.powi(119);
        assert_eq!(values(&[f32::MAX, -f32::MAX, 1.0]), [most, -most, 0.0]);
    }

    #[test]
    fn a_block_has_its_codes_and_a_byte_of_scale_a_token() {
        assert_eq!(KvFormat::Fp8.head_bytes(64, 128), 64 * 129);
        assert_eq!(KvFormat::from(DType::Bf16).head_bytes(64, 128), 64 * 256);
        assert_eq!(KvFormat::Fp8.head_bytes(usize::MAX, 2), usize::MAX);
    }
}
