//! The mixture of experts against float64, and its bits for any team and company.

use crate::batch::Batch;
use crate::cpu::buffer::{Activation, Parameters};
use crate::cpu::command::ScratchPlan;
use crate::cpu::isa::Isa;
use crate::cpu::moe::MoeOp;
use crate::cpu::program::CpuProgram;
use crate::cpu::test_team::{self, noise};
use crate::cpu::weight::PackedWeight;
use crate::device::Limits;
use crate::dtype::DType;
use crate::ops::{Activation as Act, Moe, Norm, Routing};
use crate::reference::{self, Matrix};
use crate::shapes::check_experts;
use crate::weight_format::{Quantization, WeightFormat};

const HIDDEN: usize = 20;
const INNER: usize = 9;
const EXPERTS: usize = 7;
const CHOSEN: usize = 3;

/// Of the router, and of the experts.
const FORMATS: [(DType, WeightFormat); 6] = [
    (DType::F32, WeightFormat::Plain(DType::F32)),
    (DType::Bf16, WeightFormat::Plain(DType::Bf16)),
    (DType::F16, WeightFormat::Plain(DType::F16)),
    (DType::Bf16, WeightFormat::Quantized(Quantization::Q8_0)),
    (DType::F32, WeightFormat::Quantized(Quantization::Q4_0)),
    (DType::Bf16, WeightFormat::Quantized(Quantization::Fp8)),
];

#[derive(Clone, Copy, Debug)]
struct Case {
    /// Of the router.
    dtype: DType,
    /// Of the experts.
    format: WeightFormat,
    routing: Routing,
    renormalize: bool,
}

fn gate_up(expert: usize, n: usize, k: usize) -> f32 {
    noise(100 + expert, n, k)
}

fn down(expert: usize, n: usize, k: usize) -> f32 {
    noise(200 + expert, n, k)
}

fn router(n: usize, k: usize) -> f32 {
    noise(300, n, k)
}

impl Case {
    /// `x` holds rows `first..first + rows` of the noise.
    fn op(&self, first: usize, rows: usize) -> Moe<CpuProgram> {
        let zeros = |rows, cols| Activation::new(rows, cols).unwrap();
        let format = self.format;
        let pairs = rows * CHOSEN;
        Moe {
            x: test_team::activation(rows, HIDDEN, |row, col| noise(5, first + row, col)),
            norm: Norm { weight: Parameters::new(&[1.5; HIDDEN]).unwrap(), eps: 1e-5 },
            normed: zeros(rows, HIDDEN),
            router: PackedWeight::from_values(1, (EXPERTS, HIDDEN), self.dtype, |_, n, k| {
                router(n, k)
            })
            .unwrap(),
            scores: zeros(rows, EXPERTS),
            num_chosen: CHOSEN,
            routing: self.routing,
            renormalize: self.renormalize,
            gate_up: PackedWeight::from_values(EXPERTS, (2 * INNER, HIDDEN), format, gate_up)
                .unwrap(),
            activation: Act::Silu,
            inner: zeros(pairs, INNER),
            down: PackedWeight::from_values(EXPERTS, (HIDDEN, INNER), format, down).unwrap(),
            outer: zeros(pairs, HIDDEN),
        }
    }

    fn run(&self, first: usize, rows: usize, isa: Isa, workers: usize) -> Vec<Vec<f32>> {
        let op = self.op(first, rows);
        check_experts(&op).unwrap();
        let x = op.x.clone();
        let mut moe = MoeOp::new(op);
        let limits = Limits {
            max_tokens: rows,
            max_seqs: 1,
            max_logits_rows: 1,
            vocab: 1,
            max_model_len: rows,
            max_top: 0,
        };
        let mut plan = ScratchPlan::default();
        moe.plan(&mut plan, &limits);
        let batch = Batch { ids: vec![0; rows], ..Batch::default() };
        test_team::run(isa, workers, plan, |ctx| moe.run(ctx, &batch));
        test_team::rows(&x, rows)
    }

    fn reference(&self, row: usize) -> Vec<f64> {
        let plain = |n, k, value: &dyn Fn(usize, usize) -> f32| {
            Matrix::from_fn(n, k, |n, k| f64::from(value(n, k)))
        };
        let matrix =
            |n, k, value: &dyn Fn(usize, usize) -> f32| plain(n, k, value).stored(self.format);
        let x: Vec<f64> = (0..HIDDEN).map(|col| f64::from(noise(5, row, col))).collect();
        let normed = reference::rms_norm(&x, &[1.5; HIDDEN], 1e-5);
        let linear = |x: &[f64], weight: &Matrix| reference::linear(x, weight, None, self.format);
        let router = plain(EXPERTS, HIDDEN, &router).stored(self.dtype);
        let scores = reference::linear(&normed, &router, None, self.dtype);
        let mut out = x;
        for (expert, weight) in reference::route(&scores, CHOSEN, self.routing, self.renormalize) {
            let pairs = linear(&normed, &matrix(2 * INNER, HIDDEN, &|n, k| gate_up(expert, n, k)));
            let glu = crate::ops::Epilogue::Glu(Act::Silu);
            let inner = reference::epilogue(&pairs, &[], glu);
            let outer = linear(&inner, &matrix(HIDDEN, INNER, &|n, k| down(expert, n, k)));
            for (out, outer) in out.iter_mut().zip(outer) {
                *out += weight * outer;
            }
        }
        out
    }
}

#[test]
fn experts_agree_with_float64() {
    for isa in Isa::available() {
        for (dtype, format) in FORMATS {
            for routing in [Routing::Softmax, Routing::Sigmoid] {
                for renormalize in [false, true] {
                    let case = Case { dtype, format, routing, renormalize };
                    let got = case.run(0, 11, isa, 2);
                    for (row, got) in got.iter().enumerate() {
                        // A value that rounds the other way in float64 moves a little.
                        let bound = if crate::cpu::linear::prepares(format) { 3e-3 } else { 2e-5 };
                        let error = reference::error(got, &case.reference(row));
                        assert!(error < bound, "{error:.1e} {case:?} {isa:?} row {row}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_company() {
    for (isa, (dtype, format)) in Isa::available().flat_map(|isa| FORMATS.map(|at| (isa, at))) {
        let case = Case { dtype, format, routing: Routing::Softmax, renormalize: true };
        let all = case.run(0, 23, isa, 1);
        for workers in 1..=3 {
            assert_eq!(case.run(0, 23, isa, workers), all);
            assert_eq!(case.run(4, 6, isa, workers), all[4..10]);
            assert_eq!(case.run(22, 1, isa, workers), all[22..]);
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let (dtype, format) = FORMATS[0];
    let case = Case { dtype, format, routing: Routing::Softmax, renormalize: true };
    let wrong = Moe { num_chosen: EXPERTS + 1, ..case.op(0, 1) };
    assert!(check_experts(&wrong).unwrap_err().contains("chosen"));
    let wrong = Moe { inner: Activation::new(3, INNER + 1).unwrap(), ..case.op(0, 1) };
    assert!(check_experts(&wrong).unwrap_err().contains("inner"));
}
