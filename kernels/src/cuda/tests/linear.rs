//! linear.cu.

use super::*;
use crate::cuda::linear::{Linear, stride_of};
use crate::ops::{Activation, Epilogue};
use crate::reference::{self, Matrix, error};

/// A product to check.
#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    n: usize,
    k: usize,
    format: DType,
    biased: bool,
    epilogue: Epilogue,
}

impl Case {
    fn plain(rows: usize, n: usize, k: usize, format: DType) -> Self {
        Case { rows, n, k, format, biased: false, epilogue: Epilogue::Store }
    }

    fn out_cols(&self) -> usize {
        if matches!(self.epilogue, Epilogue::Glu(_)) { self.n / 2 } else { self.n }
    }

    fn run(&self, bed: &Bed) -> Result<Vec<f32>, KernelError> {
        let Case { rows, n, k, format, .. } = *self;
        let stride = stride_of(k, format);
        let weight: Vec<f32> = (0..n * stride)
            .map(|i| if i % stride < k { noise(2, i / stride * k + i % stride) } else { 0.0 })
            .collect();
        let len = rows * self.out_cols();
        let out = match self.epilogue {
            Epilogue::Add => bed.floats(&noises(4, len)),
            _ => bed.poison(len),
        };
        let (x, weight) = (bed.floats(&noises(1, rows * k)), bed.numbers(&weight, format));
        let bias = self.biased.then(|| bed.floats(&noises(3, n)));
        let pointers = [x.pointer(), weight.pointer(), out.pointer()];
        let bias = bias.as_ref().map_or(DevicePointer::NULL, DeviceBuffer::pointer);
        let linear = Linear { bias, ..Linear::plain(pointers, rows, (n, k), format) };
        // SAFETY: buffers of these shapes.
        unsafe { linear.with_epilogue(self.epilogue).launch(&*bed.driver, format) }?;
        Ok(read_floats(&out, len))
    }

    fn reference(&self) -> Vec<f64> {
        let Case { rows, n, k, format, .. } = *self;
        let wide =
            |seed, len| -> Vec<f64> { noises(seed, len).into_iter().map(f64::from).collect() };
        let weight = Matrix { rows: n, cols: k, data: wide(2, n * k) }.rounded(format);
        let (x, bias, before) = (wide(1, rows * k), wide(3, n), wide(4, rows * self.out_cols()));
        x.chunks(k)
            .zip(before.chunks(self.out_cols()))
            .flat_map(|(x, before)| {
                let bias = self.biased.then_some(bias.as_slice());
                let values = reference::linear(x, &weight, bias, format);
                reference::epilogue(&values, before, self.epilogue)
            })
            .collect()
    }

    fn is_right(&self, bed: &Bed) -> Result<bool, KernelError> {
        Ok(error(&self.run(bed)?, &self.reference()) < 2e-5)
    }
}

#[test]
fn shapes_formats_and_rows() {
    for format in [DType::F32, DType::Bf16, DType::F16] {
        for (rows, n, k) in
            [(1, 1, 1), (1, 9, 300), (2, 16, 64), (3, 7, 1000), (8, 33, 40), (19, 10, 136)]
        {
            for seed in SEEDS {
                let case = Case::plain(rows, n, k, format);
                assert!(case.is_right(&Bed::new(seed, None)).unwrap(), "{case:?}");
            }
        }
    }
}

#[test]
fn biases_and_epilogues() {
    let cap = Some(0.5);
    let epilogues = [
        Epilogue::Store,
        Epilogue::Add,
        Epilogue::Glu(Activation::Silu),
        Epilogue::Glu(Activation::GeluTanh),
        Epilogue::Glu(Activation::Gelu),
        Epilogue::Scale { scale: 0.3, soft_cap: cap },
        Epilogue::Scale { scale: 2.0, soft_cap: None },
    ];
    for epilogue in epilogues {
        for (biased, n) in [(true, 22), (false, 10)] {
            let case = Case { biased, epilogue, ..Case::plain(5, n, 80, DType::Bf16) };
            assert!(case.is_right(&Bed::new(1, None)).unwrap(), "{case:?}");
        }
    }
}

#[test]
fn a_rows_bits_do_not_depend_on_its_company() {
    for format in [DType::F32, DType::Bf16] {
        let case = |rows| Case::plain(rows, 11, 520, format).run(&Bed::new(9, None)).unwrap();
        let all = case(17);
        for rows in [1, 2, 3, 8, 16] {
            assert_eq!(case(rows), all[..rows * 11], "{rows} {format:?}");
        }
    }
}

#[test]
fn planted_faults_show() {
    let faults = [
        Fault { from: "words[i / 2] >> (i % 2 * 16)", to: "words[i / 2] >> ((i + 1) % 2 * 16)" },
        Fault { from: "is_row && i < p.k", to: "is_row" },
        Fault { from: "rows + row * p.stride + k", to: "rows + row * p.k + k" },
        Fault { from: "    sync_block();\n", to: "" },
        Fault { from: "first += p.bias[n];", to: "first += p.bias[n + 1];" },
        Fault { from: "k += WARP * PIECE<T>", to: "k += WARP * PIECE<T> + PIECE<T>" },
        Fault { from: "first_row + row < p.rows) finish", to: "true) finish" },
        Fault { from: "n + i < p.n", to: "true" },
    ];
    let cases = [
        Case { biased: true, ..Case::plain(3, 11, 1001, DType::Bf16) },
        Case { biased: true, ..Case::plain(5, 7, 45, DType::Bf16) },
    ];
    assert_caught(&faults, |bed| Ok(cases[0].is_right(bed)? && cases[1].is_right(bed)?));
}
