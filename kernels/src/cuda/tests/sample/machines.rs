//! Who runs a world: the CPU's sampler, and the kernels with the memory that they are given.

use super::super::{Bed, read_words};
use super::world::SLOTS;
use crate::batch::Batch;
use crate::cpu::buffer::Activation;
use crate::cpu::executor::CpuExecutor;
use crate::cpu::{CpuDevice, CpuOptions};
use crate::cuda::driver::DeviceBuffer;
use crate::cuda::graphs::StepShape;
use crate::cuda::plain::{Plain, bytes_of, bytes_of_mut};
use crate::cuda::sample::{
    Argmax, Sample, SampledRow, SlotCount, SlotReset, SlotTakes, TopToken, padded,
};
use crate::cuda::sample_slots::{Room, SlotRound, SlotTable, StepRows, collect, max_top};
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
    round: SlotRound,
    rows: StepRows,
    on: Buffers,
}

struct Buffers {
    slots: DeviceBuffer,
    lists: DeviceBuffer,
    counts: DeviceBuffer,
    adjusted: DeviceBuffer,
    bests: DeviceBuffer,
    last_tokens: DeviceBuffer,
    out: DeviceBuffer,
    top: DeviceBuffer,
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
            slots: buffer(room.slots),
            lists: buffer(room.lists),
            counts: buffer(room.counts),
            adjusted: buffer(room.adjusted),
            bests: buffer(room.bests * parts as usize),
            last_tokens: buffer(room.last_tokens),
            out: buffer(room.out),
            top: buffer(room.top),
        };
        let table = SlotTable::new(&limits);
        let (round, rows) = (SlotRound::new(&limits), StepRows::new(&limits));
        Gpu { bed, limits, extra, parts, table, round, rows, on }
    }

    fn take_slots(&mut self, inits: &[SlotInit]) -> Result<(), KernelError> {
        let Gpu { bed, on, table, round, limits, .. } = self;
        inits.iter().try_for_each(|init| table.take(init))?;
        let (vocab, driver) = (limits.vocab as u32, &*bed.driver);
        let (padded, counts) = (padded(limits.vocab) as u32, on.counts.pointer());
        let mut next = 0;
        while next < inits.len() {
            next = round.fill(inits, next, table);
            let takes = bed.bytes(bytes_of(&round.takes));
            let params = bed.bytes(bytes_of(&round.params));
            let (words, resets) = (bed.words(&round.words), bed.words(&round.resets));
            let (tokens, counted) = (bed.words(&round.tokens), bed.bytes(bytes_of(&round.counted)));
            let takes = SlotTakes {
                takes: takes.pointer(),
                params: params.pointer(),
                words: words.pointer(),
                slots: on.slots.pointer(),
                lists: on.lists.pointer(),
            };
            let reset = SlotReset { counts, rows: resets.pointer(), padded };
            let (tokens, slots) = (tokens.pointer(), counted.pointer());
            let count = SlotCount { counts, tokens, slots, vocab, padded };
            // SAFETY: buffers with room for these limits.
            unsafe {
                takes.launch(driver, round.takes.len() as u32)?;
                reset.launch(driver, round.resets.len() as u32)?;
                count.launch(driver, round.counted.len() as u32)?;
            }
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
        // A row and a chain of padding, of which nothing may come.
        let shape = StepShape::of(batch);
        let (rows, chains) = (shape.logits + 1, (shape.chains + 1).min(SLOTS));
        self.rows.pad(StepShape { logits: rows, chains, ..shape });
        let mut table: Vec<f32> = Vec::new();
        for row in logits.iter() {
            table.extend(row.iter().copied().chain(std::iter::repeat_n(1e30, self.extra)));
        }
        table.resize(rows * (limits.vocab + self.extra), f32::NAN);
        let (on, driver) = (&self.on, &*self.bed.driver);
        let on_logits = self.bed.floats(&table);
        let on_rows = self.bed.bytes(bytes_of(&self.rows.rows));
        let on_chains = self.bed.words(&self.rows.chain_start);
        let room = Room::new(&limits)?;
        on.out.upload(0, &vec![UNWRITTEN; room.out])?;
        on.top.upload(0, &vec![UNWRITTEN; room.top])?;
        let sample = self.parameters([&on_logits, &on_rows, &on_chains]);
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

    fn parameters(&self, [logits, rows, chain_start]: [&DeviceBuffer; 3]) -> Sample {
        let (on, limits) = (&self.on, &self.limits);
        Sample {
            logits: logits.pointer(),
            bests: on.bests.pointer(),
            rows: rows.pointer(),
            chain_start: chain_start.pointer(),
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
