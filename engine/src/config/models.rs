//! What `--model` names: a folder or a model of the hub, perhaps with a name before it and options of its own behind it.
//!
//! Options have the names of settings and stand over those of the process; models that are loaded
//! over HTTP have the same ones. Decides which settings are a model's own, never what they mean.

use std::path::{Path, PathBuf};

use serde_json::{Map, Number, Value};

use crate::api::DEFAULT_NAME;
use crate::config::ModelConfig;
use crate::config::flags::Written;
use crate::config::resolve::{ConfigError, model_config, value};

/// Names the model that is part of the program, where a folder could stand.
pub const BUILTIN: &str = "builtin";

/// Name that clients use for it.
const DEMO_NAME: &str = "pagoda-demo";

/// Settings that a model may have of its own.
pub const OWN_OPTIONS: [&str; 21] = [
    "revision",
    "load-format",
    "dtype",
    "quantization",
    "max-model-len",
    "chat-template",
    "max-logprobs",
    "seed",
    "device",
    "deterministic",
    "cublaslt",
    "threads",
    "isa",
    "kv-cache-dtype",
    "kv-cache-memory-bytes",
    "block-size",
    "max-num-seqs",
    "max-num-batched-tokens",
    "max-step-ms",
    "enable-prefix-caching",
    "max-num-queued-reqs",
];

/// Settings of the process, as far as models have them.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDefaults(Box<Written>);

impl ModelDefaults {
    /// What `written` says of models; no key is kept.
    pub(super) fn new(written: &Written) -> Self {
        ModelDefaults(Box::new(Written {
            model: None,
            served_model_name: None,
            api_key: None,
            admin_key: None,
            ..written.clone()
        }))
    }

    /// The model in `folder` (`None`: the built-in one) as `names`, with options of its own.
    pub fn with(
        &self,
        names: Vec<String>,
        folder: Option<PathBuf>,
        options: Map<String, Value>,
    ) -> Result<ModelConfig, ConfigError> {
        model_config(&own(options)?.over((*self.0).clone()), names, folder)
    }

    /// Share of the memory that all models may take, if it was said.
    pub fn memory_share(&self) -> Option<f64> {
        self.0.gpu_memory_utilization
    }

    /// What stands for every `--model`.
    pub(super) fn models(&self, written: &Written) -> Result<Vec<ModelConfig>, ConfigError> {
        let texts = written.model.clone().unwrap_or_else(|| vec![BUILTIN.into()]);
        let named = texts.iter().map(|text| Named::read(text)).collect::<Result<Vec<_>, _>>()?;
        let served = written.served_model_name.as_ref();
        if served.is_some_and(|names| names.is_empty() || names.iter().any(String::is_empty)) {
            return Err(value("served-model-name", "must not be empty"));
        }
        let mut models: Vec<ModelConfig> = Vec::with_capacity(named.len());
        for Named { name, folder, options } in named {
            let names = match (served, name) {
                (Some(_), _) if texts.len() != 1 => {
                    let reason = "stands for one model; of several write --model name=folder";
                    return Err(value("served-model-name", reason));
                }
                (Some(names), _) => names.clone(),
                (None, Some(name)) => vec![name],
                (None, None) => vec![name_of(folder.as_deref())],
            };
            // Requests that say so mean the first one, whatever it is called.
            if texts.len() != 1 && names.iter().any(|name| name == DEFAULT_NAME) {
                let reason = "none of several can be called default: write --model name=folder";
                return Err(value("model", reason));
            }
            let twice = models.iter().flat_map(|model| &model.model.names);
            if let Some(name) = twice.into_iter().find(|name| names.contains(name)) {
                let reason = format!("two are called {name}: write --model another-name=folder");
                return Err(value("model", reason));
            }
            models.push(self.with(names, folder, options)?);
        }
        match models.is_empty() {
            true => Err(value("model", "must name one at least")),
            false => Ok(models),
        }
    }
}

/// A model as it was written.
struct Named {
    name: Option<String>,
    folder: Option<PathBuf>,
    options: Map<String, Value>,
}

impl Named {
    /// `folder`, `name=folder`, either with `,option=value` behind it. What is there as a folder
    /// is one, whatever signs it holds.
    fn read(text: &str) -> Result<Self, ConfigError> {
        let (mut parts, mut name) = (text.split(','), None);
        let mut folder = parts.next().unwrap_or_default();
        if Path::new(text).exists() {
            (folder, parts) = (text, "".split(','));
            parts.next();
        } else if let Some((before, behind)) = folder.split_once('=') {
            (name, folder) = (Some(before.to_owned()), behind);
        }
        if folder.is_empty() || name.as_ref().is_some_and(String::is_empty) {
            return Err(value("model", format!("{text:?} must be a folder or name=folder")));
        }
        let mut options = Map::new();
        for part in parts {
            let Some((option, meant)) = part.split_once('=') else {
                return Err(value("model", format!("{part:?} in {text:?} must be option=value")));
            };
            let known = options.insert(option.trim().to_owned(), read_value(meant.trim()));
            if known.is_some() {
                return Err(value("model", format!("{option} stands twice in {text:?}")));
            }
        }
        Ok(Named { name, folder: folder_of(folder), options })
    }
}

/// A number or a truth where it looks like one, as in the settings file.
fn read_value(text: &str) -> Value {
    let number = text.parse::<u64>().ok().map(Number::from);
    match (number, text.parse::<bool>()) {
        (Some(number), _) => number.into(),
        (None, Ok(truth)) => truth.into(),
        (None, Err(_)) => text.into(),
    }
}

/// A model's own options, read as settings are.
fn own(options: Map<String, Value>) -> Result<Written, ConfigError> {
    if let Some(name) = options.keys().find(|name| !OWN_OPTIONS.contains(&name.as_str())) {
        let known = OWN_OPTIONS.join(", ");
        return Err(value("model", format!("{name} is no option of a model's own: {known}")));
    }
    let names: Vec<String> = options.keys().cloned().collect();
    serde_json::from_value(Value::Object(options))
        .map_err(|error| value("model", format!("options {}: {error}", names.join(", "))))
}

/// `None` is the model that is part of the program.
pub fn folder_of(text: &str) -> Option<PathBuf> {
    (text != BUILTIN).then(|| PathBuf::from(text))
}

/// The last part of a path, `.` and `..` followed to what they name; a model of the hub is called what
/// it is there.
fn name_of(folder: Option<&Path>) -> String {
    let Some(folder) = folder else { return DEMO_NAME.into() };
    let is_path = folder.is_absolute() || folder.starts_with(".") || folder.starts_with("..");
    if !is_path && !folder.is_dir() {
        return folder.display().to_string();
    }
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    whole.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagoda_kernels::weight_format::Quantization;

    fn models(texts: &[&str], more: Written) -> Result<Vec<ModelConfig>, ConfigError> {
        let model = Some(texts.iter().map(ToString::to_string).collect());
        Written { model, ..more }.resolve().map(|config| config.models)
    }

    #[test]
    fn a_model_has_a_name_and_options_over_those_of_the_process() {
        let texts = ["a=/m/first,quantization=q8_0,max-model-len=4k,seed=7", "/m/second", BUILTIN];
        let of_all = Written { seed: Some(1), max_num_seqs: Some(3), ..Written::default() };
        let models = models(&texts, of_all).unwrap();
        let names: Vec<&str> = models.iter().map(|model| model.model.names[0].as_str()).collect();
        assert_eq!(names, ["a", "second", "pagoda-demo"]);
        let [first, second, demo] = &models[..] else { panic!("three") };
        assert_eq!(first.model.folder.as_deref(), Some(Path::new("/m/first")));
        assert_eq!(first.model.quantization, Some(Quantization::Q8_0));
        assert_eq!((first.model.max_model_len, first.model.seed), (Some(4000), 7));
        assert_eq!((second.model.quantization, second.model.seed), (None, 1));
        assert_eq!(demo.model.folder, None);
        assert!(models.iter().all(|model| model.scheduling.max_num_seqs == Some(3)));
    }

    #[test]
    fn a_folder_that_is_there_is_one_whatever_it_is_called() {
        let parent = tempfile::tempdir().unwrap();
        let odd = parent.path().join("a=b,c");
        std::fs::create_dir(&odd).unwrap();
        let models = models(&[odd.to_str().unwrap()], Written::default()).unwrap();
        assert_eq!(models[0].model.folder.as_deref(), Some(odd.as_path()));
        assert_eq!(models[0].model.names, ["a=b,c"]);
    }

    #[test]
    fn what_makes_no_sense_is_told_by_name() {
        for (text, told) in [
            ("", "must be a folder or name=folder"),
            ("=x", "must be a folder or name=folder"),
            ("a=", "must be a folder or name=folder"),
            ("a=x,quantization", "must be option=value"),
            ("a=x,port=3", "port is no option of a model's own"),
            ("a=x,api-key=3", "api-key is no option"),
            ("a=x,seed=many", "options seed"),
            ("a=x,seed=1,seed=2", "seed stands twice"),
            ("a=x,quantization=q3", "quantization: must be one of"),
            ("a=x,max-num-seqs=0", "max-num-seqs: must be"),
        ] {
            let error = models(&[text], Written::default()).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
        let twice = models(&["/x/same", "/y/same"], Written::default()).unwrap_err().to_string();
        assert!(twice.contains("two are called same"), "{twice}");
        for several in [["x", "default=y"], ["/m/default", "y"]] {
            let error = models(&several, Written::default()).unwrap_err().to_string();
            assert!(error.contains("none of several can be called default"), "{error}");
        }
        assert_eq!(models(&["default=x"], Written::default()).unwrap()[0].model.names, ["default"]);
        let served = Some(vec!["one".to_owned()]);
        let served = Written { served_model_name: served, ..Written::default() };
        let error = models(&["x", "y"], served).unwrap_err().to_string();
        assert!(error.starts_with("served-model-name: stands for one model"), "{error}");
    }

    #[test]
    fn every_option_is_a_setting() {
        let settings = serde_json::from_value::<Written>(serde_json::json!({"no-such": 1}));
        let known = settings.unwrap_err().to_string();
        for option in OWN_OPTIONS {
            assert!(known.contains(&format!("`{option}`")), "{option}");
        }
    }

    #[test]
    fn a_settings_file_may_list_them() {
        let one: Written = toml::from_str("model = \"x\"").unwrap();
        let many: Written = toml::from_str("model = [\"x\", \"b=y\"]").unwrap();
        assert_eq!(one.model.unwrap(), ["x"]);
        assert_eq!(many.model.unwrap(), ["x", "b=y"]);
    }
}
