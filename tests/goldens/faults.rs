//! The faults that goldens must notice, each as one change of a spec, a batch or a weight.

use pagoda_engine::model::families::GateUp;
use pagoda_engine::model::info::KvGroupKind;
use pagoda_engine::model::rope::{RopeScaling, RopeSpec};
use pagoda_engine::model::source::TensorSource;
use pagoda_engine::model::source::dummy::Dummy;
use pagoda_engine::model::spec::{AttentionSpec, LayerSpec, Mixer, MlpSpec};
use pagoda_kernels::dtype::DType;
use pagoda_kernels::ops::{Activation, RopeStyle};

use super::Case;
use super::rewritten::{PermutedHeads, SwappedHalves};

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
    fault("rope style", |case| {
        ropes(case, |rope| {
            rope.style = match rope.style {
                RopeStyle::Halves => RopeStyle::Interleaved,
                RopeStyle::Interleaved => RopeStyle::Halves,
            }
        })
    }),
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
    fault("gate and up swapped", gate_and_up_swapped),
    fault("no norm offset", |case| std::mem::take(&mut case.spec.norm_offset) != 0.0),
    fault("no embedding scale", |case| std::mem::replace(&mut case.spec.embed_scale, 1.0) != 1.0),
    fault("no post norms", |case| {
        let mut had = false;
        layers(case, |layer| had |= layer.post_norm.take().is_some());
        had
    }),
    fault("eps × 10, post norms", |case| {
        let mut had = false;
        layers(case, |layer| had |= layer.post_norm.as_mut().map(|eps| *eps *= 10.0).is_some());
        had
    }),
    fault("SiLU for GELU", |case| {
        let mut had = false;
        layers(case, |layer| {
            if let MlpSpec::Dense { activation, .. } = &mut layer.mlp {
                had |= std::mem::replace(activation, Activation::Silu) != Activation::Silu;
            }
        });
        had
    }),
    fault("no cap on attention", |case| attention(case, |a| a.soft_cap.take().is_some())),
    fault("no cap on logits", |case| case.spec.head.soft_cap.take().is_some()),
    fault("scale of the head size", |case| {
        attention(case, |a| {
            let usual = (a.heads.head_dim as f32).sqrt().recip();
            (std::mem::replace(&mut a.scale, usual) / usual - 1.0).abs() > 1e-3
        })
    }),
    fault("one rope for all layers", |case| {
        attention(case, |a| a.rope.replace(0).is_some_and(|rope| rope != 0))
    }),
    fault("all of each head turns", |case| {
        let head_dim = case.checkpoint.config.heads.head_dim;
        let is_partial = case.spec.ropes.iter().any(|rope| rope.rotary_dim < head_dim);
        for rope in &mut case.spec.ropes {
            (rope.rotary_dim, rope.scaling) = (head_dim, RopeScaling::Default);
        }
        is_partial
    }),
    fault("queries do not grow", |case| {
        case.spec.ropes.iter_mut().any(|rope| rope.query_log_base.take().is_some_and(beyond))
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
        let is_scaled = match &case.spec.ropes[0].scaling {
            RopeScaling::Default => false,
            RopeScaling::SteppedNtk { trained_len } => beyond(*trained_len),
            _ => true,
        };
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

/// Whether the goldens' sequences outgrow this length.
fn beyond(len: u32) -> bool {
    len < 2048
}

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

/// Query head h reads KV head h mod Nkv.
fn wrong_head_map(case: &mut Case) -> bool {
    let heads = case.checkpoint.config.heads;
    if heads.num_kv == 1 || heads.num_kv == heads.num_q {
        return false;
    }
    rewrite(case, |inner| Box::new(PermutedHeads { inner, heads }));
    true
}

/// The up projection is taken for the gate.
fn gate_and_up_swapped(case: &mut Case) -> bool {
    let names = &mut case.spec.tensors;
    std::mem::swap(&mut names.expert_gate, &mut names.expert_up);
    match &mut names.gate_up {
        GateUp::Apart { gate, up } => std::mem::swap(gate, up),
        GateUp::Fused(_) => rewrite(case, |inner| Box::new(SwappedHalves { inner })),
    }
    true
}

/// Puts another source of tensors around the case's own.
fn rewrite(case: &mut Case, around: impl FnOnce(Box<dyn TensorSource>) -> Box<dyn TensorSource>) {
    let nothing = Box::new(Dummy { seed: 0, dtype: DType::F32 });
    let inner = std::mem::replace(&mut case.checkpoint.tensors, nothing);
    case.checkpoint.tensors = around(inner);
}
