//! ChatGLM3, and GLM-4 as first published: the decoder of GLM-4 under other names.

use pagoda_kernels::ops::RopeStyle;

use super::{AttentionBias, Family, GateUp, PLAIN, Preset, Qkv, TensorNames, dialect};

pub(super) const FAMILY: Family = Family {
    architectures: &["ChatGLMModel", "ChatGLMForConditionalGeneration"],
    fields: &[
        ("num_hidden_layers", "num_layers"),
        ("intermediate_size", "ffn_hidden_size"),
        ("vocab_size", "padded_vocab_size"),
        ("rms_norm_eps", "layernorm_epsilon"),
        ("max_position_embeddings", "seq_length"),
        ("head_dim", "kv_channels"),
        ("num_key_value_heads", "multi_query_group_num"),
        ("attention_bias", "add_qkv_bias"),
    ],
    defaults: &[("partial_rotary_factor", Preset::Number(0.5))],
    only: &[
        ("multi_query_attention", true),
        ("rmsnorm", true),
        ("post_layer_norm", true),
        ("add_bias_linear", false),
        ("apply_residual_connection_post_layernorm", false),
    ],
    bias: AttentionBias::QkvByConfig,
    rope_style: RopeStyle::Interleaved,
    partial_rotary: true,
    dialects: &[&dialect::CHATGLM3, &dialect::GLM4],
    tensors: TensorNames {
        embed: "transformer.embedding.word_embeddings",
        final_norm: "transformer.encoder.final_layernorm",
        head: "transformer.output_layer",
        attn_norm: "transformer.encoder.layers.{layer}.input_layernorm",
        qkv: Qkv::Fused("transformer.encoder.layers.{layer}.self_attention.query_key_value"),
        output: "transformer.encoder.layers.{layer}.self_attention.dense",
        mlp_norm: "transformer.encoder.layers.{layer}.post_attention_layernorm",
        gate_up: GateUp::Fused("transformer.encoder.layers.{layer}.mlp.dense_h_to_4h"),
        down: "transformer.encoder.layers.{layer}.mlp.dense_4h_to_h",
        ..PLAIN.tensors
    },
    ..PLAIN
};
