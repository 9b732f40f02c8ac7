//! Quantized rows against the float64 statement, and what must hold of every row.

use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::reference::quantized;

fn quantized(quantization: Quantization, row: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xee; quantization.row_bytes(row.len())];
    quantize_row(quantization, row, &mut bytes).unwrap();
    bytes
}

fn dequantized(quantization: Quantization, bytes: &[u8], cols: usize) -> Vec<f32> {
    let mut row = vec![f32::NAN; cols];
    dequantize_row(quantization, bytes, &mut row);
    row
}

fn round_trip(quantization: Quantization, row: &[f32]) -> Vec<f32> {
    dequantized(quantization, &quantized(quantization, row), row.len())
}

/// Rows of any length and of scales from far below f16 to far above one, bf16 or f32.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    let element = prop_oneof![
        6 => -1.0f32..1.0,
        1 => Just(0.0f32),
        1 => prop_oneof![Just(1.0f32), Just(-1.0)],
        1 => -0.01f32..0.01,
    ];
    let rows = prop::collection::vec(element, 1..150);
    (rows, -40..18i32, any::<bool>()).prop_map(|(row, exponent, is_narrow)| {
        let scaled = row.into_iter().map(|x| x * 2f32.powi(exponent));
        scaled.map(|x| if is_narrow { bf16::from_f32(x).to_f32() } else { x }).collect()
    })
}

proptest! {
    #[test]
    fn rows_are_those_of_the_float64_statement(row in rows()) {
        let wide: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
        for quantization in Quantization::ALL {
            let got = round_trip(quantization, &row);
            // The products of fp8 round once more.
            let want = quantized::row(&wide, quantization);
            for (got, want) in got.iter().zip(&want) {
                prop_assert_eq!(*got, *want as f32, "{:?}", quantization);
            }
        }
    }

    /// Half a step, and what f16 loses of a scale that is subnormal there.
    #[test]
    fn an_element_is_off_by_half_a_step_at_most(row in rows()) {
        for quantization in Quantization::ALL {
            let got = round_trip(quantization, &row);
            let width = if quantization == Quantization::Fp8 { row.len() } else { BLOCK };
            for (got, row) in got.chunks(width).zip(row.chunks(width)) {
                let most = row.iter().fold(0.0f64, |most, x| f64::from(x.abs()).max(most));
                let lost = 2f64.powi(-25);
                for (&got, &x) in got.iter().zip(row) {
                    let (got, x) = (f64::from(got), f64::from(x));
                    let bound = match quantization {
                        Quantization::Q8_0 => most / 127.0 * 0.5005 + 127.5 * lost,
                        // The far end has no eighth step on its side.
                        Quantization::Q4_0 => most / 8.0 * 1.001 + 8.5 * lost,
                        Quantization::Fp8 => (x.abs() / 16.0).max(most / 448.0 / 1024.0) * 1.000_01,
                    };
                    prop_assert!((got - x).abs() <= bound, "{:?}: {} became {}", quantization, x, got);
                }
            }
        }
    }

    /// What was quantized stays as it is. Not promised where the scale is subnormal in f16.
    #[test]
    fn quantizing_again_changes_nothing(row in rows()) {
        let wide_enough = row.chunks(BLOCK).all(|block| {
            let most = block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            most == 0.0 || most / 127.0 > 6.2e-5
        });
        prop_assume!(wide_enough);
        for quantization in Quantization::ALL {
            let first = quantized(quantization, &row);
            let again = quantized(quantization, &dequantized(quantization, &first, row.len()));
            // The scale of fp8 has more bits than a product keeps.
            let from = if quantization == Quantization::Fp8 { 4 } else { 0 };
            prop_assert_eq!(&first[from..], &again[from..], "{:?}", quantization);
        }
    }
}

#[test]
fn bytes_lie_as_written() {
    let mut row = [0.0f32; 33];
    (row[0], row[1], row[16], row[31], row[32]) = (127.0, -2.5, 5.0, -127.0, 3.0);
    let bytes = quantized(Quantization::Q8_0, &row);
    assert_eq!(bytes.len(), 2 * 34);
    assert_eq!(bytes[..2], f16::from_f32(1.0).to_le_bytes());
    // Ties go to even.
    assert_eq!([bytes[2], bytes[3], bytes[18], bytes[33]], [127, 254, 5, 129]);
    let scale = f16::from_f32(3.0 / 127.0);
    assert_eq!((&bytes[34..36], bytes[36]), (&scale.to_le_bytes()[..], 127));
    assert!(bytes[37..].iter().all(|&byte| byte == 0));

    (row[0], row[1], row[16], row[31]) = (-8.0, 2.0, 7.0, 8.0);
    let bytes = quantized(Quantization::Q4_0, &row);
    assert_eq!(bytes.len(), 2 * 18);
    assert_eq!(bytes[..2], f16::from_f32(1.0).to_le_bytes());
    // Of two largest the first one counts; the other one is one step too far.
    assert_eq!([bytes[2], bytes[3], bytes[17]], [0xf0, 0x8a, 0xf8]);
    assert_eq!(bytes[20..22], [0x80, 0x88]);

    (row[0], row[1], row[16], row[31]) = (-448.0, 0.0, 1.0, 17.0);
    let bytes = quantized(Quantization::Fp8, &row);
    assert_eq!(bytes.len(), 4 + 33);
    assert_eq!(bytes[..4], 1f32.to_le_bytes());
    // 17 lies between 16 and 18: the even fraction.
    assert_eq!([bytes[4], bytes[5], bytes[20], bytes[35]], [0xfe, 0, 0x38, 0x58]);
}

#[test]
fn every_code_of_fp8_comes_back() {
    for code in (0..=255u8).filter(|code| code & 0x7f != 0x7f) {
        assert_eq!(e4m3(e4m3_value(code)), code);
    }
    assert_eq!([e4m3(1e9), e4m3(-464.0), e4m3(f32::MAX)], [0x7e, 0xfe, 0x7e]);
}

#[test]
fn zeros_stay_and_tiny_blocks_become_zeros() {
    for quantization in Quantization::ALL {
        assert!(round_trip(quantization, &[0.0, -0.0, 0.0]).iter().all(|x| *x == 0.0));
    }
    for quantization in [Quantization::Q8_0, Quantization::Q4_0] {
        let tiny = [1e-9f32, -2e-9, 0.0];
        assert!(round_trip(quantization, &tiny).iter().all(|x| *x == 0.0));
    }
    // The scale is subnormal in f16: 3 · 2⁻²⁴.
    let scale = 3.0 * 2f32.powi(-24);
    let row = [127.0 * scale, -64.0 * scale, 1.0 * scale];
    assert_eq!(round_trip(Quantization::Q8_0, &row), row);
    let row = [-8.0 * scale, 7.0 * scale, 1.0 * scale];
    assert_eq!(round_trip(Quantization::Q4_0, &row), row);
    // One that f16 rounds down still reaches as far as its codes go.
    let below = [127.0 * 1.4 * 2f32.powi(-24)];
    assert_eq!(round_trip(Quantization::Q8_0, &below), [127.0 * 2f32.powi(-24)]);
    // Far below the least normal f32, a scale is what is left of it.
    assert_eq!(round_trip(Quantization::Fp8, &[448.0 * 1e-44]), [448.0 * 1e-44]);
    assert_eq!(round_trip(Quantization::Fp8, &[1e-44]), [0.0]);
}

#[test]
fn extremes_are_kept_or_refused() {
    let refusal = |quantization: Quantization, row: &[f32]| {
        let mut bytes = vec![0; quantization.row_bytes(row.len())];
        quantize_row(quantization, row, &mut bytes).unwrap_err()
    };
    for quantization in Quantization::ALL {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = vec![1.0; 70];
            row[67] = bad;
            let error = refusal(quantization, &row);
            assert_eq!((error.column, error.why), (67, "is not a finite number"));
        }
    }
    let largest = 127.0 * 65504.0;
    assert_eq!(round_trip(Quantization::Q8_0, &[largest, 0.0]), [largest, 0.0]);
    let mut row = vec![1.0; 70];
    row[33] = -1e7;
    let error = refusal(Quantization::Q8_0, &row);
    let said = error.in_row(1, 5).to_string();
    let want = "row 5, column 33 is too large for a scale in f16: -10000000; quantization needs";
    assert!(said.starts_with(want), "{said}");
    assert_eq!(refusal(Quantization::Q4_0, &row), error);
    assert_eq!(round_trip(Quantization::Fp8, &[f32::MAX, -f32::MAX])[1], -f32::MAX);
}
