//! Weights: one tensor after another from its source into the device's packed layout.
//!
//! The names come from the family's table, the shapes from the spec, and both are checked by the
//! source. A tensor's pages are given back as soon as it is packed, so that a load never holds
//! more than the packed weights and one stacked matrix; the device packs each on all cores.

use std::collections::BTreeSet;

use pagoda_kernels::device::{Device, Experts, Vector, Weight};
use pagoda_kernels::dtype::{DType, HostTensor};
use pagoda_kernels::error::KernelError;
use pagoda_kernels::ops::Stacking;
use pagoda_kernels::weight_format::{Quantization, WeightFormat};

use super::error::LoadError;
use super::source::{SourceError, Tensor, TensorSource};
use super::spec::{AttentionSpec, LayerSpec, Mixer, MlpSpec, ModelSpec, MoeSpec};

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
    /// Bytes of all of them, without the device's padding.
    pub bytes: u64,
}

/// Packed weights of a layer.
pub struct LayerWeights<D: Device> {
    /// Of the mixer.
    pub attention: AttentionWeights<D>,
    /// `[H]` before the MLP.
    pub mlp_norm: Vector<D>,
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
    let mut packer =
        Packer { device, source, formats, hidden: spec.hidden, bytes: 0, used: BTreeSet::new() };
    let names = &spec.tensors;
    let table = [(weight(names.embed), spec.vocab, spec.hidden)];
    // The largest come first, while little else is in memory.
    let (embed, head) = if spec.head.tied {
        let tied = packer.product(&table, Stacking::Stack)?;
        (tied.clone(), tied)
    } else {
        let head = [(weight(names.head), spec.vocab, spec.hidden)];
        (packer.matrix(&table, formats.plain())?, packer.product(&head, Stacking::Stack)?)
    };
    let mut layers = Vec::with_capacity(spec.layers.len());
    for (index, layer) in spec.layers.iter().enumerate() {
        layers.push(packer.layer(spec, layer, index)?);
        let (layers_done, layers) = (index + 1, spec.layers.len());
        progress(Progress { layers_done, layers, bytes: packer.bytes });
    }
    let final_norm = packer.vector(&[(weight(names.final_norm), spec.hidden)])?;
    packer.log_unused();
    Ok(Weights { embed, layers, final_norm, head, bytes: packer.bytes })
}

/// A tensor's name with its rows and columns.
type Part = (String, usize, usize);

struct Packer<'a, D> {
    device: &'a D,
    source: &'a dyn TensorSource,
    formats: Formats,
    hidden: usize,
    bytes: u64,
    used: BTreeSet<String>,
}

fn weight(name: &str) -> String {
    format!("{name}.weight")
}

fn bias(name: &str) -> String {
    format!("{name}.bias")
}

impl<D: Device> Packer<'_, D> {
    fn layer(
        &mut self,
        spec: &ModelSpec,
        layer: &LayerSpec,
        index: usize,
    ) -> Result<LayerWeights<D>, LoadError> {
        let named = |pattern: &str| pattern.replace("{layer}", &index.to_string());
        let Mixer::Attention(attention) = &layer.mixer;
        let attention = self.attention(spec, attention, &named)?;
        let mlp_norm = self.vector(&[(weight(&named(spec.tensors.mlp_norm)), self.hidden)])?;
        let mlp = match &layer.mlp {
            MlpSpec::Dense { intermediate, .. } => self.dense(spec, *intermediate, &named)?,
            MlpSpec::Moe(moe) => self.moe(spec, moe, &named)?,
        };
        Ok(LayerWeights { attention, mlp_norm, mlp })
    }

    fn attention(
        &mut self,
        spec: &ModelSpec,
        attention: &AttentionSpec,
        named: &dyn Fn(&str) -> String,
    ) -> Result<AttentionWeights<D>, LoadError> {
        let (names, hidden, heads) = (&spec.tensors, self.hidden, attention.heads);
        let (q_rows, kv_rows) = (heads.num_q * heads.head_dim, heads.num_kv * heads.head_dim);
        let stacked = [(names.query, q_rows), (names.key, kv_rows), (names.value, kv_rows)]
            .map(|(pattern, rows)| (named(pattern), rows));
        let matrices = stacked.each_ref().map(|(name, rows)| (weight(name), *rows, hidden));
        let biases = stacked.each_ref().map(|(name, rows)| (bias(name), *rows));
        let output = named(names.output);
        let qk_norm = match attention.qk_norm {
            None => None,
            Some(_) => {
                let query = self.vector(&[(weight(&named(names.query_norm)), heads.head_dim)])?;
                let key = self.vector(&[(weight(&named(names.key_norm)), heads.head_dim)])?;
                Some((query, key))
            }
        };
        let optional = |wanted: bool, packer: &mut Self, parts: &[(String, usize)]| {
            wanted.then(|| packer.vector(parts)).transpose()
        };
        Ok(AttentionWeights {
            norm: self.vector(&[(weight(&named(names.attn_norm)), hidden)])?,
            qkv: self.product(&matrices, Stacking::Stack)?,
            qkv_bias: optional(attention.qkv_bias, self, &biases)?,
            qk_norm,
            output: self.product(&[(weight(&output), hidden, q_rows)], Stacking::Stack)?,
            output_bias: optional(attention.output_bias, self, &[(bias(&output), hidden)])?,
        })
    }

    fn dense(
        &mut self,
        spec: &ModelSpec,
        intermediate: usize,
        named: &dyn Fn(&str) -> String,
    ) -> Result<MlpWeights<D>, LoadError> {
        let names = &spec.tensors;
        let gate_up =
            [names.gate, names.up].map(|name| (weight(&named(name)), intermediate, self.hidden));
        let down = [(weight(&named(names.down)), self.hidden, intermediate)];
        Ok(MlpWeights::Dense {
            gate_up: self.product(&gate_up, Stacking::InterleavePairs)?,
            down: self.product(&down, Stacking::Stack)?,
        })
    }

    fn moe(
        &mut self,
        spec: &ModelSpec,
        moe: &MoeSpec,
        named: &dyn Fn(&str) -> String,
    ) -> Result<MlpWeights<D>, LoadError> {
        let (names, hidden) = (&spec.tensors, self.hidden);
        let MoeSpec { num_experts, intermediate, .. } = *moe;
        let expert = |pattern: &str, expert: usize| {
            weight(&named(pattern).replace("{expert}", &expert.to_string()))
        };
        let gate_up = |e: usize| {
            [names.expert_gate, names.expert_up]
                .map(|name| (expert(name, e), intermediate, hidden))
                .to_vec()
        };
        let down = |e: usize| vec![(expert(names.expert_down, e), hidden, intermediate)];
        let router = [(weight(&named(names.router)), num_experts, hidden)];
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
        let tensors = self.read(parts)?;
        let hosts = as_hosts(parts, &tensors)?;
        let packed = self.device.pack(&hosts, stacking, format).map_err(refusal(parts))?;
        self.finish(parts, format);
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
        let shape = (first.iter().map(|(_, rows, _)| rows).sum(), first[0].2);
        let format = self.formats.product();
        let room = self.device.experts(num_experts, shape, format);
        let mut experts = room.map_err(LoadError::device(format!("making {}", first[0].0)))?;
        for expert in 0..num_experts {
            let parts = parts_of(expert);
            let tensors = self.read(&parts)?;
            let hosts = as_hosts(&parts, &tensors)?;
            let packed = self.device.pack_expert(&mut experts, expert, &hosts, stacking);
            packed.map_err(refusal(&parts))?;
            self.finish(&parts, format);
        }
        Ok(experts)
    }

    /// Vectors one after another, as f32.
    fn vector(&mut self, parts: &[(String, usize)]) -> Result<Vector<D>, LoadError> {
        let mut values = Vec::new();
        for (name, len) in parts {
            let tensor = self.source.tensor(name, &[*len])?;
            let host = tensor.as_host().ok_or_else(|| mismatch(name))?;
            values.extend((0..host.cols).map(|col| host.at(0, col)));
        }
        let vector = self.device.vector(&values);
        let vector = vector.map_err(LoadError::device(format!("loading {}", parts[0].0)))?;
        let parts: Vec<Part> = parts.iter().map(|(name, len)| (name.clone(), 1, *len)).collect();
        self.finish(&parts, DType::F32.into());
        Ok(vector)
    }

    fn read(&self, parts: &[Part]) -> Result<Vec<Tensor<'_>>, SourceError> {
        parts.iter().map(|(name, rows, cols)| self.source.tensor(name, &[*rows, *cols])).collect()
    }

    /// Counts what was packed and gives its pages back.
    fn finish(&mut self, parts: &[Part], format: WeightFormat) {
        for (name, rows, cols) in parts {
            self.source.release(name);
            self.bytes += (rows * format.row_bytes(*cols)) as u64;
            self.used.insert(name.clone());
        }
    }

    fn log_unused(&self) {
        let unused: Vec<&str> =
            self.source.names().into_iter().filter(|name| !self.used.contains(*name)).collect();
        if let Some(first) = unused.first() {
            tracing::info!(
                count = unused.len(),
                first,
                "the checkpoint has tensors of no use here"
            );
        }
    }
}

fn as_hosts<'t>(
    parts: &[Part],
    tensors: &'t [Tensor<'_>],
) -> Result<Vec<HostTensor<'t>>, LoadError> {
    let host =
        |(tensor, part): (&'t Tensor<'_>, &Part)| tensor.as_host().ok_or_else(|| mismatch(&part.0));
    tensors.iter().zip(parts).map(host).collect()
}

/// Names the tensor that a device could not pack.
fn refusal(parts: &[Part]) -> impl FnOnce(KernelError) -> LoadError {
    |error| {
        let part = match error {
            KernelError::Unquantizable { part, .. } => part,
            _ => 0,
        };
        let name = parts.get(part).map_or("", |(name, ..)| name);
        LoadError::device(format!("packing {name}"))(error)
    }
}

/// A source that broke its promise about a shape.
fn mismatch(name: &str) -> LoadError {
    SourceError::new("the source of weights", Some(name), "gave bytes of another shape").into()
}
