//! The command line of `pagoda-bench serve`: names and defaults are those of `vllm bench serve`.
//!
//! The first of two steps: what was typed. [`crate::serve::plan`] decides what it means and whether
//! values fit each other; nothing else may read these structs' texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "pagoda-bench", version, about = "Measures servers of language models")]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands of the binary.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put load on a server that speaks the OpenAI API, and measure what its clients see
    ///
    /// Arguments, definitions and fields of results are those of `vllm bench serve`.
    Serve(Box<Arguments>),
}

/// Arguments of `serve`, by what they are about.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// The server.
    #[command(flatten)]
    pub server: ServerArguments,
    /// When requests are sent.
    #[command(flatten)]
    pub traffic: TrafficArguments,
    /// What they ask.
    #[command(flatten)]
    pub dataset: DatasetArguments,
    /// How answers are sampled.
    #[command(flatten)]
    pub sampling: SamplingArguments,
    /// What is told and kept.
    #[command(flatten)]
    pub report: ReportArguments,
    /// Several loads, one after the other.
    #[command(flatten)]
    pub sweep: SweepArguments,
}

/// Which contract the server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Completions.
    #[value(alias = "openai-completions")]
    Openai,
    /// Completions, too.
    Vllm,
    /// Chat completions.
    OpenaiChat,
}

impl Backend {
    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Openai => "openai",
            Backend::Vllm => "vllm",
            Backend::OpenaiChat => "openai-chat",
        }
    }
}

/// The server.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArguments {
    /// Completions (`openai`, `vllm`) or chat completions (`openai-chat`)
    #[arg(long, value_enum, default_value = "openai")]
    pub backend: Backend,
    /// Its address, without the endpoint's path, instead of --host and --port
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    /// Its host
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Its port
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Path of the endpoint [default: /v1/completions, or /v1/chat/completions for openai-chat]
    #[arg(long, value_name = "PATH")]
    pub endpoint: Option<String>,
    /// Headers of every request; OPENAI_API_KEY, where it is set, is sent as a bearer token
    #[arg(long, value_name = "KEY=VALUE", num_args = 0..)]
    pub header: Vec<String>,
    /// Name of the model, or its folder [default: the first of the server's /v1/models]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Name of the model in requests [default: --model]
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Option<String>,
    /// Folder with the model's tokenizer.json [default: --model, if that is a folder]
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Do without a tokenizer: random prompts are then words, and the server's usage counts tokens
    #[arg(long)]
    pub skip_tokenizer_init: bool,
    /// What x-request-id begins with [default: bench-, eight random digits, -]
    #[arg(long, value_name = "TEXT")]
    pub request_id_prefix: Option<String>,
    /// Send a prompt until it is answered, this long at most, before anything is measured
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub ready_check_timeout_sec: u64,
    /// A request that takes longer has failed
    #[arg(long, value_name = "S", default_value_t = 6 * 60 * 60)]
    pub request_timeout_sec: u64,
}

/// How the rate of arrivals grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RampUpStrategy {
    /// By the same amount from request to request.
    Linear,
    /// By the same factor.
    Exponential,
}

/// When requests are sent.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Traffic")]
pub struct TrafficArguments {
    /// Requests in all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub num_prompts: usize,
    /// Requests a second; `inf` sends all at once
    #[arg(long, value_name = "RATE", default_value_t = f64::INFINITY)]
    pub request_rate: f64,
    /// Shape of the gamma distribution between arrivals: 1 is a Poisson process, less is burstier,
    /// more is steadier
    #[arg(long, value_name = "SHAPE", default_value_t = 1.0)]
    pub burstiness: f64,
    /// Requests that the server may have at once; the others wait here, and TTFT leaves that out
    #[arg(long, value_name = "N")]
    pub max_concurrency: Option<usize>,
    /// Requests with other prompts that are sent before and not counted
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub num_warmups: usize,
    /// Let the rate grow, from --ramp-up-start-rps to --ramp-up-end-rps
    #[arg(long, value_enum)]
    pub ramp_up_strategy: Option<RampUpStrategy>,
    /// First rate of a ramp
    #[arg(long, value_name = "RATE")]
    pub ramp_up_start_rps: Option<f64>,
    /// Last rate of a ramp
    #[arg(long, value_name = "RATE")]
    pub ramp_up_end_rps: Option<f64>,
    /// Seed of prompts, lengths and arrivals
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Where prompts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DatasetName {
    /// Random tokens.
    Random,
    /// A file of conversations.
    Sharegpt,
    /// A file with a prompt a line.
    Custom,
    /// Random prefixes, each before several random texts.
    #[value(name = "prefix_repetition", alias = "prefix-repetition")]
    PrefixRepetition,
}

impl DatasetName {
    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            DatasetName::Random => "random",
            DatasetName::Sharegpt => "sharegpt",
            DatasetName::Custom => "custom",
            DatasetName::PrefixRepetition => "prefix_repetition",
        }
    }
}

/// What requests ask.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Prompts")]
pub struct DatasetArguments {
    /// Where prompts come from
    #[arg(long, value_enum, default_value = "random")]
    pub dataset_name: DatasetName,
    /// The file: JSON for sharegpt; for custom JSON lines with `prompt` or `messages`, and perhaps
    /// `output_tokens`
    #[arg(long, value_name = "FILE")]
    pub dataset_path: Option<PathBuf>,
    /// Send fewer requests rather than a prompt of the file twice
    #[arg(long)]
    pub no_oversample: bool,
    /// Take a file's prompts in their order
    #[arg(long)]
    pub disable_shuffle: bool,
    /// Custom prompts as they are, without the chat template of --tokenizer (never applied for
    /// openai-chat, where the server does it)
    #[arg(long)]
    pub skip_chat_template: bool,
    /// Send random prompts as lists of token ids rather than as text
    #[arg(long)]
    pub prompt_token_ids: bool,
    /// Prompt tokens, for every dataset that has a setting of its own
    #[arg(long, value_name = "TOKENS")]
    pub input_len: Option<u32>,
    /// Output tokens, likewise
    #[arg(long, value_name = "TOKENS")]
    pub output_len: Option<u32>,
    /// Prompt tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    pub random_input_len: u32,
    /// Output tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    pub random_output_len: u32,
    /// Lengths are drawn from [len * (1 - r), len * (1 + r)]
    #[arg(long, value_name = "R", default_value_t = 0.0)]
    pub random_range_ratio: f64,
    /// Tokens before those, the same in every prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub random_prefix_len: u32,
    /// Output tokens [default: as long as the file's answer]
    #[arg(long, value_name = "TOKENS")]
    pub sharegpt_output_len: Option<u32>,
    /// Output tokens of lines without `output_tokens`
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    pub custom_output_len: u32,
    /// Tokens of a prefix
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    pub prefix_repetition_prefix_len: u32,
    /// Tokens after it
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    pub prefix_repetition_suffix_len: u32,
    /// Prefixes; each stands before --num-prompts / N prompts
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub prefix_repetition_num_prefixes: usize,
    /// Output tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    pub prefix_repetition_output_len: u32,
}

/// How answers are sampled; what is not given is the server's choice.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArguments {
    /// Go on to the full output length; always for random prompts
    #[arg(long)]
    pub ignore_eos: bool,
    /// 0 is greedy
    #[arg(long)]
    pub temperature: Option<f64>,
    /// Nucleus sampling
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Tokens to choose among
    #[arg(long, allow_negative_numbers = true)]
    pub top_k: Option<i64>,
    /// Least probability, relative to the best token's
    #[arg(long)]
    pub min_p: Option<f64>,
    /// Per occurrence so far
    #[arg(long, allow_negative_numbers = true)]
    pub frequency_penalty: Option<f64>,
    /// Per token that occurred
    #[arg(long, allow_negative_numbers = true)]
    pub presence_penalty: Option<f64>,
    /// Factor on tokens that occurred
    #[arg(long)]
    pub repetition_penalty: Option<f64>,
    /// Log-probabilities a token (completions only)
    #[arg(long, value_name = "N")]
    pub logprobs: Option<u32>,
    /// Further fields of every request, a JSON object
    #[arg(long, value_name = "JSON")]
    pub extra_body: Option<String>,
}

/// What is told and kept.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Results")]
pub struct ReportArguments {
    /// Metrics to tell: ttft, tpot, itl, e2el, client_queue_time, e2el_including_client_queue
    #[arg(long, value_name = "NAMES", default_value = "ttft,tpot,itl")]
    pub percentile_metrics: String,
    /// Their percentiles
    #[arg(long, value_name = "LIST", default_value = "99")]
    pub metric_percentiles: String,
    /// Bounds in ms that a good request keeps: ttft, tpot, e2el
    #[arg(long, value_name = "NAME:MS", num_args = 1..)]
    pub goodput: Vec<String>,
    /// Write results as JSON
    #[arg(long)]
    pub save_result: bool,
    /// With what was measured of each request
    #[arg(long)]
    pub save_detailed: bool,
    /// Add to the file rather than replace it
    #[arg(long)]
    pub append_result: bool,
    /// Folder of results [default: this one]
    #[arg(long, value_name = "DIR")]
    pub result_dir: Option<PathBuf>,
    /// Its file [default: {label}-{rate}qps-concurrency{n}-{model}-{time}.json]
    #[arg(long, value_name = "NAME")]
    pub result_filename: Option<String>,
    /// What results begin with [default: --backend]
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// Further fields of results
    #[arg(long, value_name = "KEY=VALUE", num_args = 0..)]
    pub metadata: Vec<String>,
    /// No progress bar
    #[arg(long)]
    pub disable_tqdm: bool,
}

/// Several loads, one after the other.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sweep")]
pub struct SweepArguments {
    /// Measure at each of these --max-concurrency
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub sweep_max_concurrency: Vec<usize>,
    /// Measure at each of these --request-rate; with both, at every pair
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub sweep_request_rate: Vec<f64>,
    /// Requests of a load: this many times its concurrency, or its rate [default: --num-prompts]
    #[arg(long, value_name = "N")]
    pub sweep_num_prompts_factor: Option<usize>,
    /// Draw latency over load into this SVG file
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}
