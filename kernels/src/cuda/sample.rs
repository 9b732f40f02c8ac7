//! `sample` and `advance`: launches of sample.cu.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::plain::Plain;
use crate::cuda::source::SAMPLE;
use crate::error::KernelError;

/// Mirrors `LogitsRow` of sample_parameters.cuh: a row whose logits are needed.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub(crate) struct LogitsRow {
    /// 0: sample, 1: prompt log-probability, 2: verify, 3: none, a row of padding.
    pub(crate) kind: u32,
    pub(crate) slot: u32,
    pub(crate) position_or_target: u32,
    pub(crate) draft_or_top: u32,
}

impl LogitsRow {
    /// Of which nothing comes.
    pub(crate) const PADDING: Self =
        LogitsRow { kind: 3, slot: NONE, position_or_target: 0, draft_or_top: 0 };
}

/// Mirrors `SlotParams` of sample_parameters.cuh: how the sequence of a slot samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct SlotParams {
    pub(crate) seed: u64,
    pub(crate) choice: u32,
    pub(crate) temperature: f32,
    pub(crate) top_k: u32,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) repetition_penalty: f32,
    pub(crate) min_tokens: u32,
    /// Or [`NONE`].
    pub(crate) num_logprobs: u32,
    /// Or [`NONE`].
    pub(crate) counts_row: u32,
    pub(crate) suppressed_start: u32,
    pub(crate) suppressed_len: u32,
    pub(crate) bias_start: u32,
    pub(crate) bias_len: u32,
    pub(crate) allowed_start: u32,
    pub(crate) allowed_len: u32,
    pub(crate) unused: u32,
}

/// No log-probabilities, or no row of counts.
pub(crate) const NONE: u32 = u32::MAX;

/// Mirrors `SampledRow` of sample_parameters.cuh.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct SampledRow {
    pub(crate) token: u32,
    pub(crate) logprob: f32,
    pub(crate) rank: u32,
    pub(crate) top_len: u32,
}

/// Mirrors `TopToken` of sample_parameters.cuh.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct TopToken {
    pub(crate) token: u32,
    pub(crate) logprob: f32,
}

/// Mirrors `SlotTake` of sample_parameters.cuh: a sequence takes a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub(crate) struct SlotTake {
    pub(crate) slot: u32,
    pub(crate) start: u32,
    pub(crate) len: u32,
    pub(crate) unused: u32,
}

/// Mirrors `SlotTokens` of sample_parameters.cuh: tokens to count.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub(crate) struct SlotTokens {
    pub(crate) counts_row: u32,
    pub(crate) start: u32,
    pub(crate) prompt_len: u32,
    pub(crate) output_len: u32,
}

// SAFETY: words only, in whole multiples of the alignment.
unsafe impl Plain for LogitsRow {}
// SAFETY: as above; `unused` fills the last 8 bytes.
unsafe impl Plain for SlotParams {}
// SAFETY: as above.
unsafe impl Plain for SampledRow {}
// SAFETY: as above.
unsafe impl Plain for TopToken {}
// SAFETY: as above.
unsafe impl Plain for SlotTake {}
// SAFETY: as above.
unsafe impl Plain for SlotTokens {}

/// Mirrors `Argmax` of sample_parameters.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Argmax {
    pub(crate) logits: DevicePointer,
    pub(crate) rows: DevicePointer,
    pub(crate) bests: DevicePointer,
    pub(crate) vocab: u32,
    pub(crate) stride: u32,
    /// Any number gives the same tokens; see [`parts_of`].
    pub(crate) parts: u32,
}

static ARGMAX: Kernel<Argmax> = Kernel::new(&SAMPLE, "sample_argmax", 256);
/// A best key for each warp.
const ARGMAX_SHARED_BYTES: usize = 256 / 32 * 8;

/// Blocks among which the best token of a row is looked for.
pub(crate) fn parts_of(vocab: usize) -> usize {
    vocab.div_ceil(8192).clamp(1, 64)
}

impl Argmax {
    /// Finds the best tokens of `rows` rows.
    ///
    /// # Safety
    /// Every pointer has what sample_parameters.cuh says for `rows` rows.
    pub(crate) unsafe fn launch(&self, driver: &dyn Driver, rows: u32) -> Result<(), KernelError> {
        let grid = Grid { blocks: [rows, self.parts, 1], shared_bytes: ARGMAX_SHARED_BYTES };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &ARGMAX, grid, self) }
    }
}

/// Mirrors `Sample` of sample_parameters.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Sample {
    pub(crate) logits: DevicePointer,
    pub(crate) bests: DevicePointer,
    pub(crate) rows: DevicePointer,
    pub(crate) chain_start: DevicePointer,
    pub(crate) slots: DevicePointer,
    pub(crate) lists: DevicePointer,
    pub(crate) counts: DevicePointer,
    pub(crate) adjusted: DevicePointer,
    pub(crate) last_tokens: DevicePointer,
    pub(crate) out: DevicePointer,
    pub(crate) top: DevicePointer,
    pub(crate) vocab: u32,
    pub(crate) stride: u32,
    /// See [`padded`].
    pub(crate) padded: u32,
    pub(crate) parts: u32,
    pub(crate) max_top: u32,
}

static ROWS: Kernel<Sample> = Kernel::new(&SAMPLE, "sample_rows", 1024);
static DESCRIBE: Kernel<Sample> = Kernel::new(&SAMPLE, "sample_describe", 1024);
/// `Shared` of sample_select.cuh, which asserts the same number.
const ROWS_SHARED_BYTES: usize = 34120;
/// A value for each warp.
const DESCRIBE_SHARED_BYTES: usize = 1024 / 32 * 8;
/// Tokens for which shared memory has a word of 8 bytes.
const CHUNK: usize = 256;

/// The largest vocabulary: sums of more weights would not fit their integers.
pub(crate) const VOCAB_MAX: usize = 1 << 20;

/// Elements from a row of counts or of adjusted logits to the next: whole pieces of 16 bytes.
pub(crate) fn padded(vocab: usize) -> usize {
    vocab.next_multiple_of(4)
}

impl Sample {
    /// Samples the rows of `chains` chains, and stores the slots' last tokens. Behind
    /// [`Argmax::launch`] for the same rows.
    ///
    /// # Safety
    /// Every pointer has what sample_parameters.cuh says for `chains` chains and their rows, and
    /// the vocabulary is at most [`VOCAB_MAX`].
    pub(crate) unsafe fn launch_rows(
        &self,
        driver: &dyn Driver,
        chains: u32,
    ) -> Result<(), KernelError> {
        let grid = self.grid(chains, ROWS_SHARED_BYTES);
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &ROWS, grid, self) }
    }

    /// Fills in the log-probabilities that any of `rows` rows asks for. Behind
    /// [`Sample::launch_rows`]; not needed if no row asks.
    ///
    /// # Safety
    /// Every pointer has what sample_parameters.cuh says for `rows` rows.
    pub(crate) unsafe fn launch_describe(
        &self,
        driver: &dyn Driver,
        rows: u32,
    ) -> Result<(), KernelError> {
        let grid = self.grid(rows, DESCRIBE_SHARED_BYTES);
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &DESCRIBE, grid, self) }
    }

    fn grid(&self, blocks: u32, fixed_bytes: usize) -> Grid {
        let chunks = (self.vocab as usize).div_ceil(CHUNK);
        Grid { blocks: [blocks, 1, 1], shared_bytes: fixed_bytes + chunks * 8 }
    }
}

/// Mirrors `SlotTakes` of sample_parameters.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct SlotTakes {
    pub(crate) takes: DevicePointer,
    pub(crate) params: DevicePointer,
    pub(crate) words: DevicePointer,
    pub(crate) slots: DevicePointer,
    pub(crate) lists: DevicePointer,
}

static SLOT_TAKE: Kernel<SlotTakes> = Kernel::new(&SAMPLE, "sample_slot_take", 256);

impl SlotTakes {
    /// Brings parameters and lists to the slots of `takes` sequences.
    ///
    /// # Safety
    /// Every pointer has what sample_parameters.cuh says for `takes` sequences.
    pub(crate) unsafe fn launch(&self, driver: &dyn Driver, takes: u32) -> Result<(), KernelError> {
        let grid = Grid { blocks: [takes, 1, 1], shared_bytes: 0 };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &SLOT_TAKE, grid, self) }
    }
}

/// Mirrors `SlotReset` of sample_parameters.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct SlotReset {
    pub(crate) counts: DevicePointer,
    pub(crate) rows: DevicePointer,
    pub(crate) padded: u32,
}

static SLOT_RESET: Kernel<SlotReset> = Kernel::new(&SAMPLE, "sample_slot_reset", 256);

impl SlotReset {
    /// Clears `rows` rows of counts.
    ///
    /// # Safety
    /// Every pointer has what sample_parameters.cuh says for `rows` rows.
    pub(crate) unsafe fn launch(&self, driver: &dyn Driver, rows: u32) -> Result<(), KernelError> {
        // A thread clears some 16 pieces of 16 bytes.
        let parts = self.padded.div_ceil(16 * 4 * 256).max(1);
        let grid = Grid { blocks: [rows, parts, 1], shared_bytes: 0 };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &SLOT_RESET, grid, self) }
    }
}

/// Mirrors `SlotCount` of sample_parameters.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct SlotCount {
    pub(crate) counts: DevicePointer,
    pub(crate) tokens: DevicePointer,
    pub(crate) slots: DevicePointer,
    pub(crate) vocab: u32,
    pub(crate) padded: u32,
}

static SLOT_COUNT: Kernel<SlotCount> = Kernel::new(&SAMPLE, "sample_slot_count", 256);

impl SlotCount {
    /// Counts the tokens of `slots` sequences, in rows that [`SlotReset`] cleared.
    ///
    /// # Safety
    /// Every pointer has what sample_parameters.cuh says for `slots` sequences.
    pub(crate) unsafe fn launch(&self, driver: &dyn Driver, slots: u32) -> Result<(), KernelError> {
        let grid = Grid { blocks: [slots, 1, 1], shared_bytes: 0 };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &SLOT_COUNT, grid, self) }
    }
}
