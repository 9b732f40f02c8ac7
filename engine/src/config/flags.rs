//! Settings as written: flags and the keys of the settings file, all optional, one struct.
//!
//! The first of two steps. What a value means, and whether values fit each other, is decided in
//! [`crate::config::resolve`]. Names are those that users of vLLM know.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use pagoda_kernels::cuda::nvidia::Arch;
use serde::{Deserialize, Deserializer};

use crate::config::units::{Bytes, Count};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "pagoda",
    version,
    about = "Serves large language models over the OpenAI API",
    after_help = "Without flags it serves a small built-in model on http://127.0.0.1:8000.\n\
                  Every setting can stand in the file of --config under its flag's name \
                  (max-model-len = 4096); flags win.",
    args_conflicts_with_subcommands = true
)]
pub struct CommandLine {
    /// What to do; nothing means `serve`.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings of `serve`.
    #[command(flatten)]
    pub written: Written,
}

/// Commands of the binary.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model (what `pagoda` alone does)
    Serve(Box<Written>),
    /// Say what this machine has to run models on, and what it lacks
    Doctor(Doctor),
    /// List the models of the hub that were downloaded, and what memory each needs
    Models(Models),
    /// Make GPU kernels ahead of time
    #[command(subcommand)]
    Kernels(Kernels),
    /// Render a model's chat template for a server, which starts this
    #[command(name = RENDER, hide = true)]
    Render,
}

/// The command of a process that renders a model's chat template.
pub const RENDER: &str = "render-templates";

/// What `pagoda doctor` looks at.
#[derive(Debug, Args)]
pub struct Doctor {
    /// End with an error unless this device can be used: `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// File of `pagoda kernels build`
    #[arg(
        long,
        value_name = "FILE",
        env = "PAGODA_KERNELS",
        hide_env_values = true,
        value_parser = maybe_empty()
    )]
    pub kernels: Option<PathBuf>,
}

/// How `pagoda models` tells.
#[derive(Debug, Args)]
pub struct Models {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Commands about GPU kernels.
#[derive(Debug, Subcommand)]
pub enum Kernels {
    /// Compile all kernels into one file for `--kernels`: needs NVRTC, and no GPU
    Build {
        /// Architectures, comma-separated; sm_80 is for all of Ampere and Ada, sm_90a for Hopper
        #[arg(long, value_name = "ARCHS", value_delimiter = ',', required = true)]
        arch: Vec<Arch>,
        /// The file
        #[arg(long, value_name = "FILE", default_value = "pagoda-kernels.bin")]
        output: PathBuf,
    },
}

/// A path, or nothing: an empty variable is as good as none.
fn maybe_empty() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

impl CommandLine {
    /// What to do; without a command it is to serve.
    pub fn into_command(self) -> Command {
        self.command.unwrap_or_else(|| Command::Serve(Box::new(self.written)))
    }
}

/// All settings as written.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Written {
    /// Settings file in TOML
    #[arg(long, value_name = "FILE", help_heading = "General")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Log lines as `text` or `json` (the filter comes from PAGODA_LOG, e.g. `debug`)
    #[arg(long, value_name = "FORMAT", help_heading = "General")]
    pub log_format: Option<String>,
    /// Also expose metrics under another server's names: `vllm`
    #[arg(long, value_name = "NAMES", help_heading = "General")]
    pub metrics_compat: Option<String>,
    /// Send traces by OTLP over HTTP to the collector at this address (http://localhost:4318)
    /// [default: what OTEL_EXPORTER_OTLP_ENDPOINT and OpenTelemetry's other variables say]
    #[arg(long, value_name = "URL", alias = "otlp-traces-endpoint", help_heading = "General")]
    #[serde(alias = "otlp-traces-endpoint")]
    pub otlp_endpoint: Option<String>,
    /// Share to trace of requests whose caller did not decide, 0 to 1
    /// [default: 1, or as OTEL_TRACES_SAMPLER says]
    #[arg(long, value_name = "SHARE", help_heading = "General")]
    pub otlp_sample_ratio: Option<f64>,

    /// Folder of a Hugging Face checkpoint, or `org/name` on the hub, which is downloaded once;
    /// repeatable, with a name and options of its own as in
    /// `small=DIR,quantization=q8_0,max-num-seqs=4` [default: `builtin`, the demo model]
    #[arg(long, value_name = "MODEL", help_heading = "Model")]
    #[serde(default, deserialize_with = "one_or_many")]
    pub model: Option<Vec<String>>,
    /// Branch, tag or commit of a model on the hub [default: main]
    #[arg(long, value_name = "REVISION", help_heading = "Model")]
    pub revision: Option<String>,
    /// Folder below which models may be loaded while others are served
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub models_dir: Option<PathBuf>,
    /// Name that clients use, repeatable [default: the folder's, or `org/name`]
    #[arg(long, value_name = "NAME", num_args = 1.., help_heading = "Model")]
    pub served_model_name: Option<Vec<String>>,
    /// Where weights come from: `auto`, `safetensors` or `dummy` (random weights)
    #[arg(long, value_name = "FORMAT", help_heading = "Model")]
    pub load_format: Option<String>,
    /// Type of the weights: `auto`, `f32`, `bf16` or `f16`
    #[arg(long, value_name = "TYPE", help_heading = "Model")]
    pub dtype: Option<String>,
    /// Quantize weights while they load: `none`, `q8_0`, `q4_0` or `fp8`
    #[arg(long, value_name = "FORMAT", help_heading = "Model")]
    pub quantization: Option<String>,
    /// Tokens of one sequence, prompt and output (8192, 8k) [default: the model's]
    #[arg(long, value_name = "TOKENS", help_heading = "Model")]
    pub max_model_len: Option<Count>,
    /// File with a chat template, instead of the model's
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub chat_template: Option<PathBuf>,
    /// Most entries of a list of log-probabilities [default: 20]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub max_logprobs: Option<u32>,
    /// Seed of dummy weights [default: 0]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub seed: Option<u64>,

    /// `auto` (a GPU if one can be used, else the CPU), `cpu`, `cuda` or `cuda:N` [default: auto]
    #[arg(long, value_name = "DEVICE", help_heading = "Device and memory")]
    pub device: Option<String>,
    /// On a GPU: the same answer alone or in a crowd, at some cost (a CPU always gives it)
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        help_heading = "Device and memory"
    )]
    pub deterministic: Option<bool>,
    /// On a GPU: products of many rows by cuBLASLt, where it is found and faster (`false`: never)
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        help_heading = "Device and memory"
    )]
    pub cublaslt: Option<bool>,
    /// File of `pagoda kernels build`: a GPU then needs its driver alone
    #[arg(
        long,
        value_name = "FILE",
        env = "PAGODA_KERNELS",
        hide_env_values = true,
        value_parser = maybe_empty(),
        help_heading = "Device and memory"
    )]
    pub kernels: Option<PathBuf>,
    /// Compute threads on the CPU [default: one a core]
    #[arg(long, value_name = "N", help_heading = "Device and memory")]
    pub threads: Option<u32>,
    /// Instruction set on the CPU: `auto`, `portable`, `avx2` or `avx512`
    #[arg(long, value_name = "ISA", help_heading = "Device and memory")]
    pub isa: Option<String>,
    /// Type of the KV cache: `auto`, `bf16`, `f16`, `f32`, or `fp8` in half the memory
    #[arg(long, value_name = "TYPE", help_heading = "Device and memory")]
    pub kv_cache_dtype: Option<String>,
    /// Share of the memory to use in all, 0 to 1 [default: 0.7 of the cgroup's, 0.9 of a GPU's]
    #[arg(
        long,
        value_name = "SHARE",
        alias = "memory-utilization",
        help_heading = "Device and memory"
    )]
    #[serde(alias = "memory-utilization")]
    pub gpu_memory_utilization: Option<f64>,
    /// Memory of the KV cache (4GiB), instead of a share
    #[arg(long, value_name = "BYTES", help_heading = "Device and memory")]
    pub kv_cache_memory_bytes: Option<Bytes>,
    /// Tokens of a KV block, a power of two from 16 [default: the device's]
    #[arg(long, value_name = "TOKENS", help_heading = "Device and memory")]
    pub block_size: Option<u32>,

    /// Sequences of one step [default: 64 on the CPU, 256 on a GPU]
    #[arg(long, value_name = "N", help_heading = "Scheduling")]
    pub max_num_seqs: Option<u32>,
    /// Tokens of one step [default: 512 on the CPU, 2048 on a GPU]
    #[arg(long, value_name = "TOKENS", help_heading = "Scheduling")]
    pub max_num_batched_tokens: Option<Count>,
    /// Time that a step with running sequences should take at most
    #[arg(long, value_name = "MS", help_heading = "Scheduling")]
    pub max_step_ms: Option<u32>,
    /// Share the KV cache of equal prompt beginnings [default: true]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        overrides_with = "no_enable_prefix_caching",
        help_heading = "Scheduling"
    )]
    pub enable_prefix_caching: Option<bool>,
    /// Compute every prompt anew
    #[arg(long, help_heading = "Scheduling")]
    #[serde(skip)]
    pub no_enable_prefix_caching: bool,
    /// Requests of one tenant that may wait; more are refused with 503 [default: 1024]
    #[arg(long, value_name = "N", help_heading = "Scheduling")]
    pub max_num_queued_reqs: Option<u32>,
    /// Prompt tokens of one tenant that may wait [default: 1048576]
    #[arg(long, value_name = "TOKENS", help_heading = "Scheduling")]
    pub max_num_queued_tokens: Option<Count>,

    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, value_name = "HOST", help_heading = "Network")]
    pub host: Option<String>,
    /// Port to listen on [default: 8000]
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    pub port: Option<u16>,
    /// Address and port in one, instead of --host and --port
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Network")]
    pub listen: Option<SocketAddr>,
    /// Key that callers need, repeatable; better in PAGODA_API_KEY or a file than on a command line
    #[arg(
        long,
        value_name = "KEY",
        env = "PAGODA_API_KEY",
        hide_env_values = true,
        help_heading = "Network"
    )]
    pub api_key: Option<Vec<String>>,
    /// File with one key a line; read again when it changes
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub api_key_file: Option<PathBuf>,
    /// Follow the control plane at this address (`host:port`): who may call is whom it names
    #[arg(long, value_name = "ADDR", help_heading = "Network")]
    pub control_plane: Option<String>,
    /// File with the secret that all planes of an installation share (`pagoda-control secret planes` prints it)
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub plane_secret_file: Option<PathBuf>,
    /// Folder of what this data plane keeps: what the control plane told last
    #[arg(long, value_name = "DIR", help_heading = "Network")]
    pub state_dir: Option<PathBuf>,
    /// What people call this data plane [default: its address]
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub plane_name: Option<String>,
    /// Who tokens say that signed them, as the control plane's --issuer
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub issuer: Option<String>,
    /// Seconds for which what the control plane told last counts without it [default: 86400]
    #[arg(long, value_name = "SECONDS", help_heading = "Network")]
    pub max_stale: Option<u32>,
    /// Key of whoever may load and unload models over HTTP, repeatable; without one nobody may
    #[arg(
        long,
        value_name = "KEY",
        env = "PAGODA_ADMIN_KEY",
        hide_env_values = true,
        help_heading = "Network"
    )]
    pub admin_key: Option<Vec<String>>,
    /// Leave /metrics open also when keys exist
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        help_heading = "Network"
    )]
    pub metrics_public: Option<bool>,
    /// Origins whose web pages may call, comma-separated; `*` is any
    #[arg(long, value_name = "ORIGINS", value_delimiter = ',', help_heading = "Network")]
    pub allowed_origins: Option<Vec<String>>,
    /// File with the TLS certificate in PEM, and behind it those that lead to a known one; read again
    /// when it changes, and on SIGHUP
    #[arg(long, value_name = "FILE", alias = "ssl-certfile", help_heading = "Network")]
    #[serde(alias = "ssl-certfile")]
    pub tls_cert: Option<PathBuf>,
    /// File with the certificate's private key in PEM
    #[arg(long, value_name = "FILE", alias = "ssl-keyfile", help_heading = "Network")]
    #[serde(alias = "ssl-keyfile")]
    pub tls_key: Option<PathBuf>,
    /// Proxies whose X-Forwarded-For and -Proto are believed, comma-separated (10.0.0.0/8,::1)
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',', help_heading = "Network")]
    pub trusted_proxies: Option<Vec<String>>,
    /// Open connections at most [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Network")]
    pub max_connections: Option<u32>,
    /// Largest request body [default: 8MiB]
    #[arg(long, value_name = "BYTES", help_heading = "Network")]
    pub max_body_bytes: Option<Bytes>,
    /// Seconds that running requests get to finish on SIGTERM [default: 30]
    #[arg(long, value_name = "SECONDS", help_heading = "Network")]
    pub shutdown_timeout: Option<u32>,
}

/// A text, or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

fn one_or_many<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    Ok(Some(match OneOrMany::deserialize(from)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    }))
}

impl Written {
    /// These settings where they are written, else those of `file`.
    pub fn over(self, file: Written) -> Written {
        macro_rules! first_written {
            ($($field:ident),* $(,)?) => {
                // A literal of every field: a new setting that is not merged does not compile.
                Written {
                    config: self.config,
                    enable_prefix_caching: match self.no_enable_prefix_caching {
                        true => Some(false),
                        false => self.enable_prefix_caching.or(file.enable_prefix_caching),
                    },
                    no_enable_prefix_caching: false,
                    $($field: self.$field.or(file.$field)),*
                }
            };
        }
        first_written!(
            log_format,
            metrics_compat,
            otlp_endpoint,
            otlp_sample_ratio,
            model,
            revision,
            models_dir,
            served_model_name,
            load_format,
            dtype,
            quantization,
            max_model_len,
            chat_template,
            max_logprobs,
            seed,
            device,
            deterministic,
            cublaslt,
            kernels,
            threads,
            isa,
            kv_cache_dtype,
            gpu_memory_utilization,
            kv_cache_memory_bytes,
            block_size,
            max_num_seqs,
            max_num_batched_tokens,
            max_step_ms,
            max_num_queued_reqs,
            max_num_queued_tokens,
            host,
            port,
            listen,
            api_key,
            api_key_file,
            control_plane,
            plane_secret_file,
            state_dir,
            plane_name,
            issuer,
            max_stale,
            admin_key,
            metrics_public,
            allowed_origins,
            tls_cert,
            tls_key,
            trusted_proxies,
            max_connections,
            max_body_bytes,
            shutdown_timeout,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn written(args: &[&str]) -> Written {
        let args = std::iter::once(&"pagoda").chain(args);
        match CommandLine::try_parse_from(args).unwrap().into_command() {
            Command::Serve(written) => *written,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_sound_and_small() {
        let command = CommandLine::command();
        command.clone().debug_assert();
        let visible = command.get_arguments().filter(|arg| !arg.is_hide_set()).count();
        assert!((25..=60).contains(&visible), "{visible}");
        assert!(command.get_arguments().all(|arg| arg.get_help().is_some()));
    }

    #[test]
    fn serve_may_be_left_out() {
        assert_eq!(written(&["--port", "9"]).port, Some(9));
        assert_eq!(written(&["serve", "--port", "9"]).port, Some(9));
        assert_eq!(written(&[]).port, None);
    }

    #[test]
    fn other_commands_have_their_own_flags() {
        let parse =
            |args: &[&str]| CommandLine::try_parse_from(args).map(|line| line.into_command());
        let build = ["pagoda", "kernels", "build", "--arch", "sm_80,sm_90a"];
        match parse(&build).unwrap() {
            Command::Kernels(Kernels::Build { arch, output }) => {
                let names: Vec<String> = arch.iter().map(Arch::to_string).collect();
                assert_eq!(names, ["sm_80", "sm_90a"]);
                assert_eq!(output, PathBuf::from("pagoda-kernels.bin"));
            }
            other => panic!("{other:?}"),
        }
        match parse(&["pagoda", "doctor", "--device", "cuda:1"]).unwrap() {
            Command::Doctor(doctor) => assert_eq!(doctor.device.as_deref(), Some("cuda:1")),
            other => panic!("{other:?}"),
        }
        for wrong in [
            &["pagoda", "kernels", "build", "--arch", "sm_70"][..],
            &["pagoda", "kernels", "build"],
            &["pagoda", "--port", "9", "doctor"],
            &["pagoda", "doctor", "--port", "9"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_last_of_a_flag_and_its_opposite_wins_and_flags_win_over_the_file() {
        let parse = written;
        let file = Written { enable_prefix_caching: Some(true), port: Some(1), ..parse(&[]) };
        let merged = parse(&["--no-enable-prefix-caching"]).over(file.clone());
        assert_eq!((merged.enable_prefix_caching, merged.port), (Some(false), Some(1)));
        let merged = parse(&["--no-enable-prefix-caching", "--enable-prefix-caching"]).over(file);
        assert_eq!(merged.enable_prefix_caching, Some(true));
        assert_eq!(parse(&["--enable-prefix-caching=false"]).enable_prefix_caching, Some(false));
        assert_eq!(parse(&["--memory-utilization", "0.5"]).gpu_memory_utilization, Some(0.5));
        assert_eq!(parse(&["--api-key", "a", "--api-key", "b"]).api_key.unwrap().len(), 2);
    }
}
