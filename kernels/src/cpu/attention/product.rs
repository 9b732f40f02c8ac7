//! The one inner loop of attention: `C[r][n] (+)= Σ_k A[r][k] · B[k][n]`, B straight from the cache.
//!
//! Scores are A = q, B = K `[D][tokens]`; values are A = softmax weights, B = V `[tokens][D]`. Each
//! element of C is one chain of `fma` in ascending k, whatever rows and columns are computed
//! beside it: so its bits do not depend on how work was tiled. B is widened in registers and
//! shared by up to six rows.

use std::marker::PhantomData;

use half::{bf16, f16};

use crate::cpu::isa::{Isa, Kernel};
use crate::cpu::simd::Simd;
use crate::dtype::DType;
use crate::kv_format::KvFormat;

/// Operands of a product. `cols` is a multiple of 8.
///
/// Validity (the caller's promise): `a` reaches `rows × depth` elements in steps of `a_stride`, `b`
/// `depth × cols` of `format` in steps of `b_stride`, `c` `rows × cols` in steps of `c_stride`; c is
/// not shared and its rows may be written up to the next multiple of 8 columns only.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) a: *const f32,
    pub(super) a_stride: usize,
    pub(super) b: *const u8,
    pub(super) b_stride: usize,
    /// Codes of fp8 count as a 256th of their values: their scales are the caller's.
    pub(super) format: KvFormat,
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    pub(super) rows: usize,
    pub(super) depth: usize,
    pub(super) cols: usize,
    /// Whether C is added to; otherwise it is written.
    pub(super) accumulate: bool,
}

impl Product {
    /// Computes it.
    ///
    /// # Safety
    /// The operands are valid as said at [`Product`].
    pub(super) unsafe fn run(self, isa: Isa) {
        assert!(self.cols.is_multiple_of(8));
        match self.format {
            KvFormat::Plain(DType::F32) => isa.dispatch(Typed::<f32>(self, PhantomData)),
            KvFormat::Plain(DType::Bf16) => isa.dispatch(Typed::<bf16>(self, PhantomData)),
            KvFormat::Plain(DType::F16) => isa.dispatch(Typed::<f16>(self, PhantomData)),
            KvFormat::Fp8 => isa.dispatch(Typed::<E4m3>(self, PhantomData)),
        }
    }
}

/// A number type of the cache, widened exactly.
trait Element: Copy + Default {
    /// LANES elements.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load<S: Simd>(from: *const Self) -> S::F32;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> S::F32 {
        // SAFETY: the caller's promise.
        unsafe { S::load(from) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const bf16) -> S::F32 {
        // SAFETY: the caller's promise; a bf16 is a 16-bit word.
        unsafe { S::load_bf16(from.cast()) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f16) -> S::F32 {
        // SAFETY: the caller's promise; an f16 is a 16-bit word.
        unsafe { S::load_f16(from.cast()) }
    }
}

/// A code of an fp8 cache.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct E4m3(u8);

impl Element for E4m3 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const E4m3) -> S::F32 {
        // SAFETY: the caller's promise; a code is a byte.
        unsafe { S::load_fp8(from.cast()) }
    }
}

struct Typed<T>(Product, PhantomData<T>);

impl<T: Element> Kernel for Typed<T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Typed(product, _) = self;
        let mut col = 0;
        while col < product.cols {
            let vectors = (product.cols - col) / S::LANES;
            if S::LANES > 8 && vectors == 0 {
                col += tail::<S, T>(product, col);
                continue;
            }
            if const { !has_registers::<S>() } {
                for row in 0..product.rows {
                    panel::<S, T, 1, 1>(product, row, col);
                }
                col += S::LANES;
                continue;
            }
            col += match vectors {
                1 => rows::<S, T, 1>(product, col),
                2 | 3 => rows::<S, T, 2>(product, col),
                // Sixteen registers hold four columns of vectors for two rows only.
                _ if S::LANES < 16 && product.rows > 2 => rows::<S, T, 2>(product, col),
                _ => rows::<S, T, 4>(product, col),
            };
        }
    }
}

/// Whether lanes are a register's. Lanes in plain arrays gain nothing from tiles of registers.
const fn has_registers<S: Simd>() -> bool {
    align_of::<S::F32>() > align_of::<f32>()
}

/// `VECTORS` columns of vectors from `col`, all rows. Gives how many columns that is.
#[inline(always)]
fn rows<S: Simd, T: Element, const VECTORS: usize>(product: Product, col: usize) -> usize {
    let mut row = 0;
    while row < product.rows {
        row += match product.rows - row {
            1 => panel::<S, T, 1, VECTORS>(product, row, col),
            2 => panel::<S, T, 2, VECTORS>(product, row, col),
            3 | 5 => panel::<S, T, 3, VECTORS>(product, row, col),
            4 | 7 | 8 => panel::<S, T, 4, VECTORS>(product, row, col),
            _ => panel::<S, T, 6, VECTORS>(product, row, col),
        };
    }
    VECTORS * S::LANES
}

/// `ROWS × VECTORS` vectors of C in registers over the whole depth. Gives `ROWS`.
#[inline(always)]
fn panel<S: Simd, T: Element, const ROWS: usize, const VECTORS: usize>(
    product: Product,
    row: usize,
    col: usize,
) -> usize {
    let Product { a_stride, b_stride, c_stride, depth, .. } = product;
    // SAFETY: rows row..row + ROWS and columns col..col + VECTORS · LANES lie within the operands.
    unsafe {
        let a = product.a.add(row * a_stride);
        let b = product.b.cast::<T>().add(col);
        let c = product.c.add(row * c_stride + col);
        let mut sums = [[S::splat(0.0); VECTORS]; ROWS];
        if product.accumulate {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = S::load(c.add(r * c_stride + v * S::LANES));
                }
            }
        }
        for k in 0..depth {
            let mut lanes = [S::splat(0.0); VECTORS];
            for (v, lanes) in lanes.iter_mut().enumerate() {
                *lanes = T::load::<S>(b.add(k * b_stride + v * S::LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let factor = S::splat(*a.add(r * a_stride + k));
                for (sum, &lanes) in sums.iter_mut().zip(&lanes) {
                    *sum = S::fma(factor, lanes, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                S::store(c.add(r * c_stride + v * S::LANES), sum);
            }
        }
    }
    ROWS
}

/// The last eight columns where a vector has sixteen lanes. Gives eight.
#[inline(always)]
fn tail<S: Simd, T: Element>(product: Product, col: usize) -> usize {
    const TAIL: usize = 8;
    for row in 0..product.rows {
        // SAFETY: TAIL columns from `col` lie within the operands, and the copies hold LANES.
        unsafe {
            let c = product.c.add(row * product.c_stride + col);
            let mut sums = [0.0f32; 16];
            if product.accumulate {
                std::ptr::copy_nonoverlapping(c, sums.as_mut_ptr(), TAIL);
            }
            let mut sum = S::load(sums.as_ptr());
            for k in 0..product.depth {
                let mut elements = [T::default(); 16];
                let b = product.b.cast::<T>().add(k * product.b_stride + col);
                std::ptr::copy_nonoverlapping(b, elements.as_mut_ptr(), TAIL);
                let factor = S::splat(*product.a.add(row * product.a_stride + k));
                sum = S::fma(factor, T::load::<S>(elements.as_ptr()), sum);
            }
            S::store(sums.as_mut_ptr(), sum);
            std::ptr::copy_nonoverlapping(sums.as_ptr(), c, TAIL);
        }
    }
    TAIL
}
