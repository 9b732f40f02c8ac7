//! What config.json says layer by layer: windows of attention, and which layers hold experts.

use serde_json::Value;

use super::fields::{ConfigError, Fields};
use super::{MAX_INTERMEDIATE, MAX_POSITIONS};
use crate::model::families::Windows;

/// The experts of a sparse checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Whether a layer holds experts; one entry a layer.
    pub layers: Vec<bool>,
    /// E.
    pub num_experts: usize,
    /// A, at most E.
    pub num_chosen: usize,
    /// I of one expert.
    pub intermediate: usize,
    /// Whether the chosen weights are divided by their sum.
    pub renormalize: bool,
}

const MAX_EXPERTS: u32 = 1 << 10;

/// The window of each layer.
pub(super) fn read_windows(
    config: &Fields<'_>,
    windows: Windows,
    num_layers: u32,
) -> Result<Vec<Option<u32>>, ConfigError> {
    let window = config.size("sliding_window", 1..=MAX_POSITIONS)?;
    let switched_on = config.flag("use_sliding_window")?.unwrap_or(false);
    let types = read_layer_types(config, num_layers)?;
    let window = match windows {
        Windows::Never => None,
        Windows::Always | Windows::AllButEach(_) => window,
        Windows::UpperLayers | Windows::Switched => window.filter(|_| switched_on),
    };
    let windowed: Vec<bool> = match (windows, types) {
        (Windows::UpperLayers | Windows::AllButEach(_), Some(types)) => {
            if window.is_none() && types.contains(&true) {
                let reason = "has sliding_attention, but there is no sliding_window in use";
                return Err(config.error("layer_types", reason));
            }
            types
        }
        (Windows::UpperLayers, None) => {
            let first = config.size("max_window_layers", 0..=u32::MAX)?.unwrap_or(num_layers);
            (0..num_layers).map(|layer| layer >= first).collect()
        }
        (Windows::AllButEach(nth), None) => {
            let nth = config.size("sliding_window_pattern", 1..=u32::MAX)?.unwrap_or(nth);
            (1..=num_layers).map(|layer| !layer.is_multiple_of(nth)).collect()
        }
        (Windows::Never | Windows::Always | Windows::Switched, types) => {
            if types.is_some_and(|types| types.contains(&window.is_none())) {
                return Err(config.error("layer_types", "mixes kinds, which this family does not"));
            }
            vec![true; num_layers as usize]
        }
    };
    Ok(windowed.into_iter().map(|is_windowed| window.filter(|_| is_windowed)).collect())
}

/// Whether each layer is windowed, as transformers 5 writes it.
fn read_layer_types(
    config: &Fields<'_>,
    num_layers: u32,
) -> Result<Option<Vec<bool>>, ConfigError> {
    const FIELD: &str = "layer_types";
    let Some(types) = config.list(FIELD, num_layers as usize)? else { return Ok(None) };
    if types.len() != num_layers as usize {
        let layers = config.name("num_hidden_layers");
        let reason = format!("has {} entries, {layers} is {num_layers}", types.len());
        return Err(config.error(FIELD, reason));
    }
    let windowed = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(config.error(FIELD, format!("{kind} is not supported"))),
    };
    types.iter().map(windowed).collect::<Result<_, _>>().map(Some)
}

/// The experts of a family that may have some.
pub(super) fn read_experts(
    config: &Fields<'_>,
    sparse: bool,
    num_layers: u32,
) -> Result<Option<Experts>, ConfigError> {
    if !sparse {
        return Ok(None);
    }
    let num_experts = match config.size("num_experts", 1..=MAX_EXPERTS)? {
        Some(num_experts) => num_experts,
        None => config.need_size("num_local_experts", 1..=MAX_EXPERTS)?,
    };
    let step = config.size("decoder_sparse_step", 1..=u32::MAX)?.unwrap_or(1);
    let mut layers: Vec<bool> = (1..=num_layers).map(|n| n.is_multiple_of(step)).collect();
    for layer in config.list("mlp_only_layers", num_layers as usize)?.unwrap_or_default() {
        let index = layer.as_u64().and_then(|n| usize::try_from(n).ok());
        match index.and_then(|n| layers.get_mut(n)) {
            Some(is_sparse) => *is_sparse = false,
            None => {
                let reason = format!("{layer} is not a layer of {num_layers}");
                return Err(config.error("mlp_only_layers", reason));
            }
        }
    }
    Ok(Some(Experts {
        layers,
        num_experts: num_experts as usize,
        num_chosen: config.need_size("num_experts_per_tok", 1..=num_experts)? as usize,
        intermediate: config.need_size("moe_intermediate_size", 1..=MAX_INTERMEDIATE)? as usize,
        renormalize: config.flag("norm_topk_prob")?.unwrap_or(false),
    }))
}
