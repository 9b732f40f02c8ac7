//! Shares of products with quantized weights: of packed bytes, codes and scales together.

use super::super::Run;
use super::super::shapes::{deterministic_rows, quantized_rows};
use super::Bench;
use super::formats::deterministic;
use super::products::Multiplied;
use crate::error::KernelError;
use crate::weight_format::{Quantization, WeightFormat};

pub(in crate::cuda::suite) fn run(run: &mut Run<'_>) -> Result<bool, KernelError> {
    let bench = Bench::new(run)?;
    let (own, fixed) = (run.target, deterministic(run.target));
    // Of few rows it is as every other step of few.
    let many = &deterministic_rows(run.size)[deterministic_rows(run.size).len() - 1..];
    for (prefix, target, rows) in
        [("", own, quantized_rows(run.size)), ("deterministic ", fixed, many)]
    {
        for quantization in Quantization::ALL {
            let format = WeightFormat::from(quantization);
            let prefix = format!("{prefix}{} ", format.name());
            let asked = Multiplied { prefix: &prefix, format, rows, target };
            if !bench.products(run, &asked)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
