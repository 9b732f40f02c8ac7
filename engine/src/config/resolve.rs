//! From settings as written to settings as meant: the file under the flags, ranges, defaults.
//!
//! Errors name the setting as the user wrote it. Reads one file, opens nothing else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pagoda_kernels::dtype::DType;
use pagoda_kernels::kv_format::KvFormat;
use pagoda_kernels::weight_format::Quantization;

use crate::api::STEP_TIME_MAX;
use crate::config::flags::Written;
use crate::config::hub::HubSettings;
use crate::config::models::ModelDefaults;
use crate::config::network::{limits, network};
use crate::config::traces::traces;
use crate::config::{
    Config, DeviceChoice, DeviceSettings, Limits, LoadFormat, ModelConfig, ModelSettings,
    SchedulingSettings,
};
use crate::model::error::readable;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The settings file cannot be read.
    #[error("cannot read the settings file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The settings file is not TOML, or holds a key or value that we do not know.
    #[error("in the settings file {path}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong; names the key.
        message: String,
    },
    /// A setting has a value that it cannot have.
    #[error("{setting}: {reason}")]
    Value {
        /// The setting's name, without dashes.
        setting: &'static str,
        /// What it must be.
        reason: String,
    },
}

impl Written {
    /// What the settings mean.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let file = match &self.config {
            Some(path) => read_file(path)?,
            None => Written::default(),
        };
        let written = self.over(file);
        let model_defaults = ModelDefaults::new(&written);
        Ok(Config {
            models: model_defaults.models(&written)?,
            model_defaults,
            models_dir: written.models_dir.clone(),
            step_time_max: STEP_TIME_MAX,
            network: network(&written)?,
            limits: limits(&written)?,
            log_json: choose("log-format", &written.log_format, "text", &LOG_FORMATS)?,
            vllm_metrics: choose("metrics-compat", &written.metrics_compat, "none", &COMPAT)?,
            traces: traces(&written, &|name| std::env::var(name).ok())?,
        })
    }
}

const LOG_FORMATS: [(&str, bool); 2] = [("text", false), ("json", true)];
const COMPAT: [(&str, bool); 2] = [("none", false), ("vllm", true)];
const LOAD_FORMATS: [(&str, LoadFormat); 3] = [
    ("auto", LoadFormat::Auto),
    ("safetensors", LoadFormat::Safetensors),
    ("dummy", LoadFormat::Dummy),
];
const DTYPES: [(&str, Option<DType>); 9] = [
    ("auto", None),
    ("f32", Some(DType::F32)),
    ("float32", Some(DType::F32)),
    ("float", Some(DType::F32)),
    ("bf16", Some(DType::Bf16)),
    ("bfloat16", Some(DType::Bf16)),
    ("f16", Some(DType::F16)),
    ("float16", Some(DType::F16)),
    ("half", Some(DType::F16)),
];

/// Names of a KV cache's format beside those of number types.
const FP8_CACHES: [&str; 2] = ["fp8", "fp8_e4m3"];

const QUANTIZATIONS: [(&str, Option<Quantization>); 4] = [
    ("none", None),
    ("q8_0", Some(Quantization::Q8_0)),
    ("q4_0", Some(Quantization::Q4_0)),
    ("fp8", Some(Quantization::Fp8)),
];

/// Largest settings file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

fn read_file(path: &Path) -> Result<Written, ConfigError> {
    let read = |source| ConfigError::Read { path: path.into(), source };
    let wrong =
        |message: String| ConfigError::File { path: path.into(), message: readable(message) };
    if std::fs::metadata(path).map_err(read)?.len() > FILE_BYTES_MAX {
        return Err(wrong(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(read)?;
    toml::from_str(&text).map_err(|error| wrong(error.to_string().trim_end().to_string()))
}

/// What the settings mean for the model in `folder`.
pub(super) fn model_config(
    written: &Written,
    names: Vec<String>,
    folder: Option<PathBuf>,
) -> Result<ModelConfig, ConfigError> {
    Ok(ModelConfig {
        model: model(written, names, folder)?,
        device: device(written)?,
        scheduling: scheduling(written)?,
        choices_max: Limits::default().choices_max,
    })
}

fn model(
    written: &Written,
    names: Vec<String>,
    folder: Option<PathBuf>,
) -> Result<ModelSettings, ConfigError> {
    let max_model_len = match written.max_model_len {
        Some(len) => Some(positive("max-model-len", len.0)?),
        None => None,
    };
    if written.revision.is_some() && folder.is_none() {
        return Err(value("revision", "needs --model with a model of the hub"));
    }
    Ok(ModelSettings {
        folder,
        revision: written.revision.clone(),
        hub: HubSettings::of_environment(),
        names,
        load_format: choose("load-format", &written.load_format, "auto", &LOAD_FORMATS)?,
        dtype: choose("dtype", &written.dtype, "auto", &DTYPES)?,
        quantization: choose("quantization", &written.quantization, "none", &QUANTIZATIONS)?,
        max_model_len,
        chat_template: written.chat_template.clone(),
        max_logprobs: up_to("max-logprobs", written.max_logprobs.unwrap_or(20), 1000)?,
        seed: written.seed.unwrap_or(0),
    })
}

fn device(written: &Written) -> Result<DeviceSettings, ConfigError> {
    if let Some(share) = written.gpu_memory_utilization
        && !(share > 0.0 && share <= 1.0)
    {
        return Err(value("gpu-memory-utilization", "must be above 0 and at most 1"));
    }
    if let Some(size) = written.block_size
        && !(size.is_power_of_two() && (16..=1024).contains(&size))
    {
        return Err(value("block-size", "must be a power of two from 16 to 1024"));
    }
    let threads = match written.threads {
        Some(threads) => Some(positive("threads", threads.into())?),
        None => None,
    };
    Ok(DeviceSettings {
        device: device_choice(written.device.as_deref())?,
        deterministic: written.deterministic.unwrap_or(false),
        cublaslt: written.cublaslt.unwrap_or(true),
        kernels: written.kernels.clone().filter(|path| !path.as_os_str().is_empty()),
        threads,
        isa: written.isa.clone().filter(|isa| isa != "auto"),
        kv_dtype: kv_format(&written.kv_cache_dtype)?,
        memory_share: written.gpu_memory_utilization,
        kv_bytes: written.kv_cache_memory_bytes.map(|bytes| bytes.0),
        block_size: written.block_size,
    })
}

/// What `--kv-cache-dtype` means.
fn kv_format(written: &Option<String>) -> Result<Option<KvFormat>, ConfigError> {
    let plain = DTYPES.map(|(name, dtype)| (name, dtype.map(KvFormat::Plain)));
    let fp8 = FP8_CACHES.map(|name| (name, Some(KvFormat::Fp8)));
    choose("kv-cache-dtype", written, "auto", &[&plain[..], &fp8[..]].concat())
}

/// What `--device` means.
fn device_choice(written: Option<&str>) -> Result<DeviceChoice, ConfigError> {
    let unknown =
        |name: &str| value("device", format!("must be auto, cpu, cuda or cuda:N, not {name}"));
    match written.unwrap_or("auto") {
        "auto" => Ok(DeviceChoice::Auto),
        "cpu" => Ok(DeviceChoice::Cpu),
        "cuda" => Ok(DeviceChoice::Gpu(0)),
        name => {
            let number = name.strip_prefix("cuda:").ok_or_else(|| unknown(name))?;
            Ok(DeviceChoice::Gpu(number.parse().map_err(|_| unknown(name))?))
        }
    }
}

fn scheduling(written: &Written) -> Result<SchedulingSettings, ConfigError> {
    let max_num_seqs = match written.max_num_seqs {
        Some(seqs) => Some(up_to("max-num-seqs", positive("max-num-seqs", seqs.into())?, 65536)?),
        None => None,
    };
    let max_num_batched_tokens = match written.max_num_batched_tokens {
        Some(tokens) => Some(positive("max-num-batched-tokens", tokens.0)?),
        None => None,
    };
    let step_ms = written.max_step_ms.filter(|ms| *ms > 0);
    Ok(SchedulingSettings {
        max_num_seqs,
        max_num_batched_tokens,
        max_step: step_ms.map(|ms| Duration::from_millis(ms.into())),
        prefix_cache: written.enable_prefix_caching.unwrap_or(true),
        queued_requests_max: positive(
            "max-num-queued-reqs",
            written.max_num_queued_reqs.unwrap_or(1024).into(),
        )?,
        queued_tokens_max: written.max_num_queued_tokens.map_or(1 << 20, |tokens| tokens.0.max(1)),
    })
}

pub(super) fn value(setting: &'static str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Value { setting, reason: readable(reason) }
}

pub(super) fn positive(setting: &'static str, number: u64) -> Result<u32, ConfigError> {
    match u32::try_from(number) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(value(setting, "must be from 1 to 4294967295")),
    }
}

pub(super) fn up_to(setting: &'static str, number: u32, max: u32) -> Result<u32, ConfigError> {
    if number > max {
        return Err(value(setting, format!("must be at most {max}")));
    }
    Ok(number)
}

fn choose<T: Clone>(
    setting: &'static str,
    written: &Option<String>,
    default: &str,
    known: &[(&str, T)],
) -> Result<T, ConfigError> {
    let name = written.as_deref().unwrap_or(default);
    match known.iter().find(|(known, _)| *known == name) {
        Some((_, meaning)) => Ok(meaning.clone()),
        None => {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            Err(value(setting, format!("must be one of {}, not {name}", names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flags::{Command, CommandLine};
    use clap::Parser;

    fn resolve(args: &[&str]) -> Result<Config, ConfigError> {
        let args = std::iter::once(&"pagoda").chain(args);
        match CommandLine::try_parse_from(args).unwrap().into_command() {
            Command::Serve(written) => written.resolve(),
            other => panic!("{other:?}"),
        }
    }

    fn with_file(text: &str, args: &[&str]) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pagoda.toml");
        std::fs::write(&path, text).unwrap();
        let mut all = vec!["--config", path.to_str().unwrap()];
        all.extend(args);
        resolve(&all)
    }

    #[test]
    fn no_flags_mean_the_demo_model_on_loopback() {
        let config = resolve(&[]).unwrap();
        assert_eq!(config.network.listen, "127.0.0.1:8000".parse().unwrap());
        assert_eq!(config.models[0].model.names, ["pagoda-demo"]);
        assert_eq!(config.models[0].model.folder, None);
        assert!(
            config.models[0].scheduling.prefix_cache && !config.log_json && !config.vllm_metrics
        );
    }

    #[test]
    fn flags_win_over_the_file_and_units_are_read() {
        let text = "port = 9000\nmax-model-len = \"8k\"\nmax-body-bytes = 2048\ndtype = \"bf16\"\n\
                    enable-prefix-caching = false\nallowed-origins = [\"https://a\"]\n";
        let config = with_file(text, &["--port", "9001"]).unwrap();
        assert_eq!(config.network.listen.port(), 9001);
        assert_eq!(config.models[0].model.max_model_len, Some(8000));
        assert_eq!(config.limits.http.body_bytes_max, 2048);
        assert_eq!(config.models[0].model.dtype, Some(DType::Bf16));
        assert!(!config.models[0].scheduling.prefix_cache);
        assert_eq!(config.network.allowed_origins, ["https://a"]);
    }

    #[test]
    fn quantization_is_written_as_for_vllm() {
        assert_eq!(resolve(&[]).unwrap().models[0].model.quantization, None);
        for (name, want) in QUANTIZATIONS {
            let config = resolve(&["--quantization", name]).unwrap();
            assert_eq!(config.models[0].model.quantization, want);
            assert_eq!(want.map_or("none", Quantization::name), name);
        }
        let config = with_file("quantization = \"q4_0\"\n", &[]).unwrap();
        assert_eq!(config.models[0].model.quantization, Some(Quantization::Q4_0));
    }

    #[test]
    fn a_cache_has_the_names_that_vllm_users_know() {
        for (names, want) in [
            (&["auto"][..], None),
            (&["bf16", "bfloat16"], Some(DType::Bf16.into())),
            (&["f16", "half"], Some(DType::F16.into())),
            (&["f32", "float"], Some(DType::F32.into())),
            (&["fp8", "fp8_e4m3"], Some(KvFormat::Fp8)),
        ] {
            for name in names {
                let config = resolve(&["--kv-cache-dtype", name]).unwrap();
                assert_eq!(config.models[0].device.kv_dtype, want, "{name}");
            }
        }
        assert_eq!(resolve(&[]).unwrap().models[0].device.kv_dtype, None);
        let error = resolve(&["--kv-cache-dtype", "fp8_e5m2"]).unwrap_err().to_string();
        assert!(error.starts_with("kv-cache-dtype: must be one of auto, "), "{error}");
        assert!(error.ends_with("fp8, fp8_e4m3, not fp8_e5m2"), "{error}");
    }

    #[test]
    fn an_unknown_key_and_a_wrong_type_are_named() {
        for (text, name) in [
            ("max-modle-len = 3", "max-modle-len"),
            ("port = \"x\"", "port"),
            ("[network]\nport = 1", "network"),
            ("max-model-len = \"8 apples\"", "max-model-len"),
            ("port = 1\nport = 2", "port"),
        ] {
            let error = with_file(text, &[]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(resolve(&["--config", "/nowhere/at/all"]).is_err());
    }

    #[test]
    fn values_out_of_range_name_their_setting() {
        for args in [
            ["--dtype", "int3"],
            ["--quantization", "awq"],
            ["--gpu-memory-utilization", "1.5"],
            ["--gpu-memory-utilization", "NaN"],
            ["--block-size", "24"],
            ["--max-num-seqs", "0"],
            ["--max-model-len", "0"],
            ["--max-model-len", "5000000000"],
            ["--api-key", " x"],
            ["--admin-key", ""],
            ["--max-body-bytes", "10"],
            ["--log-format", "xml"],
            ["--threads", "0"],
            ["--device", "gpu"],
            ["--device", "cuda:"],
            ["--device", "cuda:-1"],
            ["--served-model-name", ""],
            ["--otlp-endpoint", "collector:4318"],
            ["--otlp-sample-ratio", "1.5"],
            ["--otlp-sample-ratio", "NaN"],
            ["--revision", "v1"],
        ] {
            let error = resolve(&args).unwrap_err().to_string();
            assert!(error.starts_with(args[0].trim_start_matches('-')), "{args:?}: {error}");
        }
    }

    #[test]
    fn a_model_of_the_hub_is_called_what_it_is_there() {
        let model =
            resolve(&["--model", "org/name", "--revision", "v1"]).unwrap().models.remove(0).model;
        assert_eq!((model.names, model.revision), (vec!["org/name".into()], Some("v1".into())));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some-model");
        std::fs::create_dir(&path).unwrap();
        let model = resolve(&["--model", path.to_str().unwrap()]).unwrap().models.remove(0).model;
        assert_eq!(model.names, ["some-model"]);
    }

    #[test]
    fn a_device_is_named_as_elsewhere() {
        let device = |args: &[&str]| resolve(args).unwrap().models[0].device.device;
        assert_eq!(device(&[]), DeviceChoice::Auto);
        assert_eq!(device(&["--device", "cpu"]), DeviceChoice::Cpu);
        assert_eq!(device(&["--device", "cuda"]), DeviceChoice::Gpu(0));
        assert_eq!(device(&["--device", "cuda:3"]), DeviceChoice::Gpu(3));
        assert!(!resolve(&[]).unwrap().models[0].device.deterministic);
        assert!(resolve(&["--deterministic"]).unwrap().models[0].device.deterministic);
        assert!(resolve(&[]).unwrap().models[0].device.cublaslt);
        assert!(!resolve(&["--cublaslt=false"]).unwrap().models[0].device.cublaslt);
    }
}
