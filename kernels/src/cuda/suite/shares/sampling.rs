//! Sampling's share of reading its logits once: greedy, the usual ways to leave tokens out, and the
//! log-probabilities of those who ask.

use std::sync::Arc;

use super::super::finding::Figure;
use super::super::pool::Pool;
use super::super::shapes::samplings;
use super::super::{Finding, Run, Size};
use super::{Meter, Work, slots, words};
use crate::cuda::driver::{DeviceBuffer, DevicePointer};
use crate::cuda::plain::bytes_of;
use crate::cuda::sample::{Argmax, LogitsRow, Sample, padded, parts_of};
use crate::cuda::sample_slots::{Room, SlotTable, max_top};
use crate::cuda::tests::dice::Dice;
use crate::device::Limits;
use crate::error::KernelError;
use crate::sampling::{SamplerParams, SlotInit};

/// A way to sample.
struct Way {
    name: &'static str,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
}

const GREEDY: Way = Way { name: "greedy", temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
const WAYS: [Way; 5] = [
    GREEDY,
    Way { name: "temperature alone", temperature: 0.8, ..GREEDY },
    Way { name: "top-k 50", temperature: 0.8, top_k: 50, ..GREEDY },
    Way { name: "top-k 50 and top-p 0.9", temperature: 0.8, top_k: 50, top_p: 0.9, ..GREEDY },
    Way { name: "min-p 0.05", temperature: 0.8, min_p: 0.05, ..GREEDY },
];

pub(in crate::cuda::suite) fn run(run: &mut Run<'_>) -> Result<bool, KernelError> {
    let meter = Meter::new(run)?;
    let logits = logits(run)?;
    let (vocabs, rows) = samplings(run.size);
    for &vocab in vocabs {
        for &rows in rows {
            for way in &WAYS {
                if !(run.keeps_going)() {
                    return Ok(false);
                }
                let step = Step::new(run, vocab, rows, way)?;
                let figure = step.figure(run, &meter, &logits)?;
                (run.put)(Finding::Figure(figure));
            }
            let step = Step::new(run, vocab, rows, &GREEDY)?;
            let figures =
                [step.described(run, &meter, &logits)?, slots::figure(run, &meter, vocab, rows)?];
            figures.into_iter().for_each(|figure| (run.put)(Finding::Figure(figure)));
        }
    }
    Ok(true)
}

/// Entries of the lists of log-probabilities.
const TOP: usize = 20;

/// Logits of one copy after another: about 0, few far from it.
fn logits(run: &Run<'_>) -> Result<Pool, KernelError> {
    let (bytes, chunk_bytes) = match run.size {
        Size::Full => (512 << 20, 4 << 20),
        Size::Tiny => (16 << 10, 16 << 10),
    };
    let mut dice = Dice(run.seed);
    let chunk: Vec<u8> =
        (0..chunk_bytes / 4).flat_map(|_| (4.0 * dice.bell()).to_le_bytes()).collect();
    Pool::of(run.driver, bytes, &chunk)
}

/// Rows of a step that sample in one way.
struct Step<'a> {
    way: &'a Way,
    vocab: usize,
    rows: usize,
    slots: DeviceBuffer,
    logits_rows: DeviceBuffer,
    chain_start: DeviceBuffer,
    lists: DeviceBuffer,
    counts: DeviceBuffer,
    adjusted: DeviceBuffer,
    bests: DeviceBuffer,
    last_tokens: DeviceBuffer,
    out: DeviceBuffer,
    top: DeviceBuffer,
    max_top: u32,
}

impl<'a> Step<'a> {
    fn new(run: &Run<'_>, vocab: usize, rows: usize, way: &'a Way) -> Result<Self, KernelError> {
        let limits = Limits {
            max_tokens: rows,
            max_seqs: rows,
            max_logits_rows: rows,
            vocab,
            max_model_len: 1,
            max_top: TOP,
        };
        let room = Room::new(&limits)?;
        let mut table = SlotTable::new(&limits);
        let mut logits_rows = Vec::new();
        for slot in 0..rows as u32 {
            table.take(&SlotInit { slot, params: way.params(slot), ..empty() })?;
            let position_or_target = slot;
            logits_rows.push(LogitsRow { kind: 0, slot, position_or_target, draft_or_top: 0 });
        }
        let buffer = |bytes: usize| DeviceBuffer::new(run.driver, bytes, "sampling");
        let filled = |bytes: &[u8]| {
            let filled = buffer(bytes.len())?;
            filled.upload(0, bytes)?;
            Ok::<_, KernelError>(filled)
        };
        Ok(Step {
            way,
            vocab,
            rows,
            slots: filled(bytes_of(&table.params))?,
            logits_rows: filled(bytes_of(&logits_rows))?,
            chain_start: words(run, (0..=rows as u32).collect())?,
            lists: buffer(room.lists)?,
            counts: buffer(room.counts)?,
            adjusted: buffer(room.adjusted)?,
            bests: buffer(room.bests)?,
            last_tokens: buffer(room.last_tokens)?,
            out: buffer(room.out)?,
            top: buffer(room.top)?,
            max_top: max_top(&limits) as u32,
        })
    }

    /// Both launches that sample.
    fn figure(&self, run: &Run<'_>, meter: &Meter, pool: &Pool) -> Result<Figure, KernelError> {
        let Step { vocab, rows, .. } = *self;
        let bytes = rows * vocab * 4;
        let seconds = meter.watch.time(&mut |call| self.launch(run, pool.window(bytes, call)))?;
        let what = format!("sampling, {}, {rows} rows of {vocab}", self.way.name);
        Ok(meter.figure(what, seconds, &Work::moving(bytes)))
    }

    fn launch(&self, run: &Run<'_>, logits: DevicePointer) -> Result<(), KernelError> {
        let (vocab, parts) = (self.vocab as u32, parts_of(self.vocab) as u32);
        let (bests, rows) = (self.bests.pointer(), self.logits_rows.pointer());
        let argmax = Argmax { logits, rows, bests, vocab, stride: vocab, parts };
        // SAFETY: the pool holds the logits; buffers are of the sizes in `Room`.
        unsafe {
            argmax.launch(&**run.driver, self.rows as u32)?;
            self.sample(logits).launch_rows(&**run.driver, self.rows as u32)
        }
    }

    /// The launch behind them for rows that ask for log-probabilities.
    fn described(&self, run: &Run<'_>, meter: &Meter, pool: &Pool) -> Result<Figure, KernelError> {
        let Step { vocab, rows, .. } = *self;
        let bytes = rows * vocab * 4;
        self.launch(run, pool.window(bytes, 0))?;
        let seconds = meter.watch.time(&mut |call| {
            let sample = self.sample(pool.window(bytes, call));
            // SAFETY: the pool holds the logits; buffers are of the sizes in `Room`.
            unsafe { sample.launch_describe(&**run.driver, rows as u32) }
        })?;
        let what = format!("log-probabilities, {TOP} listed, {rows} rows of {vocab}");
        Ok(meter.figure(what, seconds, &Work::moving(bytes)))
    }

    fn sample(&self, logits: DevicePointer) -> Sample {
        Sample {
            logits,
            bests: self.bests.pointer(),
            rows: self.logits_rows.pointer(),
            chain_start: self.chain_start.pointer(),
            slots: self.slots.pointer(),
            lists: self.lists.pointer(),
            counts: self.counts.pointer(),
            adjusted: self.adjusted.pointer(),
            last_tokens: self.last_tokens.pointer(),
            out: self.out.pointer(),
            top: self.top.pointer(),
            vocab: self.vocab as u32,
            stride: self.vocab as u32,
            padded: padded(self.vocab) as u32,
            parts: parts_of(self.vocab) as u32,
            max_top: self.max_top,
        }
    }
}

impl Way {
    fn params(&self, slot: u32) -> Arc<SamplerParams> {
        let Way { temperature, top_k, top_p, min_p, .. } = *self;
        let seed = u64::from(slot);
        let num_logprobs = Some(TOP as u32);
        Arc::new(SamplerParams {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            num_logprobs,
            ..SamplerParams::default()
        })
    }
}

/// A slot of a sequence without penalties.
fn empty() -> SlotInit {
    SlotInit { slot: 0, params: Arc::default(), prompt: Vec::new(), output: Vec::new() }
}
