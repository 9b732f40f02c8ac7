//! Sampling on the device: the state of all slots, a step's rows, and what they gave.
//!
//! Slots are taken by kernels in the order of the stream, so a step in flight keeps the parameters
//! that it was planned with. Results go to page-locked memory, a set for each step in flight.

use std::sync::Arc;

use crate::batch::Batch;
use crate::cuda::driver::{DeviceBuffer, DevicePointer, Driver};
use crate::cuda::graphs::StepShape;
use crate::cuda::host_buffer::HostBuffer;
use crate::cuda::sample::{
    Argmax, LogitsRow, Sample, SampledRow, SlotCount, SlotParams, SlotReset, SlotTake, SlotTakes,
    SlotTokens, TopToken, padded, parts_of,
};
use crate::cuda::sample_slots::{Room, SlotRound, SlotTable, StepRows, collect, max_top};
use crate::cuda::staging::{Place, SETS, Staging, StagingPlan};
use crate::device::Limits;
use crate::error::KernelError;
use crate::sampling::{SampleOutput, SlotInit};

/// Samples the rows of steps within limits.
#[derive(Debug)]
pub(crate) struct Sampler {
    driver: Arc<dyn Driver>,
    limits: Limits,
    table: SlotTable,
    step: StepRows,
    round: SlotRound,
    rows: Place<LogitsRow>,
    chain_start: Place<u32>,
    places: RoundPlaces,
    device: DeviceState,
    results: [Results; SETS],
}

/// Places of a round of sequences that take slots.
#[derive(Debug)]
struct RoundPlaces {
    takes: Place<SlotTake>,
    params: Place<SlotParams>,
    words: Place<u32>,
    resets: Place<u32>,
    tokens: Place<u32>,
    counted: Place<SlotTokens>,
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
}

/// What a step gave, once it is over.
#[derive(Debug)]
struct Results {
    out: HostBuffer,
    top: HostBuffer,
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
        };
        let results = || {
            let host = |bytes: usize| HostBuffer::new(driver, bytes);
            Ok::<_, KernelError>(Results { out: host(room.out)?, top: host(room.top)? })
        };
        let round = SlotRound::new(limits);
        Ok(Sampler {
            driver: Arc::clone(driver),
            limits: *limits,
            table: SlotTable::new(limits),
            step: StepRows::new(limits),
            rows: plan.place(limits.max_logits_rows),
            chain_start: plan.place(limits.max_seqs + 1),
            places: RoundPlaces {
                takes: plan.place_aside(limits.max_seqs),
                params: plan.place_aside(limits.max_seqs),
                resets: plan.place_aside(limits.max_seqs),
                counted: plan.place_aside(limits.max_seqs),
                words: plan.place_aside(round.max_words()),
                tokens: plan.place_aside(limits.max_model_len),
            },
            round,
            device,
            results: [results()?, results()?],
        })
    }

    /// By slot, the token sampled last.
    pub(crate) fn last_tokens(&self) -> DevicePointer {
        self.device.last_tokens.pointer()
    }

    /// Writes the step's rows, as many as `shape` has, and its first round of slots. Gives where the
    /// next round begins.
    pub(crate) fn write(
        &mut self,
        staging: &mut Staging,
        batch: &Batch,
        shape: StepShape,
    ) -> Result<usize, KernelError> {
        batch.slot_inits.iter().try_for_each(|init| self.table.take(init))?;
        self.step.fill(batch, &self.table);
        self.step.pad(shape);
        staging.write(&self.rows, &self.step.rows)?;
        staging.write(&self.chain_start, &self.step.chain_start)?;
        self.write_round(staging, &batch.slot_inits, 0)
    }

    fn write_round(
        &mut self,
        staging: &mut Staging,
        inits: &[SlotInit],
        first: usize,
    ) -> Result<usize, KernelError> {
        let next = self.round.fill(inits, first, &self.table);
        let (round, places) = (&self.round, &self.places);
        staging.write(&places.takes, &round.takes)?;
        staging.write(&places.params, &round.params)?;
        staging.write(&places.words, &round.words)?;
        staging.write(&places.resets, &round.resets)?;
        staging.write(&places.tokens, &round.tokens)?;
        staging.write(&places.counted, &round.counted)?;
        Ok(next)
    }

    /// Takes the slots of `inits`, whose first round, up to `next`, was sent. Waits if there are more:
    /// tokens of sequences with penalties that are longer than one sequence may be, all in one step.
    pub(crate) fn take_slots(
        &mut self,
        staging: &mut Staging,
        inits: &[SlotInit],
        mut next: usize,
    ) -> Result<(), KernelError> {
        self.launch_round(staging)?;
        while next < inits.len() {
            staging.await_sent()?;
            next = self.write_round(staging, inits, next)?;
            staging.send()?;
            self.launch_round(staging)?;
        }
        Ok(())
    }

    fn launch_round(&self, staging: &Staging) -> Result<(), KernelError> {
        let (device, round, places) = (&self.device, &self.round, &self.places);
        let padded = padded(self.limits.vocab) as u32;
        let takes = SlotTakes {
            takes: staging.pointer(&places.takes),
            params: staging.pointer(&places.params),
            words: staging.pointer(&places.words),
            slots: device.slots.pointer(),
            lists: device.lists.pointer(),
        };
        let counts = device.counts.pointer();
        let reset = SlotReset { counts, rows: staging.pointer(&places.resets), padded };
        let count = SlotCount {
            counts,
            tokens: staging.pointer(&places.tokens),
            slots: staging.pointer(&places.counted),
            vocab: self.limits.vocab as u32,
            padded,
        };
        // SAFETY: the round's sequences were sent, and each slot has its lists and a row of counts.
        unsafe {
            takes.launch(&*self.driver, round.takes.len() as u32)?;
            reset.launch(&*self.driver, round.resets.len() as u32)?;
            count.launch(&*self.driver, round.counted.len() as u32)
        }
    }

    /// Samples rows and chains of `shape`, from `logits` with `stride` columns.
    ///
    /// # Safety
    /// `logits` has a row for each, and their staging will have arrived when this runs.
    pub(crate) unsafe fn launch(
        &self,
        staging: &Staging,
        logits: (DevicePointer, u32),
        shape: StepShape,
    ) -> Result<(), KernelError> {
        let sample = self.parameters(staging, logits);
        let Sample { logits, rows, bests, vocab, stride, parts, .. } = sample;
        let argmax = Argmax { logits, rows, bests, vocab, stride, parts };
        // SAFETY: buffers of the sizes in `Room`; the rest is the caller's promise.
        unsafe {
            argmax.launch(&*self.driver, shape.logits as u32)?;
            sample.launch_rows(&*self.driver, shape.chains as u32)
        }
    }

    /// Describes the rows that were written, if any asks for log-probabilities. Behind
    /// [`Self::launch`] for the same logits.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn describe(
        &self,
        staging: &Staging,
        logits: (DevicePointer, u32),
    ) -> Result<(), KernelError> {
        if !self.step.is_described {
            return Ok(());
        }
        let sample = self.parameters(staging, logits);
        // SAFETY: the caller's promise.
        unsafe { sample.launch_describe(&*self.driver, self.step.rows.len() as u32) }
    }

    fn parameters(&self, staging: &Staging, (logits, stride): (DevicePointer, u32)) -> Sample {
        let (device, vocab) = (&self.device, self.limits.vocab);
        Sample {
            logits,
            bests: device.bests.pointer(),
            rows: staging.pointer(&self.rows),
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
            parts: parts_of(vocab) as u32,
            max_top: max_top(&self.limits) as u32,
        }
    }

    /// Has the results of `rows` rows copied to set number `set`, behind the step.
    ///
    /// # Safety
    /// Nobody reads that set until a mark behind this was waited for.
    pub(crate) unsafe fn fetch(&self, set: usize, rows: usize) -> Result<(), KernelError> {
        let (device, results) = (&self.device, &self.results[set]);
        let top =
            if self.step.is_described { max_top(&self.limits) * size_of::<TopToken>() } else { 0 };
        for (to, from, row_bytes) in
            [(&results.out, &device.out, size_of::<SampledRow>()), (&results.top, &device.top, top)]
        {
            if rows * row_bytes > 0 {
                // SAFETY: rows of any step fit both sides; the rest is the caller's promise.
                unsafe { self.driver.copy_out(to.pointer(0), from.pointer(), rows * row_bytes) }?;
            }
        }
        Ok(())
    }

    /// Reads the results of `rows` rows from set number `set`.
    ///
    /// # Safety
    /// The mark behind their copies was waited for.
    pub(crate) unsafe fn collect(&self, set: usize, rows: usize, output: &mut SampleOutput) {
        let results = &self.results[set];
        // SAFETY: the caller's promise.
        let (out, top) =
            unsafe { (results.out.values(rows), results.top.values(rows * max_top(&self.limits))) };
        collect(out, top, &self.limits, output);
    }
}
