//! Settings as meant: typed, ranged, fitting each other. Nothing after this checks them again.
//!
//! The only reader of flags, the settings file and the environment (keys, the log filter, the hub,
//! OpenTelemetry).

/// Settings as written.
pub mod flags;

/// What `--model` names.
pub mod models;

/// From written to meant.
pub mod resolve;

/// Sockets, keys and origins.
mod network;

/// The hub and its cache.
pub mod hub;

/// Where traces go.
mod traces;

/// Numbers with units.
pub mod units;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pagoda_http::proxies::TrustedProxies;
use pagoda_http::tls::TlsFiles;
use pagoda_kernels::dtype::DType;
use pagoda_kernels::kv_format::KvFormat;
use pagoda_kernels::weight_format::Quantization;

pub use self::models::ModelDefaults;
use crate::trace::Sampling;
use crate::trace::collector::Collector;

/// All settings of one process.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Models that are served from the start, in the order in which they are loaded. Never empty.
    pub models: Vec<ModelConfig>,
    /// What a model has for which nothing else is said.
    pub model_defaults: ModelDefaults,
    /// Models that are loaded over HTTP lie below it.
    pub models_dir: Option<PathBuf>,
    /// A step that takes longer has hung: `/health` says so.
    pub step_time_max: Duration,
    /// Sockets, keys and origins.
    pub network: NetworkSettings,
    /// Bounds of everything that comes from the network.
    pub limits: Limits,
    /// Log lines as JSON.
    pub log_json: bool,
    /// Metrics also under vLLM's names.
    pub vllm_metrics: bool,
    /// Where traces go.
    pub traces: TraceSettings,
}

/// Where traces go and which requests are traced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceSettings {
    /// Where spans are sent; `None` makes none.
    pub collector: Option<Collector>,
    /// Which requests are traced.
    pub sampling: Sampling,
    /// What spans say of this process, beside what it knows of itself.
    pub resource: Vec<(String, String)>,
    /// What was asked for and is not done, for the log.
    pub notes: Vec<String>,
}

/// One model: what it is, where it runs, how its steps are filled.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The model and how it is loaded.
    pub model: ModelSettings,
    /// Where it runs and in how much memory.
    pub device: DeviceSettings,
    /// How steps are filled and how many requests may wait.
    pub scheduling: SchedulingSettings,
    /// Choices of one request.
    pub choices_max: u32,
}

/// The model and how it is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSettings {
    /// Checkpoint folder, or a model's name on the hub; `None` is the built-in demo model.
    pub folder: Option<PathBuf>,
    /// Branch, tag or commit of a model on the hub.
    pub revision: Option<String>,
    /// The hub, and its cache on this machine.
    pub hub: hub::HubSettings,
    /// Names that clients may use, the first one in answers. Never empty.
    pub names: Vec<String>,
    /// Where weights come from.
    pub load_format: LoadFormat,
    /// Type of the weights; `None` is the checkpoint's.
    pub dtype: Option<DType>,
    /// How weights are quantized; `None` leaves them.
    pub quantization: Option<Quantization>,
    /// Tokens of one sequence; `None` is the model's.
    pub max_model_len: Option<u32>,
    /// Chat template to use instead of the model's.
    pub chat_template: Option<PathBuf>,
    /// Most entries of a list of log-probabilities.
    pub max_logprobs: u32,
    /// Seed of dummy weights.
    pub seed: u64,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFormat {
    /// Whatever the folder holds.
    Auto,
    /// safetensors files.
    Safetensors,
    /// Random weights.
    Dummy,
}

/// Where the model runs and in how much memory.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceSettings {
    /// What to run on.
    pub device: DeviceChoice,
    /// Whether a GPU gives the same answer alone or in a crowd.
    pub deterministic: bool,
    /// Whether a GPU's products of many rows may go to cuBLASLt.
    pub cublaslt: bool,
    /// File of compiled GPU kernels.
    pub kernels: Option<PathBuf>,
    /// Compute threads; `None` is one a core.
    pub threads: Option<u32>,
    /// Instruction set as written; `None` is the best that the machine has.
    pub isa: Option<String>,
    /// How the KV cache stores its elements; `None` is as the weights do.
    pub kv_dtype: Option<KvFormat>,
    /// Share of the memory to use, in (0, 1]; `None` is the device's default.
    pub memory_share: Option<f64>,
    /// Bytes of the KV cache, instead of a share.
    pub kv_bytes: Option<u64>,
    /// Tokens of a KV block, a power of two from 16; `None` is the device's.
    pub block_size: Option<u32>,
}

/// What to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if it can be used, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Gpu(usize),
}

/// How steps are filled and how many requests may wait.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulingSettings {
    /// Sequences of one step; `None` is the device's default.
    pub max_num_seqs: Option<u32>,
    /// Tokens of one step; `None` is the device's default.
    pub max_num_batched_tokens: Option<u32>,
    /// Time that a step should take at most; `None` has no bound.
    pub max_step: Option<Duration>,
    /// Whether equal prompt beginnings share blocks.
    pub prefix_cache: bool,
    /// Requests that may wait.
    pub queued_requests_max: u32,
    /// Prompt tokens that may wait.
    pub queued_tokens_max: u64,
}

/// Sockets, keys and origins.
#[derive(Clone, PartialEq)]
pub struct NetworkSettings {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Keys from flags and the environment.
    pub api_keys: Vec<String>,
    /// File with more keys.
    pub api_key_file: Option<PathBuf>,
    /// The control plane that says who may call.
    pub control_plane: Option<ControlPlaneSettings>,
    /// Keys of whoever may load and unload models; without any nobody may.
    pub admin_keys: Vec<String>,
    /// Whether `/metrics` needs no key.
    pub metrics_public: bool,
    /// Origins whose pages may call.
    pub allowed_origins: Vec<String>,
    /// Certificate and key; `None` speaks no TLS.
    pub tls: Option<TlsFiles>,
    /// Proxies that may say for whom they speak.
    pub trusted_proxies: TrustedProxies,
    /// How long running requests may go on after SIGTERM.
    pub shutdown_timeout: Duration,
}

/// Which control plane is followed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlaneSettings {
    /// `host:port`.
    pub address: String,
    /// Holds the secret that all planes share.
    pub secret_file: PathBuf,
    /// What this data plane keeps.
    pub state_dir: PathBuf,
    /// What people call this data plane.
    pub name: String,
    /// Who signs tokens.
    pub issuer: String,
    /// What it told last counts for so long without it.
    pub stale_max: Duration,
}

impl std::fmt::Debug for NetworkSettings {
    /// Never shows a key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetworkSettings")
            .field("listen", &self.listen)
            .field("num_api_keys", &self.api_keys.len())
            .field("api_key_file", &self.api_key_file)
            .field("control_plane", &self.control_plane)
            .field("num_admin_keys", &self.admin_keys.len())
            .field("metrics_public", &self.metrics_public)
            .field("allowed_origins", &self.allowed_origins)
            .field("tls", &self.tls)
            .field("trusted_proxies", &self.trusted_proxies)
            .field("shutdown_timeout", &self.shutdown_timeout)
            .finish()
    }
}

/// Bounds of everything that comes from the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Sockets, heads and bodies.
    pub http: pagoda_http::limits::Limits,
    /// Bytes of memory for request bodies: being read, parsed, or waiting to be token ids.
    pub body_bytes_total: u64,
    /// Messages of a conversation.
    pub messages_max: usize,
    /// Prompts of one completions request.
    pub prompts_max: usize,
    /// Choices of one request, over all its prompts.
    pub choices_max: u32,
    /// Stop strings,
    pub stops_max: usize,
    /// and bytes of each.
    pub stop_bytes_max: usize,
    /// Entries of `logit_bias`, `allowed_token_ids` and `stop_token_ids`.
    pub token_list_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            http: pagoda_http::limits::Limits::default(),
            body_bytes_total: 256 << 20,
            messages_max: 4096,
            prompts_max: 256,
            choices_max: 256,
            stops_max: 16,
            stop_bytes_max: 1024,
            token_list_max: 1024,
        }
    }
}
