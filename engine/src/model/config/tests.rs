//! Configurations as published, each refusal by its field, and anything at all.

use pagoda_kernels::ops::RopeStyle;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

mod published;

use super::*;
use crate::model::info::KvGroupKind;
use crate::model::rope::RopeScaling;
use crate::model::spec::{Mixer, MlpSpec, ModelSpec};

fn base() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 96, "intermediate_size": 136, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 331,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "eos_token_id": [7, 2],
        "rope_theta": 5000.0, "torch_dtype": "bfloat16",
    })
}

fn with(changes: Value) -> Result<ModelConfig, ConfigError> {
    let mut config = base();
    let fields: &mut Map<String, Value> = config.as_object_mut().unwrap();
    for (field, value) in changes.as_object().unwrap() {
        fields.insert(field.clone(), value.clone());
    }
    read_config("config.json", config.to_string().as_bytes())
}

#[test]
fn an_error_repeats_no_more_of_a_file_than_a_person_reads() {
    for (field, value) in [
        ("architectures", json!(["x".repeat(50_000)])),
        ("quantization_config", json!({ "quant_method": "é".repeat(50_000) })),
        ("layer_types", json!([vec!["full_attention"; 5000], 1, 2, 3])),
    ] {
        let error = with(json!({ field: value })).unwrap_err().to_string();
        assert!(error.contains(field) && error.len() < 2100, "{} bytes", error.len());
    }
}

#[test]
fn a_plain_configuration_means_what_it_says() {
    let config = with(json!({})).unwrap();
    assert_eq!(config.heads, Heads { num_q: 6, num_kv: 2, head_dim: 16 });
    assert_eq!((config.hidden, config.vocab, config.intermediate), (96, 331, 136));
    assert_eq!((config.dtype, config.tied), (Some(DType::Bf16), false));
    assert_eq!(config.eos_token_ids, [2, 7]);
    assert_eq!((config.rope.theta, config.rope.style), (5000.0, RopeStyle::Halves));
    assert_eq!(config.rope.scaling, RopeScaling::Default);
    assert!(!config.qkv_bias && !config.output_bias && config.windows == [None; 4]);
}

#[test]
fn refusals_name_their_field() {
    for (changes, expected) in [
        (json!({"architectures": null}), "architectures: is missing"),
        (json!({"architectures": ["GPT2LMHeadModel"]}), "GPT2LMHeadModel is not supported (supp"),
        (
            json!({"quantization_config": {"bits": 4}}),
            "quantization_config.quant_method: is missing",
        ),
        (json!({"hidden_size": 0}), "hidden_size: is 0"),
        (json!({"hidden_size": 1e30}), "hidden_size: is 1e+30"),
        (json!({"num_key_value_heads": 4}), "num_key_value_heads: 4 does not divide"),
        (json!({"hidden_size": 100}), "head_dim: is missing, and 6 heads"),
        (json!({"head_dim": 15}), "head_dim: 15 is not an even number"),
        (json!({"hidden_act": "relu"}), "hidden_act: \"relu\" is not supported"),
        (json!({"torch_dtype": "float8_e4m3fn"}), "torch_dtype: \"float8_e4m3fn\""),
        (json!({"mlp_bias": true}), "mlp_bias: biases"),
        (json!({"eos_token_id": 331}), "eos_token_id: 331 is not a token id"),
        (json!({"rms_norm_eps": 0}), "rms_norm_eps: is 0"),
        (json!({"rope_scaling": {"type": "ntk"}}), "rope_scaling.rope_type: \"ntk\""),
        (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor: is missing"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0.5}}), "factor: is 0.5"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor: other than 1"),
        (json!({"layer_types": ["full_attention"]}), "layer_types: has 1 entries"),
        (json!({"layer_types": []}), "layer_types: has 0 entries"),
    ] {
        let said = with(changes).unwrap_err().to_string();
        assert!(said.starts_with("config.json: ") && said.contains(expected), "{said}");
    }
}

#[test]
fn both_ways_to_write_a_rope_mean_the_same() {
    let fields = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256});
    let mut old = fields.clone();
    old["rope_type"] = json!("llama3");
    let mut new = old.clone();
    new["rope_theta"] = json!(5000.0);
    let old = with(json!({"rope_scaling": old})).unwrap();
    let new = with(json!({"rope_parameters": new, "rope_theta": null})).unwrap();
    assert_eq!(old.rope, new.rope);
    let RopeScaling::Llama3 { factor, original_len, .. } = new.rope.scaling else { panic!() };
    assert_eq!((factor, original_len), (8.0, 256));
}

/// A list of `len` frequency factors.
fn factors(len: usize) -> Vec<f64> {
    vec![2.0; len]
}

#[test]
fn yarn_and_longrope_infer_what_is_not_stated() {
    let yarn = json!({"type": "yarn", "factor": 4.0});
    let config = with(json!({"rope_scaling": yarn})).unwrap();
    let RopeScaling::Yarn { attention_factor, original_len, .. } = config.rope.scaling else {
        panic!()
    };
    assert!((attention_factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
    assert_eq!((original_len, config.rope.promised_len()), (2048, Some(8192)));
    let long = json!({"type": "longrope", "long_factor": factors(8), "short_factor": factors(8)});
    let config = with(json!({
        "rope_scaling": long, "original_max_position_embeddings": 1024,
    }));
    let RopeScaling::LongRope { attention_factor, original_len, .. } = config.unwrap().rope.scaling
    else {
        panic!()
    };
    assert!((attention_factor - (1.0 + 2f64.ln() / 1024f64.ln()).sqrt()).abs() < 1e-12);
    assert_eq!(original_len, 1024);
    let short = json!({"type": "longrope", "long_factor": factors(8), "short_factor": factors(7)});
    let said = with(json!({"rope_scaling": short})).unwrap_err().to_string();
    assert!(said.contains("short_factor: has 7 entries, expected 8"), "{said}");
}

/// Windows of the four layers of a configuration of this architecture.
fn windows(architecture: &str, changes: Value) -> Result<Vec<Option<u32>>, ConfigError> {
    let mut changes = changes;
    changes["architectures"] = json!([architecture]);
    changes["head_dim"] = json!(16);
    with(changes).map(|config| config.windows)
}

#[test]
fn windows_follow_the_family() {
    let (w, n) = (Some(50), None);
    let asked = json!({"sliding_window": 50, "use_sliding_window": true, "max_window_layers": 3});
    let off = json!({"sliding_window": 50, "use_sliding_window": false, "max_window_layers": 3});
    let (llama, mistral) = ("LlamaForCausalLM", "MistralForCausalLM");
    let (qwen2, qwen3) = ("Qwen2ForCausalLM", "Qwen3ForCausalLM");
    assert_eq!(windows(llama, asked.clone()).unwrap(), [n; 4]);
    assert_eq!(windows(mistral, json!({"sliding_window": 50})).unwrap(), [w; 4]);
    assert_eq!(windows(mistral, json!({"sliding_window": null})).unwrap(), [n; 4]);
    assert_eq!(windows(qwen2, asked.clone()).unwrap(), [n, n, n, w]);
    assert_eq!(windows(qwen3, off.clone()).unwrap(), [n; 4]);
    let (full, slid) = ("full_attention", "sliding_attention");
    let mut typed = asked;
    typed["layer_types"] = json!([full, slid, full, slid]);
    assert_eq!(windows(qwen2, typed.clone()).unwrap(), [n, w, n, w]);
    typed["use_sliding_window"] = json!(false);
    assert!(windows(qwen2, typed.clone()).is_err());
    assert!(windows(llama, typed.clone()).is_err());
    typed["layer_types"] = json!([full, "linear_attention", full, full]);
    assert!(windows(qwen2, typed).is_err());
}

#[test]
fn layers_with_equal_needs_form_a_group() {
    let changes = json!({
        "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": true, "sliding_window": 50,
        "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    });
    let config = with(changes).unwrap();
    let spec = ModelSpec::plan(&config, 2048);
    let kinds: Vec<_> = spec.groups.iter().map(|group| (group.kind, group.num_layers)).collect();
    assert_eq!(kinds, [(KvGroupKind::Full, 2), (KvGroupKind::Window(50), 2)]);
    let places: Vec<_> = spec
        .layers
        .iter()
        .map(|layer| {
            let Mixer::Attention(attention) = &layer.mixer;
            (attention.group, attention.layer_in_group, attention.window)
        })
        .collect();
    assert_eq!(places, [(0, 0, None), (1, 0, Some(50)), (0, 1, None), (1, 1, Some(50))]);
    assert_eq!(ModelSpec::plan(&config, 50).groups.len(), 1, "no sequence outgrows the window");
}

#[test]
fn experts_stand_where_the_configuration_puts_them() {
    let changes = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 40, "decoder_sparse_step": 2, "mlp_only_layers": [3],
    });
    let config = with(changes.clone()).unwrap();
    let spec = ModelSpec::plan(&config, 2048);
    let sparse: Vec<_> =
        spec.layers.iter().map(|layer| matches!(layer.mlp, MlpSpec::Moe(_))).collect();
    assert_eq!(sparse, [false, true, false, false]);
    let mut too_many = changes.clone();
    too_many["num_experts_per_tok"] = json!(9);
    assert!(with(too_many).unwrap_err().to_string().contains("num_experts_per_tok: is 9"));
    let mut beyond = changes;
    beyond["mlp_only_layers"] = json!([4]);
    assert!(with(beyond).unwrap_err().to_string().contains("mlp_only_layers: 4 is not a layer"));
}

#[test]
fn biases_follow_the_family_and_the_flag() {
    let biases = |architecture: &str, flag: bool| {
        let config = with(json!({"architectures": [architecture], "attention_bias": flag}));
        config.map(|c| (c.qkv_bias, c.output_bias)).unwrap()
    };
    assert_eq!(biases("LlamaForCausalLM", true), (true, true));
    assert_eq!(biases("Qwen2ForCausalLM", false), (true, false));
    assert_eq!(biases("Qwen3ForCausalLM", false), (false, false));
}

#[test]
fn generation_config_wins_over_config() {
    let config = with(json!({})).unwrap();
    let read =
        |json: &str| read_generation("generation_config.json", Some(json.as_bytes()), &config);
    let generation = read(r#"{"eos_token_id": 5, "temperature": 0.7, "top_k": 20}"#).unwrap();
    assert_eq!(generation.eos_token_ids, [5]);
    let sampling = generation.sampling;
    assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (Some(0.7), Some(20), None));
    assert_eq!(read(r#"{"do_sample": false}"#).unwrap().sampling.temperature, Some(0.0));
    assert_eq!(read("{}").unwrap().eos_token_ids, [2, 7]);
    assert_eq!(read_generation("g", None, &config).unwrap().eos_token_ids, [2, 7]);
    let said = read(r#"{"top_p": 1.5}"#).unwrap_err().to_string();
    assert_eq!(said, "generation_config.json: top_p: is 1.5, expected a number from 0.000001 to 1");
}

/// Values that a damaged or hostile file may hold.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u64..4096).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9_]{0,12}".prop_map(Value::from),
        Just(Value::from("LlamaForCausalLM")),
        Just(Value::from("longrope")),
    ];
    leaf.prop_recursive(2, 24, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map("(factor|rope_type|long_factor)", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

const FIELDS: [&str; 22] = [
    "architectures",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
    "num_experts",
    "mlp_only_layers",
    "eos_token_id",
    "torch_dtype",
    "tie_word_embeddings",
    "quantization_config",
];

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_config("config.json", &bytes);
    }

    /// Whatever stands in a few fields: refused, or sizes within their bounds.
    #[test]
    fn damaged_fields_are_refused_or_bounded(
        changes in proptest::collection::vec((0..FIELDS.len(), any_value()), 0..4),
        sparse: bool,
    ) {
        let mut fields = Map::new();
        if sparse {
            fields.insert("architectures".into(), json!(["Qwen3MoeForCausalLM"]));
            fields.insert("num_experts".into(), json!(8));
            fields.insert("num_experts_per_tok".into(), json!(2));
            fields.insert("moe_intermediate_size".into(), json!(40));
        }
        fields.extend(changes.into_iter().map(|(index, value)| (FIELDS[index].to_owned(), value)));
        if let Ok(config) = with(Value::Object(fields)) {
            prop_assert!(config.hidden <= MAX_HIDDEN as usize && config.num_layers <= 1024);
            prop_assert_eq!(config.heads.num_q % config.heads.num_kv, 0);
            prop_assert_eq!(config.heads.head_dim % 2, 0);
            let spec = ModelSpec::plan(&config, 100);
            prop_assert!(spec.ropes[0].table(100).iter().all(|v| v.is_finite()));
        }
    }
}
