//! Each kernel's share of what binds it, over the shapes of models: bytes of the read bandwidth, or
//! operations of the matrix rate or of plain arithmetic, all measured just before.
//!
//! Here is what the engine runs in bf16; `formats` has other types and ways to take the card. A test
//! holds that every kernel has a figure.

use super::ceilings::Ceilings;
use super::finding::Figure;
use super::pool::Pool;
use super::shapes::{Shape, attention_what, attentions, rows};
use super::stopwatch::Stopwatch;
use super::{Finding, Run};
use crate::cuda::driver::{DeviceBuffer, DevicePointer};
use crate::cuda::linear::stride_of;
use crate::cuda::norm::Put;
use crate::cuda::quantized::{code_bytes, scale_bytes};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::weight_format::WeightFormat;

mod attention;
pub(super) mod experts;
pub(super) mod formats;
mod products;
pub(super) mod quantized;
mod rows;
pub(super) mod sampling;
mod slots;

use attention::{Attended, Step};
use products::Multiplied;

/// Tokens of a KV block.
const BLOCK: usize = 64;

pub(super) fn run(run: &mut Run<'_>) -> Result<bool, KernelError> {
    let bench = Bench::new(run)?;
    let (format, target, steps) = (DType::Bf16, run.target, rows(run.size));
    let asked = Multiplied { prefix: "", format: format.into(), rows: steps, target };
    if !bench.products(run, &asked)? {
        return Ok(false);
    }
    for shape in Shape::all(run.size) {
        for &rows in steps {
            if !(run.keeps_going)() {
                return Ok(false);
            }
            for figure in [
                bench.norm(run, shape, rows, Put::Store)?,
                bench.rope_store(run, shape, rows, format.into())?,
                bench.embed(run, shape, rows, format.into())?,
                bench.gather(run, shape, rows)?,
            ] {
                (run.put)(Finding::Figure(figure));
            }
        }
        let figure = bench.kv_copy(run, shape, format.into())?;
        (run.put)(Finding::Figure(figure));
    }
    for shape in Shape::all(run.size) {
        for &[seqs, keys, rows] in attentions(run.size) {
            let what = attention_what(shape.name, [seqs, keys, rows]);
            let step = Step { seqs, keys, rows };
            let asked =
                Attended { what, heads: shape.heads(), format: format.into(), target, step };
            if !bench.attention(run, &asked)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// What shares are made of.
struct Meter {
    pool: Pool,
    ceilings: Ceilings,
    watch: Stopwatch,
}

/// What a launch moves and computes at least.
#[derive(Default)]
struct Work {
    bytes: usize,
    /// Operations of products that the matrix units have,
    flops: f64,
    /// and of those that they have not: f32.
    plain_flops: f64,
}

impl Meter {
    fn new(run: &mut Run<'_>) -> Result<Self, KernelError> {
        let pool = Pool::new(run.driver, run.size)?;
        let ceilings = Ceilings::measure(run, &pool)?;
        Ok(Meter { pool, ceilings, watch: Stopwatch::new(run.driver, run.size)? })
    }

    /// Microseconds of a launch, with its share of whichever ceiling binds it.
    fn figure(&self, what: String, seconds: Vec<f64>, work: &Work) -> Figure {
        let micros = seconds.into_iter().map(|seconds| seconds * 1e6).collect();
        let figure = Figure::new(what, "us", micros);
        let Ceilings { read, products, multiply_adds } = self.ceilings;
        let floors = [
            (work.bytes as f64 / read, "read"),
            (work.flops / products, "products"),
            (work.plain_flops / multiply_adds, "multiply-adds"),
        ];
        let (floor, of) = floors
            .into_iter()
            .fold((0.0, "read"), |most, floor| if floor.0 > most.0 { floor } else { most });
        let share = floor / (figure.median / 1e6);
        figure.share(share, of)
    }
}

impl Work {
    /// Of products whose factor is stored in `format`.
    fn of(bytes: usize, flops: f64, is_f32: bool) -> Self {
        let (flops, plain_flops) = if is_f32 { (0.0, flops) } else { (flops, 0.0) };
        Work { bytes, flops, plain_flops }
    }

    /// Of what computes next to nothing.
    fn moving(bytes: usize) -> Self {
        Work { bytes, ..Work::default() }
    }
}

/// What kernels over the shapes of models are measured with.
struct Bench {
    meter: Meter,
    /// Activations: in, and out.
    x: Pool,
    out: DeviceBuffer,
}

impl Bench {
    fn new(run: &mut Run<'_>) -> Result<Self, KernelError> {
        let meter = Meter::new(run)?;
        let floats = Shape::all(run.size).iter().map(|shape| floats_of(shape, run)).max();
        let (x, out) = both_activations(run, floats.unwrap_or(0))?;
        Ok(Bench { meter, x, out })
    }
}

/// A weight `[n, k]` in a window of the pool.
struct Packed {
    bytes: usize,
    /// From a row to the next: in elements, in bytes of a quantized weight's codes.
    stride: usize,
    /// Where scales begin, which are a plane of their own.
    scales: Option<usize>,
}

impl Packed {
    fn new(format: WeightFormat, n: usize, k: usize) -> Self {
        // Planes are aligned as allocations are.
        const ALIGNMENT: usize = 256;
        match format {
            WeightFormat::Plain(dtype) => {
                let stride = stride_of(k, dtype);
                Packed { bytes: n * stride * dtype.bytes(), stride, scales: None }
            }
            WeightFormat::Quantized(quantization) => {
                let stride = code_bytes(quantization, k);
                let codes = (n * stride).next_multiple_of(ALIGNMENT);
                let bytes = codes + n * scale_bytes(quantization, k);
                Packed { bytes, stride, scales: Some(codes) }
            }
        }
    }

    fn scales(&self, weight: DevicePointer) -> DevicePointer {
        self.scales.map_or(DevicePointer::NULL, |at| weight.offset(at))
    }
}

/// Floats that the activations of any kernel take.
fn floats_of(shape: &Shape, run: &Run<'_>) -> usize {
    let steps = attentions(run.size).iter().map(|[seqs, _, rows]| seqs * rows);
    let attention_rows = steps.max().unwrap_or(0);
    let qkv = (shape.num_q + 2 * shape.num_kv) * shape.head_dim;
    let widest = shape.products().iter().map(|product| product.n.max(product.k)).max().unwrap_or(0);
    let most = rows(run.size).iter().max().copied().unwrap_or(0);
    (attention_rows * qkv).max(most * widest)
}

/// Activations of numbers, and room for as many results.
fn both_activations(run: &Run<'_>, floats: usize) -> Result<(Pool, DeviceBuffer), KernelError> {
    // Numbers between −1 and 1, that no short pattern repeats.
    const CHUNK: usize = 4 << 20;
    let number = |index: usize| {
        let scattered = (index as u32).wrapping_mul(2_654_435_761);
        (scattered as f32 / u32::MAX as f32 - 0.5) * 2.0
    };
    let chunk: Vec<u8> =
        (0..floats.min(CHUNK)).flat_map(|index| number(index).to_le_bytes()).collect();
    let x = Pool::of(run.driver, floats * 4, &chunk)?;
    Ok((x, DeviceBuffer::new(run.driver, floats * 4, "results")?))
}

/// Words on the device.
fn words(run: &Run<'_>, words: Vec<u32>) -> Result<DeviceBuffer, KernelError> {
    let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    let buffer = DeviceBuffer::new(run.driver, bytes.len(), "words")?;
    buffer.upload(0, &bytes)?;
    Ok(buffer)
}
