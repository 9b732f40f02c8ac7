//! Products of many rows by a library: found, timed, taken where it is faster, and nowhere else.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use super::machine::Machine;
use crate::cuda::driver::Driver;
use crate::cuda::linear::Linear;
use crate::cuda::linear_choice::{ProductShape, Target};
use crate::cuda::measure::Measure;
use crate::cuda::products::Products;
use crate::cuda::source::{LINEAR, LINEAR_HOPPER, LINEAR_TENSOR, NARROW_ROWS, Source};
use crate::cuda::suite::{Finding, Part, Size, Suite};
use crate::cuda::tests::Bed;
use crate::cuda::tests::linear::{Case, EPILOGUES, Held};
use crate::cuda::{CudaOptions, GpuOptions};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::ops::Epilogue;

const SOURCES: [&Source; 4] = [&NARROW_ROWS, &LINEAR_HOPPER, &LINEAR_TENSOR, &LINEAR];
/// Rows at most, and the weight.
const ROWS: usize = 150;
const WEIGHT: (usize, usize) = (264, 75);

fn open(machine: &Machine, gpu: GpuOptions) -> Arc<dyn Driver> {
    let opened = super::super::open(gpu, &machine.lasting_places(), &SOURCES, &|_| ());
    Arc::new(opened.unwrap().0)
}

fn shape(rows: usize, format: impl Into<crate::weight_format::WeightFormat>) -> ProductShape {
    let format = format.into();
    ProductShape { rows: rows as u32, n: WEIGHT.0 as u32, k: WEIGHT.1 as u32, format }
}

/// Products like `cases`, with their ways found.
fn found(driver: &Arc<dyn Driver>, options: CudaOptions, cases: &[Case]) -> Products {
    try_to_find(driver, options, cases, &[]).unwrap()
}

/// The same, where steps of `captured` rows will be recorded.
fn try_to_find(
    driver: &Arc<dyn Driver>,
    options: CudaOptions,
    cases: &[Case],
    captured: &[u32],
) -> Result<Products, KernelError> {
    let (mut products, held) = made(driver, options, cases);
    let linears: Vec<Linear> = held.iter().map(|held| held.linear).collect();
    // SAFETY: buffers of these shapes, which are there.
    unsafe { products.find_ways(&linears, captured) }?;
    Ok(products)
}

/// Products like `cases` and their buffers, with no ways yet.
fn made(driver: &Arc<dyn Driver>, options: CudaOptions, cases: &[Case]) -> (Products, Vec<Held>) {
    let target = Target { options, ..Target::of(&**driver, 4) };
    let shapes: HashSet<_> = cases.iter().map(|case| shape(case.rows, case.format)).collect();
    let products = Products::new(driver, target, &shapes).unwrap();
    let bed = Bed::on(driver);
    (products, cases.iter().map(|case| case.on(&bed)).collect())
}

fn case(rows: usize, epilogue: Epilogue, biased: bool) -> Case {
    Case { epilogue, biased, ..Case::plain(rows, WEIGHT.0, WEIGHT.1, DType::Bf16) }
}

fn library_calls(machine: &Machine) -> usize {
    machine.calls_of("cublasLtMatmul").len()
}

#[test]
fn the_faster_library_computes_what_it_can_and_our_kernels_the_rest() {
    let machine = Machine::new("log");
    let driver = open(&machine, GpuOptions::default());
    let classes = [(Epilogue::Store, false), (Epilogue::Store, true), (Epilogue::Add, false)];
    let cases = classes.map(|(epilogue, biased)| case(ROWS, epilogue, biased));
    let products = found(&driver, CudaOptions::default(), &cases);
    // Three classes and two buckets of rows; plain loops are faster than emulated kernels.
    assert_eq!(products.num_library_ways(), 6);
    let bed = Bed::on(&driver);
    for (rows, epilogue, biased, is_theirs) in [
        (65, Epilogue::Store, false, true),
        (128, Epilogue::Store, true, true),
        (129, Epilogue::Add, false, true),
        (150, Epilogue::Add, false, true),
        (64, Epilogue::Store, false, false),
        // A class that no product of the program has.
        (150, Epilogue::Add, true, false),
        (70, EPILOGUES[2], false, false),
        (70, EPILOGUES[EPILOGUES.len() - 1], false, false),
    ] {
        let case = case(rows, epilogue, biased);
        let before = library_calls(&machine);
        assert!(case.is_right_through(&bed, &products).unwrap(), "{case:?}");
        assert_eq!(library_calls(&machine) - before, usize::from(is_theirs), "{case:?}");
    }
}

#[test]
fn a_library_that_is_slower_or_refuses_or_may_not_is_left_alone() {
    for (behaviour, gpu, options) in [
        ("log\nproducts slow", GpuOptions::default(), CudaOptions::default()),
        ("log\nproducts refuse", GpuOptions::default(), CudaOptions::default()),
        ("log", GpuOptions::default(), CudaOptions { deterministic: true }),
        ("log", GpuOptions { own_products: true, ..GpuOptions::default() }, CudaOptions::default()),
    ] {
        let machine = Machine::new(behaviour);
        let driver = open(&machine, gpu);
        // One bucket of rows: what is slow is waited for.
        let case = case(100, Epilogue::Store, true);
        let products = found(&driver, options, &[case]);
        assert_eq!(products.num_library_ways(), 0, "{behaviour}");
        let before = library_calls(&machine);
        assert!(case.is_right_through(&Bed::on(&driver), &products).unwrap(), "{behaviour}");
        assert_eq!(library_calls(&machine), before, "{behaviour}");
        assert_eq!(driver.product_library().is_some(), !gpu.own_products);
    }
}

#[test]
fn whatever_a_library_does_wrong_costs_it_ways_and_never_the_start() {
    for (behaviour, num_ways, told) in [
        ("products break", 1, vec!["failed with CUBLAS_STATUS_OF_A_TEST (13)", "(14)"]),
        ("products unrecorded", 1, vec!["2 ways are left aside: cublasLtMatmul failed", "(13)"]),
        ("products refuse", 0, vec!["3 ways are left aside: cublasLtMatmul failed", "(15)"]),
        ("fail cublasLtMatmul 14 0", 0, vec!["cublasLtMatmul failed", "(14)"]),
        ("fail cublasLtMatmul 8 2", 0, vec!["cublasLtMatmul failed", "(8)"]),
        ("fail cublasLtMatmulAlgoGetHeuristic 3 0", 0, vec!["AlgoGetHeuristic failed", "(3)"]),
        ("", 1, vec![]),
    ] {
        let machine = Machine::new(behaviour);
        let driver = open(&machine, GpuOptions::default());
        // One bucket, and rows that all ways compute.
        let case = case(100, Epilogue::Store, true);
        let products = found(&driver, CudaOptions::default(), &[case]);
        assert_eq!(products.num_library_ways(), num_ways, "{behaviour}");
        let lines = products.found().lines.join("; ");
        assert_eq!(lines.is_empty(), told.is_empty(), "{behaviour}: {lines}");
        for part in told {
            assert!(lines.contains(part), "{behaviour}: {lines}");
        }
        assert!(case.is_right_through(&Bed::on(&driver), &products).unwrap(), "{behaviour}");
    }
}

#[test]
fn a_fault_of_the_device_while_ways_are_tried_is_one() {
    for after in [0, 3] {
        let machine = Machine::new("");
        let driver = open(&machine, GpuOptions::default());
        let case = case(100, Epilogue::Store, false);
        let (mut products, held) = made(&driver, CudaOptions::default(), &[case]);
        machine.change(&format!("fail cuEventSynchronize 700 {after}"));
        // SAFETY: buffers of this shape, which are there.
        match unsafe { products.find_ways(&[held[0].linear], &[]) } {
            Err(KernelError::Fault(why)) => assert!(why.contains("ILLEGAL_ADDRESS"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_may_be_done_in_part_is_no_work_for_our_kernels() {
    let machine = Machine::new("");
    let driver = open(&machine, GpuOptions::default());
    let case = case(100, Epilogue::Add, false);
    let products = found(&driver, CudaOptions::default(), &[case]);
    assert!(products.num_library_ways() > 0);
    machine.change("fail cublasLtMatmul 13 0");
    match case.is_right_through(&Bed::on(&driver), &products) {
        Err(KernelError::Fault(why)) => assert!(why.contains("(13)"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn numerics_name_what_was_chosen() {
    // Of all ways there is one left, so that it wins whatever the time.
    let chosen = |epilogue| {
        let machine = Machine::new("products break");
        let driver = open(&machine, GpuOptions::default());
        let products = found(&driver, CudaOptions::default(), &[case(100, epilogue, false)]);
        assert_eq!(products.num_library_ways(), 1);
        products.found().numerics
    };
    let stored = chosen(Epilogue::Store);
    assert!(stored.starts_with("cublaslt130001 for "), "{stored}");
    assert_eq!(chosen(Epilogue::Store), stored);
    assert_ne!(chosen(Epilogue::Add), stored);
    let machine = Machine::new("products refuse");
    let driver = open(&machine, GpuOptions::default());
    let none = found(&driver, CudaOptions::default(), &[case(100, Epilogue::Store, false)]);
    assert_eq!(none.found().numerics, "");
}

#[test]
fn rows_that_graphs_will_have_are_computed_before_any_graph() {
    let machine = Machine::new("log");
    let driver = open(&machine, GpuOptions::default());
    let case = case(100, Epilogue::Store, false);
    let captured = [64, 72, 88, 104];
    let products = try_to_find(&driver, CudaOptions::default(), &[case], &captured).unwrap();
    assert_eq!(products.num_library_ways(), 1);
    let held = case.on(&Bed::on(&driver));
    let capture = |rows| {
        driver.begin_capture().unwrap();
        let linear = Linear { rows, ..held.linear };
        // SAFETY: buffers of this shape, and of more rows, which are there.
        let launched = unsafe { products.launch(&linear, DType::Bf16) };
        launched.and(driver.end_capture())
    };
    for rows in [72, 88, 100] {
        driver.release_graph(capture(rows).unwrap());
    }
    // The stand-in loads code for every number of rows, and would have ended these captures too.
    assert!(matches!(capture(80), Err(KernelError::Fault(_))));
    let modes = machine.calls_of("cuStreamBeginCapture_v2");
    assert!(modes.len() > 4 && modes.iter().all(|mode| mode == "2"), "{modes:?}");
}

/// What the hardware suite says of products of this machine's library.
fn findings(machine: &Machine) -> Vec<Finding> {
    let (nvidia, _) = {
        let places = machine.lasting_places();
        super::super::open(GpuOptions::default(), &places, &SOURCES, &|_| ()).unwrap()
    };
    let driver: Arc<dyn Driver> = Arc::new(nvidia);
    let target = Target::of(&*driver, 4);
    let suite = Suite::of(driver, target, Size::Tiny);
    let mut found = Vec::new();
    suite.run(Part::Library, &|| true, &|_| (), &mut |finding| found.push(finding)).unwrap();
    found
}

#[test]
fn the_suite_looks_at_every_way() {
    let right = findings(&Machine::new(""));
    assert!(right.iter().all(Finding::is_right), "{right:?}");
    // For each of three classes every way, what was found, and whether that is right.
    assert_eq!(right.len(), 3 * 3);
    let Finding::Check(check) = &right[0] else { panic!("{right:?}") };
    // Three of the ways compute so few rows.
    assert_eq!(check.cases, 3 * 3, "{check:?}");
    let wrong = findings(&Machine::new("products wrong"));
    let Finding::Check(check) = &wrong[0] else { panic!("{wrong:?}") };
    assert!(check.num_wrong == 3 && check.wrong[0].starts_with("Way(1)"), "{check:?}");
    // A way that is refused is told.
    let refused = findings(&Machine::new("products refuse"));
    assert!(refused.iter().all(Finding::is_right), "{refused:?}");
    let Finding::Note(note) = &refused[0] else { panic!("{refused:?}") };
    assert!(note.text.starts_with("9: cublasLtMatmul failed"), "{note:?}");
}

#[test]
fn a_library_that_does_not_start_is_left_aside_in_a_line() {
    let machine = Machine::new("fail cublasLtCreate 1 0");
    let lines = Mutex::new(Vec::new());
    let told = |line: &str| lines.lock().unwrap().push(line.to_owned());
    let places = machine.lasting_places();
    let (nvidia, _) =
        super::super::open(GpuOptions::default(), &places, &[&NARROW_ROWS], &told).unwrap();
    assert!(nvidia.product_library().is_none());
    let lines = lines.lock().unwrap();
    let left = lines
        .iter()
        .filter(|line| line.contains("left aside: ") && line.contains("cublasLtCreate failed"));
    assert_eq!(left.count(), 1, "{lines:?}");
}

#[test]
fn without_a_library_there_is_none() {
    let machine = Machine::new("").without_products();
    assert!(open(&machine, GpuOptions::default()).product_library().is_none());
}

#[test]
fn what_the_library_refuses_while_serving_our_kernels_compute() {
    let machine = Machine::new("log");
    let driver = open(&machine, GpuOptions::default());
    let case = case(100, Epilogue::Store, false);
    let products = found(&driver, CudaOptions::default(), &[case]);
    assert!(products.num_library_ways() > 0);
    machine.change("log\nproducts refuse");
    assert!(case.is_right_through(&Bed::on(&driver), &products).unwrap());
}

#[test]
fn a_graph_records_what_the_library_does() {
    let machine = Machine::new("log");
    let driver = open(&machine, GpuOptions::default());
    let case = case(100, Epilogue::Add, false);
    let products = found(&driver, CudaOptions::default(), &[case]);
    assert_eq!(products.num_library_ways(), 1);
    let held = case.on(&Bed::on(&driver));
    let before = held.read();
    driver.begin_capture().unwrap();
    // SAFETY: buffers of this shape, which are there.
    unsafe { products.launch(&held.linear, DType::Bf16) }.unwrap();
    let graph = driver.end_capture().unwrap();
    assert_eq!(held.read(), before, "recorded, not run");
    // SAFETY: as above.
    unsafe { driver.replay(graph) }.unwrap();
    let once = held.read();
    assert_ne!(once, before);
    // Rows were rounded, and the product made, by two launches.
    assert_eq!(machine.calls_of("cuGraphLaunch").pop().as_deref(), Some("2"));
    // SAFETY: as above.
    unsafe { driver.replay(graph) }.unwrap();
    assert_ne!(held.read(), once);
}

#[test]
fn the_workspace_is_part_of_the_plan_where_products_may_use_it() {
    let machine = Machine::new("");
    let driver = open(&machine, GpuOptions::default());
    let planned = |options, format| {
        let measure = Arc::new(Measure::of(&*driver));
        let counted: Arc<dyn Driver> = Arc::clone(&measure) as Arc<dyn Driver>;
        let target = Target { options, ..Target::of(&*driver, 4) };
        drop(Products::new(&counted, target, &HashSet::from([shape(ROWS, format)])).unwrap());
        measure.scratch().bytes
    };
    let (fast, bound) = (CudaOptions::default(), CudaOptions { deterministic: true });
    assert!(planned(fast, DType::Bf16) >= 32 << 20);
    assert!(planned(bound, DType::Bf16) < 32 << 20 && planned(fast, DType::F16) < 32 << 20);
}
