//! config.json of a checkpoint, typed: every size bounded, every division exact.
//!
//! The first step of loading. What a family does not know is refused with file, field and reason;
//! a field that only training reads is ignored. Knows no tensors and allocates by no number of the
//! file beyond the bounds below.

mod fields;
mod generation;
mod layers;
mod quantization;
mod rope;

#[cfg(test)]
mod tests;

use pagoda_kernels::dtype::DType;
use pagoda_kernels::ops::{Activation, Heads};

use self::fields::{Fields, parse_object};
use self::rope::{RopeContext, read_rope, read_window_rope};
use super::families::{self, AttentionBias, Family};
use super::rope::RopeSpec;

pub use self::fields::ConfigError;
pub use self::generation::{Generation, read_generation};
pub use self::layers::Experts;
pub use self::quantization::{Packing, ScaleGrid, StoredFp8, StoredInt4, StoredQuantization};

/// A checkpoint's shape.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The table that its architecture names.
    pub family: &'static Family,
    /// H.
    pub hidden: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Nq, Nkv and D; Nkv divides Nq, D is even.
    pub heads: Heads,
    /// I of dense layers.
    pub intermediate: usize,
    /// V.
    pub vocab: usize,
    /// Added to mean squares.
    pub norm_eps: f32,
    /// Of the MLP's gate.
    pub activation: Activation,
    /// How positions turn queries and keys.
    pub rope: RopeSpec,
    /// How they do in layers with a window, if otherwise.
    pub window_rope: Option<RopeSpec>,
    /// A layer's window; one entry a layer.
    pub windows: Vec<Option<u32>>,
    /// Multiplies q·k.
    pub attention_scale: f32,
    /// `cap · tanh(s / cap)` of the scaled q·k.
    pub attention_soft_cap: Option<f32>,
    /// The same of logits.
    pub logit_soft_cap: Option<f32>,
    /// Experts, if the checkpoint has any.
    pub experts: Option<Experts>,
    /// Whether query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has one.
    pub output_bias: bool,
    /// Whether the embedding is also the head.
    pub tied: bool,
    /// How weights are stored that are quantized in the files, if any are.
    pub quantization: Option<StoredQuantization>,
    /// What the file says about the type of the weights.
    pub dtype: Option<DType>,
    /// End-of-sequence tokens that are below V.
    pub eos_token_ids: Vec<u32>,
}

const MAX_HIDDEN: u32 = 1 << 16;
const MAX_LAYERS: u32 = 1 << 10;
const MAX_HEADS: u32 = 1 << 10;
const MAX_HEAD_DIM: u32 = 1 << 10;
const MAX_INTERMEDIATE: u32 = 1 << 20;
const MAX_VOCAB: u32 = 1 << 22;
/// The longest sequence that anything here is asked to reckon with.
const MAX_POSITIONS: u32 = 1 << 26;
const SOFT_CAPS: std::ops::RangeInclusive<f64> = 1e-3..=1e6;

impl ModelConfig {
    /// Tokens of a sequence unless fewer are asked for.
    pub fn longest(&self) -> u32 {
        self.rope.promised_len().unwrap_or(self.rope.max_position)
    }
}

/// Reads config.json. `file` names it in errors.
pub fn read_config(file: &str, bytes: &[u8]) -> Result<ModelConfig, ConfigError> {
    let map = parse_object(file, bytes)?;
    let whole = Fields::new(file, &map);
    let family = read_family(&whole)?;
    let defaults = family.default_values();
    let config = whole.of_family(family, &defaults)?;
    refuse_unsupported(&config, family)?;
    let quantization = quantization::read_quantization(&config)?;
    let hidden = config.need_size("hidden_size", 1..=MAX_HIDDEN)?;
    let num_layers = config.need_size("num_hidden_layers", 1..=MAX_LAYERS)?;
    let max_position = config.need_size("max_position_embeddings", 2..=MAX_POSITIONS)?;
    let vocab = config.need_size("vocab_size", 2..=MAX_VOCAB)?;
    let heads = read_heads(&config, hidden)?;
    let context = RopeContext {
        head_dim: heads.head_dim as u32,
        max_position,
        style: family.rope_style,
        may_be_partial: family.partial_rotary,
        stretched_positions: family.stretched_positions,
    };
    let stated_bias = config.flag("attention_bias")?.unwrap_or(false);
    let soft_cap = |field| Ok(config.number(field, SOFT_CAPS)?.map(|cap| cap as f32));
    let scalar = config.number("query_pre_attn_scalar", 1e-6..=1e9)?;
    Ok(ModelConfig {
        family,
        hidden: hidden as usize,
        num_layers: num_layers as usize,
        heads,
        intermediate: read_intermediate(&config, family)?,
        vocab: vocab as usize,
        norm_eps: config.need_number("rms_norm_eps", 1e-12..=1.0)? as f32,
        activation: read_activation(&config, family)?,
        rope: read_rope(&config, &context, family.window_rope)?,
        window_rope: read_window_rope(&config, &context, family.window_rope)?,
        windows: layers::read_windows(&config, family.windows, num_layers)?,
        attention_scale: scalar.unwrap_or(heads.head_dim as f64).sqrt().recip() as f32,
        attention_soft_cap: soft_cap("attn_logit_softcapping")?,
        logit_soft_cap: soft_cap("final_logit_softcapping")?,
        experts: layers::read_experts(&config, family.sparse, num_layers)?,
        qkv_bias: family.bias == AttentionBias::QkvOnly || stated_bias,
        output_bias: family.bias == AttentionBias::ByConfig && stated_bias,
        tied: config.flag("tie_word_embeddings")?.unwrap_or(false),
        quantization,
        dtype: read_dtype(&config)?,
        eos_token_ids: generation::read_token_ids(&config, "eos_token_id", vocab)?,
    })
}

fn read_family(config: &Fields<'_>) -> Result<&'static Family, ConfigError> {
    const FIELD: &str = "architectures";
    let names = config.list(FIELD, 8)?.ok_or_else(|| config.error(FIELD, "is missing"))?;
    let known = names.iter().filter_map(|name| name.as_str()).find_map(families::find);
    known.ok_or_else(|| {
        let named: Vec<_> = names.iter().map(|name| name.as_str().unwrap_or("?")).collect();
        let supported: Vec<_> = families::architectures().collect();
        let reason =
            format!("{} is not supported (supported: {})", named.join(", "), supported.join(", "));
        config.error(FIELD, reason)
    })
}

/// Settings that change the arithmetic to what is not here.
fn refuse_unsupported(config: &Fields<'_>, family: &Family) -> Result<(), ConfigError> {
    if config.flag("mlp_bias")? == Some(true) {
        return Err(config.error("mlp_bias", "biases in the MLP are not supported"));
    }
    for (field, only) in family.only {
        if config.flag(field)?.is_some_and(|flag| flag != *only) {
            return Err(config.error(field, format!("other than {only} is not supported")));
        }
    }
    Ok(())
}

fn read_heads(config: &Fields<'_>, hidden: u32) -> Result<Heads, ConfigError> {
    let num_q = config.need_size("num_attention_heads", 1..=MAX_HEADS)?;
    let num_kv = config.size("num_key_value_heads", 1..=MAX_HEADS)?.unwrap_or(num_q);
    if !num_q.is_multiple_of(num_kv) {
        let queries = config.name("num_attention_heads");
        let reason = format!("{num_kv} does not divide {queries}, which is {num_q}");
        return Err(config.error("num_key_value_heads", reason));
    }
    let head_dim = match config.size("head_dim", 4..=MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(num_q) => hidden / num_q,
        None => {
            let reason =
                format!("is missing, and {num_q} heads do not divide hidden_size {hidden}");
            return Err(config.error("head_dim", reason));
        }
    };
    if !head_dim.is_multiple_of(2) || !(4..=MAX_HEAD_DIM).contains(&head_dim) {
        let reason = format!("{head_dim} is not an even number from 4 to {MAX_HEAD_DIM}");
        return Err(config.error("head_dim", reason));
    }
    Ok(Heads { num_q: num_q as usize, num_kv: num_kv as usize, head_dim: head_dim as usize })
}

fn read_intermediate(config: &Fields<'_>, family: &Family) -> Result<usize, ConfigError> {
    const FIELD: &str = "intermediate_size";
    let size = config.need_size(FIELD, 1..=MAX_INTERMEDIATE)?;
    if !family.doubled_intermediate {
        return Ok(size as usize);
    }
    if !size.is_multiple_of(2) {
        return Err(config.error(FIELD, format!("{size} is not even")));
    }
    Ok(size as usize / 2)
}

fn read_activation(config: &Fields<'_>, family: &Family) -> Result<Activation, ConfigError> {
    match config.text("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" if family.gelu_is_tanh => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        other => {
            let reason = format!("{other:?} is not supported (supported: silu, gelu)");
            Err(config.error("hidden_act", reason))
        }
    }
}

fn read_dtype(config: &Fields<'_>) -> Result<Option<DType>, ConfigError> {
    for field in ["dtype", "torch_dtype"] {
        let Some(name) = config.text(field)? else { continue };
        return match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" => Ok(Some(DType::F32)),
            "bfloat16" => Ok(Some(DType::Bf16)),
            "float16" => Ok(Some(DType::F16)),
            other => Err(config.error(
                field,
                format!("{other:?} is not supported (supported: float32, bfloat16, float16)"),
            )),
        };
    }
    Ok(None)
}
