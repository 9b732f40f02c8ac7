//! linear_tensor.cu.

use super::linear::{Case, EPILOGUES};
use super::*;
use crate::cuda::linear_choice::{Cut, Method, TILINGS, Tiling, WIDE};

/// Tilings of all sizes.
fn tilings() -> impl Iterator<Item = Tiling> {
    TILINGS.into_iter().chain([WIDE])
}

fn case((rows, n, k): (usize, usize, usize), format: impl Into<WeightFormat>, cut: Cut) -> Case {
    Case { method: Method::Tensor(cut), ..Case::plain(rows, n, k, format) }
}

/// Formats that these kernels are for.
const FORMATS: [WeightFormat; 3] = [
    WeightFormat::Plain(DType::Bf16),
    WeightFormat::Plain(DType::F16),
    WeightFormat::Quantized(Quantization::Fp8),
];

const fn whole(tiling: Tiling) -> Cut {
    Cut { tiling, chunks: 1, is_spread: false }
}

#[test]
fn shapes_formats_and_rows() {
    for tiling in tilings() {
        let last = tiling.rows as usize;
        for format in FORMATS {
            for (shape, seed) in [(1, 9, 7), (7, 128, 64), (last - 1, 131, 72), (last + 2, 270, 33)]
                .into_iter()
                .zip(0..)
            {
                let case = case(shape, format, whole(tiling));
                assert!(case.is_right(&Bed::new(seed, None)).unwrap(), "{case:?}");
            }
        }
    }
}

#[test]
fn biases_and_epilogues() {
    for (i, epilogue) in EPILOGUES.into_iter().enumerate() {
        for (biased, n) in [(true, 132), (false, 22)] {
            let tiling = tilings().nth(i % 5).unwrap();
            for cut in [whole(tiling), Cut { chunks: 3, is_spread: true, ..whole(tiling) }] {
                let plain = case((19, n, 200), DType::Bf16, cut);
                let case = Case { biased, epilogue, ..plain };
                assert!(case.is_right(&Bed::new(1, None)).unwrap(), "{case:?}");
            }
        }
    }
}

#[test]
fn chunks_join_alike_in_one_block_and_in_several_under_every_tiling() {
    for format in FORMATS {
        let shape = (37, 150, 500);
        let run = |cut: Cut, seed| case(shape, format, cut).run(&Bed::new(seed, None)).unwrap();
        for (chunks, tilings) in [(2, [TILINGS[1], WIDE]), (7, [TILINGS[2], TILINGS[3]])] {
            let first = Cut { chunks, is_spread: true, ..whole(TILINGS[0]) };
            assert!(case(shape, format, first).is_right(&Bed::new(1, None)).unwrap());
            let want = run(first, 1);
            for (tiling, seed) in tilings.into_iter().zip(2..) {
                let cut = Cut { chunks, ..whole(tiling) };
                assert_eq!(run(cut, seed), want, "{cut:?}");
                assert_eq!(run(Cut { is_spread: true, ..cut }, seed), want, "{cut:?} spread");
            }
        }
    }
}

#[test]
fn a_rows_bits_do_not_depend_on_its_company() {
    for chunks in [1, 3] {
        for format in [FORMATS[0], FORMATS[2]] {
            let bits = |rows, tiling| {
                let cut = Cut { chunks, ..whole(tiling) };
                case((rows, 11, 320), format, cut).run(&Bed::new(9, None)).unwrap()
            };
            let all = bits(130, WIDE);
            for (rows, tiling) in
                [(1, TILINGS[0]), (9, TILINGS[0]), (63, TILINGS[2]), (65, TILINGS[3])]
            {
                assert_eq!(bits(rows, tiling), all[..rows * 11], "{rows}");
            }
        }
    }
}

#[test]
fn f16_rows_keep_their_precision_and_their_range() {
    // Beyond what one f16 can hold, and finer than it can tell apart.
    for (x, want) in [(100_000.0, 100_000.0), (1.000_1, 1.000_1), (1e9, 131_008.0)] {
        let bed = Bed::new(1, None);
        let (on_x, weight) = (bed.floats(&[x]), bed.numbers(&[1.0; 8], DType::F16));
        let out = bed.poison(1);
        let pointers = [on_x.pointer(), weight.pointer(), out.pointer()];
        let linear = crate::cuda::linear::Linear::plain(pointers, 1, (1, 1), DType::F16);
        let none = crate::cuda::linear_tensor::Meeting {
            partials: DevicePointer::NULL,
            arrivals: DevicePointer::NULL,
        };
        let cut = whole(TILINGS[0]);
        let product = crate::cuda::linear_tensor::TensorLinear::dense(linear, &cut, none);
        // SAFETY: buffers of this shape.
        unsafe { product.launch(&*bed.driver, &cut, DType::F16.into()) }.unwrap();
        let got = f64::from(read_floats(&out, 1)[0]);
        assert!((got / want - 1.0).abs() < 1e-6, "{x}: {got}");
    }
}

#[test]
fn planted_faults_show() {
    let faults = [
        // The ring.
        Fault { from: "wait_copies<M::SLOTS - 2>", to: "wait_copies<M::SLOTS - 1>" },
        Fault { from: "sync_block();\n            fetch_weight", to: "fetch_weight" },
        Fault { from: "fetch_weight(step + M::SLOTS - 1)", to: "fetch_weight(step + M::SLOTS)" },
        Fault { from: "step % 2 * M::X_BYTES", to: "0 * M::X_BYTES" },
        Fault { from: "&& k < p.linear.stride", to: "" },
        Fault { from: "|| row == NO_ROW ||", to: "||" },
        // Fragments.
        Fault { from: "quad / 2) + quad % 2 * 8", to: "quad / 2)" },
        Fault { from: "i * 2 + lane / 16)", to: "i * 2)" },
        Fault { from: "lane / 16 * 8 + lane % 8", to: "lane % 16" },
        Fault { from: "a[tall], b[2], b[3]", to: "a[tall], b[3], b[2]" },
        // Results.
        Fault { from: "tall * 16 + i % 4 / 2 * 8", to: "tall * 16" },
        Fault { from: "spot.n >= p.n", to: "false" },
        Fault { from: "within / size", to: "within % size" },
    ];
    let tiling = TILINGS[1];
    let cases = [
        case((37, 148, 321), DType::Bf16, whole(tiling)),
        case((9, 7, 500), DType::Bf16, whole(tiling)),
    ];
    assert_caught(&faults, |bed| Ok(cases[0].is_right(bed)? && cases[1].is_right(bed)?));
}

#[test]
fn planted_faults_of_chunks_show() {
    let faults = [
        Fault { from: "if (chunk > 0) sum = *total + sum;", to: "sum = *total + sum;" },
        Fault { from: "            sum = 0.0f;\n", to: "" },
        Fault { from: "chunk * div_up(p.linear.k, M::UNIT) / p.chunks", to: "chunk" },
        Fault {
            from: "+ 1 == p.chunks;\n            if (last)",
            to: "+ 2 == p.chunks;\n            if (last)",
        },
        Fault { from: "if (last) *arrivals = 0;", to: "" },
        Fault { from: "to = partials + blockIdx.y * chunk_size()", to: "to = partials" },
        Fault { from: "if (chunk + i / COUNT < p.chunks) sum", to: "sum" },
        Fault { from: "at % QUADS * 4", to: "at % QUADS" },
    ];
    let spread = Cut { chunks: 5, is_spread: true, ..whole(TILINGS[0]) };
    let joined = Cut { is_spread: false, ..spread };
    assert_caught(&faults, |bed| {
        let right = |cut| case((18, 140, 500), DType::Bf16, cut).is_right(bed);
        Ok(right(spread)? && right(joined)?)
    });
}

#[test]
fn planted_faults_of_fp8_show() {
    let faults = [
        // Codes and the order of x that they ask for.
        Fault { from: "0x1404", to: "0x0414" },
        Fault { from: "0x3424", to: "0x2434" },
        Fault { from: "others & 0x80008000", to: "apart & 0x80008000" },
        Fault { from: "apart >> 1 & 0x3f803f80", to: "apart >> 1 & 0x3f003f00" },
        Fault { from: "(row, quad / 4 * 2 + 1) + quad", to: "(row, quad / 4 * 2) + quad" },
        Fault { from: "codes[tall][i % 2 * 2 + 1]", to: "codes[tall][i % 2 * 2]" },
        Fault { from: "a[tall][0], a[tall][2]", to: "a[tall][2], a[tall][0]" },
        Fault { from: "column, i + lane / 16", to: "column, i * 2 + lane / 16" },
        Fault { from: "% PIECES * (16 / sizeof(T))", to: "% PIECES * 8" },
        // Scales.
        Fault { from: "sums.scale((const float*)p.linear.scales)", to: "" },
        Fault {
            from: "i % 2 * 2 + j % 2];\n                sum = r",
            to: "j];\n                sum = r",
        },
        Fault { from: "first_column() + i * 8", to: "first_column() + i * 16" },
    ];
    let cases = [
        case((37, 148, 321), Quantization::Fp8, whole(TILINGS[1])),
        case((9, 7, 500), Quantization::Fp8, Cut { chunks: 2, ..whole(TILINGS[0]) }),
    ];
    assert_caught(&faults, |bed| Ok(cases[0].is_right(bed)? && cases[1].is_right(bed)?));
}
