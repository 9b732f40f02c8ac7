//! What happens to accumulated values of one row before they are stored.

use crate::cpu::isa::Kernel;
use crate::cpu::math;
use crate::cpu::simd::Simd;
use crate::cpu::weight::PANEL;
use crate::ops::{Activation, Epilogue};

/// Stores one row's results of some panels.
pub(super) struct Finish<'a> {
    /// Accumulated values of whole panels.
    pub(super) results: &'a [f32],
    /// The first of these panels.
    pub(super) panel: usize,
    /// `[N]`, padded to whole panels.
    pub(super) bias: Option<&'a [f32]>,
    /// What to do.
    pub(super) epilogue: Epilogue,
    /// The row's first element: all panels' results fit (half of them with a GLU), and those of
    /// these panels are the caller's to write.
    pub(super) out: *mut f32,
}

impl Kernel for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (i, results) in self.results.chunks_exact(PANEL).enumerate() {
            let panel = self.panel + i;
            let mut biased = [0.0f32; PANEL];
            for at in (0..PANEL).step_by(S::LANES) {
                // SAFETY: results, biases and the array hold whole panels.
                unsafe {
                    let value = S::load(results[at..].as_ptr());
                    let value = match self.bias {
                        Some(bias) => S::add(value, S::load(bias[panel * PANEL + at..].as_ptr())),
                        None => value,
                    };
                    S::store(biased[at..].as_mut_ptr(), value);
                }
            }
            // SAFETY: the row holds this panel's results.
            unsafe {
                match self.epilogue {
                    Epilogue::Glu(activation) => {
                        store_glu::<S>(activation, &biased, self.out.add(panel * PANEL / 2));
                    }
                    epilogue => store::<S>(epilogue, &biased, self.out.add(panel * PANEL)),
                }
            }
        }
    }
}

/// Sixteen results.
///
/// # Safety
/// Sixteen writable elements at `out`.
#[inline(always)]
unsafe fn store<S: Simd>(epilogue: Epilogue, values: &[f32; PANEL], out: *mut f32) {
    for at in (0..PANEL).step_by(S::LANES) {
        // SAFETY: within the sixteen.
        unsafe {
            let to = out.add(at);
            let value = S::load(values[at..].as_ptr());
            let value = match epilogue {
                Epilogue::Add => S::add(S::load(to), value),
                Epilogue::Scale { scale, soft_cap } => {
                    let scaled = S::mul(value, S::splat(scale));
                    match soft_cap {
                        Some(cap) => math::soft_cap::<S>(scaled, cap),
                        None => scaled,
                    }
                }
                Epilogue::Store | Epilogue::Glu(_) => value,
            };
            S::store(to, value);
        }
    }
}

/// Columns are gate, up, gate, up, …: eight results.
///
/// # Safety
/// Eight writable elements at `out`.
#[inline(always)]
unsafe fn store_glu<S: Simd>(activation: Activation, pairs: &[f32; PANEL], out: *mut f32) {
    let mut gates = [0.0f32; PANEL];
    let mut ups = [0.0f32; PANEL];
    for i in 0..PANEL / 2 {
        gates[i] = pairs[2 * i];
        ups[i] = pairs[2 * i + 1];
    }
    // SAFETY: the arrays hold a panel, the caller gives eight elements.
    unsafe {
        let gate = math::activate::<S>(activation, S::load(gates.as_ptr()));
        S::store(gates.as_mut_ptr(), S::mul(gate, S::load(ups.as_ptr())));
        out.copy_from_nonoverlapping(gates.as_ptr(), PANEL / 2);
    }
}
