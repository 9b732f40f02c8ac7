//! linear_quantized.cu.

use super::dice::Dice;
use super::*;
use crate::cuda::linear::Linear;
use crate::ops::{Activation, Epilogue};
use crate::reference::{self, Matrix, error};
use crate::weight_format::Quantization;

/// A product to check.
#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    n: usize,
    k: usize,
    quantization: Quantization,
    biased: bool,
    epilogue: Epilogue,
    /// Blocks at once: few of them take several pairs each.
    blocks: u32,
}

impl Case {
    fn plain(rows: usize, n: usize, k: usize, quantization: Quantization) -> Self {
        let epilogue = Epilogue::Store;
        Case { rows, n, k, quantization, biased: false, epilogue, blocks: 16 }
    }

    fn out_cols(&self) -> usize {
        if matches!(self.epilogue, Epilogue::Glu(_)) { self.n / 2 } else { self.n }
    }

    fn run(&self, bed: &Bed) -> Result<Vec<f32>, KernelError> {
        let Case { rows, n, k, quantization, .. } = *self;
        let len = rows * self.out_cols();
        let out = match self.epilogue {
            Epilogue::Add => bed.floats(&noises(4, len)),
            _ => bed.poison(len),
        };
        let weight = StoredWeight::new(bed, quantization.into(), &noises(2, n * k), k);
        let x = bed.floats(&noises(1, rows * k));
        let bias = self.biased.then(|| bed.floats(&noises(3, n)));
        let bias = bias.as_ref().map_or(DevicePointer::NULL, DeviceBuffer::pointer);
        let plain = weight.linear([x.pointer(), out.pointer()], rows, (n, k));
        let op = Linear { bias, ..plain }.with_epilogue(self.epilogue);
        // SAFETY: buffers of these shapes.
        unsafe { op.launch_quantized_rows(&*bed.driver, quantization, self.blocks) }?;
        Ok(read_floats(&out, len))
    }

    fn reference(&self) -> Vec<f64> {
        let Case { rows, n, k, quantization, .. } = *self;
        let wide =
            |seed, len| -> Vec<f64> { noises(seed, len).into_iter().map(f64::from).collect() };
        let weight = Matrix { rows: n, cols: k, data: wide(2, n * k) }.stored(quantization);
        let (x, bias, before) = (wide(1, rows * k), wide(3, n), wide(4, rows * self.out_cols()));
        x.chunks(k)
            .zip(before.chunks(self.out_cols()))
            .flat_map(|(x, before)| {
                let bias = self.biased.then_some(bias.as_slice());
                let values = reference::linear(x, &weight, bias, quantization);
                reference::epilogue(&values, before, self.epilogue)
            })
            .collect()
    }

    fn is_right(&self, bed: &Bed) -> Result<bool, KernelError> {
        Ok(error(&self.run(bed)?, &self.reference()) < 2e-5)
    }
}

/// A product of any format.
pub(in crate::cuda) fn random(bed: &Bed, dice: &mut Dice, most: usize) -> Drawn {
    let rows = dice.size(40.min(most / 16));
    let k = dice.size(8192.min(most / rows / 2));
    let n = dice.size(8192.min(most / rows / k)).next_multiple_of(2);
    let glu = Epilogue::Glu(dice.of(&[Activation::Silu, Activation::GeluTanh]));
    let epilogue = dice.of(&[Epilogue::Store, Epilogue::Add, glu]);
    let (quantization, biased) = (dice.of(&Quantization::ALL), dice.once_in(2));
    let case = Case { biased, epilogue, ..Case::plain(rows, n, k, quantization) };
    (format!("{case:?}"), case.is_right(bed))
}

#[test]
fn shapes_formats_and_rows() {
    for quantization in Quantization::ALL {
        for (rows, n, k) in
            [(1, 1, 1), (1, 9, 300), (2, 16, 64), (3, 7, 1100), (8, 33, 40), (19, 10, 136)]
        {
            for seed in SEEDS {
                let case =
                    Case { blocks: seed as u32 - 1, ..Case::plain(rows, n, k, quantization) };
                assert!(case.is_right(&Bed::new(seed, None)).unwrap(), "{case:?}");
            }
        }
    }
}

#[test]
fn biases_and_epilogues() {
    let cap = Some(0.5);
    let epilogues = [
        Epilogue::Add,
        Epilogue::Glu(Activation::Silu),
        Epilogue::Scale { scale: 0.3, soft_cap: cap },
    ];
    for (epilogue, quantization) in epilogues.into_iter().zip(Quantization::ALL) {
        for (biased, n) in [(true, 22), (false, 10)] {
            let case = Case { biased, epilogue, ..Case::plain(5, n, 80, quantization) };
            assert!(case.is_right(&Bed::new(1, None)).unwrap(), "{case:?}");
        }
    }
}

#[test]
fn a_rows_bits_depend_neither_on_its_company_nor_on_blocks() {
    for quantization in Quantization::ALL {
        let case = |rows, blocks| {
            let case = Case { blocks, ..Case::plain(rows, 27, 520, quantization) };
            case.run(&Bed::new(9, None)).unwrap()
        };
        let all = case(17, 16);
        for (rows, blocks) in [(1, 1), (2, 0), (3, 16), (8, 1), (16, 0)] {
            assert_eq!(case(rows, blocks), all[..rows * 27], "{rows} {quantization:?}");
        }
    }
}

/// One product with experts: rows of `x` each meet two of four matrices.
fn multiplies(bed: &Bed, quantization: Quantization) -> Result<bool, KernelError> {
    let (n, k, num_experts, rows) = (10, 72, 4, 5);
    let chosen = [1, 3, 0, 2, 0, 1, 2, 3, 3, 1];
    let (x, values) = (noises(1, rows * k), noises(2, num_experts * n * k));
    let weight = StoredWeight::new(bed, quantization.into(), &values, k);
    let out = bed.poison(chosen.len() * n);
    let (on_x, on_chosen) = (bed.floats(&x), bed.words(&chosen));
    let pointers = [on_x.pointer(), out.pointer()];
    let plain = weight.linear(pointers, chosen.len(), (n, k));
    let op = Linear { experts: on_chosen.pointer(), rows_per_x: 2, ..plain };
    // SAFETY: buffers of these shapes.
    unsafe { op.launch_quantized_rows(&*bed.driver, quantization, 1) }?;
    let mut want = Vec::new();
    for (row, &expert) in chosen.iter().enumerate() {
        let x: Vec<f64> = x[row / 2 * k..][..k].iter().map(|&x| f64::from(x)).collect();
        let matrix = &values[expert as usize * n * k..][..n * k];
        let data = matrix.iter().map(|&w| f64::from(w)).collect();
        let weight = Matrix { rows: n, cols: k, data }.stored(quantization);
        want.extend(reference::linear(&x, &weight, None, quantization));
    }
    Ok(error(&read_floats(&out, want.len()), &want) < 2e-5)
}

#[test]
fn rows_meet_their_experts() {
    for quantization in Quantization::ALL {
        assert!(multiplies(&Bed::new(2, None), quantization).unwrap());
    }
    let faults = [
        Fault { from: "p.experts ? p.experts[first_row]", to: "p.experts ? p.experts[0]" },
        Fault { from: "matrix * p.n +", to: "matrix +" },
        Fault { from: "(u64)(row / p.rows_per_x)", to: "(u64)row" },
    ];
    assert_caught(&faults, |bed| multiplies(bed, Quantization::Q8_0));
}

/// A row that is not finite gives no number, and its neighbours are as ever.
#[test]
fn a_row_that_is_not_finite_poisons_itself_alone() {
    let (n, k) = (9, 70);
    for quantization in Quantization::ALL {
        for bad in [f32::NAN, f32::NEG_INFINITY] {
            let bed = Bed::new(3, None);
            let mut x = noises(1, 2 * k);
            x[k + 66] = bad;
            let weight = StoredWeight::new(&bed, quantization.into(), &noises(2, n * k), k);
            let (x, out) = (bed.floats(&x), bed.poison(2 * n));
            let op = weight.linear([x.pointer(), out.pointer()], 2, (n, k));
            // SAFETY: buffers of these shapes.
            unsafe { op.launch_quantized_rows(&*bed.driver, quantization, 16) }.unwrap();
            let got = read_floats(&out, 2 * n);
            assert!(got[n..].iter().all(|value| !value.is_finite()), "{quantization:?}");
            assert!(error(&got[..n], &Case::plain(1, n, k, quantization).reference()) < 2e-5);
        }
    }
}

/// A case with a tail in every direction, and one in which a lane has two pieces and a block two pairs.
fn hard_cases(quantization: Quantization) -> impl Fn(&Bed) -> Result<bool, KernelError> {
    let cases = [
        Case { biased: true, ..Case::plain(4, 11, 1101, quantization) },
        Case { biased: true, blocks: 0, ..Case::plain(5, 37, 45, quantization) },
    ];
    move |bed| Ok(cases[0].is_right(bed)? && cases[1].is_right(bed)?)
}

#[test]
fn planted_faults_of_quantized_rows_show() {
    let faults = [
        Fault { from: "k < end ? x[k] : 0.0f", to: "x[k]" },
        Fault { from: "steps + 12582912.0f", to: "steps + 12582912.5f + 0.5f" },
        Fault { from: "distance /= 2) most", to: "distance /= 4) most" },
        Fault { from: "<< (8 * i)", to: "<< (8 * (3 - i))" },
        Fault { from: "/ 127.0f", to: "/ 128.0f" },
        Fault { from: "if (block >= to.blocks) continue;", to: "" },
        Fault { from: "    sync_block();\n", to: "" },
    ];
    assert_caught(&faults, hard_cases(Quantization::Q8_0));
}

#[test]
fn planted_faults_of_q8_0_show() {
    let faults = [
        Fault { from: "block[half * 4 + i]", to: "block[i]" },
        Fault { from: "piece / F::PIECES", to: "piece" },
        Fault { from: "piece += WARP", to: "piece += WARP + 1" },
        Fault { from: "scale_stride(rows.blocks) + block]", to: "scale_stride(rows.blocks)]" },
        Fault { from: "scale_stride(rows.blocks) + block]", to: "rows.blocks + block]" },
        Fault { from: "u32 at = row * rows.blocks + block", to: "u32 at = block" },
        Fault { from: "+ i < p.n ? n + i : n", to: "+ i < p.n ? n : n" },
        Fault {
            from: "gridDim.x * QUANTIZED_WARPS * PAIR",
            to: "gridDim.x * QUANTIZED_WARPS * PAIR * 2",
        },
        Fault { from: "first_row + row >= p.rows) continue", to: "false) continue" },
    ];
    assert_caught(&faults, hard_cases(Quantization::Q8_0));
}

#[test]
fn planted_faults_of_q4_0_show() {
    let faults = [
        Fault { from: "OFFSET = 8", to: "OFFSET = 7" },
        Fault { from: "w[i] >> 4 & 0x0f0f0f0f", to: "w[i] >> 4" },
        Fault { from: "block[4 + i]", to: "block[i]" },
        Fault { from: "i32 sum = start;", to: "i32 sum = 0;" },
        Fault { from: "-offset * sum", to: "offset * sum" },
        Fault { from: "sum += shuffle_xor(sum, distance)", to: "sum += shuffle_xor(sum, 1)" },
    ];
    assert_caught(&faults, hard_cases(Quantization::Q4_0));
}

#[test]
fn planted_faults_of_fp8_show() {
    let faults = [
        Fault { from: "(code & 0x80) << 8", to: "(code & 0x80) << 7" },
        Fault { from: "(code & 0x7f) << 7", to: "(code & 0x3f) << 7" },
        Fault { from: ">> (j % 4 * 8)", to: ">> (j / 4 * 8)" },
        Fault { from: "rows[row * p.stride + k + j]", to: "rows[row * p.k + k + j]" },
        Fault { from: "k += WARP * 16", to: "k += WARP * 8" },
        Fault { from: "(const float*)p.scales)[row]", to: "(const float*)p.scales)[n]" },
        Fault { from: "k < end ? x[k] : 0.0f", to: "x[k]" },
    ];
    assert_caught(&faults, hard_cases(Quantization::Fp8));
}
