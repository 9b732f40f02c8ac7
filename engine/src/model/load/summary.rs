//! The lines that a start prints: what runs where, and how many sequences of what length fit.
//!
//! Words for a person, from the numbers of the memory plan. Decides nothing.

use pagoda_kernels::dtype::DType;
use pagoda_kernels::weight_format::Quantization;

use crate::memory::{FixedBytes, KvPlan, gib};
use crate::model::config::StoredQuantization;
use crate::model::info::{InstanceInfo, KvGroupInfo, KvGroupKind};

/// What runs, in which memory.
pub(super) fn summarize(
    place: &str,
    stored: Option<&StoredQuantization>,
    info: &InstanceInfo,
    plan: &KvPlan,
    fixed: &FixedBytes,
) -> String {
    format!(
        "model       {place}\n\
         device      {}\n\
         weights     {}{}, {}\n\
         activations {}, and {} of scratch{}\n\
         KV cache    {}, {}: {}\n\
         fits        {}",
        info.device,
        weights(info.dtype, info.quantization),
        stored.map(|stored| format!(", made of {}", stored.name())).unwrap_or_default(),
        gib(info.weight_bytes),
        gib(fixed.activations),
        gib(fixed.scratch),
        page_locked(fixed.page_locked),
        info.kv_dtype.name(),
        gib(plan.bytes),
        blocks(&info.groups, info.block_size),
        sequences(plan.full_length_seqs, info.max_model_len, info.max_num_seqs),
    )
}

/// Of the host's memory, where the device has its own.
fn page_locked(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(" ({} page-locked on the host)", gib(bytes)),
    }
}

/// A quantized model still has some plain weights: norms, biases, a router, an embedding of its own.
fn weights(dtype: DType, quantization: Option<Quantization>) -> String {
    match quantization {
        None => dtype.name().to_owned(),
        Some(quantization) => format!("{} (the rest {})", quantization.name(), dtype.name()),
    }
}

/// One group is the rule and needs no name.
fn blocks(groups: &[KvGroupInfo], block_size: u32) -> String {
    if let [one] = groups {
        return format!("{} of {block_size} tokens", counted(one.num_blocks, "block"));
    }
    let group = |group: &KvGroupInfo| {
        let blocks = counted(group.num_blocks, "block");
        let layers = counted(group.num_layers, "layer");
        match group.kind {
            KvGroupKind::Full => format!("{blocks} for {layers} over all tokens"),
            KvGroupKind::Window(window) => {
                format!("{blocks} for {layers} over the last {window} tokens")
            }
        }
    };
    let groups: Vec<String> = groups.iter().map(group).collect();
    format!("{}; {block_size} tokens each", groups.join(", "))
}

fn sequences(full_length: f64, max_model_len: u32, max_num_seqs: u32) -> String {
    let full = full_length as u32;
    let shown = counted(full, "sequence");
    if full >= max_num_seqs {
        return format!("{shown} of {max_model_len} tokens, as many as run at once");
    }
    format!(
        "{shown} of {max_model_len} tokens; up to {max_num_seqs} run at once if they are shorter"
    )
}

fn counted(count: u32, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(kind: KvGroupKind, num_layers: u32, num_blocks: u32) -> KvGroupInfo {
        KvGroupInfo { kind, num_layers, num_blocks, bytes_per_block: 1 }
    }

    #[test]
    fn what_fits_is_said_as_a_person_would() {
        let full = group(KvGroupKind::Full, 12, 682);
        assert_eq!(blocks(std::slice::from_ref(&full), 32), "682 blocks of 32 tokens");
        let window = group(KvGroupKind::Window(4096), 1, 80);
        assert_eq!(
            blocks(&[full, window], 32),
            "682 blocks for 12 layers over all tokens, 80 blocks for 1 layer over the last \
             4096 tokens; 32 tokens each"
        );
        assert_eq!(
            sequences(64.0, 2048, 64),
            "64 sequences of 2048 tokens, as many as run at once"
        );
        assert_eq!(
            sequences(1.97, 4096, 16),
            "1 sequence of 4096 tokens; up to 16 run at once if they are shorter"
        );
    }
}
