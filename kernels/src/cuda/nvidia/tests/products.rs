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
use crate::cuda::tests::Bed;
use crate::cuda::tests::linear::{Case, EPILOGUES};
use crate::cuda::{CudaOptions, GpuOptions};
use crate::dtype::DType;
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
    let target = Target { options, ..Target::of(&**driver, 4) };
    let shapes: HashSet<_> = cases.iter().map(|case| shape(case.rows, case.format)).collect();
    let mut products = Products::new(driver, target, &shapes).unwrap();
    let bed = Bed::on(driver);
    let held: Vec<_> = cases.iter().map(|case| case.on(&bed)).collect();
    let linears: Vec<Linear> = held.iter().map(|held| held.linear).collect();
    // SAFETY: buffers of these shapes, which are there.
    unsafe { products.find_ways(&linears) }.unwrap();
    products
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
    assert_eq!(machine.calls_of("cuGraphLaunch"), ["2"]);
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
