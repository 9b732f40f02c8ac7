//! The memory plan of an instance: how many KV blocks, made once when its weights are loaded.
//!
//! ```text
//! memory we may use  =  weights + activations and tables + KV blocks (+ what is left alone)
//! ```
//! Nothing here grows with traffic. The plan is printed, and refused with numbers when not even one
//! sequence of the maximum length fits.

mod machine;

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

/// Left alone beside everything that is planned: stacks, text, connections, kernels' scratch.
const RESERVE_BYTES: u64 = 192 << 20;

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
    /// Weights and activations leave nothing for the KV cache.
    #[error(
        "weights and activations take {fixed} of the {allowed} that may be used, which leaves \
         nothing for the KV cache: give more memory, a larger share or a smaller model",
        fixed = gib(*.fixed), allowed = gib(*.allowed)
    )]
    NothingLeft {
        /// Bytes of weights and activations.
        fixed: u64,
        /// Bytes that may be used in all.
        allowed: u64,
    },
    /// One sequence of the maximum length does not fit.
    #[error(
        "one sequence of {max_model_len} tokens needs {needed} of KV cache, there is room for \
         {budget}: lower max-model-len to {fits} or give the KV cache more memory",
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
    },
}

/// Bytes that the KV cache may take on `machine`, beside `fixed` bytes of which `resident` are
/// already allocated.
pub fn kv_budget(
    budget: KvBudget,
    machine: &MachineMemory,
    fixed: u64,
    resident: u64,
) -> Result<u64, MemoryError> {
    let share = match budget {
        KvBudget::Bytes(bytes) => return Ok(bytes),
        KvBudget::Share(share) => share,
    };
    let allowed = (machine.limit as f64 * share) as u64;
    let planned = allowed.saturating_sub(fixed.saturating_add(RESERVE_BYTES));
    let free = machine.available.saturating_sub(fixed - resident.min(fixed) + RESERVE_BYTES);
    match planned.min(free) {
        0 => Err(MemoryError::NothingLeft { fixed, allowed: allowed.min(machine.available) }),
        bytes => Ok(bytes),
    }
}

/// Blocks of each group: as many sequences of the maximum length as the budget holds, and no more
/// than can ever run. Groups share the budget in the proportion in which such a sequence uses them.
pub fn plan_kv(request: &KvRequest<'_>) -> Result<KvPlan, MemoryError> {
    let needed = bytes_of_one(request, request.max_model_len);
    if needed > u128::from(request.budget) {
        return Err(MemoryError::OneSequence {
            max_model_len: request.max_model_len,
            needed: u64::try_from(needed).unwrap_or(u64::MAX),
            budget: request.budget,
            fits: longest_fit(request),
        });
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

/// Bytes for a person: `1.50 GiB`, `20.0 MiB`.
pub fn gib(bytes: u64) -> String {
    const MIB: f64 = (1 << 20) as f64;
    let mib = bytes as f64 / MIB;
    if mib >= 1024.0 { format!("{:.2} GiB", mib / 1024.0) } else { format!("{mib:.1} MiB") }
}

#[cfg(test)]
mod tests;
