//! The memory plan of an instance: how many KV blocks, made once when its weights are loaded.
//!
//! ```text
//! memory we may use  =  weights + activations and tables + scratch + KV blocks (+ what is left alone)
//! ```
//! Nothing here grows with traffic. The plan is printed, and refused with numbers when not even one
//! sequence of the maximum length fits.

/// What other models hold.
pub mod beside;

mod machine;

pub use self::beside::{Beside, LeastNeed, ModelMemory};
pub use self::machine::MachineMemory;
use crate::model::info::KvGroupKind;

/// How much memory the KV cache may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KvBudget {
    /// All that the process uses may be this share of the machine's (or cgroup's) memory.
    Share(f64),
    /// The KV cache alone takes up to so many bytes.
    Bytes(u64),
}

/// Left alone beside everything that is planned: stacks, text, connections. Bodies and events of
/// unusual loads may take more, up to budgets of their own.
///
/// Of a device's own memory it is for what the driver takes beside what it is asked for: allocations are
/// rounded up to pages of 2 MiB, of which steps' scratch and the KV cache have some dozens, and threads of
/// kernels that spill have a stack (24 bytes at most on Hopper, tests/cuda/kernels.toml, for as many
/// threads as run at once: 7 MB on an H200). Weights' own rounding is no part of it, since free memory is
/// asked for when they are there; nor are graphs, which the device counts in its scratch, 64 KiB a launch.
const RESERVE_BYTES: u64 = 192 << 20;

/// What a model takes beside its KV cache, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedBytes {
    /// Packed weights, already in memory when the KV cache is planned.
    pub weights: u64,
    /// Activation buffers and rope tables.
    pub activations: u64,
    /// What the device takes to run steps.
    pub scratch: u64,
    /// What a device of its own memory takes of the host's, page-locked: told, and no part of the sum.
    pub page_locked: u64,
}

impl FixedBytes {
    fn total(&self) -> u64 {
        self.weights.saturating_add(self.activations).saturating_add(self.scratch)
    }
}

impl KvBudget {
    /// The setting that gives the KV cache more, as the user knows it.
    pub fn setting(self) -> &'static str {
        match self {
            KvBudget::Share(_) => "gpu-memory-utilization",
            KvBudget::Bytes(_) => "kv-cache-memory-bytes",
        }
    }
}

/// What one KV group asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupNeed {
    /// Which tokens a sequence keeps.
    pub kind: KvGroupKind,
    /// Bytes of one block over all layers of the group.
    pub bytes_per_block: u64,
}

/// What the KV cache is planned for.
#[derive(Clone, Copy, Debug)]
pub struct KvRequest<'a> {
    /// One entry a group.
    pub groups: &'a [GroupNeed],
    /// Tokens of a block.
    pub block_size: u32,
    /// Tokens of one sequence.
    pub max_model_len: u32,
    /// Sequences that ever run at once: more blocks than they need are never planned.
    pub max_num_seqs: u32,
    /// Rows that one step may bring of one sequence.
    pub max_chunk: u32,
    /// Bytes for all groups.
    pub budget: u64,
    /// The setting that would give more.
    pub setting: &'static str,
}

/// The planned KV cache.
#[derive(Clone, Debug, PartialEq)]
pub struct KvPlan {
    /// Blocks of each group.
    pub num_blocks: Vec<u32>,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Sequences of the maximum length that fit, to a tenth.
    pub full_length_seqs: f64,
}

/// Not enough memory. Capacity: more memory, or smaller settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Weights, activations and scratch leave nothing for the KV cache.
    #[error(
        "weights, activations and scratch take {fixed} of the {allowed} that may be used, which \
         leaves nothing for the KV cache: raise gpu-memory-utilization, lower \
         max-num-batched-tokens or max-num-seqs, or use a smaller model",
        fixed = gib(*.fixed), allowed = gib(*.allowed)
    )]
    NothingLeft {
        /// Bytes of all of these.
        fixed: u64,
        /// Bytes that may be used in all.
        allowed: u64,
    },
    /// It is known before anything is read that the model does not fit beside what is there.
    #[error(
        "the model needs {needed} at least (weights {}, activations {}, scratch {}, KV cache {}), \
         and there is room for {} of the {} that all models may take{}; {}",
        gib(.need.weights), gib(.need.activations), gib(.need.scratch), gib(.need.kv_cache), gib(*.room),
        gib(*.allowed), others(*.promised), smaller_model(*.smaller),
        needed = gib(.need.total())
    )]
    NoRoom {
        /// What it needs.
        need: LeastNeed,
        /// Bytes there are for it.
        room: u64,
        /// Bytes that all models may take.
        allowed: u64,
        /// Bytes that the others hold.
        promised: u64,
        /// The quantization with which it would fit, if one does.
        smaller: Option<&'static str>,
    },
    /// One sequence of the maximum length does not fit.
    #[error(
        "one sequence of {max_model_len} tokens needs {needed} of KV cache, there is room for \
         {budget}: lower max-model-len to {fits} or raise {setting}",
        needed = gib(*.needed), budget = gib(*.budget)
    )]
    OneSequence {
        /// The maximum length.
        max_model_len: u32,
        /// Bytes that one such sequence needs.
        needed: u64,
        /// Bytes there are.
        budget: u64,
        /// The longest sequence that would fit.
        fits: u32,
        /// The setting that would give more.
        setting: &'static str,
    },
    /// Not even one block fits.
    #[error(
        "the KV cache has room for {budget}, and its smallest part, a block of {block_size} \
         tokens, needs {block}: raise {setting} (one sequence of {max_model_len} tokens needs \
         {needed})",
        budget = gib(*.budget), block = gib(*.block), needed = gib(*.needed)
    )]
    NoBlock {
        /// Bytes there are.
        budget: u64,
        /// Tokens of a block.
        block_size: u32,
        /// Bytes of one block in every group.
        block: u64,
        /// The maximum length.
        max_model_len: u32,
        /// Bytes that one such sequence needs.
        needed: u64,
        /// The setting that would give more.
        setting: &'static str,
    },
}

fn others(promised: u64) -> String {
    match promised {
        0 => String::new(),
        promised => format!(": the others hold {}", gib(promised)),
    }
}

fn smaller_model(quantization: Option<&str>) -> String {
    match quantization {
        Some(name) => format!("with quantization {name} it would fit"),
        None => "unload another, or lower max-model-len or max-num-seqs".into(),
    }
}

/// Bytes that the KV cache may take on `machine`, beside `fixed` and the other models: an equal
/// part of what they leave, if more models are to come, and `least` as far as it is there (theirs is
/// left to them as it is).
pub fn kv_budget(
    budget: KvBudget,
    machine: &MachineMemory,
    (fixed, least): (&FixedBytes, u64),
    beside: &Beside,
) -> Result<u64, MemoryError> {
    let share = match budget {
        KvBudget::Bytes(bytes) => return Ok(bytes),
        KvBudget::Share(share) => share,
    };
    let taken = beside.promised.saturating_add(beside.to_come);
    let allowed = ((machine.limit as f64 * share) as u64).saturating_sub(taken);
    let total = fixed.total();
    let planned = allowed.saturating_sub(total.saturating_add(RESERVE_BYTES));
    let to_come = (total - fixed.weights.min(total)).saturating_add(RESERVE_BYTES);
    let to_come = to_come.saturating_add(beside.to_come);
    let free = machine.available.saturating_sub(to_come);
    match planned.min(free) {
        0 => {
            let reach = machine.available.saturating_add(fixed.weights);
            Err(MemoryError::NothingLeft { fixed: total, allowed: allowed.min(reach) })
        }
        bytes => Ok((bytes / (u64::from(beside.models_to_come) + 1)).max(least.min(bytes))),
    }
}

/// Bytes of the KV cache at least: what was asked for as far as it is of use, or room for one
/// sequence of the maximum length. An error is the refusal of what was asked for.
pub fn least_kv(budget: KvBudget, request: &KvRequest<'_>) -> Result<u64, MemoryError> {
    match budget {
        KvBudget::Bytes(budget) => Ok(plan_kv(&KvRequest { budget, ..*request })?.bytes),
        KvBudget::Share(_) => {
            Ok(u64::try_from(bytes_of_one(request, request.max_model_len)).unwrap_or(u64::MAX))
        }
    }
}

/// Blocks of each group: as many sequences of the maximum length as the budget holds, and no more
/// than can ever run. Groups share the budget in the proportion in which such a sequence uses them.
pub fn plan_kv(request: &KvRequest<'_>) -> Result<KvPlan, MemoryError> {
    let needed = bytes_of_one(request, request.max_model_len);
    if needed > u128::from(request.budget) {
        return Err(too_little(request, needed));
    }
    // Slots are block × block_size + offset in 32 bits, the largest of which means "none".
    let most = u128::from(u32::MAX / request.block_size - 1);
    let blocks = |group: &GroupNeed| {
        let one = u128::from(blocks_of_one(request, group, request.max_model_len));
        let affordable = one * u128::from(request.budget) / needed.max(1);
        affordable.min(one * u128::from(request.max_num_seqs)).min(most) as u32
    };
    let num_blocks: Vec<u32> = request.groups.iter().map(blocks).collect();
    let bytes = request.groups.iter().zip(&num_blocks);
    let bytes = bytes.map(|(group, n)| group.bytes_per_block * u64::from(*n)).sum();
    let full_length_seqs = bytes as f64 / needed.max(1) as f64;
    Ok(KvPlan { num_blocks, bytes, full_length_seqs })
}

/// The refusal of a budget below `needed`, with what would fit.
fn too_little(request: &KvRequest<'_>, needed: u128) -> MemoryError {
    let bytes = |bytes: u128| u64::try_from(bytes).unwrap_or(u64::MAX);
    let KvRequest { block_size, max_model_len, budget, setting, .. } = *request;
    let needed = bytes(needed);
    match longest_fit(request) {
        0 => {
            let block = bytes(bytes_of_one(request, 1));
            MemoryError::NoBlock { budget, block_size, block, max_model_len, needed, setting }
        }
        fits => MemoryError::OneSequence { max_model_len, needed, budget, fits, setting },
    }
}

fn blocks_of_one(request: &KvRequest<'_>, group: &GroupNeed, len: u32) -> u32 {
    group.kind.blocks_per_seq(len, request.max_chunk, request.block_size)
}

/// Bytes that one sequence of `len` tokens holds over all groups.
fn bytes_of_one(request: &KvRequest<'_>, len: u32) -> u128 {
    let bytes = |group: &GroupNeed| {
        u128::from(blocks_of_one(request, group, len)) * u128::from(group.bytes_per_block)
    };
    request.groups.iter().map(bytes).sum()
}

/// The longest sequence within the budget, 0 if none.
fn longest_fit(request: &KvRequest<'_>) -> u32 {
    let (mut fits, mut too_long) = (0, request.max_model_len);
    while too_long - fits > 1 {
        let middle = fits + (too_long - fits) / 2;
        if bytes_of_one(request, middle) <= u128::from(request.budget) {
            fits = middle;
        } else {
            too_long = middle;
        }
    }
    fits
}

/// Bytes for a person: `1.50 GiB`, `20.0 MiB`, `3.0 KiB`.
pub fn gib(bytes: u64) -> String {
    let kib = bytes as f64 / 1024.0;
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..0x10_0000 => format!("{kib:.1} KiB"),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", kib / 1024.0),
        _ => format!("{:.2} GiB", kib / (1024.0 * 1024.0)),
    }
}

#[cfg(test)]
mod tests;
