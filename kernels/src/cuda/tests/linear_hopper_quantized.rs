//! linear_hopper_quantized.cu, and narrow_rows.cu where it changes places.

use std::collections::HashSet;

use super::linear::{Case, EPILOGUES};
use super::*;
use crate::cuda::CudaOptions;
use crate::cuda::linear_choice::{Method, ProductShape, Target, choose};
use crate::cuda::linear_hopper_quantized::{QUANTIZED_TILINGS, QuantizedTiling};
use crate::cuda::products::Products;

fn case(
    (rows, n, k): (usize, usize, usize),
    format: Quantization,
    tiling: QuantizedTiling,
) -> Case {
    let method = Method::HopperQuantized(tiling, format);
    Case { method, ..Case::plain(rows, n, k, format) }
}

#[test]
fn shapes_formats_and_rows() {
    // Tails of every kind; more tiles than blocks; more steps than slots, odd numbers of them too.
    let shapes = [(1, 9, 7), (65, 130, 72), (129, 8, 620), (257, 270, 200), (300, 392, 64)];
    for format in Quantization::ALL {
        for (shape, seed) in shapes.into_iter().zip(1..) {
            let case = case(shape, format, QUANTIZED_TILINGS[seed as usize % 2]);
            assert!(case.is_right(&Bed::new(seed, None)).unwrap(), "{case:?}");
        }
    }
}

#[test]
fn biases_and_epilogues() {
    for (i, epilogue) in EPILOGUES.into_iter().enumerate() {
        let (biased, n) = [(true, 132), (false, 22)][i % 2];
        let plain = case((70, n, 136), Quantization::ALL[i % 3], QUANTIZED_TILINGS[i % 2]);
        let case = Case { biased, epilogue, ..plain };
        assert!(case.is_right(&Bed::new(i as u64, None)).unwrap(), "{case:?}");
    }
}

#[test]
fn bits_depend_on_neither_tiles_nor_seeds_nor_other_rows() {
    for format in Quantization::ALL {
        let run = |rows, tiling, seed| {
            case((rows, 140, 330), format, tiling).run(&Bed::new(seed, None)).unwrap()
        };
        let all = run(140, QUANTIZED_TILINGS[0], 1);
        assert_eq!(run(140, QUANTIZED_TILINGS[1], 2), all);
        assert_eq!(run(67, QUANTIZED_TILINGS[1], 3), all[..67 * 140]);
    }
}

#[test]
fn a_programs_products_of_many_rows_go_this_way_unless_asked_for_one_order() {
    let (most, n, k) = (150, 260, 72);
    for format in Quantization::ALL {
        let bed = Bed::new(4, None);
        let target = Target::of(&*bed.driver, 2);
        let shape = |rows: usize| ProductShape {
            rows: rows as u32,
            n: n as u32,
            k: k as u32,
            format: format.into(),
        };
        let products = Products::new(&bed.driver, target, &HashSet::from([shape(most)])).unwrap();
        for rows in [65, most] {
            let method = choose(&target, shape(rows));
            assert!(matches!(method, Method::HopperQuantized(..)), "{method:?}");
            let case = Case { method, ..Case::plain(rows, n, k, format) };
            assert!(case.is_right_through(&bed, &products).unwrap(), "{case:?}");
        }
        let bound = Target { options: CudaOptions { deterministic: true }, ..target };
        assert!(matches!(choose(&bound, shape(most)), Method::Tensor(_)));
    }
}

/// Tails in every direction, and more steps than slots.
fn hard_cases(format: Quantization) -> impl Fn(&Bed) -> Result<bool, KernelError> {
    let cases = [
        case((70, 20, 72), format, QUANTIZED_TILINGS[0]),
        case((150, 150, 650), format, QUANTIZED_TILINGS[0]),
    ];
    move |bed| Ok(cases[0].is_right(bed)? && cases[1].is_right(bed)?)
}

#[test]
fn planted_faults_show() {
    let faults = [
        // The ring.
        Fault { from: "parity ^= 1;", to: "" },
        Fault { from: "wait_phase(ring.empty + ring.slot, ring.parity ^ 1);", to: "" },
        Fault { from: "wait_phase(ring.full + ring.slot, ring.parity);", to: "" },
        Fault {
            from: "arrive_expecting(full, M::SLOT_BYTES)",
            to: "arrive_expecting(full, M::X_BYTES)",
        },
        Fault { from: "arrive(ring.empty + ring.slot);", to: "arrive(ring.empty);" },
        Fault { from: "wait_products<0>();", to: "" },
        Fault { from: "        fence_products();\n", to: "" },
        // The weight.
        Fault { from: "k * M::F::BITS / 16, corner", to: "k, corner" },
        Fault { from: "lane_index() % 4 * sizeof(Words)", to: "lane_index() % 4 * 4" },
        Fault { from: "words[i] ^ 0x80808080", to: "words[i]" },
        Fault { from: "fetch_scales(k + M::STEP);", to: "fetch_scales(k);" },
        Fault { from: "lane_index() % 4 / 2, blocks", to: "lane_index() % 2, blocks" },
        Fault { from: "F::value(quad, l, scales[i])", to: "F::value(quad, l, scales[0])" },
        Fault {
            from: "a[j][i + 2] = bf16_pair_of_floats(values[2]",
            to: "a[j][i + 2] = bf16_pair_of_floats(values[1]",
        },
        Fault { from: "i * STEP_BYTES), k + i > 0", to: "i * STEP_BYTES), i > 0" },
        // Results.
        Fault { from: "AT + PART>(sums, first, put)", to: "AT + PART>(sums, 0, put)" },
        Fault { from: "i % 4 / 2 * 8 + lane / 4;", to: "lane / 4;" },
        Fault { from: "        sync_warp();\n        finish_spots", to: "        finish_spots" },
        Fault { from: "of_result < p.rows ?", to: "of_result <= p.rows ?" },
    ];
    let check = hard_cases(Quantization::Q8_0);
    assert_caught_in("linear_hopper_quantized.cu", &faults, check);
}

#[test]
fn planted_faults_of_other_codes_show() {
    let q4_0 = [
        Fault { from: "words[i % 2] >> (i / 2 * 4)", to: "words[i / 2] >> (i % 2 * 4)" },
        Fault { from: "value_of<8>", to: "value_of<7>" },
    ];
    assert_caught_in("linear_hopper_quantized.cu", &q4_0, hard_cases(Quantization::Q4_0));
    let fp8 = [
        Fault { from: "i << 12 | 0x444", to: "i << 8 | 0x4044" },
        Fault { from: "code >> 4 & 0x07f00000", to: "code >> 4 & 0x07e00000" },
        Fault { from: "float_of_bits(0x77800000)", to: "float_of_bits(0x77000000)" },
        Fault { from: "part[i], scales[i % 4 / 2]", to: "part[i], scales[i % 2]" },
        Fault { from: "scales)[rows[i]]", to: "scales)[rows[0]]" },
    ];
    assert_caught_in("linear_hopper_quantized.cu", &fp8, hard_cases(Quantization::Fp8));
}

#[test]
fn planted_faults_of_places_show() {
    let bytes = [
        Fault { from: "t * 16 + j * 4", to: "j * 16 + t * 4" },
        Fault { from: "to[4] =", to: "to[8] =" },
        Fault { from: "((u64)row * p.stride + first) / 2", to: "((u64)row * p.k + first) / 2" },
        Fault { from: "if (k < p.k) x", to: "x" },
    ];
    assert_caught_in("narrow_rows.cu", &bytes, hard_cases(Quantization::Q8_0));
    let halves = [
        Fault { from: "t % 2 * 8 + j % 2 * 4", to: "t % 2 * 4 + j % 2 * 8" },
        Fault { from: "t / 2 * 32 + j / 2 * 16", to: "t / 2 * 16 + j / 2 * 32" },
    ];
    assert_caught_in("narrow_rows.cu", &halves, hard_cases(Quantization::Q4_0));
}
