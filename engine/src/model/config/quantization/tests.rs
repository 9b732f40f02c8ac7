//! What published files say, and everything that is refused by its name.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::config::fields::parse_object;

fn read(config: &Value) -> Result<Option<StoredQuantization>, ConfigError> {
    let map = parse_object("config.json", config.to_string().as_bytes()).unwrap();
    read_quantization(&Fields::new("config.json", &map))
}

fn of(quantization: Value) -> Result<Option<StoredQuantization>, ConfigError> {
    read(&json!({ "quantization_config": quantization }))
}

/// compressed-tensors with one group, and some of its weights' fields changed.
fn compressed(changes: Value) -> Value {
    let mut weights = json!({
        "actorder": null, "block_structure": null, "dynamic": false, "group_size": null, "num_bits": 8,
        "observer": "minmax", "observer_kwargs": {}, "strategy": "channel", "symmetric": true, "type": "float"
    });
    let Value::Object(changes) = changes else { panic!() };
    weights.as_object_mut().unwrap().extend(changes);
    let rows = json!({ "dynamic": true, "num_bits": 8, "strategy": "token", "type": "float" });
    let group = json!({
        "input_activations": rows, "output_activations": null, "targets": ["Linear"], "weights": weights
    });
    json!({
        "config_groups": { "group_0": group }, "format": "float-quantized", "ignore": ["lm_head"],
        "kv_cache_scheme": null, "quant_method": "compressed-tensors", "quantization_status": "compressed"
    })
}

/// The same with fields of the whole changed.
fn compressed_with(changes: Value) -> Value {
    let mut whole = compressed(json!({}));
    let Value::Object(changes) = changes else { panic!() };
    whole.as_object_mut().unwrap().extend(changes);
    whole
}

fn gptq(changes: Value) -> Value {
    let mut fields = json!({
        "bits": 4, "damp_percent": 0.1, "desc_act": false, "group_size": 128, "quant_method": "gptq",
        "static_groups": false, "sym": true, "true_sequential": true
    });
    let Value::Object(changes) = changes else { panic!() };
    fields.as_object_mut().unwrap().extend(changes);
    fields
}

fn awq(changes: Value) -> Value {
    let mut fields = json!({
        "bits": 4, "group_size": 128, "modules_to_not_convert": null, "quant_method": "awq", "version": "gemm",
        "zero_point": true
    });
    let Value::Object(changes) = changes else { panic!() };
    fields.as_object_mut().unwrap().extend(changes);
    fields
}

fn grids(config: Value) -> Vec<ScaleGrid> {
    match of(config).unwrap().unwrap() {
        StoredQuantization::Fp8(fp8) => fp8.grids,
        other => panic!("{other:?}"),
    }
}

#[test]
fn published_files_mean_what_they_say() {
    assert_eq!(read(&json!({})).unwrap(), None);
    assert_eq!(read(&json!({"quantization_config": null})).unwrap(), None);
    assert_eq!(grids(compressed(json!({}))), [ScaleGrid::Channel]);
    assert_eq!(grids(compressed(json!({"strategy": "tensor"}))), [ScaleGrid::Tensor]);
    let block = ScaleGrid::Block { rows: 128, cols: 64 };
    let blocks = json!({"strategy": "block", "block_structure": [128, 64]});
    assert_eq!(grids(compressed(blocks)), [block]);
    // Older files, and methods that say it in other words.
    let mut older = compressed(json!({}));
    older.as_object_mut().unwrap().remove("quant_method");
    let older = read(&json!({ "compression_config": older })).unwrap().unwrap();
    assert_eq!(older.name(), "fp8 of compressed-tensors");
    let blocks = json!({
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 64]
    });
    assert_eq!(grids(blocks), [block]);
    let whole = json!({"activation_scheme": "static", "ignored_layers": ["lm_head"], "quant_method": "fp8"});
    assert_eq!(grids(whole), [ScaleGrid::Tensor]);
    let int4 = |config: Value| match of(config).unwrap().unwrap() {
        StoredQuantization::Int4(int4) => int4,
        other => panic!("{other:?}"),
    };
    let plain = StoredInt4 { packing: Packing::Awq, group_size: Some(128) };
    assert_eq!(int4(awq(json!({}))), plain);
    assert_eq!(int4(awq(json!({"version": "GEMM", "group_size": -1}))).group_size, None);
    let older = json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": true});
    assert_eq!(int4(older).group_size, Some(64));
    let packing = |changes| int4(gptq(changes)).packing;
    let first = Packing::Gptq { zero_offset: 1, is_ordered: false };
    assert_eq!(packing(json!({})), first);
    assert_eq!(packing(json!({"checkpoint_format": "gptq", "format": "else"})), first);
    let second = Packing::Gptq { zero_offset: 0, is_ordered: true };
    assert_eq!(packing(json!({"checkpoint_format": "gptq_v2", "desc_act": true})), second);
    assert_eq!(packing(json!({"dynamic": {"-:.*mlp.*": {}}, "pack_dtype": "int32"})), first);
}

#[test]
fn groups_are_read_together_and_those_without_weights_passed_over() {
    let mut whole = compressed(json!({}));
    let groups = whole["config_groups"].as_object_mut().unwrap();
    let mut second = groups["group_0"].clone();
    second["weights"]["strategy"] = json!("tensor");
    second["format"] = json!("naive-quantized");
    groups.insert("group_1".to_owned(), second);
    groups.insert("rows".to_owned(), json!({ "weights": null }));
    assert_eq!(grids(whole.clone()), [ScaleGrid::Channel, ScaleGrid::Tensor]);
    whole["config_groups"]["group_1"]["format"] = json!("pack-quantized");
    let said = of(whole).unwrap_err().to_string();
    assert!(said.contains("config_groups.group_1: weights.format: \"pack-quantized\""), "{said}");
    // Of a quantized KV cache alone nothing is left to read.
    assert_eq!(of(compressed_with(json!({"config_groups": {}}))).unwrap(), None);
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let method = |name: &str| json!({ "quant_method": name });
    for (config, expected) in [
        (json!({}), "quantization_config.quant_method: is missing"),
        (
            method("bitsandbytes"),
            "quantization_config.quant_method: \"bitsandbytes\" is not supported",
        ),
        (method("mxfp4"), "\"mxfp4\" is not supported (supported: compressed-tensors (fp8), fp8"),
        (method("gguf"), "\"gguf\""),
        (method("fbgemm_fp8"), "\"fbgemm_fp8\""),
        (method("compressed-tensors"), "quantization_config.config_groups: is missing"),
        (compressed(json!({"type": "int"})), "config_groups.group_0: weights.type: int of 8 bits"),
        (compressed(json!({"num_bits": 4})), "weights.type: float of 4 bits"),
        (compressed(json!({"num_bits": "8"})), "weights.num_bits: is \"8\""),
        (compressed(json!({"symmetric": false})), "weights.symmetric: scales with zeros"),
        (compressed(json!({"strategy": "group"})), "weights.strategy: \"group\" is not supported"),
        (compressed(json!({"strategy": "block"})), "weights.block_structure: is missing"),
        (
            compressed(json!({"strategy": "block", "block_structure": [0, 128]})),
            "weights.block_structure: is not two sizes",
        ),
        (compressed_with(json!({"format": "nvfp4-pack-quantized"})), "\"nvfp4-pack-quantized\""),
        (compressed_with(json!({"format": "int-quantized"})), "\"int-quantized\" is not supported"),
        (
            compressed_with(json!({"sparsity_config": {"format": "sparse-24-bitmask"}})),
            "quantization_config.sparsity_config: \"sparse-24-bitmask\"",
        ),
        (
            compressed_with(json!({"transform_config": {"config_groups": {"u": {}}}})),
            "quantization_config.transform_config: rotated",
        ),
        (json!({"quant_method": "fp8", "fmt": "e5m2"}), "quantization_config.fmt: \"e5m2\""),
        (
            json!({"quant_method": "fp8", "weight_block_size": [128]}),
            "weight_block_size: is not two",
        ),
        (json!({"quant_method": "fp8", "weight_block_size": 128}), "weight_block_size: is 128"),
        (awq(json!({"bits": 8})), "quantization_config.bits: 8 is not supported (supported: 4)"),
        (awq(json!({"version": "gemv"})), "quantization_config.version: \"gemv\""),
        (awq(json!({"checkpoint_format": "gemv_fast"})), "checkpoint_format: \"gemv_fast\""),
        (awq(json!({"zero_point": false})), "quantization_config.zero_point: codes without"),
        (awq(json!({"group_size": 0})), "quantization_config.group_size: is neither"),
        (awq(json!({"group_size": null})), "quantization_config.group_size: is missing"),
        (gptq(json!({"bits": 3})), "quantization_config.bits: 3 is not supported"),
        (gptq(json!({"checkpoint_format": "marlin"})), "checkpoint_format: \"marlin\""),
        (gptq(json!({"is_marlin_format": true})), "is_marlin_format: the order"),
        (gptq(json!({"pack_dtype": "int16"})), "pack_dtype: \"int16\""),
        (gptq(json!({"dynamic": {"+:.*down": {"bits": 8}}})), "dynamic: settings of its own for"),
    ] {
        let said = of(config).unwrap_err().to_string();
        assert!(
            said.starts_with("config.json: quantization_config") && said.contains(expected),
            "{said}"
        );
    }
}

/// Anything that JSON can hold in a field.
fn any_field() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9_]{0,12}".prop_map(Value::from),
        prop::collection::vec(any::<u32>(), 0..4).prop_map(Value::from),
        Just(json!({})),
        Just(json!({"config_groups": 3})),
    ]
}

const FIELDS: [&str; 17] = [
    "quant_method",
    "config_groups",
    "format",
    "sparsity_config",
    "transform_config",
    "fmt",
    "weight_block_size",
    "bits",
    "w_bit",
    "version",
    "zero_point",
    "group_size",
    "q_group_size",
    "desc_act",
    "dynamic",
    "pack_dtype",
    "checkpoint_format",
];

proptest! {
    #[test]
    fn damaged_fields_are_refused_or_bounded(
        kind in 0..3,
        changes in prop::collection::vec((0..FIELDS.len(), any_field()), 0..4),
    ) {
        let fields = changes.into_iter().map(|(field, value)| (FIELDS[field].to_owned(), value));
        let changes = Value::Object(fields.collect());
        let config = match kind {
            0 => compressed_with(changes),
            1 => awq(changes),
            _ => gptq(changes),
        };
        if let Ok(Some(StoredQuantization::Int4(int4))) = of(config) {
            prop_assert!(int4.group_size.is_none_or(|size| (1..=1 << 20).contains(&size)));
        }
    }
}
