//! What quantization makes of weights and of a linear's input rows, stated in float64.
//!
//! The definition of [`crate::quantize`] and [`crate::ops`] again, in other words: codes are found
//! among all there are, by distance. Quotients are rounded to f32 where the definition does.

use super::round;
use crate::dtype::DType;
use crate::weight_format::Quantization;

/// Elements that share a scale.
const BLOCK: usize = 32;

/// The values that a row of a weight stands for. All of it finite.
pub fn row(row: &[f64], quantization: Quantization) -> Vec<f64> {
    match quantization {
        Quantization::Q8_0 => row.chunks(BLOCK).flat_map(q8_0).collect(),
        Quantization::Q4_0 => row.chunks(BLOCK).flat_map(q4_0).collect(),
        Quantization::Fp8 => fp8(row),
    }
}

/// The values that remain of an input row which meets a weight in blocks.
pub fn input(row: &[f64]) -> Vec<f64> {
    let block = |block: &[f64]| -> Vec<f64> {
        let scale = single(magnitude(block) / 127.0);
        let nearest = |x: &f64| integer(*x, scale, -127, 127) * scale;
        block.iter().map(nearest).collect()
    };
    row.chunks(BLOCK).flat_map(block).collect()
}

fn q8_0(block: &[f64]) -> Vec<f64> {
    let scale = round(magnitude(block) / 127.0, DType::F16);
    block.iter().map(|&x| integer(x, scale, -127, 127) * scale).collect()
}

fn q4_0(block: &[f64]) -> Vec<f64> {
    let largest = magnitude(block);
    let signed = block.iter().copied().find(|x| x.abs() == largest).unwrap_or(0.0);
    let scale = round(signed / -8.0, DType::F16);
    block.iter().map(|&x| integer(x, scale, -8, 7) * scale).collect()
}

/// The values that a head's key or value stands for in an fp8 cache ([`crate::kv_format`]).
pub fn kv_head(head: &[f64]) -> Vec<f64> {
    let most = magnitude(head);
    if !head.iter().all(|x| x.is_finite()) {
        return vec![f64::NAN; head.len()];
    }
    let fits = |exponent: &i32| most <= 448.0 * 2f64.powi(*exponent);
    let scale = 2f64.powi((-111..=119).find(fits).unwrap_or(119));
    head.iter().map(|x| e4m3(x / scale) * scale).collect()
}

fn fp8(row: &[f64]) -> Vec<f64> {
    let scale = single(magnitude(row) / 448.0);
    row.iter().map(|&x| e4m3(quotient(x, scale)) * scale).collect()
}

/// The nearest of all finite e4m3.
fn e4m3(steps: f64) -> f64 {
    // Sign, four bits of exponent, three of fraction; 0x7f would be NaN.
    let value = |code: u32| {
        let (exponent, fraction) = (code as i32 / 8, f64::from(code % 8));
        if exponent == 0 {
            fraction / 8.0 * 2f64.powi(-6)
        } else {
            (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7)
        }
    };
    let distance = |code: u32| (value(code) - steps.abs()).abs();
    let best = (0..0x7f).fold(0, |best, code| match distance(code).total_cmp(&distance(best)) {
        std::cmp::Ordering::Less => code,
        std::cmp::Ordering::Equal if code % 2 == 0 => code,
        _ => best,
    });
    value(best) * steps.signum()
}

/// The nearest number of steps within bounds; of two equally near the even one.
fn integer(x: f64, scale: f64, least: i32, most: i32) -> f64 {
    let steps = quotient(x, scale);
    let distance = |code: i32| (f64::from(code) - steps).abs();
    let nearest = (least..=most).reduce(|best, code| match distance(code) - distance(best) {
        nearer if nearer < 0.0 => code,
        0.0 if code % 2 == 0 => code,
        _ => best,
    });
    f64::from(nearest.unwrap_or(0))
}

/// `x / scale` as f32 has it; nothing where there is no scale.
fn quotient(x: f64, scale: f64) -> f64 {
    if scale == 0.0 { 0.0 } else { single(x / scale) }
}

fn magnitude(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, x| x.abs().max(most))
}

fn single(x: f64) -> f64 {
    f64::from(x as f32)
}
