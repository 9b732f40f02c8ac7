//! Random shapes of each op against float64, and Hopper's own instructions against what they are
//! defined to do: the cases of the tests, drawn by a seed.

use super::finding::{Check, Note};
use super::{Finding, Run, Size};
use crate::cuda::tests::dice::Dice;
use crate::cuda::tests::{
    Bed, DrawNumbered, Drawn, Numbered, attention, embed, hopper, kv_copy, linear,
    linear_quantized, moe, norm, rope_store, sample,
};
use crate::error::KernelError;

/// An op.
struct Op {
    name: &'static str,
    cases: Cases,
    /// The largest case on a card, and under emulation.
    most: [usize; 2],
}

/// What draws a case no larger than a number, and runs it.
enum Cases {
    /// Any that the op has.
    Any(fn(&Bed, &mut Dice, usize) -> Drawn),
    /// The one of a number, of so many that differ in what a draw would meet seldom.
    Each(usize, DrawNumbered),
}

const fn op(
    name: &'static str,
    random: fn(&Bed, &mut Dice, usize) -> Drawn,
    most: [usize; 2],
) -> Op {
    Op { name, cases: Cases::Any(random), most }
}

const fn each(name: &'static str, (count, drawn): Numbered, most: [usize; 2]) -> Op {
    Op { name, cases: Cases::Each(count, drawn), most }
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

/// Kernels that Hopper alone has, each with every tiling, type, size of heads and end of a product.
const HOPPER_OPS: [Op; 3] = [
    each("linear on Hopper", linear::EACH_OF_HOPPER, [8_000_000, 20_000]),
    each("quantized linear on Hopper", linear::EACH_QUANTIZED_OF_HOPPER, [8_000_000, 20_000]),
    each("attention on Hopper", attention::EACH_OF_HOPPER, [40_000, 600]),
];

/// What suite_hopper.cu does: numbers of k, of tiles.
const HOPPER: [Op; 3] = [
    op("tiles by the copy engine", hopper::random_tile, [0, 0]),
    op("products of warpgroups", hopper::random_product, [8, 3]),
    op("tiles through a ring", hopper::random_ring, [16, 4]),
];

/// Cases of an op that draws any.
const CASES: [usize; 2] = [60, 2];

pub(super) fn run(run: &mut Run<'_>) -> Result<bool, KernelError> {
    Ok(run_all(run, &OPS)? && run_where_hopper(run, "Hopper's kernels", &HOPPER_OPS)?)
}

/// The same for Hopper's instructions.
pub(super) fn run_hopper(run: &mut Run<'_>) -> Result<bool, KernelError> {
    run_where_hopper(run, "Hopper's instructions", &HOPPER)
}

/// Other cards have none of them, which is no fault.
fn run_where_hopper(run: &mut Run<'_>, what: &str, ops: &[Op]) -> Result<bool, KernelError> {
    if run.target.is_hopper {
        return run_all(run, ops);
    }
    let (major, minor) = run.driver.capability();
    let why = format!("compute capability {major}.{minor} has none, only 9.0 has");
    (run.put)(Finding::Note(Note::not_measured(what, why)));
    Ok(true)
}

fn run_all(run: &mut Run<'_>, ops: &[Op]) -> Result<bool, KernelError> {
    let at = usize::from(run.size == Size::Tiny);
    let bed = Bed::on(run.driver);
    for (index, op) in ops.iter().enumerate() {
        let mut dice = Dice(run.seed << 8 | index as u64);
        let (mut check, mut ends, mut failed) = (Check::new(op.name), true, None);
        for number in op.cases.numbers(run) {
            ends = (run.keeps_going)();
            if !ends {
                break;
            }
            let (case, runs) = match op.cases {
                Cases::Any(random) => random(&bed, &mut dice, op.most[at]),
                Cases::Each(_, drawn) => drawn(&bed, &mut dice, op.most[at], number),
            };
            (run.begins)(&format!("{}: {case}", op.name));
            match without_panic(|| runs(&bed)) {
                Ok(true) => check.add(None),
                Ok(false) => {
                    // At once: a later case may hang.
                    check.add(Some(case));
                    (run.put)(Finding::Check(std::mem::replace(&mut check, Check::new(op.name))));
                }
                Err(error) => {
                    check.add(Some(format!("{case}: {error}")));
                    failed = Some(error);
                    break;
                }
            }
        }
        if check.cases > 0 {
            (run.put)(Finding::Check(check));
        }
        if let Some(error) = failed {
            return Err(error);
        }
        if !ends {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What `run` gives. Cases are those of tests, which panic where a device fails them.
pub(super) fn without_panic<T>(
    run: impl FnOnce() -> Result<T, KernelError>,
) -> Result<T, KernelError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(KernelError::Fault(words.unwrap_or("a panic without words").to_owned()))
    })
}

impl Cases {
    /// Those that are run: on a card all that there is one of each, under emulation a few by the seed.
    fn numbers(&self, run: &Run<'_>) -> Vec<usize> {
        match (self, run.size) {
            (Cases::Any(_), Size::Full) => (0..CASES[0]).collect(),
            (Cases::Any(_), Size::Tiny) => (0..CASES[1]).collect(),
            (Cases::Each(count, _), Size::Full) => (0..*count).collect(),
            (Cases::Each(count, _), Size::Tiny) => {
                let first = run.seed as usize * CASES[1];
                (first..first + CASES[1]).map(|number| number % count).collect()
            }
        }
    }
}
