//! Packed elements against their sources.

use half::{bf16, f16};

use super::*;

fn bytes(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

/// Element (n, k) of a packed matrix, widened.
fn at(matrix: &PackedWeight, n: usize, k: usize) -> f32 {
    let panels = matrix.panels();
    let WeightFormat::Plain(dtype) = matrix.format() else {
        let WeightFormat::Quantized(quantization) = matrix.format() else { unreachable!() };
        let mut row = vec![f32::NAN; matrix.cols()];
        panels.dequantize(quantization, n, &mut row);
        return row[k];
    };
    let at = element(dtype, k, n % PANEL) * dtype.bytes();
    let bytes = &panels.panel(n / PANEL)[at..];
    match dtype {
        DType::F32 => f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        DType::Bf16 => bf16::from_ne_bytes([bytes[0], bytes[1]]).to_f32(),
        DType::F16 => f16::from_ne_bytes([bytes[0], bytes[1]]).to_f32(),
    }
}

#[test]
fn parts_are_stacked_or_interleaved_in_every_format() {
    let (first, second) = (bytes((0..3 * 5).map(|i| i as f32)), bytes((50..90).map(|i| i as f32)));
    let a = HostTensor::new(DType::F32, 3, 5, &first).unwrap();
    let b = HostTensor::new(DType::F32, 8, 5, &second).unwrap();
    for format in [DType::F32, DType::Bf16, DType::F16] {
        let stacked = PackedWeight::pack(&[a, b, a], Stacking::Stack, format).unwrap();
        assert_eq!((stacked.rows(), stacked.cols()), (14, 5));
        for k in 0..5 {
            assert_eq!(at(&stacked, 2, k), (10 + k) as f32);
            assert_eq!(at(&stacked, 3, k), (50 + k) as f32);
            assert_eq!(at(&stacked, 13, k), (10 + k) as f32);
        }
        let pairs = PackedWeight::pack(&[a, a], Stacking::InterleavePairs, format).unwrap();
        assert_eq!([at(&pairs, 2, 1), at(&pairs, 3, 1), at(&pairs, 5, 4)], [6.0, 6.0, 14.0]);
    }
}

#[test]
fn a_type_that_stays_keeps_its_bits() {
    let words: Vec<u16> = vec![0x7f81, 0x0001, 0xbf80, 0xffff, 0x8000, 0x3f80];
    let raw: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    for format in [DType::Bf16, DType::F16] {
        let host = HostTensor::new(format, 2, 3, &raw).unwrap();
        let packed = PackedWeight::pack(&[host], Stacking::Stack, format).unwrap();
        let panels = packed.panels();
        for (i, word) in words.iter().enumerate() {
            let at = element(format, i % 3, i / 3) * 2;
            assert_eq!(panels.panel(0)[at..at + 2], word.to_ne_bytes());
        }
    }
}

/// Every row is what [`crate::quantize`] makes of it, wherever it lies; padding stands for zeros.
#[test]
fn quantized_rows_come_back_from_their_lanes() {
    use crate::quantize::{dequantize_row, quantize_row};
    use crate::weight_format::Quantization;
    let (n, cols) = (37, 150);
    let value = |n, k| crate::cpu::test_team::noise(1, n, k) * 0.1;
    for quantization in Quantization::ALL {
        let values = |expert: usize, n, k| value(n, k) * (expert + 1) as f32;
        let matrix = PackedWeight::from_values(2, (n, cols), quantization, values).unwrap();
        for (expert, row) in [(0, 0), (0, 17), (1, 36)] {
            let row_values: Vec<f32> = (0..cols).map(|k| values(expert, row, k)).collect();
            let mut bytes = vec![0; quantization.row_bytes(cols)];
            quantize_row(quantization, &row_values, &mut bytes).unwrap();
            let (mut want, mut got) = (vec![0.0; cols], vec![f32::NAN; cols]);
            dequantize_row(quantization, &bytes, &mut want);
            matrix.expert(expert).dequantize(quantization, row, &mut got);
            assert_eq!(got, want, "{quantization:?}");
        }
        let padded = matrix.panels().shape.k_padded();
        let mut got = vec![f32::NAN; padded];
        matrix.panels().dequantize(quantization, 36, &mut got);
        assert!(got[cols..].iter().all(|value| *value == 0.0));
        matrix.panels().dequantize(quantization, 47, &mut got);
        assert!(got.iter().all(|value| *value == 0.0));
    }
}

#[test]
fn parts_are_stacked_and_refused_when_quantized() {
    use crate::weight_format::Quantization;
    let (first, second) = (bytes((0..3 * 5).map(|i| i as f32)), bytes((50..90).map(|i| i as f32)));
    let a = HostTensor::new(DType::F32, 3, 5, &first).unwrap();
    let b = HostTensor::new(DType::F32, 8, 5, &second).unwrap();
    let format = Quantization::Q8_0;
    let stacked = PackedWeight::pack(&[a, b, a], Stacking::Stack, format).unwrap();
    for (n, most) in [(2, 14.0), (3, 54.0), (13, 14.0)] {
        assert!((at(&stacked, n, 4) / most - 1.0).abs() < 1e-3);
    }
    let pairs = PackedWeight::pack(&[a, a], Stacking::InterleavePairs, format).unwrap();
    assert_eq!([4, 5].map(|n| at(&pairs, n, 4)), [at(&stacked, 2, 4); 2]);

    let mut damaged = second.clone();
    damaged[(6 * 5 + 2) * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let damaged = HostTensor::new(DType::F32, 8, 5, &damaged).unwrap();
    let error = PackedWeight::pack(&[a, damaged, a], Stacking::Stack, format).unwrap_err();
    let place = |error| match error {
        KernelError::Unquantizable { part, row, column, .. } => Some((part, row, column)),
        _ => None,
    };
    assert_eq!(place(error), Some((1, 6, 2)));
    let mut experts = PackedWeight::zeroed(2, (16, 5), Quantization::Fp8).unwrap();
    let error = experts.pack_expert(1, &[b, damaged], Stacking::InterleavePairs).unwrap_err();
    assert_eq!(place(error), Some((1, 6, 2)));
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let values = bytes((0..12).map(|i| i as f32));
    let wide = HostTensor::new(DType::F32, 3, 4, &values).unwrap();
    let narrow = HostTensor::new(DType::F32, 4, 3, &values).unwrap();
    let empty = HostTensor::new(DType::F32, 0, 4, &[]).unwrap();
    let pack = |parts: &[HostTensor<'_>], stacking| {
        PackedWeight::pack(parts, stacking, DType::F32).is_err()
    };
    assert!(pack(&[], Stacking::Stack));
    assert!(pack(&[empty], Stacking::Stack));
    assert!(pack(&[wide, narrow], Stacking::Stack));
    assert!(pack(&[wide, wide, wide], Stacking::InterleavePairs));
    assert!(PackedWeight::zeroed(0, (6, 4), DType::F32).is_err());
    let mut experts = PackedWeight::zeroed(2, (6, 4), DType::F32).unwrap();
    let mut pack = |expert, parts: &[HostTensor<'_>]| {
        experts.pack_expert(expert, parts, Stacking::Stack).is_ok()
    };
    assert!(pack(1, &[wide, wide]));
    assert!(!pack(1, &[wide]));
    assert!(!pack(2, &[wide, wide]));
    assert_eq!(experts.expert(1).panel(0)[4..8], 4f32.to_ne_bytes());
    let shared = experts.clone();
    assert!(experts.pack_expert(0, &[wide, wide], Stacking::Stack).is_err());
    assert_eq!(shared.expert(0).panel(0)[4..8], [0; 4]);
}
