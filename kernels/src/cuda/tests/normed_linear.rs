//! Products of few rows that norm them themselves: few_rows.cuh, against norm.cu and a product.

use super::*;
use crate::cuda::norm::{Norm, Put};
use crate::reference::{self, Matrix, error};

const EPS: f32 = 1e-3;
const FORMATS: [WeightFormat; 6] = [
    WeightFormat::Plain(DType::F32),
    WeightFormat::Plain(DType::Bf16),
    WeightFormat::Plain(DType::F16),
    WeightFormat::Quantized(Quantization::Q8_0),
    WeightFormat::Quantized(Quantization::Q4_0),
    WeightFormat::Quantized(Quantization::Fp8),
];

/// A product of normed rows, by one kernel and by two.
struct Both {
    one: Vec<f32>,
    two: Vec<f32>,
}

const N: usize = 11;

fn run(bed: &Bed, rows: usize, k: usize, format: WeightFormat) -> Result<Both, KernelError> {
    let weight = StoredWeight::new(bed, format, &noises(2, N * k), k);
    let (x, norm) = (bed.floats(&noises(1, rows * k)), bed.floats(&noises(5, k)));
    let [normed, one, two] = [rows * k, rows * N, rows * N].map(|len| bed.poison(len));
    let apart = Norm {
        x: x.pointer(),
        weight: norm.pointer(),
        out: normed.pointer(),
        cols: k as u32,
        eps: EPS,
    };
    let by_two = weight.linear([normed.pointer(), two.pointer()], rows, (N, k));
    let by_one = Linear {
        norm: norm.pointer(),
        eps: EPS,
        ..weight.linear([x.pointer(), one.pointer()], rows, (N, k))
    };
    // SAFETY: buffers of these shapes.
    unsafe {
        apart.launch(&*bed.driver, Put::Store, rows as u32)?;
        by_two.launch_few(&*bed.driver, format, 2)?;
        by_one.launch_few(&*bed.driver, format, 2)?;
    }
    Ok(Both { one: read_floats(&one, rows * N), two: read_floats(&two, rows * N) })
}

#[test]
fn one_kernel_gives_the_bits_of_two() {
    for format in FORMATS {
        for ((rows, k), seed) in
            [(1, 1), (1, 70), (2, 1000), (3, 5003), (4, 33)].into_iter().zip(1..)
        {
            let both = run(&Bed::new(seed, None), rows, k, format).unwrap();
            assert!(both.one.iter().all(|value| value.is_finite()));
            assert_eq!(both.one, both.two, "{rows} {k} {format:?}");
        }
    }
}

#[test]
fn both_are_what_is_asked_for() {
    let (rows, k) = (3, 700);
    let wide = |seed, len| -> Vec<f64> { noises(seed, len).into_iter().map(f64::from).collect() };
    let weight = Matrix { rows: N, cols: k, data: wide(2, N * k) };
    let (x, norm) = (wide(1, rows * k), wide(5, k));
    let want: Vec<f64> = x
        .chunks(k)
        .flat_map(|x| {
            let normed = reference::rms_norm(x, &norm, f64::from(EPS));
            reference::linear(&normed, &weight, None, DType::F32)
        })
        .collect();
    let both = run(&Bed::new(1, None), rows, k, DType::F32.into()).unwrap();
    assert!(error(&both.one, &want) < 1e-5);
}

#[test]
fn planted_faults_show() {
    let faults = [
        Fault { from: "* inverse * weights[i].at[j]", to: "* inverse" },
        Fault { from: ", inverse = inverses.at[next]", to: "" },
        Fault { from: "p.k, p.eps, scratch", to: "p.k, 0.0f, scratch" },
        Fault { from: "i % OWN * (THREADS / WARP) + warp_index()", to: "warp_index()" },
        Fault { from: "squares[i / COUNT][i % OWN];", to: "squares[0][i % OWN];" },
        Fault {
            from: "    sync_block();\n    Inverses<ROWS> inverses;",
            to: "    Inverses<ROWS> inverses;",
        },
    ];
    for (source, format) in [
        ("linear.cu", DType::Bf16.into()),
        ("linear.cu", Quantization::Fp8.into()),
        ("linear_quantized.cu", Quantization::Q8_0.into()),
    ] {
        let check = |bed: &Bed| {
            let both = run(bed, 11, 1030, format)?;
            Ok(both.one == both.two)
        };
        assert_caught_in(source, &faults, check);
    }
}
