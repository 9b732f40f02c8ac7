//! quantize_rows.cu and linear_bytes.cu.

use std::collections::HashSet;

use super::linear::{Case, EPILOGUES};
use super::*;
use crate::cuda::linear_choice::{BYTE_TILINGS, Cut, Method, ProductShape, Target, Tiling, choose};
use crate::cuda::products::Products;
use crate::cuda::quantize_rows::{ByteRows, byte_rows_bytes};
use crate::cuda::quantized::padded_scales;
use crate::reference::quantized;
use crate::weight_format::BLOCK;

const FORMATS: [Quantization; 2] = [Quantization::Q8_0, Quantization::Q4_0];

fn case((rows, n, k): (usize, usize, usize), format: Quantization, cut: Cut) -> Case {
    Case { method: Method::Tensor(cut), ..Case::plain(rows, n, k, format) }
}

const fn whole(tiling: Tiling) -> Cut {
    Cut { tiling, chunks: 1, is_spread: false }
}

/// Whether rows become bytes as the reference says, with zeros behind them.
fn become_bytes(bed: &Bed, rows: usize, k: usize) -> Result<bool, KernelError> {
    let x = noises(1, rows * k);
    let (on_x, room) = (bed.floats(&x), bed.poison(byte_rows_bytes(rows, k).div_ceil(4)));
    let size = (rows as u32, k as u32);
    // SAFETY: buffers of these shapes.
    let made = unsafe { ByteRows::launch(&*bed.driver, on_x.pointer(), size, room.pointer(), 1) }?;
    let mut bytes = vec![0; byte_rows_bytes(rows, k)];
    room.download(0, &mut bytes).unwrap();
    let scales = bytes.split_off((made.scales.0 - made.codes.0) as usize);
    let scales: Vec<f32> =
        scales.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let blocks = k.div_ceil(BLOCK);
    let right = x.chunks(k).enumerate().all(|(row, x)| {
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let want = quantized::input(&wide);
        let scales = &scales[row * padded_scales(k)..][..padded_scales(k)];
        let codes = &bytes[row * blocks * BLOCK..][..blocks * BLOCK];
        let value = |i: usize| f64::from(codes[i].cast_signed()) * f64::from(scales[i / BLOCK]);
        let same = want.iter().enumerate().all(|(i, &want)| value(i) == want);
        let padding = codes[k..].iter().all(|&code| code == 0);
        same && padding && scales[blocks..].iter().all(|&scale| scale == 0.0)
    });
    Ok(right)
}

#[test]
fn rows_become_bytes() {
    for (rows, k) in [(1, 1), (3, 32), (5, 133), (40, 260)] {
        for seed in SEEDS {
            assert!(become_bytes(&Bed::new(seed, None), rows, k).unwrap(), "{rows} {k}");
        }
    }
}

#[test]
fn planted_faults_of_rows_show() {
    let faults = [
        Fault { from: "i += gridDim.x * QUANTIZE_THREADS", to: "i += all" },
        Fault { from: "if (k < p.k) x = load", to: "x = load" },
        Fault { from: "(u64)row * padded + block", to: "(u64)row * blocks + block" },
        Fault { from: "if (block < blocks) p.codes", to: "p.codes" },
        Fault { from: "distance = LANES / 2", to: "distance = LANES / 4" },
        Fault { from: "<< (8 * i)", to: "<< (8 * (3 - i))" },
        Fault { from: "/ 127.0f", to: "/ 128.0f" },
        Fault { from: "steps + 12582912.0f", to: "steps + 12582912.5f + 0.5f" },
        Fault { from: "k = block * SCALED + word * 4", to: "k = block * SCALED + word" },
    ];
    let check = |bed: &Bed| Ok(become_bytes(bed, 40, 260)? && become_bytes(bed, 3, 37)?);
    assert_caught(&faults, check);
}

#[test]
fn shapes_formats_and_rows() {
    for tiling in BYTE_TILINGS {
        let last = tiling.rows as usize;
        for format in FORMATS {
            let shapes =
                [(1, 9, 7), (7, 128, 64), (last - 1, 131, 72), (last + 2, 270, 33), (3, 5, 1000)];
            for (shape, seed) in shapes.into_iter().zip(0..) {
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
            let tiling = BYTE_TILINGS[i % BYTE_TILINGS.len()];
            for cut in [whole(tiling), Cut { chunks: 2, is_spread: true, ..whole(tiling) }] {
                let plain = case((19, n, 290), FORMATS[i % 2], cut);
                let case = Case { biased, epilogue, ..plain };
                assert!(case.is_right(&Bed::new(1, None)).unwrap(), "{case:?}");
            }
        }
    }
}

#[test]
fn chunks_join_alike_in_one_block_and_in_several_under_every_tiling() {
    for format in FORMATS {
        let shape = (37, 150, 900);
        let run = |cut: Cut, seed| case(shape, format, cut).run(&Bed::new(seed, None)).unwrap();
        for (chunks, tilings) in [(2, [1, 3]), (7, [2, 3])] {
            let first = Cut { chunks, is_spread: true, ..whole(BYTE_TILINGS[0]) };
            assert!(case(shape, format, first).is_right(&Bed::new(1, None)).unwrap());
            let want = run(first, 1);
            for (tiling, seed) in tilings.into_iter().zip(2..) {
                let cut = Cut { chunks, ..whole(BYTE_TILINGS[tiling]) };
                assert_eq!(run(cut, seed), want, "{cut:?}");
                assert_eq!(run(Cut { is_spread: true, ..cut }, seed), want, "{cut:?} spread");
            }
        }
    }
}

#[test]
fn a_rows_bits_do_not_depend_on_its_company() {
    for format in FORMATS {
        let bits = |rows, tiling: usize| {
            let cut = Cut { chunks: 2, ..whole(BYTE_TILINGS[tiling]) };
            case((rows, 11, 320), format, cut).run(&Bed::new(9, None)).unwrap()
        };
        let all = bits(130, 3);
        for (rows, tiling) in [(1, 0), (9, 0), (31, 1), (63, 2), (65, 3)] {
            assert_eq!(bits(rows, tiling), all[..rows * 11], "{rows}");
        }
    }
}

/// A row that is not finite gives no number, and its neighbours are as ever.
#[test]
fn a_row_that_is_not_finite_poisons_itself_alone() {
    let (rows, k) = (6, 130);
    for bad in [f32::NAN, f32::INFINITY] {
        let bed = Bed::new(3, None);
        let mut x = noises(1, rows * k);
        x[2 * k + 129] = bad;
        let case = case((rows, 20, k), Quantization::Q8_0, whole(BYTE_TILINGS[0]));
        let sound = case.run(&bed).unwrap();
        let got = case.run_on(&bed, &x).unwrap();
        assert!(got[40..60].iter().all(|value| value.is_nan()));
        assert_eq!((&got[..40], &got[60..]), (&sound[..40], &sound[60..]));
    }
}

#[test]
fn a_programs_products_go_this_way_through_room_of_their_own() {
    let (most, n, k) = (60, 40, 290);
    for format in FORMATS {
        let bed = Bed::new(4, None);
        let target = Target::of(&*bed.driver, 2);
        let shape = |rows: usize| ProductShape {
            rows: rows as u32,
            n: n as u32,
            k: k as u32,
            format: format.into(),
        };
        let products = Products::new(&bed.driver, target, &HashSet::from([shape(most)])).unwrap();
        for rows in [4, 5, 33, most] {
            let is_few = matches!(choose(&target, shape(rows)), Method::Rows);
            assert_eq!(is_few, rows <= 4);
            let case = Case::plain(rows, n, k, format);
            assert!(case.is_right_through(&bed, &products).unwrap(), "{case:?}");
        }
    }
}

/// Tails in every direction, more steps than slots, and chunks of both kinds.
fn hard_cases(format: Quantization) -> impl Fn(&Bed) -> Result<bool, KernelError> {
    let joined = Cut { chunks: 3, ..whole(BYTE_TILINGS[0]) };
    let cases = [
        case((37, 148, 333), format, whole(BYTE_TILINGS[1])),
        case((9, 7, 1100), format, joined),
        case((18, 140, 500), format, Cut { is_spread: true, ..joined }),
    ];
    move |bed| {
        for case in &cases {
            if !case.is_right(bed)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[test]
fn planted_faults_of_the_ring_show() {
    let faults = [
        Fault { from: "wait_copies<M::SLOTS - 2>", to: "wait_copies<M::SLOTS - 1>" },
        Fault { from: "sync_block();\n            fetch(", to: "fetch(" },
        Fault { from: "fetch(step + M::SLOTS - 1)", to: "fetch(step + M::SLOTS)" },
        Fault {
            from: "weight_row(column) * p.linear.stride",
            to: "weight_row(column) * p.linear.k",
        },
        Fault {
            from: "tile.first_column + column, p.linear.n - 1)",
            to: "column, p.linear.n - 1)",
        },
        Fault { from: "column * 8, scales + step * M::BLOCKS", to: "column * 8, scales" },
        Fault { from: "(row == NO_ROW ? 0 : (u64)row", to: "(row == NO_ROW ? 0 : (u64)at" },
        Fault { from: "scale_stride(blocks) + step * M::BLOCKS)", to: "scale_stride(blocks))" },
        Fault { from: "if (at >= M::ROWS) continue;", to: "" },
        Fault { from: "q.codes + (u64)row * blocks", to: "q.codes + (u64)at * blocks" },
        Fault { from: "chunk * div_up(p.linear.k, M::UNIT) / p.chunks", to: "chunk" },
    ];
    assert_caught_in("linear_bytes.cu", &faults, hard_cases(Quantization::Q8_0));
}

#[test]
fn planted_faults_of_fragments_and_scales_show() {
    let faults = [
        Fault { from: "(first + i) * 2 + lane_index() / 16", to: "(first + i) * 2" },
        Fault { from: "(row + lane % 8, first * 2 + lane / 8)", to: "(row + lane % 8, lane / 8)" },
        Fault { from: "b[block * 2], b[", to: "b[block], b[" },
        Fault { from: "{SUM_START, SUM_START, SUM_START, SUM_START}", to: "{}" },
        Fault { from: "(row + lane % 4 * 2) * 16", to: "(row + lane % 4) * 16" },
        Fault { from: "of_rows[j % 2].at[block]", to: "of_rows[j / 2].at[block]" },
        Fault { from: "scales[tall * 2 + j / 2][block]", to: "scales[tall * 2 + j % 2][block]" },
        Fault { from: "(u16)(both >> 16)", to: "(u16)both" },
        Fault { from: "column + lane / 4 + 8, first", to: "column + lane / 4, first" },
    ];
    assert_caught_in("linear_bytes.cu", &faults, hard_cases(Quantization::Q8_0));
}

#[test]
fn planted_faults_of_halves_of_bytes_show() {
    let faults = [
        Fault { from: "^ 0x80808080", to: "" },
        Fault { from: "upper(codes[i] << 4)", to: "upper(codes[i])" },
        Fault { from: "u32 block = i / 2, row = i % 2;", to: "u32 block = i % 2, row = i / 2;" },
        Fault { from: "FACTOR = 16.0f", to: "FACTOR = 8.0f" },
        Fault { from: ", first + lane_index() / 16", to: ", first / 2 + lane_index() / 16" },
    ];
    assert_caught_in("linear_bytes.cu", &faults, hard_cases(Quantization::Q4_0));
}
