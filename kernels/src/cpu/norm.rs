//! RMS norm of rows, and the addition of a normed projection.
//!
//! Squares are added in vector lanes over the columns, then lanes are folded: one order for any
//! number of rows and threads.

use crate::cpu::buffer::Activation;
use crate::cpu::command::WorkerCtx;
use crate::cpu::isa::Kernel;
use crate::cpu::program::CpuProgram;
use crate::cpu::simd::Simd;
use crate::ops::{Norm, NormRows};

/// `x[t] += norm(projected[t])`.
pub(crate) struct AddNormed {
    /// `[T, H]`.
    pub(crate) projected: Activation,
    /// The norm.
    pub(crate) norm: Norm<CpuProgram>,
    /// `[T, H]`, added to.
    pub(crate) x: Activation,
}

/// Runs this worker's share of `rows` rows.
pub(crate) fn run(op: &NormRows<CpuProgram>, rows: usize, ctx: &WorkerCtx<'_>) {
    run_rows(&op.x, &op.norm, &op.out, rows, ctx);
}

/// `out[t] = norm(x[t])` for this worker's share of `rows` rows.
pub(crate) fn run_rows(
    x: &Activation,
    norm: &Norm<CpuProgram>,
    out: &Activation,
    rows: usize,
    ctx: &WorkerCtx<'_>,
) {
    for row in ctx.team.share(rows) {
        // SAFETY: this worker's row of both; x and out may be one memory, so pointers cross into
        // the kernel and no reference stays alive.
        let (from, to) = unsafe { (x.row(row).as_ptr(), out.row_mut(row).as_mut_ptr()) };
        ctx.isa.dispatch(row_kernel(from, to, x.cols(), norm, false));
    }
}

/// Runs this worker's share of `rows` rows.
pub(crate) fn run_add(op: &AddNormed, rows: usize, ctx: &WorkerCtx<'_>) {
    for row in ctx.team.share(rows) {
        // SAFETY: as in `run`.
        let (x, out) = unsafe { (op.projected.row(row).as_ptr(), op.x.row_mut(row).as_mut_ptr()) };
        ctx.isa.dispatch(row_kernel(x, out, op.x.cols(), &op.norm, true));
    }
}

fn row_kernel<'a>(
    x: *const f32,
    out: *mut f32,
    cols: usize,
    norm: &'a Norm<CpuProgram>,
    add: bool,
) -> NormKernel<'a> {
    NormKernel { x, out, cols, weight: norm.weight.padded(), eps: norm.eps, add }
}

/// Norm of `cols` elements at `x`, padded with zeros to whole vectors, to `out`.
pub(crate) struct NormKernel<'a> {
    x: *const f32,
    out: *mut f32,
    cols: usize,
    weight: &'a [f32],
    eps: f32,
    add: bool,
}

impl Kernel for NormKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let padded = self.weight.len();
        // SAFETY: x, out and weight hold whole vectors; the row is the caller's.
        unsafe {
            let mut sums = [S::splat(0.0); 2];
            for i in (0..padded).step_by(16) {
                for (half, sum) in sums.iter_mut().enumerate() {
                    let at = i + half * 8;
                    // Sixteen lanes hold both halves at once; eight lanes take two steps.
                    if S::LANES == 8 || half == 0 {
                        let x = S::load(self.x.add(at));
                        *sum = S::fma(x, x, *sum);
                    }
                }
            }
            let sum = S::sum(S::add(sums[0], sums[1]));
            let inverse = S::splat(1.0 / (sum / self.cols as f32 + self.eps).sqrt());
            for i in (0..padded).step_by(S::LANES) {
                let x = S::mul(S::load(self.x.add(i)), inverse);
                let y = S::mul(x, S::load(self.weight.as_ptr().add(i)));
                let y = if self.add { S::add(S::load(self.out.add(i)), y) } else { y };
                S::store(self.out.add(i), y);
            }
        }
    }
}

#[cfg(test)]
mod tests;
