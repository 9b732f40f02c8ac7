//! Products by a library of the device's maker against float64: in every way that it offers, alone and from
//! a graph, and through what a start finds to be the fastest.
//!
//! Every way, since which one wins is a matter of the day. A way that is refused is told and no fault: a
//! start leaves it aside, too.

use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::finding::{Check, Note};
use super::ops::without_panic;
use super::{Finding, Run, Size};
use crate::cuda::driver::{DeviceBuffer, Driver};
use crate::cuda::linear::Linear;
use crate::cuda::linear_choice::ProductShape;
use crate::cuda::linear_hopper::{narrow, narrowed_bytes};
use crate::cuda::linear_library::{ROWS_MIN, WAYS_MAX, WORKSPACE_BYTES, shape_of};
use crate::cuda::product_library::{LibraryOperands, ProductLibrary, Way};
use crate::cuda::products::Products;
use crate::cuda::tests::Bed;
use crate::cuda::tests::linear::{Case, Held};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::ops::Epilogue;

const WHAT: &str = "products of a library";

/// Weights, and of so many rows of x one is compared.
const FULL: [((usize, usize), usize); 3] = [((520, 1000), 1), ((75, 264), 1), ((1024, 4096), 7)];
const TINY: [((usize, usize), usize); 1] = [((40, 75), 1)];

/// What becomes of results, of which the library knows no more.
const ENDS: [(Epilogue, bool); 3] =
    [(Epilogue::Store, false), (Epilogue::Store, true), (Epilogue::Add, false)];

/// Ranges of rows that ways are asked for, as a start does.
fn ranges(size: Size) -> Vec<RangeInclusive<u32>> {
    match size {
        Size::Full => vec![ROWS_MIN..=128, 129..=256, 257..=300],
        Size::Tiny => vec![ROWS_MIN..=70],
    }
}

pub(super) fn run(run: &mut Run<'_>) -> Result<bool, KernelError> {
    let driver = run.driver.clone();
    let Some(library) = driver.product_library() else {
        (run.put)(Finding::Note(Note::not_measured(WHAT, "there is none that can be used")));
        return Ok(true);
    };
    let weights = if run.size == Size::Full { &FULL[..] } else { &TINY[..] };
    let rows = ranges(run.size).last().map_or(0, |rows| *rows.end() as usize);
    for &((n, k), one_in) in weights {
        for (epilogue, biased) in ENDS {
            let case = Case { epilogue, biased, one_in, ..Case::plain(rows, n, k, DType::Bf16) };
            if !each_way(run, library, &case)? || !fastest(run, &case)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// A product that ways are tried on.
struct Tried<'a> {
    library: &'a dyn ProductLibrary,
    driver: &'a dyn Driver,
    case: &'a Case,
    held: Held,
    want: Vec<f64>,
    bound: f64,
    narrowed: DeviceBuffer,
    workspace: DeviceBuffer,
    multiprocessors: u32,
}

/// Every way that is offered for a product.
fn each_way(
    run: &mut Run<'_>,
    library: &dyn ProductLibrary,
    case: &Case,
) -> Result<bool, KernelError> {
    let (driver, multiprocessors) = (Arc::clone(run.driver), run.target.multiprocessors);
    let tried = without_panic(|| Tried::new(&driver, library, case, multiprocessors))?;
    let mut check = Check::new(format!("every way of {}: {case:?}", library.name()));
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let Some(shape) = shape_of(&tried.held.linear, DType::Bf16) else { return Ok(true) };
    let mut ends = true;
    'all: for range in ranges(run.size) {
        let ways = library.ways(shape, range.clone(), WORKSPACE_BYTES, WAYS_MAX);
        let ways = ways.unwrap_or_else(|refusal| {
            *refused.entry(refusal.words).or_default() += 1;
            Vec::new()
        });
        let (first, last) = (*range.start(), *range.end());
        let all = ways.into_iter().flat_map(|way| {
            [first, (first + last) / 2, last].into_iter().map(move |rows| (way, rows))
        });
        for (way, rows) in all {
            ends = (run.keeps_going)();
            if !ends {
                break 'all;
            }
            let words = format!("{way:?} for {first} to {last} rows, {rows} of them");
            (run.begins)(&format!("{}: {words}", check.what));
            match without_panic(|| tried.is_right(way, rows)) {
                Ok(right) => check.add((!right).then_some(words)),
                Err(KernelError::Unsupported(why)) => *refused.entry(why).or_default() += 1,
                Err(error) => {
                    check.add(Some(format!("{words}: {error}")));
                    (run.put)(Finding::Check(check));
                    return Err(error);
                }
            }
        }
    }
    for (why, count) in refused {
        (run.put)(Finding::Note(Note {
            what: check.what.clone(),
            text: format!("{count}: {why}"),
        }));
    }
    if check.cases > 0 {
        (run.put)(Finding::Check(check));
    }
    Ok(ends)
}

impl<'a> Tried<'a> {
    fn new(
        driver: &'a Arc<dyn Driver>,
        library: &'a dyn ProductLibrary,
        case: &'a Case,
        multiprocessors: u32,
    ) -> Result<Self, KernelError> {
        let bed = Bed::on(driver);
        let held = case.on(&bed);
        let bytes = narrowed_bytes(case.rows, held.linear.stride as usize, DType::Bf16);
        Ok(Tried {
            library,
            driver: &**driver,
            case,
            held,
            want: case.reference(),
            bound: case.library_bound(&bed),
            narrowed: DeviceBuffer::new(driver, bytes, "rounded rows")?,
            workspace: DeviceBuffer::new(driver, WORKSPACE_BYTES, "a workspace")?,
            multiprocessors,
        })
    }

    /// By itself, which may load code, and then from a graph.
    fn is_right(&self, way: Way, rows: u32) -> Result<bool, KernelError> {
        self.held.reset(self.case)?;
        self.multiply(way, rows)?;
        if !self.has_it(rows) {
            return Ok(false);
        }
        self.held.reset(self.case)?;
        self.driver.begin_capture()?;
        // Its end also behind an error: a capture must not stay open.
        let graph = self.multiply(way, rows).and(self.driver.end_capture())?;
        // SAFETY: all buffers of the launches are there.
        unsafe { self.driver.replay(graph) }?;
        let right = self.has_it(rows);
        self.driver.release_graph(graph);
        Ok(right)
    }

    fn multiply(&self, way: Way, rows: u32) -> Result<(), KernelError> {
        let linear = Linear { rows, ..self.held.linear };
        let Linear { weight, bias, out, .. } = linear;
        let (x, workspace) = (self.narrowed.pointer(), self.workspace.pointer());
        let operands = LibraryOperands { rows, x, weight, bias, out, workspace };
        // SAFETY: buffers of more rows, and of the workspace that ways were asked for with.
        unsafe {
            narrow(self.driver, &linear, (x, DType::Bf16), self.multiprocessors)?;
            Ok(self.library.multiply(way, &operands)?)
        }
    }

    /// Whether these rows are right, and what is stored behind them is not touched.
    fn has_it(&self, rows: u32) -> bool {
        let got = self.held.read();
        let (rows, others) = got.split_at(rows as usize * self.case.n);
        let is_whole = self.case.epilogue != Epilogue::Store || others.iter().all(|x| x.is_nan());
        is_whole && self.case.matches_what(rows, &self.want, self.bound)
    }
}

/// What a start finds to be the fastest.
fn fastest(run: &mut Run<'_>, case: &Case) -> Result<bool, KernelError> {
    if !(run.keeps_going)() {
        return Ok(false);
    }
    let Case { rows, n, k, format, .. } = *case;
    let mut check = Check::new(format!("the fastest way: {case:?}"));
    (run.begins)(&check.what);
    let shape = ProductShape { rows: rows as u32, n: n as u32, k: k as u32, format };
    let right = without_panic(|| {
        let bed = Bed::on(run.driver);
        let mut products = Products::new(run.driver, run.target, &HashSet::from([shape]))?;
        let held = case.on(&bed);
        // SAFETY: buffers of this shape, which nobody else uses.
        unsafe { products.find_ways(&[held.linear], &[72, 200]) }?;
        (run.put)(Finding::Note(Note {
            what: check.what.clone(),
            text: products.found().to_string(),
        }));
        let rows = ranges(run.size).into_iter().flat_map(|rows| [*rows.start(), *rows.end()]);
        let mut wrong = Vec::new();
        for rows in rows {
            let case = Case { rows: rows as usize, ..*case };
            wrong.extend((!case.is_right_through(&bed, &products)?).then_some(rows));
        }
        Ok(wrong)
    });
    let (text, error) = match right {
        Ok(wrong) => ((!wrong.is_empty()).then(|| format!("with {wrong:?} rows")), None),
        Err(error) => (Some(error.to_string()), Some(error)),
    };
    check.add(text);
    (run.put)(Finding::Check(check));
    error.map_or(Ok(true), Err)
}
