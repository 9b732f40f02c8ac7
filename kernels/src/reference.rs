//! Every op in plain float64 loops: what the kernels are tested against.
//!
//! Independent of the devices on purpose: row-major slices, no packing, no blocks of registers, no
//! shared code. Inputs are rounded (bf16 rows, cache types) where the op list says so, and nowhere
//! else. For tests, here and in other crates; far too slow to serve.

/// Attention of a row and head.
pub mod attention;

/// What quantization makes of weights and rows.
pub mod quantized;

/// Exact probabilities of sampling.
pub mod sample;

use half::{bf16, f16};

use crate::dtype::DType;
use crate::kv_format::KvFormat;
use crate::ops::{Activation, Epilogue, RopeStyle};
use crate::weight_format::WeightFormat;

/// A dense row-major matrix of float64.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// `rows × cols` elements.
    pub data: Vec<f64>,
}

impl Matrix {
    /// A matrix of `value(row, col)`.
    pub fn from_fn(rows: usize, cols: usize, value: impl Fn(usize, usize) -> f64) -> Self {
        let data = (0..rows * cols).map(|i| value(i / cols, i % cols)).collect();
        Matrix { rows, cols, data }
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// Every element rounded to `dtype`.
    pub fn rounded(&self, dtype: DType) -> Self {
        let data = self.data.iter().map(|&value| round(value, dtype)).collect();
        Matrix { data, ..*self }
    }

    /// What a cache in `format` holds: a row is one token's key or value of a head.
    pub fn cached(&self, format: KvFormat) -> Self {
        match format {
            KvFormat::Plain(dtype) => self.rounded(dtype),
            KvFormat::Fp8 => {
                let rows = self.rounded(DType::F32);
                let data = rows.data.chunks(self.cols).flat_map(quantized::kv_head).collect();
                Matrix { data, ..*self }
            }
        }
    }

    /// What a weight stored in `format` stands for.
    pub fn stored(&self, format: impl Into<WeightFormat>) -> Self {
        match format.into() {
            WeightFormat::Plain(dtype) => self.rounded(dtype),
            WeightFormat::Quantized(quantization) => {
                let rows = self.data.chunks(self.cols);
                let data = rows.flat_map(|row| quantized::row(row, quantization)).collect();
                Matrix { data, ..*self }
            }
        }
    }
}

/// `value` rounded to f32 and then to `dtype`, as a checkpoint or a cache stores it.
pub fn round(value: f64, dtype: DType) -> f64 {
    let single = value as f32;
    f64::from(match dtype {
        DType::F32 => single,
        DType::Bf16 => bf16::from_f32(single).to_f32(),
        DType::F16 => f16::from_f32(single).to_f32(),
    })
}

/// Largest difference over the root mean square of what was wanted: free of scale.
pub fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = want.iter().map(|want| want * want).sum::<f64>() / want.len().max(1) as f64;
    let scale = square.sqrt().max(f64::MIN_POSITIVE);
    let differences = got.iter().zip(want).map(|(&got, want)| (f64::from(got) - want).abs());
    differences.fold(0.0, |worst, difference| {
        // A NaN is the worst error, not none.
        if difference.is_nan() { f64::INFINITY } else { difference.max(worst) }
    }) / scale
}

/// `y = x / sqrt(mean(x²) + eps) · weight` of one row.
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let inverse = 1.0 / (mean + eps).sqrt();
    x.iter().zip(weight).map(|(x, weight)| x * inverse * weight).collect()
}

/// `x · weightᵀ + bias` of one row. A bf16 weight sees the row rounded to bf16, a weight in blocks
/// sees it quantized to 8 bits. `weight` is what is stored ([`Matrix::stored`]).
pub fn linear(
    x: &[f64],
    weight: &Matrix,
    bias: Option<&[f64]>,
    format: impl Into<WeightFormat>,
) -> Vec<f64> {
    let x: Vec<f64> = match format.into() {
        WeightFormat::Plain(DType::Bf16) => x.iter().map(|&x| round(x, DType::Bf16)).collect(),
        WeightFormat::Quantized(quantization) if quantization.quantizes_rows() => {
            quantized::input(x)
        }
        _ => x.to_vec(),
    };
    (0..weight.rows)
        .map(|n| {
            let sum: f64 = weight.row(n).iter().zip(&x).map(|(w, x)| w * x).sum();
            sum + bias.map_or(0.0, |bias| bias[n])
        })
        .collect()
}

/// What an epilogue makes of `acc + bias`, given what the output held before.
pub fn epilogue(values: &[f64], before: &[f64], epilogue: Epilogue) -> Vec<f64> {
    match epilogue {
        Epilogue::Store => values.to_vec(),
        Epilogue::Add => values.iter().zip(before).map(|(value, before)| before + value).collect(),
        Epilogue::Glu(activation) => {
            values.chunks_exact(2).map(|pair| activate(activation, pair[0]) * pair[1]).collect()
        }
        Epilogue::Scale { scale, soft_cap } => values
            .iter()
            .map(|value| {
                let scaled = value * f64::from(scale);
                soft_cap.map_or(scaled, |cap| f64::from(cap) * (scaled / f64::from(cap)).tanh())
            })
            .collect(),
    }
}

/// An activation function.
pub fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        }
        Activation::Gelu => x * normal_cdf(x),
    }
}

/// The standard normal distribution function, by its series near zero and a continued fraction of
/// erfc in the tails; about 1e-14.
pub fn normal_cdf(x: f64) -> f64 {
    let z = x.abs() / std::f64::consts::SQRT_2;
    let upper_tail = if z < 2.0 {
        // erf z = 2/√π Σ (−1)ⁿ z²ⁿ⁺¹ / (n! (2n + 1)).
        let (mut term, mut sum) = (z, z);
        for n in 1..60 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        0.5 - sum / std::f64::consts::PI.sqrt()
    } else {
        // erfc z = e^(−z²)/√π · 1 / (z + ½ / (z + 1 / (z + 3⁄2 / (z + …)))), from the inside out.
        let tail = (1..=60).rev().fold(z, |tail, n| z + f64::from(n) / 2.0 / tail);
        0.5 * (-z * z).exp() / (std::f64::consts::PI.sqrt() * tail)
    };
    if x < 0.0 { upper_tail } else { 1.0 - upper_tail }
}

/// Turns one head by the table's row for its position: `rotary_dim/2` cosines, then as many sines.
pub fn rope(head: &mut [f64], table: &[f64], style: RopeStyle) {
    let half = table.len() / 2;
    for i in 0..half {
        let (a, b) = match style {
            RopeStyle::Halves => (i, i + half),
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
        };
        let (cos, sin) = (table[i], table[half + i]);
        (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
    }
}

/// The chosen experts of a row in ascending order, with their weights. `scores` are router logits.
pub fn route(
    scores: &[f64],
    num_chosen: usize,
    routing: crate::ops::Routing,
    renormalize: bool,
) -> Vec<(usize, f64)> {
    let probabilities: Vec<f64> = match routing {
        crate::ops::Routing::Softmax => {
            let sum: f64 = scores.iter().map(|score| score.exp()).sum();
            scores.iter().map(|score| score.exp() / sum).collect()
        }
        crate::ops::Routing::Sigmoid => scores.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
    };
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b)));
    order.truncate(num_chosen);
    order.sort_unstable();
    let sum: f64 = order.iter().map(|&expert| probabilities[expert]).sum();
    let scale = if renormalize { 1.0 / sum } else { 1.0 };
    order.into_iter().map(|expert| (expert, probabilities[expert] * scale)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_cdf_hits_known_values() {
        // Tables of Φ: Φ(0), Φ(1), Φ(−2), Φ(3), Φ(−5).
        let known = [
            (0.0, 0.5),
            (1.0, 0.841_344_746_068_542_9),
            (-2.0, 0.022_750_131_948_179_21),
            (3.0, 0.998_650_101_968_369_9),
            (-5.0, 2.866_515_718_791_939e-7),
        ];
        for (x, want) in known {
            assert!((normal_cdf(x) / want - 1.0).abs() < 1e-12, "{x}");
        }
    }

    #[test]
    fn error_is_free_of_scale_and_sees_nan() {
        assert!((error(&[1.0, 2.0], &[1.0, 2.1]) - error(&[1e6, 2e6], &[1e6, 2.1e6])).abs() < 1e-3);
        assert_eq!(error(&[f32::NAN], &[1.0]), f64::INFINITY);
    }
}
