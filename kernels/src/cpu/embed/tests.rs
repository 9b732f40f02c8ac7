//! Rows of the packed table, exactly.

use super::*;
use crate::cpu::command::ScratchPlan;
use crate::cpu::isa::Isa;
use crate::cpu::test_team::{self, noise};
use crate::cpu::weight::PackedWeight;

#[test]
fn rows_are_the_tables_for_every_format_and_team() {
    for format in [DType::F32, DType::Bf16, DType::F16] {
        // Values that every format holds, so that equality is exact.
        let value = |n: usize, k: usize| (noise(1, n, k) * 100.0).round();
        let table = PackedWeight::from_values(1, (37, 21), format, |_, n, k| value(n, k)).unwrap();
        let ids = [0, 36, 15, 16, 1];
        let batch = Batch { ids: ids.to_vec(), query_start: vec![0, 2, 5], ..Batch::default() };
        for workers in 1..=3 {
            let x = test_team::activation(5, 21, |_, _| f32::NAN);
            let op = Embed { table: table.clone(), scale: 0.5, x: x.clone() };
            let plan = ScratchPlan::default();
            test_team::run(Isa::detect(), workers, plan, |ctx| run(&op, ctx, &batch));
            for (row, id) in test_team::rows(&x, 5).iter().zip(ids) {
                let want: Vec<f32> = (0..21).map(|k| value(id as usize, k) * 0.5).collect();
                assert_eq!(row, &want);
            }
        }
    }
}

#[test]
fn quantized_rows_are_widened() {
    let value = |n: usize, k: usize| noise(1, n, k);
    for quantization in crate::weight_format::Quantization::ALL {
        let table =
            PackedWeight::from_values(1, (37, 45), quantization, |_, n, k| value(n, k)).unwrap();
        let ids = [0, 36, 15];
        let batch = Batch { ids: ids.to_vec(), query_start: vec![0, 3], ..Batch::default() };
        let x = test_team::activation(3, 45, |_, _| f32::NAN);
        let op = Embed { table, scale: 0.5, x: x.clone() };
        let plan = ScratchPlan::default();
        test_team::run(Isa::detect(), 2, plan, |ctx| run(&op, ctx, &batch));
        for (row, id) in test_team::rows(&x, 3).iter().zip(ids) {
            let values: Vec<f64> = (0..45).map(|k| f64::from(value(id as usize, k))).collect();
            let want = crate::reference::quantized::row(&values, quantization);
            let want: Vec<f32> = want.iter().map(|value| *value as f32 * 0.5).collect();
            assert_eq!(row, &want);
        }
    }
}

/// The test team's slot s remembers token s.
#[test]
fn a_pending_token_comes_from_its_sequences_slot() {
    let table = PackedWeight::from_values(1, (64, 3), DType::F32, |_, n, _| n as f32).unwrap();
    let batch = Batch {
        ids: vec![5, PENDING_TOKEN, PENDING_TOKEN, 7, PENDING_TOKEN],
        query_start: vec![0, 2, 3, 3, 5],
        seq_slot: vec![11, 22, 33, 44],
        ..Batch::default()
    };
    for workers in 1..=3 {
        let x = test_team::activation(5, 3, |_, _| 0.0);
        let op = Embed { table: table.clone(), scale: 1.0, x: x.clone() };
        test_team::run(Isa::detect(), workers, ScratchPlan::default(), |ctx| run(&op, ctx, &batch));
        let ids: Vec<f32> = test_team::rows(&x, 5).iter().map(|row| row[2]).collect();
        assert_eq!(ids, [5.0, 11.0, 22.0, 7.0, 44.0]);
    }
}
