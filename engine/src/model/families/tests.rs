//! What a family costs, and that nobody else knows of it.

use std::fs;
use std::path::{Path, PathBuf};

use pagoda_kernels::ops::{Activation, Heads, RopeStyle};
use serde_json::json;

use super::*;
use crate::model::config::read_config;
use crate::model::spec::{Mixer, MlpSpec, ModelSpec};

/// Rust files of the two crates that serve, without their tests.
fn product_files() -> Vec<(PathBuf, String)> {
    let mut folders = vec![
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/src"),
    ];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let is_test = path.file_stem().is_some_and(|stem| stem == "tests");
            if path.is_dir() && !is_test {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test {
                let text = fs::read_to_string(&path).unwrap();
                let product = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
                files.push((path, product.to_owned()));
            }
        }
    }
    files
}

#[test]
fn no_architecture_is_named_outside_this_folder() {
    let files = product_files();
    assert!(files.len() > 100, "only {} files were found", files.len());
    let here = |path: &Path| path.parent().is_some_and(|parent| parent.ends_with("families"));
    for name in architectures() {
        let files = files.iter().filter(|(_, text)| text.contains(name));
        let files: Vec<&Path> = files.map(|(path, _)| path.as_path()).collect();
        assert!(!files.is_empty() && files.iter().all(|path| here(path)), "{name}: {files:?}");
    }
}

#[test]
fn a_family_is_one_file_and_one_line() {
    let mut lines = Vec::new();
    for (path, text) in product_files() {
        if path.file_stem().is_none_or(|stem| stem != "toy") {
            let named = text.lines().filter(|line| line.to_lowercase().contains("toy"));
            lines.extend(named.map(str::to_owned));
        }
    }
    assert_eq!(lines, ["    #[cfg(test)] mod toy;"]);
}

#[test]
fn a_table_is_all_that_the_decoder_needs() {
    let config = json!({
        "architectures": ["ToyForTests"],
        "dtype": "float32",
        "decoder": {
            "width": 32, "depth": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 16, "intermediate_size": 96, "vocab_size": 50, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64, "attention_bias": true, "final_logit_softcapping": 9.0,
        },
    });
    let config = read_config("config.json", config.to_string().as_bytes()).unwrap();
    let spec = ModelSpec::plan(&config, 64);
    assert_eq!((spec.hidden, spec.layers.len(), spec.head.tied), (32, 6, true));
    assert_eq!((spec.embed_scale, spec.norm_offset), (32f32.sqrt(), 0.5));
    assert_eq!(spec.head.soft_cap, Some(9.0));
    let ropes: Vec<_> = spec.ropes.iter().map(|r| (r.theta, r.rotary_dim, r.style)).collect();
    let interleaved = RopeStyle::Interleaved;
    assert_eq!(ropes, [(10000.0, 8, interleaved), (100.0, 8, interleaved)]);
    for (index, layer) in spec.layers.iter().enumerate() {
        let Mixer::Attention(attention) = &layer.mixer;
        let is_full = index % 3 == 2;
        assert_eq!(attention.heads, Heads { num_q: 4, num_kv: 2, head_dim: 16 });
        assert_eq!(attention.window, (!is_full).then_some(7));
        assert_eq!(attention.rope, Some(usize::from(!is_full)));
        assert!(attention.qkv_bias && !attention.output_bias);
        assert_eq!((attention.qk_norm, layer.post_norm), (Some(1e-5), Some(1e-5)));
        let MlpSpec::Dense { intermediate, activation } = &layer.mlp else { panic!() };
        assert_eq!((*intermediate, *activation), (48, Activation::GeluTanh));
    }
    assert_eq!(spec.embedding_name(), "toy.model.embed_tokens.weight");
}

#[test]
fn a_refusal_speaks_the_words_of_the_file() {
    let refused = |config: serde_json::Value| {
        read_config("config.json", config.to_string().as_bytes()).unwrap_err().to_string()
    };
    let toy = |decoder: serde_json::Value| {
        refused(json!({"architectures": ["ToyForTests"], "decoder": decoder}))
    };
    assert_eq!(toy(json!(null)), "config.json: decoder: is missing");
    assert_eq!(toy(json!({})), "config.json: decoder.width: is missing");
    assert_eq!(
        toy(json!({"width": 8, "depth": 0})),
        "config.json: decoder.depth: is 0, expected a whole number from 1 to 1024"
    );
    assert_eq!(
        toy(json!({"upside_down": true})),
        "config.json: decoder.upside_down: other than false is not supported"
    );
    // What the whole file says once is the whole file's.
    let quantized =
        json!({"architectures": ["ToyForTests"], "decoder": {}, "quantization_config": {}});
    assert_eq!(refused(quantized), "config.json: quantization_config.quant_method: is missing");
}
