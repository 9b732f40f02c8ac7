//! Weights: one tensor after another from its source into the device's packed layout.
//!
//! The names come from the family's table, the shapes from the spec, and both are checked by the
//! source. A tensor's pages are given back as soon as it is packed, so that a load never holds
//! more than the packed weights and one stacked matrix, in f32 where it is widened; the device
//! packs each on all cores.

use std::collections::BTreeSet;

use half::{bf16, f16};
use pagoda_kernels::device::{Device, Experts, Vector, Weight};
use pagoda_kernels::dtype::DType;
use pagoda_kernels::error::KernelError;
use pagoda_kernels::ops::Stacking;
use pagoda_kernels::weight_format::{Quantization, WeightFormat};

use self::part::{Part, bias, weight};
use super::error::LoadError;
use super::source::{SourceError, TensorSource};
use super::spec::{AttentionSpec, LayerSpec, Mixer, MlpSpec, ModelSpec, MoeSpec};

/// Rows of tensors that a weight is made of.
mod part;

/// How far a load has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Layers packed.
    pub layers_done: usize,
    /// Layers there are.
    pub layers: usize,
    /// Bytes packed.
    pub bytes: u64,
}

/// All packed weights of a model.
pub struct Weights<D: Device> {
    /// `[V, H]`.
    pub embed: Weight<D>,
    /// One entry a layer.
    pub layers: Vec<LayerWeights<D>>,
    /// `[H]`.
    pub final_norm: Vector<D>,
    /// `[V, H]`; the embedding itself when tied.
    pub head: Weight<D>,
    /// Multiplies embeddings: the spec's factor in the type of the table, as its family multiplies.
    pub embed_scale: f32,
    /// Bytes of all of them, without the device's padding.
    pub bytes: u64,
}

/// Packed weights of a layer.
pub struct LayerWeights<D: Device> {
    /// Of the mixer.
    pub attention: AttentionWeights<D>,
    /// `[H]` before the MLP.
    pub mlp_norm: Vector<D>,
    /// `[H]` behind it.
    pub mlp_post_norm: Option<Vector<D>>,
    /// Of the MLP.
    pub mlp: MlpWeights<D>,
}

/// Packed weights of attention.
pub struct AttentionWeights<D: Device> {
    /// `[H]`.
    pub norm: Vector<D>,
    /// `[(Nq + 2·Nkv)·D, H]`.
    pub qkv: Weight<D>,
    /// `[(Nq + 2·Nkv)·D]`.
    pub qkv_bias: Option<Vector<D>>,
    /// `[D]` for queries and for keys.
    pub qk_norm: Option<(Vector<D>, Vector<D>)>,
    /// `[H, Nq·D]`.
    pub output: Weight<D>,
    /// `[H]`.
    pub output_bias: Option<Vector<D>>,
    /// `[H]` behind the output projection.
    pub post_norm: Option<Vector<D>>,
}

/// Packed weights of an MLP.
pub enum MlpWeights<D: Device> {
    /// One gated MLP.
    Dense {
        /// `[2·I, H]`, interleaved.
        gate_up: Weight<D>,
        /// `[H, I]`.
        down: Weight<D>,
    },
    /// A router and experts.
    Moe(MoeWeights<D>),
}

/// Packed weights of a router and its experts.
pub struct MoeWeights<D: Device> {
    /// `[E, H]`.
    pub router: Weight<D>,
    /// `[E, 2·I, H]`, interleaved.
    pub gate_up: Experts<D>,
    /// `[E, H, I]`.
    pub down: Experts<D>,
}

/// How weights are stored.
#[derive(Clone, Copy, Debug)]
pub struct Formats {
    /// Of plain weights. Narrower types are widened exactly, wider ones rounded to nearest even.
    pub dtype: DType,
    /// Of the weights of products: attention, MLPs, experts and the head. A router stays plain, it
    /// is small and decides; so does an embedding table that is not the head, of which a step reads
    /// a few rows; one that is the head is quantized, and its rows are widened as they are read.
    pub quantization: Option<Quantization>,
}

impl Formats {
    /// Of what is not the weight of a product.
    pub(super) fn plain(self) -> WeightFormat {
        self.dtype.into()
    }

    /// Of the weights of products.
    pub(super) fn product(self) -> WeightFormat {
        self.quantization.map_or_else(|| self.plain(), WeightFormat::from)
    }
}

/// Packs every weight of `spec` in its format.
pub fn pack<D: Device>(
    device: &D,
    spec: &ModelSpec,
    source: &dyn TensorSource,
    formats: Formats,
    progress: &dyn Fn(Progress),
) -> Result<Weights<D>, LoadError> {
    let mut packer = Packer::new(device, spec, Some(source), formats);
    let weights = packer.model(progress)?;
    log_unused(source, &packer.used);
    Ok(weights)
}

/// Room for every weight of `spec` in its format: what is recorded over it tells what it takes, and
/// is never run. The memory of a CPU's is not touched.
pub(super) fn rooms<D: Device>(
    device: &D,
    spec: &ModelSpec,
    formats: Formats,
) -> Result<Weights<D>, LoadError> {
    Packer::new(device, spec, None, formats).model(&|_| ())
}

/// `value` as a number of type `dtype`.
fn rounded(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F32 => value,
        DType::Bf16 => bf16::from_f32(value).to_f32(),
        DType::F16 => f16::from_f32(value).to_f32(),
    }
}

struct Packer<'a, D> {
    device: &'a D,
    /// Without one there are rooms only.
    source: Option<&'a dyn TensorSource>,
    formats: Formats,
    spec: &'a ModelSpec,
    bytes: u64,
    used: BTreeSet<String>,
}

impl<'a, D: Device> Packer<'a, D> {
    fn new(
        device: &'a D,
        spec: &'a ModelSpec,
        source: Option<&'a dyn TensorSource>,
        formats: Formats,
    ) -> Self {
        Packer { device, source, formats, spec, bytes: 0, used: BTreeSet::new() }
    }

    fn model(&mut self, progress: &dyn Fn(Progress)) -> Result<Weights<D>, LoadError> {
        let (spec, formats) = (self.spec, self.formats);
        let names = &spec.tensors;
        let table = [Part::whole(weight(&names.once(names.embed)), spec.vocab, spec.hidden)];
        // The largest come first, while little else is in memory.
        let (embed, head) = if spec.head.tied {
            let tied = self.product(&table, Stacking::Stack)?;
            (tied.clone(), tied)
        } else {
            let head = [Part::whole(weight(&names.once(names.head)), spec.vocab, spec.hidden)];
            (self.matrix(&table, formats.plain())?, self.product(&head, Stacking::Stack)?)
        };
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (index, layer) in spec.layers.iter().enumerate() {
            layers.push(self.layer(layer, index)?);
            let (layers_done, layers) = (index + 1, spec.layers.len());
            progress(Progress { layers_done, layers, bytes: self.bytes });
        }
        let final_norm = self.norm(&names.once(names.final_norm), spec.hidden)?;
        let embed_scale = rounded(spec.embed_scale, formats.dtype);
        Ok(Weights { embed, layers, final_norm, head, embed_scale, bytes: self.bytes })
    }

    fn layer(&mut self, layer: &LayerSpec, index: usize) -> Result<LayerWeights<D>, LoadError> {
        let spec = self.spec;
        let (names, hidden) = (&spec.tensors, spec.hidden);
        let named = |pattern: &str| names.of_layer(pattern, index);
        let Mixer::Attention(attention) = &layer.mixer;
        let post_norms = layer.post_norm.and(names.post_norms);
        let [attn_post_norm, mlp_post_norm] = [
            post_norms.map(|post| self.norm(&named(post.attn), hidden)).transpose()?,
            post_norms.map(|post| self.norm(&named(post.mlp), hidden)).transpose()?,
        ];
        let attention = self.attention(attention, attn_post_norm, index)?;
        let mlp_norm = self.norm(&named(names.mlp_norm), hidden)?;
        let mlp = match &layer.mlp {
            MlpSpec::Dense { intermediate, .. } => self.dense(*intermediate, index)?,
            MlpSpec::Moe(moe) => self.moe(moe, index)?,
        };
        Ok(LayerWeights { attention, mlp_norm, mlp_post_norm, mlp })
    }

    fn attention(
        &mut self,
        attention: &AttentionSpec,
        post_norm: Option<Vector<D>>,
        layer: usize,
    ) -> Result<AttentionWeights<D>, LoadError> {
        let spec = self.spec;
        let (names, hidden, heads) = (&spec.tensors, spec.hidden, attention.heads);
        let named = |pattern: &str| names.of_layer(pattern, layer);
        let q_cols = heads.num_q * heads.head_dim;
        let output = named(names.output);
        let qk_norm = match attention.qk_norm {
            None => None,
            Some(_) => {
                let query = self.norm(&named(names.query_norm), heads.head_dim)?;
                let key = self.norm(&named(names.key_norm), heads.head_dim)?;
                Some((query, key))
            }
        };
        let output_bias = [Part::vector(bias(&output), hidden)];
        Ok(AttentionWeights {
            norm: self.norm(&named(names.attn_norm), hidden)?,
            qkv: self.product(&part::qkv(names, layer, heads, hidden), Stacking::Stack)?,
            qkv_bias: self.optional(attention.qkv_bias, &part::qkv_bias(names, layer, heads))?,
            qk_norm,
            output: self
                .product(&[Part::whole(weight(&output), hidden, q_cols)], Stacking::Stack)?,
            output_bias: self.optional(attention.output_bias, &output_bias)?,
            post_norm,
        })
    }

    fn dense(&mut self, intermediate: usize, layer: usize) -> Result<MlpWeights<D>, LoadError> {
        let spec = self.spec;
        let (names, hidden) = (&spec.tensors, spec.hidden);
        let gate_up = part::gate_up(names, layer, intermediate, hidden);
        let down = weight(&names.of_layer(names.down, layer));
        Ok(MlpWeights::Dense {
            gate_up: self.product(&gate_up, Stacking::InterleavePairs)?,
            down: self.product(&[Part::whole(down, hidden, intermediate)], Stacking::Stack)?,
        })
    }

    fn moe(&mut self, moe: &MoeSpec, layer: usize) -> Result<MlpWeights<D>, LoadError> {
        let spec = self.spec;
        let (names, hidden) = (&spec.tensors, spec.hidden);
        let MoeSpec { num_experts, intermediate, .. } = *moe;
        let part = |pattern: &str, expert: usize, rows: usize, cols: usize| {
            Part::whole(weight(&names.of_expert(pattern, layer, expert)), rows, cols)
        };
        let gate_up = |expert: usize| {
            [names.expert_gate, names.expert_up]
                .map(|pattern| part(pattern, expert, intermediate, hidden))
                .to_vec()
        };
        let down = |expert: usize| vec![part(names.expert_down, expert, hidden, intermediate)];
        let router = weight(&names.of_layer(names.router, layer));
        let router = [Part::whole(router, num_experts, hidden)];
        Ok(MlpWeights::Moe(MoeWeights {
            router: self.matrix(&router, self.formats.plain())?,
            gate_up: self.experts(num_experts, gate_up, Stacking::InterleavePairs)?,
            down: self.experts(num_experts, down, Stacking::Stack)?,
        }))
    }

    /// One tensor by itself.
    fn matrix(&mut self, parts: &[Part], format: WeightFormat) -> Result<Weight<D>, LoadError> {
        self.pack(parts, Stacking::Stack, format)
    }

    /// The weight of a product.
    fn product(&mut self, parts: &[Part], stacking: Stacking) -> Result<Weight<D>, LoadError> {
        self.pack(parts, stacking, self.formats.product())
    }

    fn pack(
        &mut self,
        parts: &[Part],
        stacking: Stacking,
        format: WeightFormat,
    ) -> Result<Weight<D>, LoadError> {
        let packed = match self.source {
            None => self.device.room(shape_of(parts), format),
            Some(source) => {
                let tensors = part::read(source, parts)?;
                self.device.pack(&part::as_hosts(parts, &tensors)?, stacking, format)
            }
        };
        let packed = packed.map_err(refusal(parts))?;
        self.finish(parts, format)?;
        Ok(packed)
    }

    /// One expert after another; `parts_of` names the parts of one, alike for all.
    fn experts(
        &mut self,
        num_experts: usize,
        parts_of: impl Fn(usize) -> Vec<Part>,
        stacking: Stacking,
    ) -> Result<Experts<D>, LoadError> {
        let first = parts_of(0);
        let format = self.formats.product();
        let room = self.device.experts(num_experts, shape_of(&first), format);
        let mut experts = room.map_err(LoadError::device(format!("making {}", first[0].name)))?;
        for expert in 0..num_experts {
            let parts = parts_of(expert);
            if let Some(source) = self.source {
                let tensors = part::read(source, &parts)?;
                let hosts = part::as_hosts(&parts, &tensors)?;
                let packed = self.device.pack_expert(&mut experts, expert, &hosts, stacking);
                packed.map_err(refusal(&parts))?;
            }
            self.finish(&parts, format)?;
        }
        Ok(experts)
    }

    /// The weights of a norm.
    fn norm(&mut self, name: &str, len: usize) -> Result<Vector<D>, LoadError> {
        self.vector(&[Part::vector(weight(name), len)], self.spec.norm_offset)
    }

    /// A bias, if there is one.
    fn optional(&mut self, wanted: bool, parts: &[Part]) -> Result<Option<Vector<D>>, LoadError> {
        wanted.then(|| self.vector(parts, 0.0)).transpose()
    }

    /// Vectors one after another, as f32, and `offset` added to each element.
    fn vector(&mut self, parts: &[Part], offset: f32) -> Result<Vector<D>, LoadError> {
        let mut values = Vec::new();
        for part in parts {
            let Some(source) = self.source else {
                values.resize(values.len() + part.cols, 0.0);
                continue;
            };
            let tensor = source.tensor(&part.name, &[part.cols])?;
            let host = tensor.as_host().ok_or_else(|| part.mismatch())?;
            values.extend((0..host.cols).map(|col| host.at(0, col) + offset));
        }
        let vector = self.device.vector(&values);
        let vector = vector.map_err(LoadError::device(format!("loading {}", parts[0].name)))?;
        self.finish(parts, DType::F32.into())?;
        Ok(vector)
    }

    /// Counts what was packed and gives its pages back; an error if they could not be read.
    fn finish(&mut self, parts: &[Part], format: WeightFormat) -> Result<(), SourceError> {
        for part in parts {
            if let Some(source) = self.source {
                source.release(&part.name)?;
            }
            self.bytes += (part.rows.len() * format.row_bytes(part.cols)) as u64;
            self.used.insert(part.name.clone());
        }
        Ok(())
    }
}

/// Rows and columns of the matrix that parts become.
fn shape_of(parts: &[Part]) -> (usize, usize) {
    (parts.iter().map(|part| part.rows.len()).sum(), parts[0].cols)
}

fn log_unused(source: &dyn TensorSource, used: &BTreeSet<String>) {
    let unused: Vec<&str> =
        source.names().into_iter().filter(|name| !used.contains(*name)).collect();
    if let Some(first) = unused.first() {
        tracing::info!(count = unused.len(), first, "the checkpoint has tensors of no use here");
    }
}

/// Names the tensor that a device could not pack.
fn refusal(parts: &[Part]) -> impl FnOnce(KernelError) -> LoadError {
    |error| {
        let part = match error {
            KernelError::Unquantizable { part, .. } => part,
            _ => 0,
        };
        let name = parts.get(part).map_or("", |part| &part.name);
        LoadError::device(format!("packing {name}"))(error)
    }
}
