//! Each kernel's share of what binds it, over the shapes of models: bytes of the read bandwidth, or
//! operations of the matrix rate, both measured just before.

use std::collections::HashSet;

use super::ceilings::Ceilings;
use super::finding::Figure;
use super::pool::Pool;
use super::shapes::{Product, Shape, attentions, rows};
use super::stopwatch::Stopwatch;
use super::{Finding, Run};
use crate::cuda::driver::{DeviceBuffer, DevicePointer};
use crate::cuda::embed::Embed;
use crate::cuda::linear::{Linear, stride_of};
use crate::cuda::linear_choice::ProductShape;
use crate::cuda::norm::{Norm, Put};
use crate::cuda::products::Products;
use crate::cuda::rope_store::RopeStore;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::ops::{Activation, Epilogue};
use crate::weight_format::WeightFormat;

mod attention;
pub(super) mod experts;
pub(super) mod quantized;
pub(super) mod sampling;

/// Tokens of a KV block.
const BLOCK: usize = 64;

pub(super) fn run(run: &mut Run<'_>) -> Result<bool, KernelError> {
    let bench = Bench::new(run)?;
    for shape in Shape::all(run.size) {
        for &rows in rows(run.size) {
            for product in shape.products() {
                if !(run.keeps_going)() {
                    return Ok(false);
                }
                if let Some(figure) = bench.product(shape, &product, rows)? {
                    (run.put)(Finding::Figure(figure));
                }
            }
            for figure in [
                bench.norm(run, shape, rows)?,
                bench.rope_store(run, shape, rows)?,
                bench.embed(run, shape, rows)?,
            ] {
                (run.put)(Finding::Figure(figure));
            }
        }
        for &[seqs, keys, rows] in attentions(run.size) {
            if !(run.keeps_going)() {
                return Ok(false);
            }
            let step = attention::Step { seqs, keys, rows };
            if let Some(figure) = bench.attention(run, shape, step)? {
                (run.put)(Finding::Figure(figure));
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
struct Work {
    bytes: usize,
    flops: f64,
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
        let read = work.bytes as f64 / self.ceilings.read;
        let products = work.flops / self.ceilings.products;
        let (floor, of) = if read >= products { (read, "read") } else { (products, "products") };
        let share = floor / (figure.median / 1e6);
        figure.share(share, of)
    }
}

/// What plain kernels are measured with.
struct Bench {
    meter: Meter,
    products: Products,
    /// Activations: in, and out.
    x: DeviceBuffer,
    out: DeviceBuffer,
}

impl Bench {
    fn new(run: &mut Run<'_>) -> Result<Self, KernelError> {
        let meter = Meter::new(run)?;
        let floats = Shape::all(run.size).iter().map(|shape| floats_of(shape, run)).max();
        let (x, out) = both_activations(run, floats.unwrap_or(0))?;
        let products = Products::new(run.driver, run.target, &product_shapes(run))?;
        Ok(Bench { meter, products, x, out })
    }

    /// A product in bf16; `None` where the pool has no room for its weight.
    fn product(
        &self,
        shape: &Shape,
        product: &Product,
        rows: usize,
    ) -> Result<Option<Figure>, KernelError> {
        let &Product { n, k, joins, .. } = product;
        let weight_bytes = n * stride_of(k, DType::Bf16) * 2;
        if !self.meter.pool.has(weight_bytes) {
            return Ok(None);
        }
        let epilogue = if joins { Epilogue::Glu(Activation::Silu) } else { Epilogue::Store };
        let seconds = self.meter.watch.time(&mut |call| {
            let weight = self.meter.pool.window(weight_bytes, call);
            let pointers = [self.x.pointer(), weight, self.out.pointer()];
            let linear = Linear::plain(pointers, rows, (n, k), DType::Bf16).with_epilogue(epilogue);
            // SAFETY: the pool holds the weight, activations hold the rows of any product.
            unsafe { self.products.launch(&linear, DType::Bf16) }
        })?;
        let out_cols = if joins { n / 2 } else { n };
        let bytes = weight_bytes + rows * (k + out_cols) * 4;
        let work = Work { bytes, flops: 2.0 * (rows * n * k) as f64 };
        Ok(Some(self.meter.figure(product.what(shape, rows), seconds, &work)))
    }

    fn norm(&self, run: &Run<'_>, shape: &Shape, rows: usize) -> Result<Figure, KernelError> {
        let seconds = self.meter.watch.time(&mut |_| {
            let norm = Norm {
                x: self.x.pointer(),
                weight: self.x.pointer(),
                out: self.out.pointer(),
                cols: shape.hidden as u32,
                eps: 1e-5,
            };
            // SAFETY: activations hold the rows.
            unsafe { norm.launch(&**run.driver, Put::Store, rows as u32) }
        })?;
        let work = Work { bytes: rows * shape.hidden * 8, flops: 0.0 };
        Ok(self.meter.figure(format!("{} norm, {rows} rows", shape.name), seconds, &work))
    }

    fn rope_store(&self, run: &Run<'_>, shape: &Shape, rows: usize) -> Result<Figure, KernelError> {
        let Shape { num_q, num_kv, head_dim, .. } = *shape;
        let slots = words(run, (0..rows as u32).collect())?;
        let plane_bytes = rows.div_ceil(BLOCK) * BLOCK * num_kv * head_dim * 2;
        let plane = DeviceBuffer::new(run.driver, 2 * plane_bytes, "a cache")?;
        let seconds = self.meter.watch.time(&mut |_| {
            let store = RopeStore {
                qkv: self.out.pointer(),
                q_norm: DevicePointer::NULL,
                k_norm: DevicePointer::NULL,
                table: self.x.pointer(),
                positions: slots.pointer(),
                slots: slots.pointer(),
                keys: plane.pointer(),
                values: plane.pointer().offset(plane_bytes),
                num_q: num_q as u32,
                num_kv: num_kv as u32,
                head_dim: head_dim as u32,
                block_size: BLOCK as u32,
                rotary_dim: head_dim as u32,
                style: 0,
                q_eps: 0.0,
                k_eps: 0.0,
            };
            // SAFETY: activations hold the rows and a turn for each of their positions.
            unsafe { store.launch(&**run.driver, DType::Bf16, rows as u32) }
        })?;
        let heads = 2 * num_q * 4 + 2 * num_kv * (4 + 2);
        let work = Work { bytes: rows * heads * head_dim, flops: 0.0 };
        Ok(self.meter.figure(format!("{} rope and store, {rows} rows", shape.name), seconds, &work))
    }

    /// Rows of an embedding in bf16, of tokens far apart.
    fn embed(&self, run: &Run<'_>, shape: &Shape, rows: usize) -> Result<Figure, KernelError> {
        let Shape { hidden, vocab, .. } = *shape;
        let id = |row: usize| (row * 7919 + 13) % vocab;
        let ids = words(run, (0..rows).map(|row| id(row) as u32).collect())?;
        let table_bytes = vocab * stride_of(hidden, DType::Bf16) * 2;
        let seconds = self.meter.watch.time(&mut |call| {
            let embed = Embed {
                table: self.meter.pool.window(table_bytes, call),
                scales: DevicePointer::NULL,
                ids: ids.pointer(),
                // Of tokens that are not known yet, which there are none of.
                row_seq: ids.pointer(),
                seq_slot: ids.pointer(),
                last_tokens: ids.pointer(),
                x: self.out.pointer(),
                cols: hidden as u32,
                stride: stride_of(hidden, DType::Bf16) as u32,
                scale: 1.0,
            };
            // SAFETY: the pool holds the table, activations hold the rows; ids are in the table.
            unsafe { embed.launch(&**run.driver, WeightFormat::Plain(DType::Bf16), rows as u32) }
        })?;
        let work = Work { bytes: rows * hidden * 6, flops: 0.0 };
        Ok(self.meter.figure(format!("{} embedding, {rows} rows", shape.name), seconds, &work))
    }
}

/// Products of all shapes, with the most rows of each.
fn product_shapes(run: &Run<'_>) -> HashSet<ProductShape> {
    let rows = rows(run.size).iter().max().copied().unwrap_or(0) as u32;
    let products = Shape::all(run.size).iter().flat_map(Shape::products);
    let shape = |product: Product| ProductShape {
        rows,
        n: product.n as u32,
        k: product.k as u32,
        format: DType::Bf16.into(),
    };
    products.map(shape).collect()
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
fn both_activations(
    run: &Run<'_>,
    floats: usize,
) -> Result<(DeviceBuffer, DeviceBuffer), KernelError> {
    let x = DeviceBuffer::new(run.driver, floats * 4, "activations")?;
    x.upload(0, &activations(floats))?;
    Ok((x, DeviceBuffer::new(run.driver, floats * 4, "results")?))
}

/// Numbers between −1 and 1, that no short pattern repeats.
fn activations(count: usize) -> Vec<u8> {
    let number = |index: usize| {
        let scattered = (index as u32).wrapping_mul(2_654_435_761);
        (scattered as f32 / u32::MAX as f32 - 0.5) * 2.0
    };
    (0..count).flat_map(|index| number(index).to_le_bytes()).collect()
}

/// Words on the device.
fn words(run: &Run<'_>, words: Vec<u32>) -> Result<DeviceBuffer, KernelError> {
    let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    let buffer = DeviceBuffer::new(run.driver, bytes.len(), "words")?;
    buffer.upload(0, &bytes)?;
    Ok(buffer)
}
