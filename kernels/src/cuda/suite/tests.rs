//! The suite's parts under emulation, at tiny sizes: what they find right, and what they must find wrong.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::{Finding, Part, PeerTask, Size, Suite, peer_tasks};
use crate::cuda::driver::Driver;
use crate::cuda::emulated::{Emulated, Fault};
use crate::cuda::linear_choice::Target;
use crate::cuda::source::{HEADERS, SUITE_HOPPER, SUITE_WRAPPERS, Source};
use crate::cuda::tests::dice::Dice;
use crate::cuda::tests::silent::Silent;
use crate::cuda::tests::{Bed, attention, folder, linear};
use crate::error::KernelError;

fn suite(seed: u64, fault: Option<Fault>) -> Suite {
    let driver = Arc::new(Emulated::with_fault(&folder(), seed, fault));
    let target = Target::of(&*driver, 8);
    Suite { driver, target, size: Size::Tiny, seed }
}

fn findings(suite: &Suite, part: Part) -> Result<Vec<Finding>, KernelError> {
    let mut findings = Vec::new();
    let ended = suite.run(part, &|| true, &|_| (), &mut |finding| findings.push(finding))?;
    assert!(ended);
    Ok(findings)
}

fn assert_right(findings: &[Finding]) {
    for finding in findings {
        assert!(finding.is_right(), "{finding:?}");
    }
}

#[test]
fn wrappers_are_as_expected_in_any_order_of_threads() {
    for seed in [1, 2] {
        let suite = suite(seed, None);
        let found = findings(&suite, Part::Wrappers).unwrap();
        assert_right(&found);
        assert_eq!(found.len(), 26);
        let made = suite.expectations().unwrap();
        assert!(made == include_bytes!("wrappers.bin"), "run gpu --write-expectations");
    }
}

/// Functions that `header` defines for the device, and that `source` does not call.
fn not_called(header: &str, source: &Source) -> (usize, Vec<String>) {
    let header = HEADERS.iter().find(|known| known.name == header).unwrap();
    let on_device = header.text.split("#else  // emulation").next().unwrap();
    let (mut seen, mut missing) = (0, Vec::new());
    for line in on_device.lines().filter(|line| line.starts_with("__device__")) {
        let head = line.split('(').next().unwrap();
        let name = head.rsplit(' ').next().unwrap();
        let is_called =
            [format!("{name}("), format!("{name}<")].iter().any(|call| source.text.contains(call));
        if !is_called {
            missing.push(name.to_owned());
        }
        seen += 1;
    }
    (seen, missing)
}

#[test]
fn every_wrapper_is_looked_at() {
    let (seen, missing) = not_called("ptx.cuh", &SUITE_WRAPPERS);
    assert!(seen > 25 && missing.is_empty(), "{seen}, not called: {missing:?}");
    let (seen, missing) = not_called("ptx90.cuh", &SUITE_HOPPER);
    // The others call it.
    assert!(seen > 15 && missing == ["shared_address"], "{seen}, not called: {missing:?}");
}

// Some ulps more than the bound.
const EXP: &str = "inline float exp_of(float value) { return 1.000001f *";
const LOG: &str = "inline float log_of(float value) { return 1.000001f *";
const LOG_DOUBLE: &str = "inline double log_of(double value) { return 1.000000000000001 *";
const TANH: &str = "inline float tanh_of(float value) { return 1.000001f *";
const ERF: &str = "inline float erf_of(float value) { return 1.000001f *";
const LARGER: &str = "inline float larger_of(float a, float b) { return fminf";

#[test]
fn a_wrapper_that_does_something_else_is_found() {
    // In the emulation's bodies, which are what a card is compared with.
    let faults = [
        Fault {
            from: "return emulate::block.current; }",
            to: "return emulate::block.current ^ 1; }",
        },
        Fault { from: "{ return lane ^ mask; }", to: "{ return lane ^ mask ^ 2; }" },
        Fault { from: "{ return source % WARP; }", to: "{ return (source + 1) % WARP; }" },
        Fault { from: "lane < distance ? lane", to: "lane <= distance ? lane" },
        Fault { from: "+ 0x7fff + ((bits >> 16) & 1)", to: "+ 0x8000" },
        Fault { from: "return 0x7fff;\n    return (u16)", to: "return 0x7fc0;\n    return (u16)" },
        Fault { from: "magnitude >= 65520.0", to: "magnitude >= 65519.0" },
        Fault { from: "exponent - 11 < -24 ? -24", to: "exponent - 11 < -24 ? -25" },
        Fault { from: "exponent == 0) return sign", to: "exponent == 0) return 0.0f * sign" },
        Fault { from: "    return *from;", to: "    return *(from - 1);" },
        Fault { from: "return fmaf(a, b, c);", to: "return a * b + c;" },
        Fault { from: "return a * b; }", to: "return (float)((double)a * b * (1 + 1e-7)); }" },
        Fault { from: "return sqrtf(value);", to: "return sqrtf(value) * 1.0000001f;" },
        Fault { from: "inline float exp_of(float value) { return", to: EXP },
        Fault { from: "inline float log_of(float value) { return", to: LOG },
        Fault { from: "inline double log_of(double value) { return", to: LOG_DOUBLE },
        Fault { from: "inline float tanh_of(float value) { return", to: TANH },
        Fault { from: "inline float erf_of(float value) { return", to: ERF },
        Fault { from: "return exp2f(value);", to: "return exp2f(value) * 1.000001f;" },
        Fault { from: "{ return 1.0f / value; }", to: "{ return 1.000001f / value; }" },
        Fault { from: "inline float larger_of(float a, float b) { return fmaxf", to: LARGER },
        Fault { from: "(u64)a * b >> 32", to: "(u64)a * b >> 31" },
        Fault { from: "*to |= value;", to: "*to ^= value;" },
        Fault { from: "*to += value;\n    return before;", to: "*to += value;\n    return *to;" },
        Fault { from: "memset(copy.to, 0, copy.size);", to: "" },
        Fault {
            from: "begin_copy(shared, global, bytes, 8)",
            to: "begin_copy(shared, global, bytes, 16)",
        },
        Fault { from: "& 0xff) << (8 * i);", to: "& 0xff) << (24 - 8 * i);" },
        Fault { from: "byte(left, k % 4)", to: "byte(left, 0)" },
        Fault { from: ".b[k / 16];", to: ".b[1 - k / 16];" },
        Fault { from: "row(8 * i + lane / 4) + 2", to: "row(8 * i + lane % 8) + 2" },
        Fault { from: "values[lane] << lane;", to: "values[lane] << (lane ^ 1);" },
        Fault { from: "(code & 0x80) << 8", to: "(code & 0x80) << 7" },
        Fault { from: "__builtin_popcount(bits)", to: "__builtin_popcount(bits >> 1)" },
        Fault { from: "return bf16_of_float(first) |", to: "return bf16_of_float(second) |" },
        Fault { from: "float_of_bits(a << 16) *", to: "float_of_bits(a << 17) *" },
        Fault { from: "second[lane / 4] << 16", to: "first[lane / 4] << 16" },
        Fault { from: ".b[k / 8];", to: ".b[1 - k / 8];" },
        Fault {
            from: "{ return float_of_f16(bits); });",
            to: "{ return float_of_f16(bits ^ 1); });",
        },
    ];
    for fault in faults {
        match findings(&suite(1, Some(fault)), Part::Wrappers) {
            Ok(found) => {
                assert!(found.iter().any(|finding| !finding.is_right()), "not found: {fault:?}");
            }
            Err(KernelError::Unsupported(reason)) => panic!("{fault:?} was not planted: {reason}"),
            Err(_) => {}
        }
    }
}

/// Findings of each part but the wrappers'.
const PARTS: [(Part, usize); 10] = [
    (Part::Hopper, 3),
    (Part::Ops, 9 + 3),
    (Part::Library, 1),
    (Part::Ceilings, 8),
    (Part::Costs, 2 * 3 + 1 + 2 * 4 + 1),
    (Part::Kernels, 4 + 2 * 9 + 1 + 2),
    (Part::Formats, 4 + 11 + 4 * 5 + 14),
    (Part::Sampling, 4 + 5 + 2),
    (Part::Experts, 4 + 4 + 2 * 5),
    (Part::Quantized, 4 + 2 * 3 * 5),
];

#[test]
fn every_part_runs_to_its_end() {
    let suite = suite(5, None);
    for (part, count) in PARTS {
        let found = findings(&suite, part).unwrap();
        assert_right(&found);
        assert_eq!(found.len(), count, "{part:?}: {found:?}");
    }
}

#[test]
fn what_a_card_lacks_is_told_and_no_fault() {
    let mut suite = suite(1, None);
    suite.target.is_hopper = false;
    for (part, others) in [(Part::Hopper, 0), (Part::Ops, 9)] {
        let found = findings(&suite, part).unwrap();
        let Some(Finding::Note(note)) = found.last() else { panic!("{found:?}") };
        assert_right(&found);
        assert!(found.len() == others + 1 && note.text.starts_with("not measured: "), "{note:?}");
    }
}

#[test]
fn numbered_cases_notice_a_fault() {
    let cases = [
        (
            linear::EACH_OF_HOPPER,
            "linear_hopper.cu",
            "i % 2 * 8 + lane / 4, column",
            "lane / 4, column",
        ),
        (
            linear::EACH_QUANTIZED_OF_HOPPER,
            "linear_hopper_quantized.cu",
            "i % 4 / 2 * 8 + lane / 4;",
            "lane / 4;",
        ),
        (
            attention::EACH_OF_HOPPER,
            "attention_hopper.cu",
            "(piece % 8 ^ row % 8) * 16",
            "piece % 8 * 16",
        ),
    ];
    for ((count, drawn), name, from, to) in cases {
        let run = |fault, number| {
            let driver = Emulated::with_fault(&folder(), 1, fault).only_in(name).at_once();
            let driver: Arc<dyn Driver> = Arc::new(driver);
            let bed = Bed::on(&driver);
            let (case, run) = drawn(&bed, &mut Dice(3), 10_000, number);
            (case, run(&bed))
        };
        for number in [0, count - 1] {
            let (case, right) = run(None, number);
            assert!(right.unwrap(), "{name}: {case}");
            let (_, faulty) = run(Some(Fault { from, to }), number);
            assert!(!matches!(faulty, Ok(true)), "{name}, {number}");
            assert!(!matches!(faulty, Err(KernelError::Unsupported(_))), "{faulty:?}");
        }
    }
}

#[test]
fn every_kernel_has_its_share_on_a_card_of_hopper() {
    let driver = Arc::new(Silent::hopper());
    let target = Target::of(&*driver, 132);
    let suite = Suite { driver: driver.clone(), target, size: Size::Full, seed: 1 };
    for part in [Part::Kernels, Part::Formats, Part::Sampling, Part::Experts, Part::Quantized] {
        findings(&suite, part).unwrap();
    }
    let launched = driver.launched();
    // Of the table that a compiler's output is held against.
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/cuda/kernels.toml");
    let table = std::fs::read_to_string(path).unwrap();
    let (mut seen, mut missing) = (0, Vec::<&str>::new());
    for source in table.split("\n[\"").skip(1).filter(|source| !source.starts_with("suite_")) {
        let names = source.lines().filter_map(|line| line.split_once(".sm_90a"));
        for name in names.map(|(name, _)| name) {
            seen += 1;
            missing.extend((!launched.contains(name)).then_some(name));
        }
    }
    assert!(seen > 100, "{seen}");
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn peers_are_asked_for_what_has_a_figure() {
    let found = findings(&suite(1, None), Part::Kernels).unwrap();
    for task in peer_tasks(Size::Tiny) {
        let (PeerTask::Product { what, .. } | PeerTask::Attention { what, .. }) = &task;
        let has = |finding: &Finding| matches!(finding, Finding::Figure(f) if f.what == *what);
        assert!(found.iter().any(has), "{task:?}");
    }
    // Three shapes of eight numbers of rows with five products, and of eleven steps.
    assert_eq!(peer_tasks(Size::Full).len(), 3 * (8 * 5 + 11));
}

#[test]
fn an_op_that_is_wrong_is_told() {
    let fault = Fault {
        from: "if (column + i < num_columns) row[column + i] = columns.at[i]",
        to: "if (column + i < num_columns) row[column + i] = 2.0f * columns.at[i]",
    };
    // As many cases as the first op has.
    let left = Cell::new(2);
    let keeps_going = || left.replace(left.get() - 1) > 0;
    let mut found = Vec::new();
    let last = RefCell::new(String::new());
    let begins = |case: &str| *last.borrow_mut() = case.to_owned();
    suite(5, Some(fault))
        .run(Part::Ops, &keeps_going, &begins, &mut |finding| found.push(finding))
        .unwrap();
    // What is wrong is told at once, the rest in the end.
    let mut cases = 0;
    for finding in &found {
        let Finding::Check(check) = finding else { panic!("{finding:?}") };
        assert!(check.what == "linear" && check.num_wrong <= 1, "{check:?}");
        cases += check.cases;
    }
    let Finding::Check(first) = &found[0] else { panic!("{found:?}") };
    assert!(cases == 2 && first.wrong[0].contains("rows"), "{found:?}");
    assert!(last.borrow().starts_with("linear: Case { rows: "), "{last:?}");
}

#[test]
fn a_case_that_fails_is_told_with_its_error() {
    // Shows when results are read, where tests panic.
    let fault = Fault {
        from: "if (column + i < num_columns) row[column + i] = columns.at[i]",
        to: "row[column + i + (1 << 28)] = columns.at[i]",
    };
    let (last, mut found) = (RefCell::new(String::new()), Vec::new());
    let begins = |case: &str| *last.borrow_mut() = case.to_owned();
    let error = suite(5, Some(fault))
        .run(Part::Ops, &|| true, &begins, &mut |finding| found.push(finding))
        .unwrap_err();
    assert!(matches!(error, KernelError::Fault(_)), "{error}");
    let Some(Finding::Check(check)) = found.last() else { panic!("{found:?}") };
    assert!(check.num_wrong == 1 && !Finding::Check(check.clone()).is_right(), "{check:?}");
    let case = check.wrong[0].strip_suffix(&format!(": {error}")).unwrap();
    assert_eq!(*last.borrow(), format!("{}: {case}", check.what));
}

#[test]
fn a_part_stops_where_it_is_told() {
    let parts = PARTS.map(|(part, _)| part).into_iter().chain([Part::Wrappers]);
    // Without a library there is nothing to stop.
    for part in parts.filter(|part| *part != Part::Library) {
        let (left, mut count) = (Cell::new(2), 0);
        let keeps_going = || left.replace(left.get() - 1) > 0;
        let ended = suite(1, None).run(part, &keeps_going, &|_| (), &mut |_| count += 1).unwrap();
        assert!(!ended, "{part:?}");
        assert!((1..=16).contains(&count), "{part:?}: {count}");
    }
}
