//! The faults that goldens must notice, each as one change of a spec, a batch or a weight.

use std::borrow::Cow;

use pagoda_engine::model::info::KvGroupKind;
use pagoda_engine::model::rope::{RopeScaling, RopeSpec};
use pagoda_engine::model::source::dummy::Dummy;
use pagoda_engine::model::source::{SourceError, Tensor, TensorSource};
use pagoda_engine::model::spec::{AttentionSpec, LayerSpec, Mixer, MlpSpec};
use pagoda_kernels::dtype::DType;
use pagoda_kernels::ops::{Heads, RopeStyle};

use super::Case;

/// A mistake that a decoder could make.
pub(super) struct Fault {
    pub(super) name: &'static str,
    /// Plants it; false where the case cannot have it.
    pub(super) plant: fn(&mut Case) -> bool,
    /// Added to the position of the last query.
    pub(super) last_position_shift: i32,
}

const fn fault(name: &'static str, plant: fn(&mut Case) -> bool) -> Fault {
    Fault { name, plant, last_position_shift: 0 }
}

pub(super) const FAULTS: &[Fault] = &[
    fault("rope style", |case| ropes(case, |rope| rope.style = RopeStyle::Interleaved)),
    fault("theta × 0.5", |case| ropes(case, |rope| rope.theta *= 0.5)),
    Fault { name: "query position + 1", plant: |_| true, last_position_shift: 1 },
    Fault { name: "query position − 1", plant: |_| true, last_position_shift: -1 },
    fault("eps × 10, layer norms", |case| layers(case, |layer| layer.eps *= 10.0)),
    fault("eps × 10, final norm", |case| {
        case.spec.final_eps *= 10.0;
        true
    }),
    fault("eps × 10, QK norm", |case| {
        attention(case, |a| a.qk_norm.as_mut().map(|eps| *eps *= 10.0).is_some())
    }),
    fault("no QK norm", |case| attention(case, |a| a.qk_norm.take().is_some())),
    fault("window + 1", |case| windows(case, |w| Some(w + 1))),
    fault("window − 1", |case| windows(case, |w| Some(w - 1))),
    fault("no window", |case| windows(case, |_| None)),
    fault("gate and up swapped", |case| {
        let names = &mut case.spec.tensors;
        std::mem::swap(&mut names.gate, &mut names.up);
        std::mem::swap(&mut names.expert_gate, &mut names.expert_up);
        true
    }),
    fault("no softmax scale", |case| {
        attention(case, |a| {
            a.scale = 1.0;
            true
        })
    }),
    fault("KV head = head mod KV heads", wrong_head_map),
    fault("no QKV bias", |case| attention(case, |a| std::mem::take(&mut a.qkv_bias))),
    fault("no rope scaling", |case| {
        let is_scaled = case.spec.ropes[0].scaling != RopeScaling::Default;
        ropes(case, |rope| rope.scaling = RopeScaling::Default) && is_scaled
    }),
    fault("no attention factor", |case| match &mut case.spec.ropes[0].scaling {
        RopeScaling::Yarn { attention_factor, .. }
        | RopeScaling::LongRope { attention_factor, .. } => {
            *attention_factor = 1.0;
            true
        }
        _ => false,
    }),
    fault("router renormalisation flipped", |case| {
        let mut is_sparse = false;
        layers(case, |layer| {
            if let MlpSpec::Moe(moe) = &mut layer.mlp {
                moe.renormalize = !moe.renormalize;
                is_sparse = true;
            }
        });
        is_sparse
    }),
];

fn ropes(case: &mut Case, change: fn(&mut RopeSpec)) -> bool {
    case.spec.ropes.iter_mut().for_each(change);
    true
}

fn layers(case: &mut Case, change: impl FnMut(&mut LayerSpec)) -> bool {
    case.spec.layers.iter_mut().for_each(change);
    true
}

/// Changes attention in every layer; true if any could be changed.
fn attention(case: &mut Case, change: fn(&mut AttentionSpec) -> bool) -> bool {
    let mut changed = false;
    for layer in &mut case.spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        changed |= change(attention);
    }
    changed
}

/// Other windows, in layers and in their groups, so that the harness keeps what the planted window
/// sees; true if there are any.
fn windows(case: &mut Case, change: fn(u32) -> Option<u32>) -> bool {
    let mut changed = false;
    for group in &mut case.spec.groups {
        if let KvGroupKind::Window(window) = group.kind {
            group.kind = change(window).map_or(KvGroupKind::Full, KvGroupKind::Window);
            changed = true;
        }
    }
    for layer in &mut case.spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        attention.window = attention.window.and_then(change);
    }
    changed
}

/// Query head h reads KV head h mod Nkv: the same as query and output weights with their heads in
/// another order, since the kernels go by h / (Nq / Nkv).
fn wrong_head_map(case: &mut Case) -> bool {
    let heads = case.checkpoint.config.heads;
    if heads.num_kv == 1 || heads.num_kv == heads.num_q {
        return false;
    }
    let nothing = Box::new(Dummy { seed: 0, dtype: DType::F32 });
    let inner = std::mem::replace(&mut case.checkpoint.tensors, nothing);
    case.checkpoint.tensors = Box::new(PermutedHeads { inner, heads });
    true
}

/// A checkpoint whose query heads stand in another order.
struct PermutedHeads {
    inner: Box<dyn TensorSource>,
    heads: Heads,
}

impl PermutedHeads {
    /// Elements in their new order, where heads lie along rows or along columns.
    fn permute(&self, tensor: &Tensor<'_>, along_rows: bool) -> Vec<u8> {
        let Heads { num_q, num_kv, head_dim } = self.heads;
        let source_of = |place: usize| {
            let (head, offset) = (place / head_dim, place % head_dim);
            let group = num_q / num_kv;
            ((head % group) * num_kv + head / group) * head_dim + offset
        };
        let size = tensor.dtype.bytes();
        let mut bytes = Vec::with_capacity(tensor.bytes.len());
        for row in 0..tensor.rows {
            for col in 0..tensor.cols {
                let (row, col) =
                    if along_rows { (source_of(row), col) } else { (row, source_of(col)) };
                let at = (row * tensor.cols + col) * size;
                bytes.extend_from_slice(&tensor.bytes[at..at + size]);
            }
        }
        bytes
    }
}

impl TensorSource for PermutedHeads {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, SourceError> {
        let mut tensor = self.inner.tensor(name, shape)?;
        let along_rows = name.ends_with("q_proj.weight");
        // A bias is one row, so its heads lie along columns as those of the output weight do.
        if along_rows || name.ends_with("o_proj.weight") || name.ends_with("q_proj.bias") {
            tensor.bytes = Cow::Owned(self.permute(&tensor, along_rows));
        }
        Ok(tensor)
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.inner.stored_dtype(name)
    }

    fn release(&self, name: &str) {
        self.inner.release(name);
    }

    fn names(&self) -> Vec<&str> {
        self.inner.names()
    }
}
