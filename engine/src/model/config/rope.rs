//! Reads a checkpoint's rope: the words of transformers 5 (`rope_parameters`) and of transformers
//! 4 (`rope_theta` beside `rope_scaling`). Refuses what it does not know by name.

use pagoda_kernels::ops::RopeStyle;

use super::MAX_POSITIONS;
use super::fields::{ConfigError, Fields};
use crate::model::rope::{RopeScaling, RopeSpec};

/// What the rope depends on beside its own fields.
pub(super) struct RopeContext {
    pub(super) head_dim: u32,
    pub(super) max_position: u32,
    pub(super) style: RopeStyle,
}

const FACTORS: std::ops::RangeInclusive<f64> = 1.0..=1e6;

/// The rope of `config`.
pub(super) fn read_rope(
    config: &Fields<'_>,
    context: &RopeContext,
) -> Result<RopeSpec, ConfigError> {
    let (scope, theta) = match config.object("rope_parameters")? {
        Some(rope) => {
            let theta = theta_of(&rope)?.map_or_else(|| theta_of(config), |t| Ok(Some(t)))?;
            (Some(rope), theta)
        }
        None => (config.object("rope_scaling")?, theta_of(config)?),
    };
    for fields in scope.iter().chain([config]) {
        let partial = fields.number("partial_rotary_factor", 0.0..=1.0)?;
        if partial.is_some_and(|share| share != 1.0) {
            return Err(fields.error("partial_rotary_factor", "other than 1 is not supported"));
        }
    }
    let scaling = match &scope {
        Some(rope) => read_scaling(rope, config, context)?,
        None => RopeScaling::Default,
    };
    Ok(RopeSpec {
        theta: theta.unwrap_or(10000.0),
        rotary_dim: context.head_dim as usize,
        style: context.style,
        max_position: context.max_position,
        scaling,
    })
}

fn theta_of(fields: &Fields<'_>) -> Result<Option<f64>, ConfigError> {
    fields.number("rope_theta", 2.0..=1e15)
}

fn read_scaling(
    rope: &Fields<'_>,
    config: &Fields<'_>,
    context: &RopeContext,
) -> Result<RopeScaling, ConfigError> {
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let factor = || rope.need_number("factor", FACTORS);
    Ok(match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "dynamic" => RopeScaling::Dynamic { factor: factor()? },
        "llama3" => read_llama3(rope, config, context)?,
        "yarn" => read_yarn(rope, config, context)?,
        "longrope" => read_longrope(rope, config, context)?,
        other => {
            return Err(rope.error(
                "rope_type",
                format!(
                    "{other:?} is not supported (supported: default, linear, dynamic, llama3, \
                     yarn, longrope)"
                ),
            ));
        }
    })
}

/// Length of the pre-training: in the rope's object, or beside it (Phi), or the longest position.
fn original_len(
    rope: &Fields<'_>,
    config: &Fields<'_>,
    context: &RopeContext,
) -> Result<u32, ConfigError> {
    const FIELD: &str = "original_max_position_embeddings";
    let inside = rope.size(FIELD, 2..=MAX_POSITIONS)?;
    let beside = config.size(FIELD, 2..=MAX_POSITIONS)?;
    Ok(inside.or(beside).unwrap_or(context.max_position))
}

fn read_llama3(
    rope: &Fields<'_>,
    config: &Fields<'_>,
    context: &RopeContext,
) -> Result<RopeScaling, ConfigError> {
    let low_freq_factor = rope.need_number("low_freq_factor", 0.0..=1e6)?;
    let high_freq_factor = rope.need_number("high_freq_factor", 0.0..=1e6)?;
    if high_freq_factor <= low_freq_factor {
        return Err(rope.error("high_freq_factor", "must be above low_freq_factor"));
    }
    Ok(RopeScaling::Llama3 {
        factor: rope.need_number("factor", FACTORS)?,
        low_freq_factor,
        high_freq_factor,
        original_len: original_len(rope, config, context)?,
    })
}

fn read_yarn(
    rope: &Fields<'_>,
    config: &Fields<'_>,
    context: &RopeContext,
) -> Result<RopeScaling, ConfigError> {
    let factor = rope.need_number("factor", FACTORS)?;
    let stated = rope.number("attention_factor", 1e-3..=1e3)?;
    let mscale = rope.number("mscale", 0.0..=1e3)?.filter(|m| *m != 0.0);
    let mscale_all_dim = rope.number("mscale_all_dim", 0.0..=1e3)?.filter(|m| *m != 0.0);
    let grown = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let attention_factor = match (stated, mscale, mscale_all_dim) {
        (Some(stated), _, _) => stated,
        (None, Some(mscale), Some(all)) => grown(mscale) / grown(all),
        (None, _, _) => grown(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast: rope.number("beta_fast", 1e-3..=1e6)?.unwrap_or(32.0),
        beta_slow: rope.number("beta_slow", 1e-3..=1e6)?.unwrap_or(1.0),
        truncate: rope.flag("truncate")?.unwrap_or(true),
        original_len: original_len(rope, config, context)?,
    })
}

fn read_longrope(
    rope: &Fields<'_>,
    config: &Fields<'_>,
    context: &RopeContext,
) -> Result<RopeScaling, ConfigError> {
    let original_len = original_len(rope, config, context)?;
    let factor = match rope.number("factor", FACTORS)? {
        Some(factor) => factor,
        None => f64::from(context.max_position) / f64::from(original_len),
    };
    let grown = (1.0 + factor.max(1.0).ln() / f64::from(original_len).ln()).sqrt();
    let stated = rope.number("attention_factor", 1e-3..=1e3)?;
    Ok(RopeScaling::LongRope {
        short_factor: read_factors(rope, "short_factor", context)?,
        long_factor: read_factors(rope, "long_factor", context)?,
        attention_factor: stated.unwrap_or(grown),
        original_len,
    })
}

fn read_factors(
    rope: &Fields<'_>,
    field: &str,
    context: &RopeContext,
) -> Result<Vec<f64>, ConfigError> {
    let expected = context.head_dim as usize / 2;
    let Some(list) = rope.list(field, expected)? else {
        return Err(rope.error(field, "is missing"));
    };
    let factors: Option<Vec<f64>> =
        list.iter().map(|v| v.as_f64().filter(|n| (1e-3..=1e6).contains(n))).collect();
    match factors {
        Some(factors) if factors.len() == expected => Ok(factors),
        Some(factors) => Err(rope.error(
            field,
            format!("has {} entries, expected {expected} (half of head_dim)", factors.len()),
        )),
        None => Err(rope.error(field, "must hold numbers above 0")),
    }
}
