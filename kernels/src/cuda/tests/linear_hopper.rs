//! narrow_rows.cu and linear_hopper.cu.

use std::collections::HashSet;

use super::linear::{Case, EPILOGUES};
use super::*;
use crate::cuda::linear_choice::{Method, ProductShape, Target, choose};
use crate::cuda::linear_hopper::{HOPPER_TILINGS, HopperTiling};
use crate::cuda::products::Products;

fn case((rows, n, k): (usize, usize, usize), format: DType, tiling: HopperTiling) -> Case {
    Case { method: Method::Hopper(tiling, format), ..Case::plain(rows, n, k, format) }
}

#[test]
fn shapes_formats_and_rows() {
    // Tails of every kind; more tiles than blocks; more steps than slots.
    let shapes = [(1, 9, 7), (65, 130, 72), (129, 8, 520), (130, 270, 200), (300, 392, 64)];
    for format in [DType::Bf16, DType::F16] {
        for (shape, seed) in shapes.into_iter().zip(1..) {
            let case = case(shape, format, HOPPER_TILINGS[seed as usize % 2]);
            assert!(case.is_right(&Bed::new(seed, None)).unwrap(), "{case:?}");
        }
    }
}

#[test]
fn biases_and_epilogues() {
    for (i, epilogue) in EPILOGUES.into_iter().enumerate() {
        let (biased, n) = [(true, 132), (false, 22)][i % 2];
        let plain = case((70, n, 136), DType::Bf16, HOPPER_TILINGS[i % 2]);
        let case = Case { biased, epilogue, ..plain };
        assert!(case.is_right(&Bed::new(i as u64, None)).unwrap(), "{case:?}");
    }
}

#[test]
fn bits_depend_on_neither_tiles_nor_seeds_nor_other_rows() {
    for format in [DType::Bf16, DType::F16] {
        let run = |rows, tiling, seed| {
            case((rows, 140, 330), format, tiling).run(&Bed::new(seed, None)).unwrap()
        };
        let all = run(140, HOPPER_TILINGS[0], 1);
        assert_eq!(run(140, HOPPER_TILINGS[1], 2), all);
        assert_eq!(run(67, HOPPER_TILINGS[1], 3), all[..67 * 140]);
    }
}

#[test]
fn a_programs_products_of_many_rows_go_this_way_through_room_of_their_own() {
    let (most, weight) = (150, (260, 72));
    for format in [DType::Bf16, DType::F16] {
        let bed = Bed::new(4, None);
        let target = Target::of(&*bed.driver, 2);
        let shape = |rows| ProductShape {
            rows: rows as u32,
            n: weight.0 as u32,
            k: weight.1 as u32,
            format: format.into(),
        };
        let products = Products::new(&bed.driver, target, &HashSet::from([shape(most)])).unwrap();
        for rows in [65, most] {
            assert!(matches!(choose(&target, shape(rows)), Method::Hopper(..)));
            let case = Case::plain(rows, weight.0, weight.1, format);
            assert!(case.is_right_through(&bed, &products).unwrap(), "{case:?}");
        }
    }
}

#[test]
fn planted_faults_show() {
    let faults = [
        // The ring: parity, both waits, what is announced, who frees a slot and when.
        Fault { from: "parity ^= 1;", to: "" },
        Fault { from: "ring.parity ^ 1);", to: "ring.parity);" },
        Fault { from: "wait_phase(ring.empty + ring.slot, ring.parity ^ 1);", to: "" },
        Fault { from: "wait_phase(ring.full + ring.slot, ring.parity);", to: "" },
        Fault {
            from: "arrive_expecting(full, M::SLOT_BYTES)",
            to: "arrive_expecting(full, M::X_BYTES)",
        },
        Fault { from: "M::CONSUMERS * (WARPGROUP / WARP));", to: "1);" },
        Fault {
            from: "before = ring.slot;\n        ring.step();",
            to: "ring.step();\n        before = ring.slot;",
        },
        Fault { from: "wait_products<1>();", to: "" },
        Fault { from: "            publish_barriers();\n", to: "" },
        Fault { from: "thread_index() % WARPGROUP == 0) fill", to: "true) fill" },
        // Products.
        Fault { from: "        fence_products();\n", to: "" },
        Fault { from: "i / M::PARTS * STEP_BYTES", to: "i / M::PARTS * LINE_BYTES" },
        Fault { from: "first_row * LINE_BYTES), weight", to: "0), weight" },
        Fault { from: "k + i > 0", to: "i > 0" },
        Fault { from: "part * M::PART_BYTES + at", to: "at" },
        Fault { from: "&p.x, full, k, corner.row, part)", to: "&p.x, full, k, corner.row, 0)" },
        // Results.
        Fault { from: "first == AT) return put(sums + AT)", to: "first == AT) return put(sums)" },
        Fault { from: "i % 2 * 8 + lane / 4, column", to: "lane / 4, column" },
        Fault { from: "        sync_warp();\n        finish_spots", to: "        finish_spots" },
        Fault { from: "of_result < p.rows ?", to: "of_result <= p.rows ?" },
    ];
    let cases = [
        case((150, 150, 650), DType::Bf16, HOPPER_TILINGS[0]),
        case((70, 20, 72), DType::F16, HOPPER_TILINGS[0]),
    ];
    let check = |bed: &Bed| Ok(cases[1].is_right(bed)? && cases[0].is_right(bed)?);
    assert_caught_in("linear_hopper.cu", &faults, check);
}

#[test]
fn planted_faults_of_narrowing_show() {
    let faults = [
        Fault { from: "out[all + i]", to: "out[i]" },
        Fault { from: "low[j] = halves.low;", to: "low[j] = halves.high;" },
        Fault { from: "i % pieces * NARROW_PIECE", to: "i % pieces" },
        Fault { from: "(u64)(i / pieces) * p.k", to: "(u64)(i / pieces) * p.stride" },
        Fault { from: "i += gridDim.x * NARROW_THREADS", to: "i += all" },
    ];
    // More pieces than threads.
    let cases = [
        case((70, 20, 203), DType::F16, HOPPER_TILINGS[0]),
        case((300, 20, 200), DType::F16, HOPPER_TILINGS[0]),
    ];
    let check = |bed: &Bed| Ok(cases[1].is_right(bed)? && cases[0].is_right(bed)?);
    assert_caught_in("narrow_rows.cu", &faults, check);
}
