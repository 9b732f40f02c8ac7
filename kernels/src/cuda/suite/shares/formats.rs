//! What the engine runs in other types than bf16, or where it is asked for one order of sums or has
//! another card: so that every kernel has its share.

use super::super::shapes::{
    Shape, attention_what, attentions, deterministic_rows, few_attentions, format_rows, other_heads,
};
use super::super::{Finding, Run};
use super::Bench;
use super::attention::{Attended, Step};
use super::products::Multiplied;
use super::rows::NARROWED;
use crate::cuda::CudaOptions;
use crate::cuda::linear_choice::Target;
use crate::cuda::norm::Put;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::kv_format::KvFormat;
use crate::ops::Heads;
use crate::weight_format::{Quantization, WeightFormat};

pub(in crate::cuda::suite) fn run(run: &mut Run<'_>) -> Result<bool, KernelError> {
    let bench = Bench::new(run)?;
    Ok(attentions_of(run, &bench)? && products_of(run, &bench)? && rows_of(run, &bench)?)
}

/// The same device, asked for one order of sums.
pub(super) fn deterministic(target: Target) -> Target {
    Target { options: CudaOptions { deterministic: true }, ..target }
}

/// A card of Ada's: less shared memory, none of Hopper's instructions.
fn smaller(target: Target) -> Target {
    let shared_bytes_max = target.shared_bytes_max.min(99 << 10);
    Target { is_hopper: false, shared_bytes_max, ..target }
}

fn products_of(run: &mut Run<'_>, bench: &Bench) -> Result<bool, KernelError> {
    let (own, fixed) = (run.target, deterministic(run.target));
    let all = deterministic_rows(run.size);
    for (prefix, format, rows, target) in [
        ("f16 ", DType::F16, format_rows(run.size, DType::F16), own),
        ("f32 ", DType::F32, format_rows(run.size, DType::F32), own),
        ("deterministic ", DType::Bf16, all, fixed),
        ("deterministic f16 ", DType::F16, all, fixed),
    ] {
        let asked = Multiplied { prefix, format: format.into(), rows, target };
        if !bench.products(run, &asked)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Layers of the models' heads over caches in every format, then heads of other sizes.
fn attentions_of(run: &mut Run<'_>, bench: &Bench) -> Result<bool, KernelError> {
    let (all, few) = (attentions(run.size), few_attentions(run.size));
    let [bf16, f16, f32] = [DType::Bf16, DType::F16, DType::F32].map(KvFormat::Plain);
    let (own, fixed, small) = (run.target, deterministic(run.target), smaller(run.target));
    for shape in Shape::all(run.size) {
        for (prefix, format, target, steps) in [
            ("fp8 cache, ", KvFormat::Fp8, own, all),
            ("f16 cache, ", f16, own, few),
            ("f32 cache, ", f32, own, few),
            ("deterministic ", bf16, fixed, few),
            ("smaller card, ", bf16, small, few),
        ] {
            let name = format!("{prefix}{}", shape.name);
            if !attend(run, bench, (&name, shape.heads()), (format, target, steps))? {
                return Ok(false);
            }
        }
    }
    for &heads in other_heads(run.size) {
        for (prefix, format, target) in [
            ("", bf16, own),
            ("f16 cache, ", f16, own),
            ("fp8 cache, ", KvFormat::Fp8, own),
            ("deterministic ", bf16, fixed),
            ("smaller card, ", bf16, small),
        ] {
            let name = format!("{prefix}heads of {}", heads.head_dim);
            if !attend(run, bench, (&name, heads), (format, target, few))? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Says a figure for each step. Returns whether there was time for all.
fn attend(
    run: &mut Run<'_>,
    bench: &Bench,
    (name, heads): (&str, Heads),
    (format, target, steps): (KvFormat, Target, &[[usize; 3]]),
) -> Result<bool, KernelError> {
    for &[seqs, keys, rows] in steps {
        let what = attention_what(name, [seqs, keys, rows]);
        let asked = Attended { what, heads, format, target, step: Step { seqs, keys, rows } };
        if !bench.attention(run, &asked)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What is done to rows, in all formats but those of `kernels`.
fn rows_of(run: &mut Run<'_>, bench: &Bench) -> Result<bool, KernelError> {
    let [f16, f32] = [DType::F16, DType::F32];
    let tables = [f16, f32].map(WeightFormat::from).into_iter();
    let tables: Vec<_> = tables.chain(Quantization::ALL.map(WeightFormat::from)).collect();
    for shape in Shape::all(run.size) {
        for &rows in deterministic_rows(run.size) {
            if !(run.keeps_going)() {
                return Ok(false);
            }
            let mut figures =
                vec![bench.norm(run, shape, rows, Put::Add)?, bench.quantize(run, shape, rows)?];
            for format in [f16.into(), f32.into(), KvFormat::Fp8] {
                figures.push(bench.rope_store(run, shape, rows, format)?);
            }
            for &format in &tables {
                figures.push(bench.embed(run, shape, rows, format)?);
            }
            for narrowed in NARROWED {
                figures.push(bench.narrow(run, shape, rows, narrowed)?);
            }
            figures.into_iter().for_each(|figure| (run.put)(Finding::Figure(figure)));
        }
    }
    Ok(true)
}
