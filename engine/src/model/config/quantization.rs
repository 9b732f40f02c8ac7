//! `quantization_config` of config.json: how a checkpoint stores weights that are not plain.
//!
//! Read with the rest of config.json, before any tensor. What nobody here can read is refused by the
//! name that the file gives it. Which weights are quantized is not read here: the files say it
//! themselves, tensor by tensor, so lists of modules left out need not be understood.

use serde_json::Value;

use super::fields::{ConfigError, Fields};

/// How those weights of a checkpoint are stored that are quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredQuantization {
    /// An e4m3 byte an element beside a tensor of scales.
    Fp8(StoredFp8),
    /// Four bits an element in words of eight, with scales and zeros of groups along K.
    Int4(StoredInt4),
}

/// Scales of e4m3 weights: a weight is its element's value times its scale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFp8 {
    /// As people call it.
    pub name: &'static str,
    /// Ends of the names of tensors with scales; each weight has one.
    pub scale_names: &'static [&'static str],
    /// What a scale may be of. A tensor's own shape says which it is.
    pub grids: Vec<ScaleGrid>,
}

/// What one scale of a weight `[N, K]` is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleGrid {
    /// The whole weight: one scale.
    Tensor,
    /// A row: `[N, 1]` or `[N]`.
    Channel,
    /// A block of rows and columns, the last ones smaller: `[⌈N / rows⌉, ⌈K / cols⌉]`.
    Block {
        /// Rows of a block.
        rows: usize,
        /// Its columns.
        cols: usize,
    },
}

/// Codes of four bits: a weight is (code − zero) · scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredInt4 {
    /// How codes and zeros lie in words.
    pub packing: Packing,
    /// Elements along K that share scale and zero; all of them if there is none.
    pub group_size: Option<usize>,
}

/// Where the codes of a weight `[N, K]` lie in words of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// `qweight[K, N / 8]`, `qzeros[G, N / 8]`: eight neighbours along N, even ones in the lower half.
    Awq,
    /// `qweight[K / 8, N]`: eight neighbours along K. `qzeros[G, N / 8]`: along N, in order.
    Gptq {
        /// Added to a stored zero: 1 in the first format, 0 in the second.
        zero_offset: u8,
        /// Whether `g_idx[K]` must tell each column's group; it is followed wherever it is.
        is_ordered: bool,
    },
}

const SUPPORTED: &str = "compressed-tensors (fp8), fp8, awq (int4), gptq (int4)";
const MAX_GROUP: i64 = 1 << 20;
const MAX_BLOCK: u64 = 1 << 20;

impl StoredQuantization {
    /// As people call it.
    pub fn name(&self) -> &'static str {
        match self {
            StoredQuantization::Fp8(fp8) => fp8.name,
            StoredQuantization::Int4(StoredInt4 { packing: Packing::Awq, .. }) => "AWQ int4",
            StoredQuantization::Int4(_) => "GPTQ int4",
        }
    }
}

/// How the weights are stored; `None` if all are plain.
pub(super) fn read_quantization(
    config: &Fields<'_>,
) -> Result<Option<StoredQuantization>, ConfigError> {
    if let Some(fields) = config.object("quantization_config")? {
        return match fields.text("quant_method")? {
            None => Err(fields.error("quant_method", "is missing")),
            Some("compressed-tensors") => read_compressed_tensors(&fields),
            Some("fp8") => read_fp8(&fields).map(Some),
            Some("awq") => read_awq(&fields).map(Some),
            Some("gptq") => read_gptq(&fields).map(Some),
            Some(other) => Err(unsupported(&fields, "quant_method", other, SUPPORTED)),
        };
    }
    // What older files call it.
    match config.object("compression_config")? {
        Some(fields) => read_compressed_tensors(&fields),
        None => Ok(None),
    }
}

fn unsupported(fields: &Fields<'_>, field: &str, value: &str, supported: &str) -> ConfigError {
    fields.error(field, format!("{value:?} is not supported (supported: {supported})"))
}

/// Groups of modules, each with its scheme. All must be e4m3; a group without weights is of
/// activations or of the KV cache, which stay as they are here.
fn read_compressed_tensors(fields: &Fields<'_>) -> Result<Option<StoredQuantization>, ConfigError> {
    if let Some(sparsity) = fields.object("sparsity_config")?
        && let Some(format) = sparsity.text("format")?.filter(|format| *format != "dense")
    {
        return Err(unsupported(fields, "sparsity_config", format, "dense"));
    }
    if let Some(transforms) = fields.object("transform_config")?
        && !is_empty(transforms.get("config_groups"))
    {
        return Err(fields.error("transform_config", "rotated weights are not supported"));
    }
    let Some(groups) = fields.object("config_groups")? else {
        return Err(fields.error("config_groups", "is missing"));
    };
    let format = fields.text("format")?;
    let mut grids = Vec::new();
    for name in groups.keys() {
        let group = groups.need_object(name)?;
        let Some(weights) = group.object("weights")? else { continue };
        let format = group.text("format")?.or(format);
        let grid = read_scheme(&weights, format)
            .map_err(|error| fields.error(&format!("config_groups.{name}"), error.in_words()))?;
        if !grids.contains(&grid) {
            grids.push(grid);
        }
    }
    if grids.is_empty() {
        return Ok(None);
    }
    let name = "fp8 of compressed-tensors";
    let fp8 = StoredFp8 { name, scale_names: &["weight_scale"], grids };
    Ok(Some(StoredQuantization::Fp8(fp8)))
}

/// Nothing, or nothing in it.
fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    }
}

/// The weights of one group.
fn read_scheme(weights: &Fields<'_>, format: Option<&str>) -> Result<ScaleGrid, ConfigError> {
    const FORMATS: &str = "float-quantized, naive-quantized";
    if let Some(format) = format.filter(|format| !FORMATS.split(", ").any(|f| f == *format)) {
        return Err(unsupported(weights, "format", format, FORMATS));
    }
    let bits = weights.need_size("num_bits", 1..=64)?;
    let kind = weights.text("type")?.unwrap_or("int");
    if (bits, kind) != (8, "float") {
        let reason = format!("{kind} of {bits} bits is not supported (supported: float of 8 bits)");
        return Err(weights.error("type", reason));
    }
    if weights.flag("symmetric")? == Some(false) {
        return Err(weights.error("symmetric", "scales with zeros are not supported"));
    }
    match weights.text("strategy")?.unwrap_or("tensor") {
        "tensor" => Ok(ScaleGrid::Tensor),
        "channel" => Ok(ScaleGrid::Channel),
        "block" => match read_block(weights, "block_structure")? {
            Some(block) => Ok(block),
            None => Err(weights.error("block_structure", "is missing")),
        },
        other => Err(unsupported(weights, "strategy", other, "tensor, channel, block")),
    }
}

/// Rows and columns of a block.
fn read_block(fields: &Fields<'_>, field: &str) -> Result<Option<ScaleGrid>, ConfigError> {
    let Some(sizes) = fields.list(field, 2)? else { return Ok(None) };
    let sizes: Vec<u64> = sizes.iter().filter_map(Value::as_u64).collect();
    match sizes[..] {
        [rows @ 1..=MAX_BLOCK, cols @ 1..=MAX_BLOCK] => {
            Ok(Some(ScaleGrid::Block { rows: rows as usize, cols: cols as usize }))
        }
        _ => Err(fields.error(field, format!("is not two sizes from 1 to {MAX_BLOCK}"))),
    }
}

/// The method that Qwen and DeepSeek publish: blocks, or one scale a tensor.
fn read_fp8(fields: &Fields<'_>) -> Result<StoredQuantization, ConfigError> {
    if let Some(format) = fields.text("fmt")?
        && !matches!(format, "e4m3" | "e4m3fn" | "float8_e4m3fn")
    {
        return Err(unsupported(fields, "fmt", format, "e4m3"));
    }
    let grid = read_block(fields, "weight_block_size")?.unwrap_or(ScaleGrid::Tensor);
    Ok(StoredQuantization::Fp8(StoredFp8 {
        name: "fp8",
        scale_names: &["weight_scale_inv", "weight_scale"],
        grids: vec![grid],
    }))
}

fn read_awq(fields: &Fields<'_>) -> Result<StoredQuantization, ConfigError> {
    need_four_bits(fields, ["bits", "w_bit"])?;
    for field in ["version", "format", "checkpoint_format"] {
        if let Some(version) = fields.text(field)?
            && !version.eq_ignore_ascii_case("gemm")
        {
            return Err(unsupported(fields, field, version, "gemm"));
        }
    }
    if fields.flag("zero_point")? == Some(false) {
        return Err(fields.error("zero_point", "codes without zeros are not supported"));
    }
    let group_size = read_group_size(fields, ["group_size", "q_group_size"])?;
    Ok(StoredQuantization::Int4(StoredInt4 { packing: Packing::Awq, group_size }))
}

fn read_gptq(fields: &Fields<'_>) -> Result<StoredQuantization, ConfigError> {
    need_four_bits(fields, ["bits", "w_bit"])?;
    if fields.flag("is_marlin_format")? == Some(true) {
        return Err(fields.error("is_marlin_format", "the order of Marlin is not supported"));
    }
    if let Some(word) = fields.text("pack_dtype")?.filter(|word| *word != "int32") {
        return Err(unsupported(fields, "pack_dtype", word, "int32"));
    }
    // Exceptions for some modules; those that begin so are left plain.
    if let Some(modules) = fields.object("dynamic")?
        && let Some(module) = modules.keys().find(|module| !module.starts_with("-:"))
    {
        let reason = format!("settings of its own for {module:?} are not supported");
        return Err(fields.error("dynamic", reason));
    }
    let format = match fields.text("checkpoint_format")? {
        Some(format) => Some(("checkpoint_format", format)),
        None => fields.text("format")?.map(|format| ("format", format)),
    };
    let zero_offset = match format {
        None | Some((_, "gptq")) => 1,
        Some((_, "gptq_v2")) => 0,
        Some((field, other)) => {
            return Err(unsupported(fields, field, other, "gptq, gptq_v2"));
        }
    };
    let is_ordered = fields.flag("desc_act")?.unwrap_or(false);
    let group_size = read_group_size(fields, ["group_size", "q_group_size"])?;
    let packing = Packing::Gptq { zero_offset, is_ordered };
    Ok(StoredQuantization::Int4(StoredInt4 { packing, group_size }))
}

/// Of two names of a field the one that is there.
fn either<'f>(fields: &Fields<'_>, names: [&'f str; 2]) -> Result<&'f str, ConfigError> {
    let found = names.into_iter().find(|name| fields.get(name).is_some());
    found.ok_or_else(|| fields.error(names[0], "is missing"))
}

fn need_four_bits(fields: &Fields<'_>, names: [&str; 2]) -> Result<(), ConfigError> {
    let field = either(fields, names)?;
    match fields.need_size(field, 1..=64)? {
        4 => Ok(()),
        bits => Err(fields.error(field, format!("{bits} is not supported (supported: 4)"))),
    }
}

/// Elements of a group; -1 is all of them.
fn read_group_size(fields: &Fields<'_>, names: [&str; 2]) -> Result<Option<usize>, ConfigError> {
    let field = either(fields, names)?;
    match fields.get(field).and_then(Value::as_i64) {
        Some(-1) => Ok(None),
        Some(size @ 1..=MAX_GROUP) => Ok(Some(size as usize)),
        _ => Err(fields.error(field, format!("is neither -1 nor from 1 to {MAX_GROUP}"))),
    }
}

#[cfg(test)]
mod tests;
