//! For tests: a team that runs one op, without an executor.

use std::sync::atomic::AtomicU32;

use crate::cpu::buffer::Activation;
use crate::cpu::command::{ScratchPlan, WorkerCtx};
use crate::cpu::isa::Isa;
use crate::cpu::team::{Barrier, Team};

/// Runs `work` on each worker of a fresh team.
pub(crate) fn run(
    isa: Isa,
    workers: usize,
    plan: ScratchPlan,
    work: impl Fn(&WorkerCtx<'_>) + Sync,
) {
    let barrier = Barrier::new(workers);
    let scratch = plan.allocate(workers).unwrap();
    let last_tokens: Vec<AtomicU32> = (0..64).map(AtomicU32::new).collect();
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let team = Team::new(worker, &barrier);
            let ctx = WorkerCtx::new(team, isa, &last_tokens, &scratch);
            let work = &work;
            scope.spawn(move || work(&ctx));
        }
    });
}

/// An activation that holds `value(row, col)`.
pub(crate) fn activation(
    rows: usize,
    cols: usize,
    value: impl Fn(usize, usize) -> f32,
) -> Activation {
    let activation = Activation::new(rows, cols).unwrap();
    for row in 0..rows {
        // SAFETY: the only owner.
        let to = unsafe { activation.row_mut(row) };
        for (col, to) in to[..cols].iter_mut().enumerate() {
            *to = value(row, col);
        }
    }
    activation
}

/// All rows, without padding. No team may be running. Asserts that the padding is still zero.
pub(crate) fn rows(activation: &Activation, rows: usize) -> Vec<Vec<f32>> {
    let row = |row| {
        // SAFETY: nobody writes.
        let (row, padding) = unsafe { activation.row(row) }.split_at(activation.cols());
        assert!(padding.iter().all(|value| value.to_bits() == 0), "padding was written");
        row.to_vec()
    };
    (0..rows).map(row).collect()
}

/// A number in (−1, 1) that depends on nothing but its arguments.
pub(crate) fn noise(seed: usize, row: usize, col: usize) -> f32 {
    let mut x = (seed as u64) << 48 ^ (row as u64) << 24 ^ col as u64;
    for _ in 0..2 {
        x = (x ^ x >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    ((x >> 40) as f32 / (1u64 << 23) as f32) - 1.0
}

/// All instruction sets of this machine with a number of workers each: 1, 2 and 3 for all.
pub(crate) fn teams() -> impl Iterator<Item = (Isa, usize)> {
    Isa::available().flat_map(|isa| (1..=3).map(move |workers| (isa, workers)))
}
