//! What operators and the hub write: settings, models by name, bodies of administration, lists.
//!
//! A refusal names the setting, a name that is taken stays within the folder that is made of it, and
//! no key is ever shown.

use std::path::{Component, Path};
use std::sync::{LazyLock, OnceLock};

use pagoda_engine::config::flags::Written;
use pagoda_engine::config::models::folder_of;
use pagoda_engine::config::{Config, ModelDefaults};
use pagoda_engine::hub::{ModelId, Revision, small_files};
use pagoda_engine::profiles::admin::wire::{Addressed, Asked, Going};
use serde_json::Value;
use tempfile::TempDir;

use super::{Target, is_told, parts, seeds, shape};

/// A body of `/admin/models`.
pub(super) const ADMIN: Target = Target {
    name: "admin",
    run: admin,
    seeds: seeds::admin,
    words: &[
        "name",
        "path",
        "options",
        "drain_timeout",
        "quantization",
        "q8_0",
        "max-model-len",
        "seed",
        "device",
        "cuda:0",
        "dtype",
        "kv-cache-memory-bytes",
        "4k",
        "1GiB",
        "../..",
        "block-size",
        "max-step-ms",
    ],
};

/// Values of `--model`, one a line; a settings file.
pub(super) const SETTINGS: Target = Target {
    name: "settings",
    run: settings,
    seeds: seeds::settings,
    words: &[
        "a=/m/a,",
        "quantization=q8_0",
        ",seed=7",
        "max-model-len=",
        "4k",
        "18446744073709551615",
        "builtin",
        "kv-cache-memory-bytes = ",
        "\"1GiB\"",
        "port = ",
        "host = ",
        "\"::1\"",
        "api-key = ",
        "allowed-origins = ",
        "gpu-memory-utilization = 0.5",
        "model = [",
        "otlp-endpoint = \"http://x\"",
        "max-step-ms = ",
        "[table]",
        "''' ",
    ],
};

/// A model's name, a revision, and the hub's list of its files.
pub(super) const HUB: Target = Target {
    name: "hub",
    run: hub,
    seeds: seeds::hub,
    words: &[
        "org/name",
        "models--",
        "--",
        "refs/pr/1",
        "..",
        "/",
        "\\\\",
        "siblings",
        "rfilename",
        "config.json",
        "tokenizer.model",
        "blobId",
        "lfs",
        "sha256",
        "size",
        "%2e",
        "~",
    ],
};

static DEFAULTS: LazyLock<ModelDefaults> =
    LazyLock::new(|| Written::default().resolve().expect("no settings are fine").model_defaults);

fn admin(input: &[u8]) -> String {
    let Ok(Value::Object(body)) = serde_json::from_slice(input) else { return "no object".into() };
    let _ = Going::read(&body);
    // A replaced model has its name in the path, where it was percent-decoded.
    let named = body.get("name").and_then(Value::as_str).map(str::to_owned);
    let asked = Asked::read(&body, None).or_else(|_| {
        Asked::read(
            &body,
            Some(Addressed { name: named.unwrap_or_else(|| "a".into()), is_served: false }),
        )
    });
    let Asked { name, path, options, .. } = match asked {
        Ok(asked) => asked,
        Err(error) => {
            assert_eq!(error.status().as_u16(), 400, "{error}");
            return shape(error);
        }
    };
    assert!(
        !name.is_empty() && name.len() <= 128 && !name.contains(char::is_whitespace),
        "{name:?}"
    );
    match DEFAULTS.with(vec![name.clone()], folder_of(&path), options) {
        Ok(model) => {
            assert_eq!(model.model.names, [name]);
            "a model".into()
        }
        Err(error) => is_told(error, ":"),
    }
}

fn settings(input: &[u8]) -> String {
    let [models, file] = parts(input);
    let mut told = String::new();
    if let Ok(text) = std::str::from_utf8(models) {
        let model = Some(text.lines().map(str::to_owned).collect());
        told = resolved(Written { model, ..Written::default() }, "");
    }
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| TempDir::with_prefix("fuzz").expect("a folder"));
    let path = folder.path().join("settings.toml");
    std::fs::write(&path, file).expect("the folder takes files");
    let place = path.display().to_string();
    told + &resolved(Written { config: Some(path), ..Written::default() }, &place)
}

/// What became of settings; `place` is where their file is, another one each time.
fn resolved(written: Written, place: &str) -> String {
    match written.resolve() {
        Ok(config) => {
            check_settings(&config);
            format!("{} models", config.models.len())
        }
        Err(error) => is_told(error.to_string().replace(place, ""), ""),
    }
}

fn check_settings(config: &Config) {
    let names: Vec<&String> = config.models.iter().flat_map(|model| &model.model.names).collect();
    assert!(!names.is_empty() && names.iter().all(|name| !name.is_empty()), "{names:?}");
    let twice = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name));
    assert_eq!(twice, None);
    let shown = format!("{config:?}");
    // Long enough that nothing else is likely to hold it.
    let keys = config.network.api_keys.iter().chain(&config.network.admin_keys);
    let mut secret = keys.filter(|key| key.starts_with("sk-never-shown"));
    assert_eq!(secret.find(|key| shown.contains(key.as_str())), None);
}

fn hub(input: &[u8]) -> String {
    let [name, revision, answer] = parts(input);
    let (name, revision) = (String::from_utf8_lossy(name), String::from_utf8_lossy(revision));
    let mut told = String::new();
    if let Some(id) = ModelId::parse(&name) {
        assert!(is_plain(&id.folder()), "{id} is the folder {}", id.folder());
        assert_eq!(ModelId::of_folder(&id.folder()), Some(id));
        told.push_str("a name, ");
    }
    if let Some(id) = ModelId::of_folder(&name) {
        assert_eq!(id.folder(), name);
        told.push_str("a folder, ");
    }
    if let Some(revision) = Revision::parse(&revision) {
        let parts = Path::new(revision.as_str()).components();
        let stays = parts.into_iter().all(|part| matches!(part, Component::Normal(_)));
        assert!(stays, "{revision} leaves its folder");
        told.push_str("a revision, ");
    }
    match small_files(answer) {
        Ok(files) => {
            assert!(files.iter().all(|file| is_plain(file)), "{files:?}");
            format!("{told}{} files", files.len())
        }
        Err(why) => told + &shape(why),
    }
}

/// Whether a name is one of a file in a folder, and of nothing else.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let is_one = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    is_one && !name.contains(['/', '\\', '\0'])
}
