//! GLM-4-0414: GLM-4 with norms on both sides of attention and MLP.

use super::{Family, PostNorms, TensorNames, dialect, glm};

pub(super) const FAMILY: Family = Family {
    architectures: &["Glm4ForCausalLM"],
    dialects: &[&dialect::GLM4],
    tensors: TensorNames {
        post_norms: Some(PostNorms {
            attn: "model.layers.{layer}.post_self_attn_layernorm",
            mlp: "model.layers.{layer}.post_mlp_layernorm",
        }),
        ..glm::FAMILY.tensors
    },
    ..glm::FAMILY
};
