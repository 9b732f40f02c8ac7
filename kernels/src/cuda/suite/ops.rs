//! Random shapes of each op against float64: the cases of the tests, drawn by a seed.

use super::finding::Check;
use super::{Finding, Run, Size};
use crate::cuda::tests::dice::Dice;
use crate::cuda::tests::{Bed, Drawn, attention, embed, linear, moe, norm, rope_store, sample};
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

const OPS: [Op; 7] = [
    op("linear", linear::random, [40_000_000, 20_000]),
    op("attention", attention::random, [60_000, 300]),
    op("norm", norm::random, [400_000, 2000]),
    op("rope and KV store", rope_store::random, [0, 0]),
    op("sampling", sample::random, [200_000, 60]),
    op("experts", moe::random, [200, 6]),
    op("embedding and rows", embed::random, [8192, 100]),
];

/// Cases of an op.
const CASES: [usize; 2] = [60, 2];

pub(super) fn run(run: &mut Run<'_>) -> Result<bool, KernelError> {
    let at = usize::from(run.size == Size::Tiny);
    let bed = Bed::on(run.driver);
    for (index, op) in OPS.iter().enumerate() {
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
