//! Random shapes of each op against float64, and Hopper's own instructions against what they are
//! defined to do: the cases of the tests, drawn by a seed.

use super::finding::{Check, Note};
use super::{Finding, Run, Size};
use crate::cuda::tests::dice::Dice;
use crate::cuda::tests::{
    Bed, Drawn, attention, embed, hopper, kv_copy, linear, linear_quantized, moe, norm, rope_store,
    sample,
};
use crate::error::KernelError;

/// An op: draws a case no larger than a number, and runs it.
struct Op {
    name: &'static str,
    random: fn(&Bed, &mut Dice, usize) -> Drawn,
    /// The largest case on a card, and under emulation.
    most: [usize; 2],
}

const fn op(
    name: &'static str,
    random: fn(&Bed, &mut Dice, usize) -> Drawn,
    most: [usize; 2],
) -> Op {
    Op { name, random, most }
}

const OPS: [Op; 9] = [
    op("linear", linear::random, [40_000_000, 20_000]),
    op("quantized linear", linear_quantized::random, [4_000_000, 20_000]),
    op("attention", attention::random, [60_000, 300]),
    op("norm", norm::random, [400_000, 2000]),
    op("rope and KV store", rope_store::random, [0, 0]),
    op("copies of KV blocks", kv_copy::random, [20_000, 2000]),
    op("sampling", sample::random, [200_000, 60]),
    op("experts", moe::random, [200, 6]),
    op("embedding and rows", embed::random, [8192, 100]),
];

/// What suite_hopper.cu does: numbers of k, of tiles.
const HOPPER: [Op; 3] = [
    op("tiles by the copy engine", hopper::random_tile, [0, 0]),
    op("products of warpgroups", hopper::random_product, [8, 3]),
    op("tiles through a ring", hopper::random_ring, [16, 4]),
];

/// Cases of an op.
const CASES: [usize; 2] = [60, 2];

pub(super) fn run(run: &mut Run<'_>) -> Result<bool, KernelError> {
    run_all(run, &OPS)
}

/// The same for Hopper's instructions. Other cards have none of them, which is no fault.
pub(super) fn run_hopper(run: &mut Run<'_>) -> Result<bool, KernelError> {
    if !run.target.is_hopper {
        let (major, minor) = run.driver.capability();
        let why = format!("compute capability {major}.{minor} has none, only 9.0 has");
        (run.put)(Finding::Note(Note::not_measured("Hopper's instructions", why)));
        return Ok(true);
    }
    run_all(run, &HOPPER)
}

fn run_all(run: &mut Run<'_>, ops: &[Op]) -> Result<bool, KernelError> {
    let at = usize::from(run.size == Size::Tiny);
    let bed = Bed::on(run.driver);
    for (index, op) in ops.iter().enumerate() {
        let mut dice = Dice(run.seed << 8 | index as u64);
        let mut check = Check::new(op.name);
        let mut ends = true;
        for _ in 0..CASES[at] {
            ends = (run.keeps_going)();
            if !ends {
                break;
            }
            let (case, right) = (op.random)(&bed, &mut dice, op.most[at]);
            check.add((!right?).then_some(case));
        }
        if check.cases > 0 {
            (run.put)(Finding::Check(check));
        }
        if !ends {
            return Ok(false);
        }
    }
    Ok(true)
}
