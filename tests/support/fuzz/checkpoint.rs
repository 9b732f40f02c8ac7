//! Configurations, headers, indexes and quantized tensors of a checkpoint, as its author wrote them.
//!
//! What is wrong must be told with the file's name. What is read must keep its bounds: lists as long
//! as the layers, tokens within the vocabulary, finite ropes, tensors of the bytes that their shape
//! says. Files lie in a folder of each test's own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use pagoda_engine::model::config::{ModelConfig, read_config, read_generation};
use pagoda_engine::model::families::architectures;
use pagoda_engine::model::source::dummy::Dummy;
use pagoda_engine::model::source::quantized::Dequantized;
use pagoda_engine::model::source::safetensors::Safetensors;
use pagoda_engine::model::source::{SourceError, TensorSource};
use pagoda_engine::model::spec::ModelSpec;
use pagoda_engine::model::{Checkpoint, ModelFiles};
use pagoda_kernels::dtype::DType;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{Target, is_told, parts, seeds, shape};

/// config.json, generation_config.json.
pub(super) const CONFIG: Target = Target {
    name: "config",
    run: config,
    seeds: seeds::configs,
    words: &[
        "architectures",
        "hidden_size",
        "head_dim",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rope_scaling",
        "rope_parameters",
        "rope_theta",
        "rope_type",
        "factor",
        "long_factor",
        "yarn",
        "llama3",
        "dynamic",
        "longrope",
        "linear",
        "layer_types",
        "sliding_window",
        "sliding_attention",
        "full_attention",
        "text_config",
        "quantization_config",
        "eos_token_id",
        "vocab_size",
        "num_experts",
        "mlp_only_layers",
        "partial_rotary_factor",
    ],
};

/// A whole safetensors file.
pub(super) const SAFETENSORS: Target = Target {
    name: "safetensors",
    run: safetensors,
    seeds: seeds::safetensors,
    words: &[
        "__metadata__",
        "dtype",
        "shape",
        "data_offsets",
        "F32",
        "BF16",
        "F8_E4M3",
        "F4",
        "I32",
    ],
};

/// model.safetensors.index.json beside two files.
pub(super) const SHARDS: Target = Target {
    name: "shards",
    run: shards,
    seeds: seeds::indexes,
    words: &[
        "weight_map",
        "one.safetensors",
        "two.safetensors",
        "../",
        "metadata",
        "\\u0000",
        "a",
        "b",
    ],
};

/// quantization_config and a safetensors file with quantized tensors.
pub(super) const QUANTIZED: Target = Target {
    name: "quantized",
    run: quantized,
    seeds: seeds::quantized,
    words: &[
        "quant_method",
        "gptq",
        "awq",
        "fp8",
        "compressed-tensors",
        "bits",
        "group_size",
        "desc_act",
        "weight_block_size",
        "config_groups",
        "x.qweight",
        "x.qzeros",
        "x.scales",
        "x.g_idx",
        "x.weight",
        "x.weight_scale",
        "x.weight_scale_inv",
        "F8_E4M3",
        "I32",
        "F16",
    ],
};

fn config(input: &[u8]) -> String {
    let [config, generation] = parts(input);
    let told = one_config(config, generation);
    // The same words as another family reads them.
    if let Ok(Value::Object(mut map)) = serde_json::from_slice(config) {
        let all: Vec<&str> = architectures().collect();
        map.insert("architectures".into(), json!([all[input.len() % all.len()]]));
        one_config(Value::Object(map).to_string().as_bytes(), generation);
    }
    told
}

fn one_config(bytes: &[u8], generation: &[u8]) -> String {
    let config = match read_config("config.json", bytes) {
        Ok(config) => config,
        Err(error) => return is_told(error, "config.json: "),
    };
    check_config(&config);
    let again = serde_json::from_slice::<Value>(bytes).expect("it was read").to_string();
    let again = read_config("config.json", again.as_bytes()).expect("it was read, in other spaces");
    assert_eq!(whole_numbers(&config), whole_numbers(&again));
    let told = match read_generation("generation_config.json", Some(generation), &config) {
        Ok(read) => {
            assert!(read.eos_token_ids.iter().all(|id| (*id as usize) < config.vocab));
            assert!(read.eos_token_ids.is_sorted());
            "generation".to_owned()
        }
        Err(error) => is_told(error, "generation_config.json: "),
    };
    format!("{} {:?} {told}", config.family.architectures[0], kind_of(&config.rope.scaling))
}

/// The name of a variant.
fn kind_of(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

fn whole_numbers(config: &ModelConfig) -> String {
    let ModelConfig { heads, windows, experts, eos_token_ids, .. } = config;
    format!(
        "{} {} {} {heads:?} {windows:?} {experts:?} {eos_token_ids:?} {:?}",
        config.hidden, config.num_layers, config.vocab, config.quantization
    )
}

fn check_config(config: &ModelConfig) {
    let heads = config.heads;
    assert!(heads.num_q.is_multiple_of(heads.num_kv) && heads.head_dim.is_multiple_of(2));
    assert_eq!(config.windows.len(), config.num_layers);
    assert!(config.windows.iter().flatten().all(|window| *window > 0));
    assert!(config.eos_token_ids.iter().all(|id| (*id as usize) < config.vocab));
    if let Some(experts) = &config.experts {
        assert_eq!(experts.layers.len(), config.num_layers);
        assert!((1..=experts.num_experts).contains(&experts.num_chosen));
    }
    for number in [config.norm_eps, config.attention_scale] {
        assert!(number.is_finite() && number > 0.0, "{number}");
    }
    let longest = config.longest();
    assert!(longest > 0);
    for rope in std::iter::once(&config.rope).chain(&config.window_rope) {
        assert!((2..=heads.head_dim).contains(&rope.rotary_dim), "{rope:?}");
        for len in [1, 64.min(longest)] {
            let tables = [Some(rope.table(len)), rope.query_table(len)];
            for table in tables.into_iter().flatten() {
                let bad = table.iter().find(|value| !value.is_finite());
                assert_eq!(bad, None, "{rope:?}");
            }
        }
    }
    let plan = ModelSpec::plan(config, longest);
    assert_eq!(plan.layers.len(), config.num_layers);
    let checkpoint = Checkpoint {
        place: "here".into(),
        config: config.clone(),
        files: ModelFiles::default(),
        tensors: Box::new(Dummy { seed: 1, dtype: DType::Bf16 }),
    };
    let sizes = checkpoint.sizes();
    assert!(sizes.weights.iter().all(|(_, bytes)| *bytes > 0));
}

/// A folder of this process's own for files of a target.
fn folder(target: &str) -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| TempDir::with_prefix("fuzz").expect("a folder"));
    folder.path().join(target)
}

/// Writes a file there, and gives the folder.
fn written(target: &str, name: &str, bytes: &[u8]) -> PathBuf {
    let folder = folder(target);
    let path = folder.join(name);
    // A file that was mapped keeps its pages: only its name goes.
    if std::fs::remove_file(&path).is_err() {
        std::fs::create_dir_all(&folder).expect("a folder");
    }
    std::fs::write(path, bytes).expect("the folder takes files");
    folder
}

/// What is told of a file, without where it lies.
fn of_file(error: &SourceError, file: &str) -> String {
    // The folder's name is another one each time.
    let told = error.to_string().replace(&folder("").display().to_string(), "");
    is_told(told, file)
}

/// What a file's header says of shapes, as far as it can be read at all.
fn header(file: &[u8]) -> Option<(Value, &[u8])> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (header, elements) = rest.split_at_checked(length)?;
    Some((serde_json::from_slice(header).ok()?, elements))
}

fn shape_in(header: &Value, name: &str) -> Option<Vec<usize>> {
    let dims = header[name]["shape"].as_array()?.iter();
    dims.map(|dim| dim.as_u64().and_then(|dim| usize::try_from(dim).ok())).collect()
}

/// Reads every tensor in the shape that the header gives it, and in another.
fn read_all(source: &Safetensors, header: &Value) -> String {
    let mut told = String::from("tensors");
    for name in source.names().into_iter().take(64) {
        let shape = shape_in(header, name).expect("a tensor that is there has a shape");
        match source.tensor(name, &shape) {
            Ok(tensor) => {
                let elements: usize = shape.iter().product();
                assert_eq!(tensor.rows * tensor.cols, elements, "{name}");
                assert_eq!(tensor.bytes.len(), elements * tensor.dtype.bytes(), "{name}");
                assert_eq!(source.stored_dtype(name), Some(tensor.dtype), "{name}");
                assert!(tensor.as_host().is_some(), "{name}");
            }
            Err(error) => told = of_file(&error, ".safetensors: tensor "),
        }
        let other: Vec<usize> = shape.iter().map(|dim| dim + 1).chain([1]).collect();
        assert!(source.tensor(name, &other).is_err(), "{name} has two shapes");
        source.release(name).expect("no file was cut");
    }
    assert!(source.tensor("no such tensor", &[1]).is_err());
    told
}

fn safetensors(input: &[u8]) -> String {
    let source = match Safetensors::open(&written("single", "model.safetensors", input)) {
        Ok(source) => source,
        Err(error) => return of_file(&error, "model.safetensors: "),
    };
    let (said, elements) = header(input).expect("what was opened has a header");
    let told = read_all(&source, &said);
    // The same header in other spaces is the same file.
    let text = said.to_string();
    let again = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), elements].concat();
    let folder = written("single", "model.safetensors", &again);
    let second = Safetensors::open(&folder).expect("it was opened before");
    assert_eq!(source.names(), second.names());
    told
}

fn shards(input: &[u8]) -> String {
    static SHARDS: OnceLock<()> = OnceLock::new();
    SHARDS.get_or_init(|| {
        let tensor = |name| seeds::file_of(&[(name, "F32", &[2, 2], 16)]);
        written("shards", "one.safetensors", &tensor("a"));
        written("shards", "two.safetensors", &tensor("b"));
    });
    match Safetensors::open(&written("shards", "model.safetensors.index.json", input)) {
        Ok(source) => {
            #[derive(serde::Deserialize)]
            struct Index {
                weight_map: BTreeMap<String, String>,
            }
            let index: Index = serde_json::from_slice(input).expect("it was read");
            for (name, file) in &index.weight_map {
                assert!(["one.safetensors", "two.safetensors"].contains(&file.as_str()), "{file}");
                source.tensor(name, &[2, 2]).expect("a tensor that is listed");
            }
            format!("{} of two files", source.names().len())
        }
        Err(error) => of_file(&error, "safetensors"),
    }
}

fn quantized(input: &[u8]) -> String {
    let [quantization, file] = parts(input);
    let mut config: Map<String, Value> =
        serde_json::from_str(seeds::PLAIN_CONFIG).expect("a configuration");
    let Ok(quantization) = serde_json::from_slice(quantization) else { return "no JSON".into() };
    config.insert("quantization_config".into(), quantization);
    let config = Value::Object(config).to_string();
    let stored = match read_config("config.json", config.as_bytes()) {
        Ok(ModelConfig { quantization: Some(stored), .. }) => stored,
        Ok(_) => return "plain".into(),
        Err(error) => return is_told(error, "config.json: "),
    };
    let files = match Safetensors::open(&written("quantized", "model.safetensors", file)) {
        Ok(files) => files,
        Err(error) => return of_file(&error, "model.safetensors: "),
    };
    let (said, _) = header(file).expect("what was opened has a header");
    let mut told = kind_of(&stored);
    let source = Dequantized::new(files, stored);
    for name in source.names().into_iter().take(16) {
        for shape in shapes_of(&said, name) {
            match source.tensor(name, &shape) {
                Ok(tensor) => {
                    let elements: usize = shape.iter().product();
                    assert_eq!(tensor.bytes.len(), elements * tensor.dtype.bytes(), "{name}");
                    assert!(tensor.as_host().is_some(), "{name}");
                    told.push_str(" read");
                }
                Err(error) => told = format!("{told} {}", of_file(&error, ".safetensors: ")),
            }
        }
        source.release(name).expect("no file was cut");
    }
    shape(told)
}

/// The shapes that a configuration might ask for of a weight: its own, or those of its codes. None
/// has a dimension of nothing.
fn shapes_of(header: &Value, name: &str) -> Vec<Vec<usize>> {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let own = shape_in(header, name);
    let codes = shape_in(header, &format!("{module}.qweight"));
    let codes = match codes.as_deref() {
        Some(&[rows, cols]) => {
            vec![vec![cols.saturating_mul(8), rows], vec![cols, rows.saturating_mul(8)]]
        }
        _ => Vec::new(),
    };
    let all = own.into_iter().chain(codes);
    all.filter(|shape| shape.iter().all(|dim| *dim > 0)).collect()
}
