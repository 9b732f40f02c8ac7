//! Who runs a world: the CPU's sampler, and the kernels with the memory that they are given.

use super::super::{Bed, read_words};
use super::world::SLOTS;
use crate::batch::Batch;
use crate::cpu::buffer::Activation;
use crate::cpu::executor::CpuExecutor;
use crate::cpu::{CpuDevice, CpuOptions};
use crate::cuda::driver::DeviceBuffer;
use crate::cuda::plain::{Plain, bytes_of, bytes_of_mut};
use crate::cuda::sample::{
    Argmax, LogitsRow, NONE, Sample, SampledRow, SlotCount, SlotParams, SlotReset, TopToken, padded,
};
use crate::cuda::sample_slots::{Room, SlotCounts, SlotTable, StepRows, collect, max_top};
use crate::device::{Device, Executor, Limits, Step};
use crate::error::KernelError;
use crate::ops::Ops;
use crate::sampling::{SampleOutput, SlotInit};

/// What nobody wrote.
pub(super) const UNWRITTEN: u8 = 0x5a;

/// The CPU's sampler.
pub(super) struct Cpu {
    executor: CpuExecutor,
    logits: Activation,
}

impl Cpu {
    pub(super) fn new(limits: Limits) -> Self {
        let options = CpuOptions { threads: 1, ..CpuOptions::default() };
        let device = CpuDevice::new(options).unwrap();
        let logits = device.tensor(limits.max_logits_rows, limits.vocab).unwrap();
        let mut program = device.program();
        program.sample(crate::ops::Sample { logits: logits.clone(), vocab: limits.vocab });
        Cpu { executor: device.executor(program, limits).unwrap(), logits }
    }

    pub(super) fn step(&mut self, batch: &Batch, rows: &[Vec<f32>]) -> SampleOutput {
        for (index, row) in rows.iter().enumerate() {
            // SAFETY: no step is running.
            let to = unsafe { self.logits.row_mut(index) };
            to[..row.len()].copy_from_slice(row);
        }
        self.executor.launch(Step { batch: batch.clone(), ..Step::default() }).unwrap();
        self.executor.finish().unwrap().output
    }
}

/// The kernels and their memory.
pub(super) struct Gpu<'a> {
    bed: &'a Bed,
    limits: Limits,
    /// Columns of the logits beyond the vocabulary.
    extra: usize,
    parts: u32,
    table: SlotTable,
    counts: SlotCounts,
    rows: StepRows,
    on: Buffers,
}

struct Buffers {
    rows: DeviceBuffer,
    chain_start: DeviceBuffer,
    slots: DeviceBuffer,
    lists: DeviceBuffer,
    counts: DeviceBuffer,
    adjusted: DeviceBuffer,
    bests: DeviceBuffer,
    last_tokens: DeviceBuffer,
    out: DeviceBuffer,
    top: DeviceBuffer,
    resets: DeviceBuffer,
    tokens: DeviceBuffer,
    slot_tokens: DeviceBuffer,
}

/// What a step gave, and what it left.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) output: SampleOutput,
    /// `[slots, padded]`
    pub(super) counts: Vec<u32>,
    pub(super) last_tokens: Vec<u32>,
}

fn read<T: Plain + Default>(buffer: &DeviceBuffer, len: usize) -> Vec<T> {
    let mut values = vec![T::default(); len];
    buffer.download(0, bytes_of_mut(&mut values)).unwrap();
    values
}

impl<'a> Gpu<'a> {
    pub(super) fn new(bed: &'a Bed, limits: Limits, extra: usize, parts: u32) -> Self {
        let room = Room::new(&limits).unwrap();
        let buffer = |bytes: usize| bed.bytes(&vec![UNWRITTEN; bytes]);
        let on = Buffers {
            rows: buffer(room.rows),
            chain_start: buffer(room.chain_start),
            slots: buffer(room.slots),
            lists: buffer(room.lists),
            counts: buffer(room.counts),
            adjusted: buffer(room.adjusted),
            bests: buffer(room.bests * parts as usize),
            last_tokens: buffer(room.last_tokens),
            out: buffer(room.out),
            top: buffer(room.top),
            resets: buffer(room.resets),
            tokens: buffer(room.tokens),
            slot_tokens: buffer(room.slot_tokens),
        };
        let table = SlotTable::new(&limits);
        let (counts, rows) = (SlotCounts::new(&limits), StepRows::new(&limits));
        Gpu { bed, limits, extra, parts, table, counts, rows, on }
    }

    fn take_slots(&mut self, inits: &[SlotInit]) -> Result<(), KernelError> {
        let Gpu { on, table, counts, .. } = self;
        for init in inits {
            table.take(init)?;
            let params = &table.params[init.slot as usize..][..1];
            on.slots.upload(init.slot as usize * size_of::<SlotParams>(), bytes_of(params))?;
            let (start, words) = table.lists_of(init.slot);
            on.lists.upload(start * 4, bytes_of(words))?;
        }
        let (vocab, driver) = (self.limits.vocab as u32, &*self.bed.driver);
        let padded = padded(self.limits.vocab) as u32;
        counts.fill_resets(inits);
        on.resets.upload(0, bytes_of(&counts.resets))?;
        let on_counts = on.counts.pointer();
        let reset = SlotReset { counts: on_counts, rows: on.resets.pointer(), padded };
        // SAFETY: buffers with room for these limits.
        unsafe { reset.launch(driver, counts.resets.len() as u32) }?;
        let (tokens, slots) = (on.tokens.pointer(), on.slot_tokens.pointer());
        let count = SlotCount { counts: on_counts, tokens, slots, vocab, padded };
        let mut next = 0;
        while next < inits.len() {
            next = counts.fill_round(inits, next);
            on.tokens.upload(0, bytes_of(&counts.tokens))?;
            on.slot_tokens.upload(0, bytes_of(&counts.slots))?;
            // SAFETY: as above.
            unsafe { count.launch(driver, counts.slots.len() as u32) }?;
        }
        Ok(())
    }

    /// `None` if rows say what no row can.
    pub(super) fn step(
        &mut self,
        batch: &Batch,
        logits: &[Vec<f32>],
    ) -> Result<Option<Outcome>, KernelError> {
        self.take_slots(&batch.slot_inits)?;
        let (limits, num_rows) = (self.limits, batch.logits.len());
        self.rows.fill(batch, &self.table);
        pad(&mut self.rows);
        let (rows, chains) = (self.rows.rows.len(), self.rows.num_chains().min(SLOTS));
        let mut table: Vec<f32> = Vec::new();
        for row in logits.iter() {
            table.extend(row.iter().copied().chain(std::iter::repeat_n(1e30, self.extra)));
        }
        table.resize(rows * (limits.vocab + self.extra), f32::NAN);
        let (on, driver) = (&self.on, &*self.bed.driver);
        let on_logits = self.bed.floats(&table);
        on.rows.upload(0, bytes_of(&self.rows.rows))?;
        on.chain_start.upload(0, bytes_of(&self.rows.chain_start[..=chains]))?;
        let room = Room::new(&limits)?;
        on.out.upload(0, &vec![UNWRITTEN; room.out])?;
        on.top.upload(0, &vec![UNWRITTEN; room.top])?;
        let sample = self.parameters(&on_logits);
        let Sample { logits, rows: on_rows, bests, vocab, stride, parts, .. } = sample;
        let argmax = Argmax { logits, rows: on_rows, bests, vocab, stride, parts };
        // SAFETY: buffers with room for these limits.
        unsafe {
            argmax.launch(driver, rows as u32)?;
            sample.launch_rows(driver, chains as u32)?;
            if self.rows.is_described {
                sample.launch_describe(driver, rows as u32)?;
            }
        }
        let out: Vec<SampledRow> = read(&on.out, rows);
        let top: Vec<TopToken> = read(&on.top, rows * max_top(&limits));
        let is_padding_left = bytes_of(&out[num_rows..]).iter().all(|&byte| byte == UNWRITTEN);
        let is_short = |row: &SampledRow| row.top_len as usize <= max_top(&limits);
        if !is_padding_left || !out[..num_rows].iter().all(is_short) {
            return Ok(None);
        }
        let mut output = SampleOutput::default();
        collect(&out[..num_rows], &top, &limits, &mut output);
        let counts = read_words(&on.counts, SLOTS * padded(limits.vocab));
        Ok(Some(Outcome { output, counts, last_tokens: read_words(&on.last_tokens, SLOTS) }))
    }

    fn parameters(&self, logits: &DeviceBuffer) -> Sample {
        let (on, limits) = (&self.on, &self.limits);
        Sample {
            logits: logits.pointer(),
            bests: on.bests.pointer(),
            rows: on.rows.pointer(),
            chain_start: on.chain_start.pointer(),
            slots: on.slots.pointer(),
            lists: on.lists.pointer(),
            counts: on.counts.pointer(),
            adjusted: on.adjusted.pointer(),
            last_tokens: on.last_tokens.pointer(),
            out: on.out.pointer(),
            top: on.top.pointer(),
            vocab: limits.vocab as u32,
            stride: (limits.vocab + self.extra) as u32,
            padded: padded(limits.vocab) as u32,
            parts: self.parts,
            max_top: max_top(limits) as u32,
        }
    }
}

/// A row and a chain of padding, of which nothing may come.
fn pad(step: &mut StepRows) {
    let none = LogitsRow { kind: 3, slot: NONE, position_or_target: 0, draft_or_top: 0 };
    step.rows.push(none);
    step.chain_start.extend(step.chain_start.last().copied());
}
