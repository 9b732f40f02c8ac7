//! The register tile: `R` rows by `V` vectors of columns, all of k.

use std::marker::PhantomData;

use crate::cpu::isa::Kernel;
use crate::cpu::linear::format::Format;
use crate::cpu::simd::Simd;
use crate::cpu::weight::PANEL;

/// Lanes of AVX-512.
pub(super) const LANES16: usize = 16;

/// Lanes of AVX2 and of the portable path.
pub(super) const LANES8: usize = 8;

/// Results of the largest tile.
pub(super) const TILE_MAX: usize = 12 * 2 * LANES16;

/// How far ahead of the multiplications weights are asked for. Panels follow each other, so beyond
/// the end of one lies the next. Measured on Zen 3: 8 % faster at 4 rows, 8 % slower at 6 and more,
/// whose arithmetic hides the memory anyway.
const PREFETCH_BYTES: usize = 1024;

/// Tiles of more rows do not ask.
const PREFETCH_ROWS_MAX: usize = 4;

/// Asks for a cache line. Any address is allowed: it is a hint, not an access.
#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of the architecture, and a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// One tile: `Σ_k x[r][k] · w[v][k]` for each row and column, in ascending steps of k.
///
/// Compiled for instruction sets of `L` lanes only.
pub(super) struct Tile<'a, F, const L: usize, const R: usize, const V: usize> {
    /// First byte of the tile's first panel; the others follow.
    pub(super) weights: *const u8,
    /// Bytes from a panel to the next.
    pub(super) panel_bytes: usize,
    /// Steps of k ([`Format::K`] elements each) that panels and rows hold.
    pub(super) steps: usize,
    /// First word of each row.
    pub(super) x: [*const u32; R],
    /// `[R][V · L]`, written.
    pub(super) results: &'a mut [f32; TILE_MAX],
    /// Of the weights.
    pub(super) format: PhantomData<F>,
}

impl<F: Format, const L: usize, const R: usize, const V: usize> Kernel for Tile<'_, F, L, R, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        if S::LANES != L || S::DOTS_PAIRS != F::PAIRS && F::K == 2 {
            return;
        }
        let mut acc = [[S::splat(0.0); V]; R];
        let prefetched = if R <= PREFETCH_ROWS_MAX { V * L / PANEL } else { 0 };
        for step in 0..self.steps {
            for panel in 0..prefetched {
                let ahead = panel * self.panel_bytes + step * F::STEP_BYTES + PREFETCH_BYTES;
                prefetch(self.weights.wrapping_add(ahead));
            }
            // SAFETY: panels and rows hold `steps` steps.
            unsafe {
                F::step::<S, R, V>(
                    &mut acc,
                    |v| self.panel(v).add(F::HEAD_BYTES + step * F::STEP_BYTES),
                    |r| self.x[r].add(step * F::WORDS),
                );
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (v, acc) in acc.into_iter().enumerate() {
                let at = (r * V + v) * L;
                // SAFETY: the panel of the vector, and a slice of L elements.
                unsafe {
                    let finished = F::finish::<S>(acc, self.panel(v), v);
                    S::store(self.results[at..at + L].as_mut_ptr(), finished);
                }
            }
        }
    }
}

impl<F, const L: usize, const R: usize, const V: usize> Tile<'_, F, L, R, V> {
    /// First byte of the panel that vector `v` lies in.
    #[inline(always)]
    fn panel(&self, v: usize) -> *const u8 {
        self.weights.wrapping_add(v * L / PANEL * self.panel_bytes)
    }
}
