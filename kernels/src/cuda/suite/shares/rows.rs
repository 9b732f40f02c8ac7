//! What is done to rows between products, and on their way into one: of the bytes that it moves.

use super::super::finding::Figure;
use super::super::shapes::Shape;
use super::super::{Run, Size};
use super::{BLOCK, Bench, Packed, Work, words};
use crate::cuda::driver::{DeviceBuffer, DevicePointer};
use crate::cuda::embed::Embed;
use crate::cuda::gather::Gather;
use crate::cuda::kv_copy::{KvCopy, PIECE};
use crate::cuda::linear_hopper::NarrowRows;
use crate::cuda::norm::{Norm, Put};
use crate::cuda::quantize_rows::{ByteRows, byte_rows_bytes};
use crate::cuda::rope_store::RopeStore;
use crate::error::KernelError;
use crate::kv_format::KvFormat;
use crate::weight_format::WeightFormat;

/// What rows become for a product: a kernel, what its result holds, elements of 16 bits for each of x.
pub(super) const NARROWED: [(&str, &str, usize); 4] = [
    ("narrow_rows_bf16", "bf16", 1),
    ("narrow_rows_f16", "two parts in f16", 2),
    ("narrow_rows_bytes", "bf16 as bytes meet it", 1),
    ("narrow_rows_halves", "bf16 as halves of bytes meet it", 1),
];

impl Bench {
    pub(super) fn norm(
        &self,
        run: &Run<'_>,
        shape: &Shape,
        rows: usize,
        put: Put,
    ) -> Result<Figure, KernelError> {
        let seconds = self.meter.watch.time(&mut |_| {
            let norm = Norm {
                x: self.x.pointer(),
                weight: self.x.pointer(),
                out: self.out.pointer(),
                cols: shape.hidden as u32,
                eps: 1e-5,
            };
            // SAFETY: activations hold the rows.
            unsafe { norm.launch(&**run.driver, put, rows as u32) }
        })?;
        let (name, moved) = match put {
            Put::Store => ("norm", 8),
            Put::Add => ("norm, added", 12),
        };
        let work = Work::moving(rows * shape.hidden * moved);
        Ok(self.meter.figure(format!("{} {name}, {rows} rows", shape.name), seconds, &work))
    }

    pub(super) fn gather(
        &self,
        run: &Run<'_>,
        shape: &Shape,
        rows: usize,
    ) -> Result<Figure, KernelError> {
        let chosen = words(run, (0..rows as u32).rev().collect())?;
        let seconds = self.meter.watch.time(&mut |_| {
            let gather = Gather {
                x: self.x.pointer(),
                rows: chosen.pointer(),
                out: self.out.pointer(),
                cols: shape.hidden as u32,
            };
            // SAFETY: activations hold the rows.
            unsafe { gather.launch(&**run.driver, rows as u32) }
        })?;
        let work = Work::moving(rows * shape.hidden * 8);
        let what = format!("{} rows taken together, {rows} rows", shape.name);
        Ok(self.meter.figure(what, seconds, &work))
    }

    pub(super) fn rope_store(
        &self,
        run: &Run<'_>,
        shape: &Shape,
        rows: usize,
        format: KvFormat,
    ) -> Result<Figure, KernelError> {
        let Shape { num_q, num_kv, head_dim, .. } = *shape;
        let slots = words(run, (0..rows as u32).collect())?;
        let plane_bytes = rows.div_ceil(BLOCK) * num_kv * format.head_bytes(BLOCK, head_dim);
        let plane_bytes = plane_bytes.next_multiple_of(16);
        let plane = DeviceBuffer::new(run.driver, 2 * plane_bytes, "a cache")?;
        let seconds = self.meter.watch.time(&mut |_| {
            let store = RopeStore {
                qkv: self.out.pointer(),
                q_norm: DevicePointer::NULL,
                k_norm: DevicePointer::NULL,
                q_table: self.x.pointer(),
                k_table: self.x.pointer(),
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
            unsafe { store.launch(&**run.driver, format, rows as u32) }
        })?;
        // Queries stay where they are; keys are read and stored, values too.
        let floats = 2 * num_q + 2 * num_kv;
        let moved = floats * head_dim * 4 + 2 * num_kv * format.head_bytes(1, head_dim);
        let what = format!("{} rope and store in {}, {rows} rows", shape.name, format.name());
        Ok(self.meter.figure(what, seconds, &Work::moving(rows * moved)))
    }

    /// Blocks of a KV cache in all planes of some layers.
    pub(super) fn kv_copy(
        &self,
        run: &Run<'_>,
        shape: &Shape,
        format: KvFormat,
    ) -> Result<Figure, KernelError> {
        const COPIES: usize = 8;
        let planes = if run.size == Size::Full { 64 } else { 2 };
        // Every other one is copied to the next.
        let blocks = 2 * COPIES;
        let copies = words(run, (0..blocks as u32).collect())?;
        let block_bytes = shape.num_kv * format.head_bytes(BLOCK, shape.head_dim);
        let cache_bytes = planes * blocks * block_bytes;
        let seconds = self.meter.watch.time(&mut |call| {
            let copy = KvCopy {
                // Elsewhere each time: all of it would fit into the card's cache.
                cache: self.meter.pool.window(cache_bytes, call),
                copies: copies.pointer(),
                blocks: blocks as u32,
                pieces: (block_bytes / PIECE) as u32,
            };
            // SAFETY: the pool holds these planes, each of these blocks.
            unsafe { copy.launch(&**run.driver, planes, COPIES) }
        })?;
        let work = Work::moving(2 * planes * COPIES * block_bytes);
        let what = format!("{} copies of {COPIES} KV blocks in {planes} planes", shape.name);
        Ok(self.meter.figure(what, seconds, &work))
    }

    /// Rows of an embedding, of tokens far apart.
    pub(super) fn embed(
        &self,
        run: &Run<'_>,
        shape: &Shape,
        rows: usize,
        format: WeightFormat,
    ) -> Result<Figure, KernelError> {
        let Shape { hidden, vocab, .. } = *shape;
        let id = |row: usize| (row * 7919 + 13) % vocab;
        let ids = words(run, (0..rows).map(|row| id(row) as u32).collect())?;
        let packed = Packed::new(format, vocab, hidden);
        let seconds = self.meter.watch.time(&mut |call| {
            let table = self.meter.pool.window(packed.bytes, call);
            let embed = Embed {
                table,
                scales: packed.scales(table),
                ids: ids.pointer(),
                // Of tokens that are not known yet, which there are none of.
                row_seq: ids.pointer(),
                seq_slot: ids.pointer(),
                last_tokens: ids.pointer(),
                x: self.out.pointer(),
                cols: hidden as u32,
                stride: packed.stride as u32,
                scale: 1.0,
            };
            // SAFETY: the pool holds the table, activations hold the rows; ids are in the table.
            unsafe { embed.launch(&**run.driver, format, rows as u32) }
        })?;
        let work = Work::moving(rows * (Packed::new(format, 1, hidden).bytes + hidden * 4));
        let what = format!("{} embedding in {}, {rows} rows", shape.name, format.name());
        Ok(self.meter.figure(what, seconds, &work))
    }

    /// Rows as one of [`NARROWED`].
    pub(super) fn narrow(
        &self,
        run: &Run<'_>,
        shape: &Shape,
        rows: usize,
        (kernel, name, parts): (&'static str, &str, usize),
    ) -> Result<Figure, KernelError> {
        // Whole steps of any product.
        let (k, stride) = (shape.hidden, shape.hidden.next_multiple_of(64));
        let seconds = self.meter.watch.time(&mut |_| {
            let narrow = NarrowRows {
                x: self.x.pointer(),
                out: self.out.pointer(),
                rows: rows as u32,
                k: k as u32,
                stride: stride as u32,
            };
            // SAFETY: activations hold the rows, and as many floats are room for two parts.
            unsafe { narrow.launch(&**run.driver, kernel, run.target.multiprocessors) }
        })?;
        let work = Work::moving(rows * (k * 4 + stride * 2 * parts));
        let what = format!("{} rows become {name}, {rows} rows", shape.name);
        Ok(self.meter.figure(what, seconds, &work))
    }

    /// Rows as weights in blocks meet them.
    pub(super) fn quantize(
        &self,
        run: &Run<'_>,
        shape: &Shape,
        rows: usize,
    ) -> Result<Figure, KernelError> {
        let (size, to) = ((rows as u32, shape.hidden as u32), self.out.pointer());
        let seconds = self.meter.watch.time(&mut |_| {
            let most = run.target.multiprocessors;
            // SAFETY: activations hold the rows, and floats are more than bytes and scales.
            unsafe { ByteRows::launch(&**run.driver, self.x.pointer(), size, to, most) }.map(drop)
        })?;
        let work = Work::moving(rows * shape.hidden * 4 + byte_rows_bytes(rows, shape.hidden));
        let what = format!("{} rows become bytes, {rows} rows", shape.name);
        Ok(self.meter.figure(what, seconds, &work))
    }
}
