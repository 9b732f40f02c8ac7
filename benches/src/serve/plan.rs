//! What the command line means: checked values that the rest may trust.
//!
//! The second of two steps. Whatever does not fit together is refused here, before anything is sent;
//! nothing behind this looks at what was typed.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hyper::Uri;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use crate::serve::arguments::{
    Arguments, Backend, DatasetArguments, DatasetName, ReportArguments, SamplingArguments,
    ServerArguments, TrafficArguments,
};
use crate::serve::arrivals::{Arrivals, RampUp};
use crate::serve::dataset::custom::Custom;
use crate::serve::dataset::prefix_repetition::PrefixRepetition;
use crate::serve::dataset::random::Random;
use crate::serve::dataset::sharegpt::Sharegpt;
use crate::serve::dataset::{Dataset, File};
use crate::serve::measure::Objectives;
use crate::serve::metric::Metric;

/// Everything that one call does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub server: Server,
    /// What requests ask.
    pub dataset: Dataset,
    /// Fields of every request besides prompt and length.
    pub fields: Map<String, Value>,
    /// Loads, one after the other.
    pub loads: Vec<Load>,
    /// Requests before each of them that are not counted.
    pub num_warmups: usize,
    /// What is told and kept.
    pub report: Report,
    /// Where latency over load is drawn.
    pub plot: Option<PathBuf>,
}

/// The server, and how to speak with it.
#[derive(Clone, Debug)]
pub struct Server {
    /// Which contract.
    pub backend: Backend,
    /// Address without a path.
    pub base_url: String,
    /// Where requests go.
    pub endpoint: Uri,
    /// Headers of every request.
    pub headers: HeaderMap,
    /// Model, as it was given; the server's first where it was not.
    pub model: Option<String>,
    /// Its name in requests.
    pub served_model_name: Option<String>,
    /// Where its tokenizer is; none if it was not wanted.
    pub tokenizer: Option<PathBuf>,
    /// What request ids begin with.
    pub request_id_prefix: String,
    /// How long to wait for a first answer before anything is measured.
    pub ready_timeout: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
}

/// One load.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Requests.
    pub num_prompts: usize,
    /// How they arrive.
    pub arrivals: Arrivals,
    /// Most of them at once.
    pub max_concurrency: Option<usize>,
    /// Seed of prompts, lengths and arrivals.
    pub seed: u64,
}

/// What is told and kept.
#[derive(Clone, Debug)]
pub struct Report {
    /// Metrics to tell.
    pub metrics: Vec<Metric>,
    /// Their percentiles, 0 to 100.
    pub percentiles: Vec<f64>,
    /// What a good request keeps.
    pub objectives: Objectives,
    /// Write results.
    pub save: bool,
    /// With every request.
    pub detailed: bool,
    /// To the end of the file.
    pub append: bool,
    /// Folder of results.
    pub folder: Option<PathBuf>,
    /// Their file.
    pub file_name: Option<String>,
    /// What they begin with.
    pub label: Option<String>,
    /// Their further fields.
    pub metadata: Vec<(String, String)>,
    /// Show progress.
    pub progress: bool,
}

impl Plan {
    /// Makes sense of the arguments. `api_key` is sent unless a header says otherwise.
    pub fn new(arguments: Arguments, api_key: Option<String>) -> Result<Self> {
        let Arguments { server, traffic, dataset, sampling, report, sweep } = arguments;
        let is_chat = server.backend == Backend::OpenaiChat;
        ensure!(
            !(is_chat && dataset.prompt_token_ids),
            "--prompt-token-ids needs a backend of completions"
        );
        ensure!(
            sweep.sweep_num_prompts_factor != Some(0),
            "--sweep-num-prompts-factor must be above 0"
        );
        let is_random = dataset.dataset_name == DatasetName::Random;
        let mut loads = Vec::new();
        let concurrencies = or_one(&sweep.sweep_max_concurrency, traffic.max_concurrency);
        let rates = or_one(&sweep.sweep_request_rate, Some(traffic.request_rate));
        for &max_concurrency in &concurrencies {
            for rate in rates.iter().flatten() {
                let mut load = load(&traffic, *rate, max_concurrency)?;
                if let Some(factor) = sweep.sweep_num_prompts_factor {
                    let swept = max_concurrency.filter(|_| !sweep.sweep_max_concurrency.is_empty());
                    load.num_prompts = scaled(factor, swept, *rate).unwrap_or(load.num_prompts);
                }
                // Prompts that were sent before would come out of a prefix cache.
                load.seed = load.seed.wrapping_add(loads.len() as u64);
                loads.push(load);
            }
        }
        Ok(Plan {
            dataset: source(dataset, is_chat)?,
            fields: fields(sampling, is_random, is_chat)?,
            loads,
            num_warmups: traffic.num_warmups,
            server: resolve_server(server, api_key)?,
            report: resolve_report(report)?,
            plot: sweep.plot,
        })
    }
}

/// The swept values, or the one there is.
fn or_one<T: Copy>(swept: &[T], one: Option<T>) -> Vec<Option<T>> {
    if swept.is_empty() { vec![one] } else { swept.iter().copied().map(Some).collect() }
}

/// Requests of a swept load.
fn scaled(factor: usize, max_concurrency: Option<usize>, rate: f64) -> Option<usize> {
    match max_concurrency {
        Some(concurrency) => Some(factor.saturating_mul(concurrency)),
        None if rate.is_finite() => Some((factor as f64 * rate).ceil() as usize),
        None => None,
    }
}

fn load(traffic: &TrafficArguments, rate: f64, max_concurrency: Option<usize>) -> Result<Load> {
    ensure!(traffic.num_prompts > 0, "--num-prompts must be above 0");
    ensure!(max_concurrency != Some(0), "--max-concurrency must be above 0");
    ensure!(rate > 0.0, "--request-rate must be above 0");
    ensure!(traffic.burstiness > 0.0, "--burstiness must be above 0");
    let ramp_up = match traffic.ramp_up_strategy {
        None => None,
        Some(strategy) => {
            ensure!(rate.is_infinite(), "a ramp sets the rate: leave --request-rate out");
            let ends = traffic.ramp_up_start_rps.zip(traffic.ramp_up_end_rps);
            let (start, end) =
                ends.context("--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps")?;
            let in_order = start > 0.0 && start <= end && end.is_finite();
            ensure!(in_order, "--ramp-up-start-rps must be above 0 and not above the end");
            Some(RampUp { strategy, start, end })
        }
    };
    let arrivals = Arrivals { rate, burstiness: traffic.burstiness, ramp_up };
    let TrafficArguments { num_prompts, seed, .. } = *traffic;
    Ok(Load { num_prompts, arrivals, max_concurrency, seed })
}

fn resolve_server(server: ServerArguments, api_key: Option<String>) -> Result<Server> {
    let base_url = match server.base_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None if server.host.contains(':') => format!("http://[{}]:{}", server.host, server.port),
        None => format!("http://{}:{}", server.host, server.port),
    };
    let ending = match server.backend {
        Backend::OpenaiChat => "chat/completions",
        Backend::Openai | Backend::Vllm => "completions",
    };
    let path = server.endpoint.unwrap_or_else(|| format!("/v1/{ending}"));
    let is_chat = path.ends_with("chat/completions");
    ensure!(
        path.ends_with(ending) && is_chat == (server.backend == Backend::OpenaiChat),
        "the endpoint of --backend {} must end with {ending}, not {path}",
        server.backend.name()
    );
    let endpoint = format!("{base_url}{path}");
    let endpoint: Uri = endpoint
        .parse()
        .with_context(|| format!("{endpoint} is no address like http://host:port"))?;
    ensure!(
        endpoint.scheme_str() == Some("http") && endpoint.host().is_some(),
        "{endpoint}: the address must begin with http:// (for https put a proxy in between)"
    );
    let mut headers = HeaderMap::new();
    if let Some(key) = api_key {
        let mut value = HeaderValue::try_from(format!("Bearer {key}"))
            .context("OPENAI_API_KEY has characters that no header may have")?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    for (name, value) in pairs("--header", &server.header)? {
        let name: HeaderName = name.parse().with_context(|| format!("header {name}"))?;
        let value = HeaderValue::try_from(value).with_context(|| format!("header {name}"))?;
        headers.insert(name, value);
    }
    let folder = server.model.as_ref().map(PathBuf::from).filter(|folder| folder.is_dir());
    let prefix = || format!("bench-{:.8}-", uuid::Uuid::new_v4().simple().to_string());
    Ok(Server {
        backend: server.backend,
        base_url,
        endpoint,
        headers,
        tokenizer: server.tokenizer.or(folder).filter(|_| !server.skip_tokenizer_init),
        model: server.model,
        served_model_name: server.served_model_name,
        request_id_prefix: server.request_id_prefix.unwrap_or_else(prefix),
        ready_timeout: Duration::from_secs(server.ready_check_timeout_sec),
        request_timeout: Duration::from_secs(server.request_timeout_sec),
    })
}

fn source(dataset: DatasetArguments, is_chat: bool) -> Result<Dataset> {
    let name = dataset.dataset_name;
    let file = match (name, dataset.dataset_path) {
        (DatasetName::Random | DatasetName::PrefixRepetition, Some(_)) => {
            bail!("--dataset-name {} takes no --dataset-path", name.name())
        }
        (DatasetName::Random | DatasetName::PrefixRepetition, None) => None,
        (_, None) => bail!("--dataset-name {} needs a --dataset-path", name.name()),
        (_, Some(path)) => Some(File {
            path,
            shuffle: !dataset.disable_shuffle,
            oversample: !dataset.no_oversample,
        }),
    };
    let output_len = |own: u32| dataset.output_len.unwrap_or(own);
    Ok(match (name, file) {
        (DatasetName::Sharegpt, Some(file)) => Dataset::Sharegpt(Sharegpt {
            file,
            output_len: dataset.output_len.or(dataset.sharegpt_output_len),
        }),
        (DatasetName::Custom, Some(file)) => Dataset::Custom(Custom {
            file,
            output_len: output_len(dataset.custom_output_len),
            is_chat,
            skip_chat_template: dataset.skip_chat_template,
        }),
        (DatasetName::PrefixRepetition, _) => Dataset::PrefixRepetition(PrefixRepetition {
            prefix_len: dataset.prefix_repetition_prefix_len,
            suffix_len: dataset.prefix_repetition_suffix_len,
            num_prefixes: dataset.prefix_repetition_num_prefixes,
            output_len: output_len(dataset.prefix_repetition_output_len),
            shuffle: !dataset.disable_shuffle,
        }),
        (_, _) => Dataset::Random(Random {
            input_len: dataset.input_len.unwrap_or(dataset.random_input_len),
            output_len: output_len(dataset.random_output_len),
            range_ratio: dataset.random_range_ratio,
            prefix_len: dataset.random_prefix_len,
            as_ids: dataset.prompt_token_ids,
        }),
    })
}

/// Later fields win: --extra-body over named parameters over what a backend always sends.
fn fields(
    sampling: SamplingArguments,
    is_random: bool,
    is_chat: bool,
) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    if !is_chat {
        fields.insert("repetition_penalty".into(), json!(1.0));
        fields.extend(sampling.logprobs.map(|count| ("logprobs".into(), json!(count))));
    }
    // A random prompt's answer has no natural end.
    if sampling.ignore_eos || is_random {
        fields.insert("ignore_eos".into(), json!(true));
    }
    let numbers = [
        ("temperature", sampling.temperature),
        ("top_p", sampling.top_p),
        ("min_p", sampling.min_p),
        ("frequency_penalty", sampling.frequency_penalty),
        ("presence_penalty", sampling.presence_penalty),
        ("repetition_penalty", sampling.repetition_penalty),
    ];
    for (name, value) in numbers {
        fields.extend(value.map(|value| (name.into(), json!(value))));
    }
    fields.extend(sampling.top_k.map(|value| ("top_k".into(), json!(value))));
    if let Some(extra) = sampling.extra_body {
        let extra: Map<String, Value> =
            serde_json::from_str(&extra).context("--extra-body is no JSON object")?;
        fields.extend(extra);
    }
    Ok(fields)
}

fn resolve_report(report: ReportArguments) -> Result<Report> {
    let metrics = report.percentile_metrics.split(',').map(|name| Metric::parse(name.trim()));
    let percentiles = report.metric_percentiles.split(',').map(|text| {
        let percent: f64 = text.trim().parse().with_context(|| format!("percentile {text:?}"))?;
        ensure!((0.0..=100.0).contains(&percent), "percentile {percent} is not in 0 to 100");
        Ok(percent)
    });
    let mut objectives = Objectives::default();
    for pair in &report.goodput {
        let parsed = pair.split_once(':').and_then(|(name, ms)| Some((name, ms.parse().ok()?)));
        let (name, ms): (&str, f64) =
            parsed.with_context(|| format!("--goodput {pair:?} is not NAME:MS, as in ttft:200"))?;
        ensure!(ms >= 0.0, "--goodput {pair:?} is below 0");
        let bound = match name {
            "ttft" => &mut objectives.ttft,
            "tpot" => &mut objectives.tpot,
            "e2el" => &mut objectives.e2el,
            _ => bail!("--goodput {pair:?}: only ttft, tpot and e2el are known of each request"),
        };
        *bound = Some(ms / 1e3);
    }
    Ok(Report {
        metrics: metrics.collect::<Result<_>>()?,
        percentiles: percentiles.collect::<Result<_>>()?,
        objectives,
        save: report.save_result || report.append_result,
        detailed: report.save_detailed,
        append: report.append_result,
        folder: report.result_dir,
        file_name: report.result_filename,
        label: report.label,
        metadata: pairs("--metadata", &report.metadata)?,
        progress: !report.disable_tqdm,
    })
}

fn pairs(flag: &str, texts: &[String]) -> Result<Vec<(String, String)>> {
    let pair = |text: &String| {
        let (key, value) =
            text.split_once('=').with_context(|| format!("{flag} {text:?} is not KEY=VALUE"))?;
        Ok((key.trim().to_owned(), value.trim().to_owned()))
    };
    texts.iter().map(pair).collect()
}

#[cfg(test)]
mod tests;
