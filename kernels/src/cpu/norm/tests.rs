//! Norms against float64.

use super::*;
use crate::cpu::buffer::Parameters;
use crate::cpu::command::ScratchPlan;
use crate::cpu::isa::Isa;
use crate::cpu::test_team::{self, noise};
use crate::reference;

const EPS: f32 = 1e-5;

fn norm(cols: usize) -> Norm<CpuProgram> {
    let weight: Vec<f32> = (0..cols).map(|i| 1.0 + noise(1, 0, i)).collect();
    Norm { weight: Parameters::new(&weight).unwrap(), eps: EPS }
}

fn want(row: usize, cols: usize) -> Vec<f64> {
    let x: Vec<f64> = (0..cols).map(|col| f64::from(noise(2, row, col))).collect();
    let weight: Vec<f64> = (0..cols).map(|i| f64::from(1.0 + noise(1, 0, i))).collect();
    reference::rms_norm(&x, &weight, f64::from(EPS))
}

fn run_norm(rows: usize, cols: usize, isa: Isa, workers: usize, in_place: bool) -> Vec<Vec<f32>> {
    let x = test_team::activation(rows, cols, |row, col| noise(2, row, col));
    let out = if in_place { x.clone() } else { Activation::new(rows, cols).unwrap() };
    let op = NormRows { x, norm: norm(cols), out: out.clone() };
    test_team::run(isa, workers, ScratchPlan::default(), |ctx| run(&op, rows, ctx));
    test_team::rows(&out, rows)
}

#[test]
fn rows_agree_with_float64_for_any_width() {
    for (isa, workers) in test_team::teams() {
        for cols in [1, 7, 16, 17, 40, 896] {
            let got = run_norm(5, cols, isa, workers, false);
            for (row, got) in got.iter().enumerate() {
                let error = reference::error(got, &want(row, cols));
                assert!(error < 2e-6, "{error:.1e} {isa:?} {cols}");
            }
            assert_eq!(run_norm(5, cols, isa, 1, true), got, "in place or not, any team");
            assert_eq!(run_norm(1, cols, isa, 2, false), got[..1], "alone or in company");
        }
    }
}

#[test]
fn a_normed_projection_is_added() {
    for isa in Isa::available() {
        let (rows, cols) = (3, 21);
        let op = AddNormed {
            projected: test_team::activation(rows, cols, |row, col| noise(2, row, col)),
            norm: norm(cols),
            x: test_team::activation(rows, cols, |row, col| noise(3, row, col)),
        };
        test_team::run(isa, 2, ScratchPlan::default(), |ctx| run_add(&op, rows, ctx));
        for (row, got) in test_team::rows(&op.x, rows).iter().enumerate() {
            let normed = want(row, cols).into_iter().enumerate();
            let want: Vec<f64> = normed.map(|(i, y)| f64::from(noise(3, row, i)) + y).collect();
            assert!(reference::error(got, &want) < 2e-6);
        }
    }
}

#[test]
fn a_wrong_eps_is_seen() {
    let tiny = |row: usize, col: usize| noise(2, row, col) * 3e-3;
    let x = test_team::activation(1, 20, tiny);
    let op = NormRows { x: x.clone(), norm: norm(20), out: x.clone() };
    test_team::run(Isa::detect(), 1, ScratchPlan::default(), |ctx| run(&op, 1, ctx));
    let row: Vec<f64> = (0..20).map(|col| f64::from(tiny(0, col))).collect();
    let weight: Vec<f64> = op.norm.weight.values().iter().map(|&w| f64::from(w)).collect();
    let error = |eps| {
        reference::error(&test_team::rows(&x, 1)[0], &reference::rms_norm(&row, &weight, eps))
    };
    assert!(error(f64::from(EPS)) < 2e-6 && error(f64::from(EPS) * 10.0) > 0.05);
}
