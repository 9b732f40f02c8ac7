//! generation_config.json: end-of-sequence tokens and default sampling values.
//!
//! Both files may name end-of-sequence tokens; this one wins. Values outside their range are
//! refused: a request that says nothing would otherwise sample by them.

use super::fields::{ConfigError, Fields, parse_object};
use super::{MAX_VOCAB, ModelConfig};
use crate::model::info::DefaultSampling;

/// What generation_config.json adds to a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    /// Ascending, below V.
    pub eos_token_ids: Vec<u32>,
    /// Where a request says nothing.
    pub sampling: DefaultSampling,
}

/// Most end-of-sequence tokens of a checkpoint.
const MAX_EOS: usize = 64;

/// Reads generation_config.json, or takes config.json's tokens when there is none.
pub fn read_generation(
    file: &str,
    bytes: Option<&[u8]>,
    config: &ModelConfig,
) -> Result<Generation, ConfigError> {
    let fallback = || config.eos_token_ids.clone();
    let Some(bytes) = bytes else {
        return Ok(Generation { eos_token_ids: fallback(), ..Generation::default() });
    };
    let map = parse_object(file, bytes)?;
    let fields = Fields::new(file, &map);
    let mut eos_token_ids = read_token_ids(&fields, "eos_token_id", config.vocab as u32)?;
    if eos_token_ids.is_empty() {
        eos_token_ids = fallback();
    }
    Ok(Generation { eos_token_ids, sampling: read_sampling(&fields)? })
}

fn read_sampling(fields: &Fields<'_>) -> Result<DefaultSampling, ConfigError> {
    if fields.flag("do_sample")? == Some(false) {
        return Ok(DefaultSampling { temperature: Some(0.0), ..DefaultSampling::default() });
    }
    let number = |field, bounds| Ok(fields.number(field, bounds)?.map(|n| n as f32));
    Ok(DefaultSampling {
        temperature: number("temperature", 0.0..=100.0)?,
        top_p: number("top_p", 1e-6..=1.0)?,
        top_k: fields.size("top_k", 0..=MAX_VOCAB)?,
        min_p: number("min_p", 0.0..=1.0)?,
        repetition_penalty: number("repetition_penalty", 1e-2..=1e2)?,
    })
}

/// One token id or a list of them, ascending. Ids that the vocabulary lacks are refused.
pub(super) fn read_token_ids(
    fields: &Fields<'_>,
    field: &str,
    vocab: u32,
) -> Result<Vec<u32>, ConfigError> {
    let values = match fields.get(field) {
        None => return Ok(Vec::new()),
        Some(serde_json::Value::Array(_)) => fields.list(field, MAX_EOS)?.unwrap_or_default(),
        Some(single) => std::slice::from_ref(single),
    };
    let mut ids = Vec::with_capacity(values.len());
    for value in values {
        let id = value.as_u64().filter(|id| *id < u64::from(vocab));
        let reason = || format!("{value} is not a token id below vocab_size, which is {vocab}");
        ids.push(id.ok_or_else(|| fields.error(field, reason()))? as u32);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
