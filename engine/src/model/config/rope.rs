//! Reads a checkpoint's rope: the words of transformers 5 (`rope_parameters`) and of transformers
//! 4 (`rope_theta` beside `rope_scaling`). Refuses what it does not know by name.

use std::ops::RangeInclusive;

use pagoda_kernels::ops::RopeStyle;

use super::MAX_POSITIONS;
use super::fields::{ConfigError, Fields};
use crate::model::rope::{RopeScaling, RopeSpec};

/// What the rope depends on beside its own fields.
pub(super) struct RopeContext {
    pub(super) head_dim: u32,
    pub(super) max_position: u32,
    pub(super) style: RopeStyle,
    /// Whether a share of a head may turn.
    pub(super) may_be_partial: bool,
    /// Whether `max_position` counts what scaling adds.
    pub(super) stretched_positions: bool,
}

const FACTORS: RangeInclusive<f64> = 1.0..=1e6;
const THETAS: RangeInclusive<f64> = 2.0..=1e15;

/// The rope of `config`: of layers without a window, where those with one have their own.
pub(super) fn read_rope(
    config: &Fields<'_>,
    context: &RopeContext,
    window_rope: bool,
) -> Result<RopeSpec, ConfigError> {
    let written = match config.object("rope_parameters")? {
        Some(ropes) if window_rope => ropes.object("full_attention")?,
        Some(rope) => Some(rope),
        None => config.object("rope_scaling")?,
    };
    read_spec(config, context, written, "rope_theta")
}

/// The rope of layers with a window, if it is another.
pub(super) fn read_window_rope(
    config: &Fields<'_>,
    context: &RopeContext,
    window_rope: bool,
) -> Result<Option<RopeSpec>, ConfigError> {
    if !window_rope {
        return Ok(None);
    }
    let written = match config.object("rope_parameters")? {
        Some(ropes) => ropes.object("sliding_attention")?,
        None => None,
    };
    read_spec(config, context, written, "rope_local_base_freq").map(Some)
}

/// A rope whose own fields, if it has any, are `written`, and whose base may stand beside them.
fn read_spec(
    config: &Fields<'_>,
    context: &RopeContext,
    written: Option<Fields<'_>>,
    base: &str,
) -> Result<RopeSpec, ConfigError> {
    let own = written.as_ref().map(|rope| rope.number("rope_theta", THETAS)).transpose()?;
    let beside = config.number(base, THETAS)?;
    let ratio = config.number("rope_ratio", 1e-3..=1e6)?.unwrap_or(1.0);
    let rotary_dim = read_rotary_dim(config, context, written.as_ref())?;
    let scaling = match &written {
        Some(rope) => read_scaling(rope, config, context, rotary_dim)?,
        None => RopeScaling::Default,
    };
    Ok(RopeSpec {
        theta: own.flatten().or(beside).unwrap_or(10000.0) * ratio,
        rotary_dim,
        style: context.style,
        max_position: context.max_position,
        stretched_positions: context.stretched_positions,
        scaling: read_stepped(config, scaling)?,
        query_log_base: read_query_growth(config, context, rotary_dim)?,
    })
}

/// Elements of a head that turn.
fn read_rotary_dim(
    config: &Fields<'_>,
    context: &RopeContext,
    written: Option<&Fields<'_>>,
) -> Result<usize, ConfigError> {
    const FIELD: &str = "partial_rotary_factor";
    let stated = |fields: &Fields<'_>| fields.number(FIELD, 0.0..=1.0);
    let inside = written.map(stated).transpose()?.flatten();
    let (fields, share) = match (inside, written) {
        (Some(share), Some(rope)) => (rope, share),
        _ => (config, stated(config)?.unwrap_or(1.0)),
    };
    if share != 1.0 && !context.may_be_partial {
        return Err(fields.error(FIELD, "other than 1 is not supported"));
    }
    let rotary_dim = (f64::from(context.head_dim) * share) as usize;
    if rotary_dim < 4 || !rotary_dim.is_multiple_of(2) {
        let reason = format!("{share} of {} is not an even number from 4", context.head_dim);
        return Err(fields.error(FIELD, reason));
    }
    Ok(rotary_dim)
}

fn read_scaling(
    rope: &Fields<'_>,
    config: &Fields<'_>,
    context: &RopeContext,
    rotary_dim: usize,
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
        // The older name of the same.
        "longrope" | "su" => read_longrope(rope, config, context, rotary_dim)?,
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

/// A base that grows in steps, if `use_dynamic_ntk` asks for it.
fn read_stepped(config: &Fields<'_>, scaling: RopeScaling) -> Result<RopeScaling, ConfigError> {
    const FIELD: &str = "use_dynamic_ntk";
    match config.flag(FIELD)? {
        Some(true) if scaling == RopeScaling::Default => {
            Ok(RopeScaling::SteppedNtk { trained_len: trained_len(config)? })
        }
        Some(true) => Err(config.error(FIELD, "beside another scaling is not supported")),
        _ => Ok(scaling),
    }
}

/// The length beyond which queries grow, if `use_logn_attn` asks for it.
fn read_query_growth(
    config: &Fields<'_>,
    context: &RopeContext,
    rotary_dim: usize,
) -> Result<Option<u32>, ConfigError> {
    const FIELD: &str = "use_logn_attn";
    if config.flag(FIELD)? != Some(true) {
        return Ok(None);
    }
    if rotary_dim != context.head_dim as usize {
        return Err(config.error(FIELD, "where a share of each head turns is not supported"));
    }
    trained_len(config).map(Some)
}

fn trained_len(config: &Fields<'_>) -> Result<u32, ConfigError> {
    config.need_size("trained_len", 2..=MAX_POSITIONS)
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
    rotary_dim: usize,
) -> Result<RopeScaling, ConfigError> {
    let original_len = original_len(rope, config, context)?;
    let factor = match rope.number("factor", FACTORS)? {
        Some(factor) => factor,
        None => f64::from(context.max_position) / f64::from(original_len),
    };
    let grown = (1.0 + factor.max(1.0).ln() / f64::from(original_len).ln()).sqrt();
    let stated = rope.number("attention_factor", 1e-3..=1e3)?;
    Ok(RopeScaling::LongRope {
        short_factor: read_factors(rope, "short_factor", rotary_dim / 2)?,
        long_factor: read_factors(rope, "long_factor", rotary_dim / 2)?,
        attention_factor: stated.unwrap_or(grown),
        original_len,
    })
}

fn read_factors(rope: &Fields<'_>, field: &str, expected: usize) -> Result<Vec<f64>, ConfigError> {
    let Some(list) = rope.list(field, expected)? else {
        return Err(rope.error(field, "is missing"));
    };
    let factors: Option<Vec<f64>> =
        list.iter().map(|v| v.as_f64().filter(|n| (1e-3..=1e6).contains(n))).collect();
    match factors {
        Some(factors) if factors.len() == expected => Ok(factors),
        Some(factors) => Err(rope.error(
            field,
            format!(
                "has {} entries, expected {expected} (one for each pair that turns)",
                factors.len()
            ),
        )),
        None => Err(rope.error(field, "must hold numbers above 0")),
    }
}
