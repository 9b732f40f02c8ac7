//! Sampling on the device: the state of all slots, a step's rows, and what they gave.

use std::sync::Arc;

use crate::batch::Batch;
use crate::cuda::driver::{DeviceBuffer, DevicePointer, Driver};
use crate::cuda::plain::{bytes_of, bytes_of_mut};
use crate::cuda::sample::{
    Argmax, LogitsRow, Sample, SampledRow, SlotCount, SlotReset, TopToken, padded, parts_of,
};
use crate::cuda::sample_slots::{Room, SlotCounts, SlotTable, StepRows, collect, max_top};
use crate::cuda::staging::{Place, Staging, StagingPlan};
use crate::device::Limits;
use crate::error::KernelError;
use crate::sampling::{SampleOutput, SlotInit};

/// Samples the rows of steps within limits.
#[derive(Debug)]
pub(crate) struct Sampler {
    limits: Limits,
    table: SlotTable,
    step: StepRows,
    counting: SlotCounts,
    rows: Place<LogitsRow>,
    chain_start: Place<u32>,
    device: DeviceState,
    out: Vec<SampledRow>,
    top: Vec<TopToken>,
}

/// What lives on the device between steps, and what a step leaves there.
#[derive(Debug)]
struct DeviceState {
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

impl Sampler {
    /// Allocates for steps within `limits`.
    pub(crate) fn new(
        driver: &Arc<dyn Driver>,
        plan: &mut StagingPlan,
        limits: &Limits,
    ) -> Result<Self, KernelError> {
        let room = Room::new(limits)?;
        let buffer = |bytes: usize| DeviceBuffer::new(driver, bytes, "sampling");
        let device = DeviceState {
            slots: buffer(room.slots)?,
            lists: buffer(room.lists)?,
            counts: buffer(room.counts)?,
            adjusted: buffer(room.adjusted)?,
            bests: buffer(room.bests)?,
            last_tokens: buffer(room.last_tokens)?,
            out: buffer(room.out)?,
            top: buffer(room.top)?,
            resets: buffer(room.resets)?,
            tokens: buffer(room.tokens)?,
            slot_tokens: buffer(room.slot_tokens)?,
        };
        let rows = limits.max_logits_rows;
        Ok(Sampler {
            limits: *limits,
            table: SlotTable::new(limits),
            step: StepRows::new(limits),
            counting: SlotCounts::new(limits),
            rows: plan.place(rows),
            chain_start: plan.place(limits.max_seqs + 1),
            device,
            out: vec![SampledRow::default(); rows],
            top: vec![TopToken::default(); rows * max_top(limits)],
        })
    }

    /// By slot, the token sampled last.
    pub(crate) fn last_tokens(&self) -> DevicePointer {
        self.device.last_tokens.pointer()
    }

    /// Takes slots over and writes the step's rows.
    pub(crate) fn prepare(
        &mut self,
        driver: &dyn Driver,
        staging: &mut Staging,
        batch: &Batch,
    ) -> Result<(), KernelError> {
        self.take_slots(driver, &batch.slot_inits)?;
        self.step.fill(batch, &self.table);
        staging.write(&self.rows, &self.step.rows)?;
        staging.write(&self.chain_start, &self.step.chain_start)
    }

    fn take_slots(&mut self, driver: &dyn Driver, inits: &[SlotInit]) -> Result<(), KernelError> {
        if inits.is_empty() {
            return Ok(());
        }
        for init in inits {
            self.table.take(init)?;
            let (start, words) = self.table.lists_of(init.slot);
            self.device.lists.upload(start * 4, bytes_of(words))?;
        }
        self.device.slots.upload(0, bytes_of(&self.table.params))?;
        self.count_tokens(driver, inits)
    }

    fn count_tokens(&mut self, driver: &dyn Driver, inits: &[SlotInit]) -> Result<(), KernelError> {
        let DeviceState { counts, resets, tokens, slot_tokens, .. } = &self.device;
        let padded = padded(self.limits.vocab) as u32;
        self.counting.fill_resets(inits);
        resets.upload(0, bytes_of(&self.counting.resets))?;
        let reset = SlotReset { counts: counts.pointer(), rows: resets.pointer(), padded };
        // SAFETY: rows of counts are slots, and there is one for each.
        unsafe { reset.launch(driver, self.counting.resets.len() as u32) }?;
        let count = SlotCount {
            counts: counts.pointer(),
            tokens: tokens.pointer(),
            slots: slot_tokens.pointer(),
            vocab: self.limits.vocab as u32,
            padded,
        };
        let mut first = 0;
        while first < inits.len() {
            first = self.counting.fill_round(inits, first);
            tokens.upload(0, bytes_of(&self.counting.tokens))?;
            slot_tokens.upload(0, bytes_of(&self.counting.slots))?;
            // SAFETY: the round's sequences and their tokens were uploaded.
            unsafe { count.launch(driver, self.counting.slots.len() as u32) }?;
        }
        Ok(())
    }

    /// Samples the rows that were prepared, from `logits` with `stride` columns.
    ///
    /// # Safety
    /// `logits` has a row for each of the step's, and the staging was uploaded.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        staging: &Staging,
        (logits, stride): (DevicePointer, u32),
    ) -> Result<(), KernelError> {
        let (device, vocab) = (&self.device, self.limits.vocab);
        let rows = staging.pointer(&self.rows);
        let num_rows = self.step.rows.len() as u32;
        let argmax = Argmax {
            logits,
            rows,
            bests: device.bests.pointer(),
            vocab: vocab as u32,
            stride,
            parts: parts_of(vocab) as u32,
        };
        let sample = Sample {
            logits,
            bests: device.bests.pointer(),
            rows,
            chain_start: staging.pointer(&self.chain_start),
            slots: device.slots.pointer(),
            lists: device.lists.pointer(),
            counts: device.counts.pointer(),
            adjusted: device.adjusted.pointer(),
            last_tokens: device.last_tokens.pointer(),
            out: device.out.pointer(),
            top: device.top.pointer(),
            vocab: vocab as u32,
            stride,
            padded: padded(vocab) as u32,
            parts: argmax.parts,
            max_top: max_top(&self.limits) as u32,
        };
        // SAFETY: buffers of the sizes in `Room`; the rest is the caller's promise.
        unsafe {
            argmax.launch(driver, num_rows)?;
            sample.launch_rows(driver, self.step.num_chains() as u32)?;
            if self.step.is_described {
                sample.launch_describe(driver, num_rows)?;
            }
        }
        Ok(())
    }

    /// Waits for the step and reads what it sampled.
    pub(crate) fn collect(&mut self, output: &mut SampleOutput) -> Result<(), KernelError> {
        let rows = self.step.rows.len();
        let top = rows * max_top(&self.limits);
        self.device.out.download(0, bytes_of_mut(&mut self.out[..rows]))?;
        if self.step.is_described {
            self.device.top.download(0, bytes_of_mut(&mut self.top[..top]))?;
        }
        collect(&self.out[..rows], &self.top, &self.limits, output);
        Ok(())
    }
}
