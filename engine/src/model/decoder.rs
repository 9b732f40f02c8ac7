//! The decoder: a plain loop over layers, recorded once as a program of composite ops.
//!
//! embed → (attn_input → attention → attn_output → mlp | moe) for each layer → head → sample →
//! advance. It follows the spec and never asks which family it runs; a step replays the program.

use pagoda_kernels::device::{Device, Kv, Tensor, Vector};
use pagoda_kernels::error::KernelError;
use pagoda_kernels::ops::{
    Attention, AttnInput, AttnOutput, Embed, Head, Mlp, Moe, Norm, Ops, PostNorm, QkRopeStore,
    Rope, Sample,
};

use super::buffers::{Buffers, Use};
use super::spec::{AttentionSpec, LayerSpec, Mixer, MlpSpec, ModelSpec, MoeSpec};
use super::weights::{AttentionWeights, LayerWeights, MlpWeights, MoeWeights, Weights};

/// What a program is recorded from.
pub(super) struct Decoder<'a, D: Device> {
    /// The layers.
    pub(super) spec: &'a ModelSpec,
    /// Their weights.
    pub(super) weights: &'a Weights<D>,
    /// The cache of each KV group.
    pub(super) kv: &'a [Kv<D>],
    /// Activations and rope tables.
    pub(super) buffers: &'a Buffers<D>,
}

impl<D: Device> Decoder<'_, D> {
    /// Records the program of one step: allocates and runs nothing.
    pub(super) fn record(&self, device: &D) -> Result<D::Program, KernelError> {
        let Decoder { spec, weights, kv, buffers } = self;
        let x = buffers.get(Use::Stream, spec.hidden)?;
        let mut recorder = Recorder { ops: device.program(), spec, kv, buffers, x };
        let x = recorder.x.clone();
        let table = weights.embed.clone();
        recorder.ops.embed(Embed { table, scale: weights.embed_scale, x });
        for (layer, weights) in spec.layers.iter().zip(&weights.layers) {
            let Mixer::Attention(attention) = &layer.mixer;
            recorder.attention(layer, attention, &weights.attention)?;
            recorder.mlp(layer, weights)?;
        }
        recorder.head(weights)?;
        Ok(recorder.ops)
    }
}

struct Recorder<'a, D: Device> {
    ops: D::Program,
    spec: &'a ModelSpec,
    kv: &'a [Kv<D>],
    buffers: &'a Buffers<D>,
    x: Tensor<D>,
}

impl<D: Device> Recorder<'_, D> {
    fn attention(
        &mut self,
        layer: &LayerSpec,
        spec: &AttentionSpec,
        weights: &AttentionWeights<D>,
    ) -> Result<(), KernelError> {
        let AttentionSpec { heads, group, layer_in_group, .. } = *spec;
        let kv = self.kv[group].clone();
        let qkv_cols = (heads.num_q + 2 * heads.num_kv) * heads.head_dim;
        let qkv = self.buffers.get(Use::Qkv, qkv_cols)?;
        let attended = self.buffers.get(Use::Attended, heads.num_q * heads.head_dim)?;
        let qk_norm = spec.qk_norm.zip(weights.qk_norm.as_ref());
        let (q_norm, k_norm) = match qk_norm {
            Some((eps, (query, key))) => (Some(norm(query, eps)), Some(norm(key, eps))),
            None => (None, None),
        };
        let rope = spec.rope.map(|index| Rope {
            keys: self.buffers.ropes[index].keys.clone(),
            queries: self.buffers.ropes[index].queries.clone(),
            rotary_dim: self.spec.ropes[index].rotary_dim,
            style: self.spec.ropes[index].style,
        });
        let store = QkRopeStore {
            qkv: qkv.clone(),
            heads,
            q_norm,
            k_norm,
            rope,
            kv: kv.clone(),
            group,
            layer: layer_in_group,
        };
        self.ops.attn_input(AttnInput {
            x: self.x.clone(),
            norm: norm(&weights.norm, layer.eps),
            normed: self.buffers.get(Use::Normed, self.spec.hidden)?,
            weight: weights.qkv.clone(),
            bias: weights.qkv_bias.clone(),
            qkv: qkv.clone(),
            store,
        });
        self.ops.attention(Attention {
            qkv,
            heads,
            scale: spec.scale,
            window: spec.window,
            soft_cap: spec.soft_cap,
            sinks: None,
            kv,
            group,
            layer: layer_in_group,
            out: attended.clone(),
        });
        self.ops.attn_output(AttnOutput {
            attended,
            weight: weights.output.clone(),
            bias: weights.output_bias.clone(),
            post_norm: self.post_norm(layer, weights.post_norm.as_ref())?,
            x: self.x.clone(),
        });
        Ok(())
    }

    /// The norm of what is added to the residual stream, if there is one.
    fn post_norm(
        &self,
        layer: &LayerSpec,
        weight: Option<&Vector<D>>,
    ) -> Result<Option<PostNorm<D::Program>>, KernelError> {
        let Some((eps, weight)) = layer.post_norm.zip(weight) else { return Ok(None) };
        let projected = self.buffers.get(Use::Projected, self.spec.hidden)?;
        Ok(Some(PostNorm { norm: norm(weight, eps), projected }))
    }

    fn mlp(&mut self, layer: &LayerSpec, weights: &LayerWeights<D>) -> Result<(), KernelError> {
        let x = self.x.clone();
        let before = norm(&weights.mlp_norm, layer.eps);
        let normed = self.buffers.get(Use::Normed, self.spec.hidden)?;
        match (&layer.mlp, &weights.mlp) {
            (MlpSpec::Dense { intermediate, activation }, MlpWeights::Dense { gate_up, down }) => {
                self.ops.mlp(Mlp {
                    x,
                    norm: before,
                    normed,
                    gate_up: gate_up.clone(),
                    activation: *activation,
                    inner: self.buffers.get(Use::Inner, *intermediate)?,
                    down: down.clone(),
                    post_norm: self.post_norm(layer, weights.mlp_post_norm.as_ref())?,
                });
            }
            (MlpSpec::Moe(spec), MlpWeights::Moe(experts)) if weights.mlp_post_norm.is_none() => {
                self.moe(spec, experts, before, normed)?;
            }
            _ => {
                let reason =
                    "weights of another kind than the layer's MLP, or experts normed behind"
                        .to_owned();
                return Err(KernelError::Shape { op: "decoder", reason });
            }
        }
        Ok(())
    }

    fn moe(
        &mut self,
        spec: &MoeSpec,
        weights: &MoeWeights<D>,
        norm: Norm<D::Program>,
        normed: Tensor<D>,
    ) -> Result<(), KernelError> {
        self.ops.moe(Moe {
            x: self.x.clone(),
            norm,
            normed,
            router: weights.router.clone(),
            scores: self.buffers.get(Use::Scores, spec.num_experts)?,
            num_chosen: spec.num_chosen,
            routing: spec.routing,
            renormalize: spec.renormalize,
            gate_up: weights.gate_up.clone(),
            activation: spec.activation,
            inner: self.buffers.get(Use::ExpertInner, spec.intermediate)?,
            down: weights.down.clone(),
            outer: self.buffers.get(Use::ExpertOuter, self.spec.hidden)?,
        });
        Ok(())
    }

    fn head(&mut self, weights: &Weights<D>) -> Result<(), KernelError> {
        let logits = self.buffers.get(Use::Logits, self.spec.vocab)?;
        self.ops.head(Head {
            x: self.x.clone(),
            gathered: self.buffers.get(Use::Gathered, self.spec.hidden)?,
            norm: norm(&weights.final_norm, self.spec.final_eps),
            weight: weights.head.clone(),
            bias: None,
            scale: self.spec.head.scale,
            soft_cap: self.spec.head.soft_cap,
            logits: logits.clone(),
        });
        self.ops.sample(Sample { logits, vocab: self.spec.vocab });
        self.ops.advance();
        Ok(())
    }
}

fn norm<O: Ops>(weight: &O::Vector, eps: f32) -> Norm<O> {
    Norm { weight: weight.clone(), eps }
}
