//! Attention's share: a step of sequences of one length, their blocks scattered over a cache.

use super::super::{Finding, Run};
use super::{BLOCK, Bench, Work, words};
use crate::batch::Batch;
use crate::cuda::attention::{Attention, AttentionKernels};
use crate::cuda::attention_plan::AttentionPlan;
use crate::cuda::driver::{DeviceBuffer, DevicePointer};
use crate::cuda::linear_choice::Target;
use crate::cuda::plain::bytes_of;
use crate::device::Limits;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::kv_format::KvFormat;
use crate::ops::Heads;

/// A step: sequences, keys and last rows of each.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) seqs: usize,
    pub(super) keys: usize,
    pub(super) rows: usize,
}

impl Step {
    /// Blocks of all sequences.
    fn blocks(&self) -> usize {
        self.seqs * self.keys.div_ceil(BLOCK)
    }

    /// The step as the engine would give it.
    fn batch(&self) -> Batch {
        let mut batch = Batch::new(1);
        batch.clear();
        let per_seq = self.keys.div_ceil(BLOCK);
        for seq in 0..self.seqs {
            // Neighbouring blocks of a sequence lie apart.
            let table: Vec<u32> = (0..per_seq).map(|at| (at * self.seqs + seq) as u32).collect();
            for position in self.keys - self.rows..self.keys {
                let slot = table[position / BLOCK] as usize * BLOCK + position % BLOCK;
                batch.groups[0].slots.push(slot as u32);
                batch.ids.push(0);
            }
            batch.groups[0].push_table(table);
            batch.query_start.push(batch.ids.len() as u32);
            batch.kv_len.push(self.keys as u32);
        }
        batch
    }

    fn limits(&self) -> Limits {
        Limits {
            max_tokens: self.seqs * self.rows,
            max_seqs: self.seqs,
            max_logits_rows: 0,
            vocab: 0,
            max_model_len: self.keys,
            max_top: 0,
        }
    }

    /// Keys that all rows together see.
    fn pairs(&self) -> f64 {
        let first = self.keys - self.rows + 1;
        self.seqs as f64 * (first + self.keys) as f64 * self.rows as f64 / 2.0
    }
}

/// A layer's attention in one step.
pub(super) struct Attended {
    /// The figure's name.
    pub(super) what: String,
    pub(super) heads: Heads,
    /// Of the cache.
    pub(super) format: KvFormat,
    /// What kernels are chosen for.
    pub(super) target: Target,
    pub(super) step: Step,
}

/// What a plan needs on the device.
struct Planned {
    plan: AttentionPlan,
    kernels: AttentionKernels,
    table: DeviceBuffer,
    slots: DeviceBuffer,
    pieces: DeviceBuffer,
    partials: DeviceBuffer,
    arrivals: DeviceBuffer,
}

impl Planned {
    fn new(run: &Run<'_>, asked: &Attended) -> Result<Self, KernelError> {
        let kernels = AttentionKernels::new(asked.heads, asked.format, &asked.target)?;
        let shape = kernels.plan_shape(None);
        let (batch, limits) = (asked.step.batch(), asked.step.limits());
        let mut plan = AttentionPlan::with_room(shape, &limits);
        plan.make(&batch, &batch.groups[0]);
        let room = shape.room(&limits);
        let floats = room.partial_floats(&shape);
        let piece_bytes = bytes_of(plan.pieces());
        let pieces = DeviceBuffer::new(run.driver, piece_bytes.len(), "pieces")?;
        pieces.upload(0, piece_bytes)?;
        Ok(Planned {
            table: words(run, batch.groups[0].block_table.clone())?,
            slots: words(run, batch.groups[0].slots.clone())?,
            partials: DeviceBuffer::new(run.driver, floats * 4, "partial results")?,
            arrivals: DeviceBuffer::new(run.driver, room.arrivals * 4, "arrivals")?,
            pieces,
            plan,
            kernels,
        })
    }
}

impl Bench {
    /// Says a figure of it, unless the pool has no room for its cache. Returns whether there was time.
    pub(super) fn attention(
        &self,
        run: &mut Run<'_>,
        asked: &Attended,
    ) -> Result<bool, KernelError> {
        if !(run.keeps_going)() {
            return Ok(false);
        }
        let Attended { heads: Heads { num_q, num_kv, head_dim }, format, step, .. } = *asked;
        let plane_bytes = step.blocks() * num_kv * format.head_bytes(BLOCK, head_dim);
        if !self.meter.pool.has(2 * plane_bytes) {
            return Ok(true);
        }
        let planned = Planned::new(run, asked)?;
        let seconds = self.meter.watch.time(&mut |call| {
            let keys = self.meter.pool.window(2 * plane_bytes, call);
            let attention = Attention {
                qkv: self.x.pointer(),
                out: self.out.pointer(),
                keys,
                values: keys.offset(plane_bytes),
                block_table: planned.table.pointer(),
                slots: planned.slots.pointer(),
                pieces: planned.pieces.pointer(),
                sinks: DevicePointer::NULL,
                partials: planned.partials.pointer(),
                arrivals: planned.arrivals.pointer(),
                num_q: num_q as u32,
                num_kv: num_kv as u32,
                group: planned.kernels.group(),
                head_dim: head_dim as u32,
                block_bits: BLOCK.ilog2(),
                window: u32::MAX,
                scale: (head_dim as f32).powf(-0.5),
                soft_cap: 0.0,
            };
            let plane_rows = step.blocks() * BLOCK * num_kv;
            // SAFETY: the pool holds both planes, activations the rows; the plan is this step's.
            unsafe { attention.launch(&**run.driver, &planned.kernels, &planned.plan, plane_rows) }
        })?;
        let rows = step.seqs * step.rows;
        let cache = 2 * step.seqs * step.keys * num_kv * format.head_bytes(1, head_dim);
        let bytes = cache + 2 * rows * num_q * head_dim * 4;
        let flops = 4.0 * (num_q * head_dim) as f64 * step.pairs();
        let work = Work::of(bytes, flops, format == KvFormat::Plain(DType::F32));
        let figure = self.meter.figure(asked.what.clone(), seconds, &work);
        (run.put)(Finding::Figure(figure));
        Ok(true)
    }
}
