//! Linear against float64, for all formats, instruction sets, shapes and epilogues; and the promise
//! that a row's bits depend on nothing but the row.

use crate::cpu::buffer::{Activation, Parameters};
use crate::cpu::command::ScratchPlan;
use crate::cpu::isa::Isa;
use crate::cpu::test_team::{self, noise};
use crate::cpu::weight::PackedWeight;
use crate::dtype::DType;
use crate::ops::{Activation as Act, Epilogue, Linear};
use crate::reference::{self, Matrix};
use crate::weight_format::{Quantization, WeightFormat};

const FORMATS: [WeightFormat; 6] = [
    WeightFormat::Plain(DType::F32),
    WeightFormat::Plain(DType::Bf16),
    WeightFormat::Plain(DType::F16),
    WeightFormat::Quantized(Quantization::Q8_0),
    WeightFormat::Quantized(Quantization::Q4_0),
    WeightFormat::Quantized(Quantization::Fp8),
];

/// One linear with all its inputs.
struct Case {
    rows: usize,
    n: usize,
    k: usize,
    format: WeightFormat,
    biased: bool,
    epilogue: Epilogue,
}

impl Case {
    fn plain(rows: usize, n: usize, k: usize, format: impl Into<WeightFormat>) -> Self {
        let format = format.into();
        Case { rows, n, k, format, biased: false, epilogue: Epilogue::Store }
    }

    fn weight(&self, n: usize, k: usize) -> f32 {
        noise(1, n, k)
    }

    fn x(&self) -> Activation {
        test_team::activation(self.rows, self.k, |row, col| noise(2, row, col))
    }

    fn out_cols(&self) -> usize {
        if matches!(self.epilogue, Epilogue::Glu(_)) { self.n / 2 } else { self.n }
    }

    fn op(&self, x: Activation) -> Linear<crate::cpu::program::CpuProgram> {
        let bias: Vec<f32> = (0..self.n).map(|n| noise(3, n, 0)).collect();
        let (n, k) = (self.n, self.k);
        Linear {
            out: test_team::activation(x.rows(), self.out_cols(), |row, col| noise(4, row, col)),
            x,
            weight: PackedWeight::from_values(1, (n, k), self.format, |_, n, k| self.weight(n, k))
                .unwrap(),
            bias: self.biased.then(|| Parameters::new(&bias).unwrap()),
            epilogue: self.epilogue,
        }
    }

    fn run(&self, isa: Isa, workers: usize) -> Vec<Vec<f32>> {
        run_op(&self.op(self.x()), self.rows, isa, workers)
    }

    fn reference(&self) -> Vec<Vec<f64>> {
        let weight = Matrix::from_fn(self.n, self.k, |n, k| f64::from(self.weight(n, k)));
        let weight = weight.stored(self.format);
        let bias: Vec<f64> = (0..self.n).map(|n| f64::from(noise(3, n, 0))).collect();
        let row = |row| {
            let x: Vec<f64> = (0..self.k).map(|k| f64::from(noise(2, row, k))).collect();
            let bias = self.biased.then_some(bias.as_slice());
            let before: Vec<f64> =
                (0..self.out_cols()).map(|col| f64::from(noise(4, row, col))).collect();
            let values = reference::linear(&x, &weight, bias, self.format);
            reference::epilogue(&values, &before, self.epilogue)
        };
        (0..self.rows).map(row).collect()
    }

    fn assert_close(&self, isa: Isa, workers: usize) {
        // All rows at once: a single result may lie near zero, and its scale says nothing then.
        let (got, want) = (self.run(isa, workers).concat(), self.reference().concat());
        let error = reference::error(&got, &want);
        let Case { rows, n, k, format, epilogue, .. } = self;
        assert!(
            error < 2e-5,
            "{error:.1e}: [{rows}, {k}] × [{n}, {k}] {format:?} {epilogue:?} {isa:?} {workers}"
        );
    }
}

fn run_op(
    op: &Linear<crate::cpu::program::CpuProgram>,
    rows: usize,
    isa: Isa,
    workers: usize,
) -> Vec<Vec<f32>> {
    let mut plan = ScratchPlan::default();
    super::plan(op, rows, &mut plan);
    test_team::run(isa, workers, plan, |ctx| super::run(op, rows, ctx));
    test_team::rows(&op.out, rows)
}

/// Without a look at the padding, which a row of NaN spoils.
fn run_rows_of(
    op: &Linear<crate::cpu::program::CpuProgram>,
    rows: usize,
    isa: Isa,
) -> Vec<Vec<f32>> {
    let mut plan = ScratchPlan::default();
    super::plan(op, rows, &mut plan);
    test_team::run(isa, 2, plan, |ctx| super::run(op, rows, ctx));
    // SAFETY: nobody writes any more.
    (0..rows).map(|row| unsafe { op.out.row(row) }[..op.out.cols()].to_vec()).collect()
}

#[test]
fn odd_shapes_agree_with_float64() {
    let shapes = [(1, 1, 1), (1, 16, 7), (1, 130, 33), (2, 17, 1), (3, 33, 64), (5, 48, 31)];
    let more = [(6, 15, 129), (7, 100, 96), (13, 47, 50), (97, 40, 37), (0, 20, 20)];
    for (isa, workers) in test_team::teams() {
        for (rows, n, k) in shapes.into_iter().chain(more) {
            for format in FORMATS {
                Case::plain(rows, n, k, format).assert_close(isa, workers);
            }
        }
    }
}

#[test]
fn every_epilogue_agrees_with_float64() {
    let epilogues = [
        Epilogue::Store,
        Epilogue::Add,
        Epilogue::Glu(Act::Silu),
        Epilogue::Glu(Act::Gelu),
        Epilogue::Glu(Act::GeluTanh),
        Epilogue::Scale { scale: 0.3, soft_cap: None },
        Epilogue::Scale { scale: 2.0, soft_cap: Some(5.0) },
    ];
    for isa in Isa::available() {
        for epilogue in epilogues {
            for biased in [false, true] {
                for format in FORMATS {
                    for n in [2, 18, 70] {
                        let case = Case { rows: 7, n, k: 41, format, biased, epilogue };
                        case.assert_close(isa, 2);
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_company() {
    for isa in Isa::available() {
        for format in FORMATS {
            let all = Case::plain(97, 37, 51, format).run(isa, 1);
            for rows in 1..=97 {
                // Slow lanes take a sample of the row counts; all tiles are among them.
                if isa == Isa::Emulated512 && rows > 30 && rows % 11 != 0 {
                    continue;
                }
                let workers = 1 + rows % 3;
                assert_eq!(Case::plain(rows, 37, 51, format).run(isa, workers), all[..rows]);
            }
            for row in [1, 13, 50, 96] {
                let case = Case::plain(1, 37, 51, format);
                let alone = test_team::activation(1, 51, |_, col| noise(2, row, col));
                assert_eq!(run_op(&case.op(alone), 1, isa, 2)[0], all[row]);
            }
        }
    }
}

/// Several row blocks, many panels: the cut over N and over blocks changes nothing either.
#[test]
fn blocks_of_rows_change_no_bit() {
    for (isa, workers) in test_team::teams().filter(|(isa, _)| *isa != Isa::Emulated512) {
        for format in FORMATS {
            let large = Case::plain(40, 70, 5000, format);
            let all = large.run(isa, workers);
            for row in [0, 11, 12, 39] {
                let alone = test_team::activation(1, 5000, |_, col| noise(2, row, col));
                let op = Case::plain(1, 70, 5000, format).op(alone);
                assert_eq!(run_op(&op, 1, isa, 1)[0], all[row]);
            }
        }
    }
}

/// The sets with fused multiply-add agree with each other: AVX2 does bf16 pairs in the order of
/// VDPBF16PS, and nothing here is denormal.
#[test]
fn fused_instruction_sets_agree() {
    for format in FORMATS {
        let fused = Isa::available().filter(|isa| *isa != Isa::Portable);
        let results: Vec<_> = fused.map(|isa| Case::plain(9, 40, 77, format).run(isa, 1)).collect();
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{format:?}");
    }
}

#[test]
fn a_planted_fault_is_seen() {
    for (isa, format) in Isa::available().flat_map(|isa| FORMATS.map(|format| (isa, format))) {
        let case = Case::plain(3, 20, 40, format);
        let op = case.op(case.x());
        // SAFETY: the only owner.
        let x = unsafe { op.x.row_mut(1) };
        x.swap(4, 5);
        let got = run_op(&op, 3, isa, 2);
        let errors: Vec<f64> =
            got.iter().zip(case.reference()).map(|(g, w)| reference::error(g, &w)).collect();
        assert!(errors[0] < 2e-5 && errors[1] > 0.05 && errors[2] < 2e-5, "{errors:?} {format:?}");
    }
}

/// A row that is not finite gives no number, and its neighbours are as ever.
#[test]
fn a_row_that_is_not_finite_poisons_itself_alone() {
    for (isa, format) in Isa::available().flat_map(|isa| FORMATS.map(|format| (isa, format))) {
        for bad in [f32::NAN, f32::INFINITY] {
            let case = Case::plain(3, 20, 70, format);
            let op = case.op(case.x());
            // SAFETY: the only owner.
            unsafe { op.x.row_mut(1)[65] = bad };
            let got = run_rows_of(&op, 3, isa);
            assert!(got[1].iter().all(|value| !value.is_finite()), "{format:?} {isa:?}");
            let want = case.reference();
            assert!(reference::error(&got[0], &want[0]) < 2e-5);
            assert!(reference::error(&got[2], &want[2]) < 2e-5);
        }
    }
}

/// AVX2's rows are f32 values, so that an f16 or f32 weight must not see them rounded to bf16.
#[test]
fn f16_weights_do_not_round_rows() {
    for isa in Isa::available() {
        let x = test_team::activation(1, 1, |_, _| 1.000_976_6);
        let weight =
            PackedWeight::from_values(1, (1, 1), DType::F16, |_, _, _| 1.000_976_6).unwrap();
        let out = Activation::new(1, 1).unwrap();
        let op = Linear { x, weight, bias: None, out, epilogue: Epilogue::Store };
        assert_eq!(run_op(&op, 1, isa, 1), [[1.000_976_6f32 * 1.000_976_6]]);
    }
}
