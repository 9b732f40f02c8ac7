//! What `pagoda models` says of a cache with models of every kind.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::list;
use crate::config::hub::HubSettings;
use crate::memory::KvBudget;
use crate::model::{LoadOptions, ModelSource, load};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(name)
}

/// Puts a golden into a cache as tools of the hub do; `skip` is not there.
fn put(cache: &Path, folder: &str, golden_name: &str, skip: &str) -> PathBuf {
    let model = cache.join(folder);
    let snapshot = model.join("snapshots").join(COMMIT);
    fs::create_dir_all(model.join("blobs")).unwrap();
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(model.join("refs/main"), COMMIT).unwrap();
    for entry in fs::read_dir(golden(golden_name)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name != skip {
            fs::copy(&path, model.join("blobs").join(name)).unwrap();
            std::os::unix::fs::symlink(Path::new("../../blobs").join(name), snapshot.join(name))
                .unwrap();
        }
    }
    model
}

fn cache() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    put(home.path(), "models--org--whole", "gemma2", "");
    put(home.path(), "models--org--sharded", "qwen3_moe_sharded", "");
    let partial = put(home.path(), "models--org--partial", "qwen3", "model.safetensors");
    fs::write(partial.join("blobs/abc.incomplete"), [0; 2048]).unwrap();
    let foreign = put(home.path(), "models--org--foreign", "qwen3", "");
    let config = foreign.join("blobs/config.json");
    let text = fs::read_to_string(&config).unwrap().replace("Qwen3ForCausalLM", "FooForCausalLM");
    fs::write(config, text).unwrap();
    put(home.path(), "datasets--org--data", "qwen3", "");
    fs::create_dir_all(home.path().join(".locks/models--org--whole")).unwrap();
    home
}

fn listed(cache: &Path, json: bool) -> String {
    let settings = HubSettings { cache: Some(cache.to_owned()), ..HubSettings::default() };
    list(&settings, json).unwrap()
}

#[test]
fn every_model_is_listed_with_what_it_needs_or_lacks() {
    let home = cache();
    let text = listed(home.path(), false);
    let line = |id: &str| text.lines().find(|line| line.starts_with(id)).unwrap().to_owned();
    assert!(line("org/whole").contains("Gemma2ForCausalLM"), "{text}");
    assert!(line("org/partial").contains("model.safetensors is missing, 2.0 KiB are"), "{text}");
    assert!(line("org/foreign").contains("cannot be served: config.json: architectures"), "{text}");
    assert!(!text.contains("data") && text.contains("main"), "{text}");
    let empty = tempfile::tempdir().unwrap();
    assert!(listed(empty.path(), false).contains("pagoda serve --model org/name"));
    assert!(listed(&empty.path().join("absent"), true).contains("\"models\":[]"));
}

/// The numbers are those of a load.
#[test]
fn numbers_are_those_of_a_load() {
    let home = cache();
    let all: Value = serde_json::from_str(&listed(home.path(), true)).unwrap();
    let models = all["models"].as_array().unwrap();
    assert_eq!(models.len(), 4);
    for (id, golden_name) in [("org/whole", "gemma2"), ("org/sharded", "qwen3_moe_sharded")] {
        let told = models.iter().find(|model| model["id"] == id).unwrap();
        let options = LoadOptions { kv: KvBudget::Bytes(64 << 20), ..LoadOptions::default() };
        let source = ModelSource::Folder(golden(golden_name));
        let loaded = load(&source, &options, &|_| ()).unwrap().info;
        let name = loaded.dtype.name();
        assert_eq!(told["dtype"], name);
        assert_eq!(told["max_model_len"], loaded.max_model_len);
        assert_eq!(told["weight_bytes"][name], loaded.weight_bytes);
        assert_eq!(told["weight_bytes"].as_object().unwrap().len(), 4);
        let (mut per_token, mut windows) = (0, 0);
        for group in &loaded.groups {
            let each = group.bytes_per_block / u64::from(loaded.block_size);
            match group.kind {
                crate::model::info::KvGroupKind::Full => per_token += each,
                crate::model::info::KvGroupKind::Window(window) => {
                    windows += each * u64::from(window);
                }
            }
        }
        assert_eq!(told["kv_bytes"][name]["per_token"], per_token);
        assert_eq!(told["kv_bytes"][name]["windows"], windows);
        assert!(told["kv_bytes"]["fp8"]["per_token"].as_u64().unwrap() < per_token);
        let disk = fs::read_dir(golden(golden_name)).unwrap();
        let disk: u64 = disk.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert_eq!(told["disk_bytes"], disk);
    }
}
