//! What the rest of the engine may know about a loaded model: plain data.
//!
//! Filled once by [`crate::model::load`]; read by admission (context length, vocabulary), by the
//! scheduler (KV groups, limits), by the faces (default sampling) and by the start-up summary.
//! Holds no handle and never changes while the instance lives.

use pagoda_kernels::device::Limits;
use pagoda_kernels::dtype::DType;
use pagoda_kernels::kv_format::KvFormat;
use pagoda_kernels::weight_format::Quantization;

/// A loaded model in numbers.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct InstanceInfo {
    /// Tokens of one sequence, prompt and output together.
    pub max_model_len: u32,
    /// V: token ids are `0..vocab`.
    pub vocab: u32,
    /// Tokens per KV block: a power of two chosen by the device.
    pub block_size: u32,
    /// KV groups in the order of `Batch::groups`.
    pub groups: Vec<KvGroupInfo>,
    /// S: sequences of one step, and per-sequence slots `0..max_num_seqs`.
    pub max_num_seqs: u32,
    /// T: rows of one step.
    pub max_num_batched_tokens: u32,
    /// R: logits rows of one step, at least `max_num_seqs`. A chunk that wants prompt
    /// log-probabilities must not bring more rows than that.
    pub max_logits_rows: u32,
    /// Most entries of a top list of log-probabilities.
    pub max_logprobs: u32,
    /// Identifies the arithmetic and the weights' types: equal strings promise equal bits.
    /// Part of every block key.
    pub numerics: String,
    /// End-of-sequence tokens, ascending, all below `vocab`; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// What the checkpoint proposes where a request says nothing.
    pub default_sampling: DefaultSampling,
    /// Type of the packed weights, but for those that are quantized.
    pub dtype: DType,
    /// How the weights of products are quantized, if they are.
    pub quantization: Option<Quantization>,
    /// How the KV cache stores its elements.
    pub kv_dtype: KvFormat,
    /// Bytes of the packed weights.
    pub weight_bytes: u64,
    /// Steps that may be launched and not yet finished.
    pub depth: u32,
    /// Device in words: name, instruction set, threads.
    pub device: String,
}

/// One KV group: layers that need the same blocks for the same tokens.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KvGroupInfo {
    /// Which tokens a sequence must keep.
    pub kind: KvGroupKind,
    /// Layers in the group.
    pub num_layers: u32,
    /// Blocks in the cache, ids `0..num_blocks`.
    pub num_blocks: u32,
    /// Bytes of one block over all layers of the group.
    pub bytes_per_block: u64,
}

/// Which tokens of a sequence a KV group must keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum KvGroupKind {
    /// All of them.
    Full,
    /// A row at position p reads keys in `(p − window, p]`; blocks wholly below may be freed.
    Window(u32),
}

/// Sampling values of generation_config.json; `None` where it is silent or asks for greedy.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DefaultSampling {
    /// `temperature`, 0 when `do_sample` is false.
    pub temperature: Option<f32>,
    /// `top_p`, in (0, 1].
    pub top_p: Option<f32>,
    /// `top_k`, 0 keeps all.
    pub top_k: Option<u32>,
    /// `min_p`, in [0, 1].
    pub min_p: Option<f32>,
    /// `repetition_penalty`, above 0.
    pub repetition_penalty: Option<f32>,
}

impl InstanceInfo {
    /// The largest step that the instance's device runs.
    pub fn limits(&self) -> Limits {
        Limits {
            max_tokens: self.max_num_batched_tokens as usize,
            max_seqs: self.max_num_seqs as usize,
            max_logits_rows: self.max_logits_rows as usize,
            vocab: self.vocab as usize,
            max_model_len: self.max_model_len as usize,
            max_top: self.max_logprobs as usize,
        }
    }
}

impl KvGroupKind {
    /// Blocks that one sequence of `len` tokens holds at most, when steps bring up to `chunk` rows
    /// and blocks that slid out of the window are freed before each step.
    ///
    /// A chunk's first row reads `window − 1` keys before it, and the span may start anywhere in
    /// a block: `ceil((window − 1 + chunk) / block_size) + 1`.
    pub fn blocks_per_seq(self, len: u32, chunk: u32, block_size: u32) -> u32 {
        let all = len.div_ceil(block_size);
        match self {
            KvGroupKind::Full => all,
            KvGroupKind::Window(window) => {
                let span = u64::from(window.saturating_sub(1)) + u64::from(chunk.min(len));
                let held = span.div_ceil(u64::from(block_size)) + 1;
                all.min(u32::try_from(held).unwrap_or(u32::MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_what_one_chunk_reads_and_one_block_for_where_it_starts() {
        assert_eq!(KvGroupKind::Full.blocks_per_seq(100, 7, 16), 7);
        assert_eq!(KvGroupKind::Window(50).blocks_per_seq(100, 7, 16), 5);
        assert_eq!(KvGroupKind::Window(50).blocks_per_seq(33, 64, 16), 3);
        assert_eq!(KvGroupKind::Window(u32::MAX).blocks_per_seq(33, u32::MAX, 16), 3);
    }

    /// Slides every chunk over a long sequence and counts the blocks that its rows touch.
    #[test]
    fn the_bound_holds_for_every_start() {
        for (window, chunk, block) in [(1, 1, 16), (17, 5, 16), (50, 64, 16), (50, 1, 32)] {
            let bound = KvGroupKind::Window(window).blocks_per_seq(1000, chunk, block);
            for start in 0..(1000 - chunk) {
                let first = (start + 1).saturating_sub(window) / block;
                let last = (start + chunk - 1) / block;
                assert!(last - first < bound, "{window} {chunk} {block} {start}");
            }
        }
    }
}
