//! Configurations of each family as published: what they leave out, and what they call otherwise.

use pagoda_kernels::ops::{Activation, Heads, RopeStyle};
use serde_json::{Value, json};

use super::super::*;
use crate::model::rope::RopeScaling;
use crate::model::spec::{AttentionSpec, Mixer, ModelSpec};

/// The model of a file, at the longest length that it promises.
fn read(config: &Value) -> (ModelConfig, ModelSpec) {
    let config = read_config("config.json", config.to_string().as_bytes()).unwrap();
    let len = config.rope.promised_len().unwrap_or(config.rope.max_position);
    let spec = ModelSpec::plan(&config, len);
    (config, spec)
}

fn refusal(config: &Value) -> String {
    read_config("config.json", config.to_string().as_bytes()).unwrap_err().to_string()
}

fn attention(spec: &ModelSpec, layer: usize) -> &AttentionSpec {
    let Mixer::Attention(attention) = &spec.layers[layer].mixer;
    attention
}

fn qwen_7b_chat() -> Value {
    json!({
        "architectures": ["QWenLMHeadModel"], "attn_dropout_prob": 0.0, "bf16": false,
        "emb_dropout_prob": 0.0, "fp16": false, "fp32": false, "hidden_size": 4096,
        "intermediate_size": 22016, "initializer_range": 0.02, "kv_channels": 128,
        "layer_norm_epsilon": 1e-06, "max_position_embeddings": 32768, "model_type": "qwen",
        "no_bias": true, "num_attention_heads": 32, "num_hidden_layers": 32, "onnx_safe": null,
        "rotary_emb_base": 10000, "rotary_pct": 1.0, "scale_attn_weights": true,
        "seq_length": 8192, "tie_word_embeddings": false, "tokenizer_class": "QWenTokenizer",
        "use_cache": true, "use_dynamic_ntk": true, "use_flash_attn": "auto",
        "use_logn_attn": true, "vocab_size": 151936,
    })
}

#[test]
fn the_first_qwen() {
    let (config, spec) = read(&qwen_7b_chat());
    assert_eq!(config.heads, Heads { num_q: 32, num_kv: 32, head_dim: 128 });
    assert_eq!((config.intermediate, config.norm_eps), (11008, 1e-6));
    assert!(config.qkv_bias && !config.output_bias && !config.tied);
    let rope = &spec.ropes[0];
    assert_eq!(rope.scaling, RopeScaling::SteppedNtk { trained_len: 8192 });
    assert_eq!((rope.query_log_base, rope.max_position), (Some(8192), 32768));
    let mut biased = qwen_7b_chat();
    biased["no_bias"] = json!(false);
    assert_eq!(refusal(&biased), "config.json: no_bias: other than true is not supported");
    let mut short = qwen_7b_chat();
    short["seq_length"] = json!(1);
    assert!(refusal(&short).starts_with("config.json: seq_length: is 1, expected"));
    let mut partial = qwen_7b_chat();
    partial["rotary_pct"] = json!(0.5);
    assert!(refusal(&partial).starts_with("config.json: use_logn_attn: where a share"));
    let mut odd = qwen_7b_chat();
    odd["intermediate_size"] = json!(22015);
    assert_eq!(refusal(&odd), "config.json: intermediate_size: 22015 is not even");
}

#[test]
fn the_first_gemma() {
    let (config, spec) = read(&json!({
        "architectures": ["GemmaForCausalLM"], "attention_bias": false, "bos_token_id": 2,
        "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu", "hidden_activation": null,
        "hidden_size": 3072, "initializer_range": 0.02, "intermediate_size": 24576,
        "max_position_embeddings": 8192, "model_type": "gemma", "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 16, "pad_token_id": 0,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 10000.0,
        "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 256000,
    }));
    assert_eq!((config.activation, config.tied), (Activation::GeluTanh, true));
    assert_eq!(config.heads, Heads { num_q: 16, num_kv: 16, head_dim: 256 });
    assert_eq!((spec.embed_scale, spec.norm_offset), (3072f32.sqrt(), 1.0));
    assert_eq!(attention(&spec, 0).scale, 1.0 / 16.0);
}

#[test]
fn the_second_gemma() {
    let mut file = json!({
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": false,
        "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 128, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 4608, "intermediate_size": 36864,
        "max_position_embeddings": 8192, "num_attention_heads": 32, "num_hidden_layers": 46,
        "num_key_value_heads": 16, "query_pre_attn_scalar": 144, "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "bfloat16",
        "vocab_size": 256000,
    });
    let (config, spec) = read(&file);
    assert!(config.tied);
    let [first, second] = [0, 1].map(|layer| attention(&spec, layer));
    assert_eq!((first.window, second.window), (Some(4096), None));
    assert_eq!(
        (first.scale, first.soft_cap, spec.head.soft_cap),
        (1.0 / 12.0, Some(50.0), Some(30.0))
    );
    assert_eq!((spec.ropes.len(), spec.groups.len()), (1, 2));
    assert_eq!((spec.layers[0].post_norm, first.qk_norm), (Some(1e-6), None));
    // Null is a word of its own: no cap, not the usual one.
    file["attn_logit_softcapping"] = Value::Null;
    assert_eq!(attention(&read(&file).1, 0).soft_cap, None);
    file["use_bidirectional_attention"] = json!(true);
    assert!(refusal(&file).contains("use_bidirectional_attention: other than false"));
}

/// gemma-3-4b-it: what its file says of the text model, all of it.
fn gemma_3_4b() -> Value {
    json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
        "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
        "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
    })
}

#[test]
fn the_third_gemma() {
    let (config, spec) = read(&gemma_3_4b());
    assert_eq!(config.heads, Heads { num_q: 8, num_kv: 4, head_dim: 256 });
    assert_eq!((config.vocab, config.tied, config.dtype), (262_208, true, Some(DType::Bf16)));
    assert_eq!(
        (&config.eos_token_ids[..], config.activation),
        (&[1, 106][..], Activation::GeluTanh)
    );
    let windows: Vec<usize> =
        (0..34).filter(|layer| attention(&spec, *layer).window.is_none()).collect();
    assert_eq!(windows, [5, 11, 17, 23, 29]);
    let [near, far] = [0, 5].map(|layer| &spec.ropes[attention(&spec, layer).rope.unwrap()]);
    assert_eq!((near.theta, &near.scaling), (1e4, &RopeScaling::Default));
    assert_eq!((far.theta, &far.scaling), (1e6, &RopeScaling::Linear { factor: 8.0 }));
    assert_eq!(far.promised_len(), Some(131_072), "the factor is counted already");
    assert_eq!(attention(&spec, 0).qk_norm, Some(1e-6));
    assert_eq!(spec.embedding_name(), "language_model.model.embed_tokens.weight");
    // Ropes by kind of layer, as transformers 5 writes them.
    let mut newer = gemma_3_4b();
    let text = &mut newer["text_config"];
    text["rope_scaling"] = Value::Null;
    text["rope_parameters"] = json!({
        "full_attention": {"factor": 8.0, "rope_theta": 1e6, "rope_type": "linear"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    });
    assert_eq!(format!("{:?}", read(&newer).1), format!("{spec:?}"));
    let mut wrong = gemma_3_4b();
    wrong["text_config"]["hidden_size"] = json!(0);
    assert!(refusal(&wrong).starts_with("config.json: text_config.hidden_size: is 0"));
}

#[test]
fn a_window_that_nothing_outgrows_keeps_its_rope() {
    let (config, _) = read(&gemma_3_4b());
    let spec = ModelSpec::plan(&config, 1024);
    let first = attention(&spec, 0);
    assert_eq!((first.window, first.rope, spec.groups.len()), (None, Some(1), 1));
}

#[test]
fn mixtral() {
    let (config, _) = read(&json!({
        "architectures": ["MixtralForCausalLM"], "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "vocab_size": 32000,
    }));
    let experts = config.experts.unwrap();
    assert_eq!((experts.num_experts, experts.num_chosen, experts.intermediate), (8, 2, 14336));
    assert!(experts.renormalize && experts.layers == [true; 32] && config.windows == [None; 32]);
}

/// chatglm3-6b.
fn chatglm3() -> Value {
    json!({
        "architectures": ["ChatGLMModel"], "add_bias_linear": false, "add_qkv_bias": true,
        "apply_query_key_layer_scaling": true, "apply_residual_connection_post_layernorm": false,
        "attention_softmax_in_fp32": true, "ffn_hidden_size": 13696, "hidden_size": 4096,
        "kv_channels": 128, "layernorm_epsilon": 1e-05, "multi_query_attention": true,
        "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 28,
        "original_rope": true, "padded_vocab_size": 65024, "post_layer_norm": true,
        "rmsnorm": true, "seq_length": 8192, "torch_dtype": "float16",
        "tie_word_embeddings": false, "eos_token_id": 2, "pad_token_id": 0,
    })
}

#[test]
fn chatglm_and_its_successors() {
    let (config, spec) = read(&chatglm3());
    assert_eq!(config.heads, Heads { num_q: 32, num_kv: 2, head_dim: 128 });
    assert_eq!((config.vocab, config.intermediate, config.num_layers), (65024, 13696, 28));
    assert!(config.qkv_bias && !config.output_bias);
    let rope = &spec.ropes[0];
    assert_eq!((rope.rotary_dim, rope.style), (64, RopeStyle::Interleaved));
    assert_eq!((rope.theta, rope.max_position), (10000.0, 8192));
    // glm-4-9b-chat as first published.
    let mut longer = chatglm3();
    for (field, value) in [("rope_ratio", json!(500)), ("seq_length", json!(131_072))] {
        longer[field] = value;
    }
    let (_, spec) = read(&longer);
    assert_eq!((spec.ropes[0].theta, spec.ropes[0].max_position), (5e6, 131_072));
    for (field, value, said) in [
        ("multi_query_attention", json!(false), "multi_query_attention: other than true"),
        ("add_bias_linear", json!(true), "add_bias_linear: other than false"),
        ("layernorm_epsilon", json!(0), "layernorm_epsilon: is 0"),
        ("multi_query_group_num", json!(5), "multi_query_group_num: 5 does not divide"),
        ("padded_vocab_size", Value::Null, "padded_vocab_size: is missing"),
    ] {
        let mut wrong = chatglm3();
        wrong[field] = value;
        assert!(refusal(&wrong).starts_with(&format!("config.json: {said}")), "{field}");
    }

    // GLM-4-9B-0414.
    let (config, spec) = read(&json!({
        "architectures": ["Glm4ForCausalLM"], "attention_bias": true, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 13696,
        "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 40,
        "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "vocab_size": 151552, "eos_token_id": [151329, 151336, 151338],
    }));
    assert!(config.qkv_bias && !config.output_bias);
    assert_eq!((spec.ropes[0].rotary_dim, spec.layers[0].post_norm), (64, Some(1e-5)));
}

#[test]
fn phi() {
    let factors = |len: usize| (0..len).map(|i| 1.0 + i as f64).collect::<Vec<_>>();
    let mini = |rope: Value, share: f64| {
        json!({
            "architectures": ["Phi3ForCausalLM"], "attention_bias": false, "eos_token_id": 199_999,
            "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
            "max_position_embeddings": 131_072, "num_attention_heads": 24,
            "num_hidden_layers": 32, "num_key_value_heads": 8,
            "original_max_position_embeddings": 4096, "partial_rotary_factor": share,
            "rms_norm_eps": 1e-05, "rope_scaling": rope, "rope_theta": 10000.0,
            "sliding_window": 262_144, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "vocab_size": 200_064,
        })
    };
    let rope = |kind: &str, len: usize| json!({"long_factor": factors(len), "short_factor": factors(len), "type": kind});
    // Phi-4-mini: three quarters of 128 turn.
    let (config, spec) = read(&mini(rope("longrope", 48), 0.75));
    assert_eq!((config.heads.head_dim, spec.ropes[0].rotary_dim, config.tied), (128, 96, true));
    assert_eq!(attention(&spec, 0).window, None, "no sequence outgrows it");
    let RopeScaling::LongRope { attention_factor, original_len, .. } = spec.ropes[0].scaling else {
        panic!()
    };
    assert!((attention_factor - (1.0 + 32f64.ln() / 4096f64.ln()).sqrt()).abs() < 1e-12);
    assert_eq!(original_len, 4096);
    // Phi-3-mini-128k, by the older name.
    let (_, older) = read(&mini(rope("su", 64), 1.0));
    assert_eq!(older.ropes[0].rotary_dim, 128);
    let said = refusal(&mini(rope("longrope", 48), 1.0));
    assert!(said.contains("rope_scaling.short_factor: has 48 entries, expected 64"), "{said}");
    let said = refusal(&mini(rope("longrope", 48), 0.7));
    assert!(said.contains("partial_rotary_factor: 0.7 of 128 is not an even number"), "{said}");
}
