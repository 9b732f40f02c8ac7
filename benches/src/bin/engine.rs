//! The whole engine on random weights of Qwen2.5-0.5B's shape, without the network.
//!
//! `engine [--threads N] [--isa NAME] [--rounds N] [--quantization FORMAT]` prints one JSON object a
//! line. In bf16, or in the quantized format: start-up,
//! prefill of 512 tokens, tokens/s and time to first token at 1, 4, 16 and 64 concurrent requests,
//! each with its share of the arithmetic peak, peak memory, and decode of one stream as a share of
//! read bandwidth. In f32: 1 and 16 requests (unless quantized). For both: what 16 requests together gain over one, beside what
//! the machine allows.
//! Ceilings are measured before and after on the same threads. What neighbours leave of the memory's
//! bandwidth changes by the second, so that of one stream is read before and after each round.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pagoda_benches::machine::{CpuTimes, commit, load, peak_memory_mib};
use pagoda_benches::settings::Settings;
use pagoda_benches::streams::{request, run};
use pagoda_engine::handle::EngineHandle;
use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::{LoadOptions, ModelSource};
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_kernels::cpu::ceilings::{self, ReadProbe};
use pagoda_kernels::dtype::DType;
use pagoda_kernels::weight_format::{Quantization, WeightFormat};
use serde_json::{Value, json};

/// The published shape of Qwen2.5-0.5B.
const CONFIG: &str = r#"{
  "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
  "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
  "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
  "max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_sliding_window": false
}"#;

/// Weights that one decoded token reads: the layers and the tied head, without the embedding rows.
const DECODE_PARAMETERS: f64 = 494.0e6;
/// Weights that one prefilled token multiplies with; the head runs for the last token only.
const PREFILL_PARAMETERS: f64 = 357.8e6;

/// Rounds of one stream are short.
const ONE_STREAM_ROUNDS: usize = 3;

/// Elements of most rows.
const HIDDEN: usize = 896;

const MAX_MODEL_LEN: u32 = 2048;
const PROMPT: usize = 128;
const OUTPUT: u32 = 64;
const PREFILL: usize = 512;

/// Far more than any cache holds.
const PROBE_BYTES: usize = 512 << 20;

fn main() -> Result<()> {
    let bench = Bench::new(Settings::parse(3)?)?;
    let before = bench.ceilings("before")?;
    let quantization = bench.settings.quantization;
    let format = quantization.map_or_else(|| DType::Bf16.into(), WeightFormat::from);
    let (handle, startup) = bench.start(format)?;
    bench.print(json!({ "what": "start-up", "unit": "s", "median": startup.as_secs_f64() }))?;
    bench.prefill(&handle, &before)?;
    bench.streams(&handle, format, &[1, 4, 16, 64], &before)?;
    let stats = handle.stats();
    let rows =
        json!({ "rows": stats.rows, "steps": stats.steps, "preemptions": stats.preemptions });
    bench.print(json!({ "what": "peak memory", "unit": "MiB", "median": peak_memory_mib(),
        "weight_mib": handle.info().weight_bytes as f64 / 1048576.0, "counts": rows }))?;
    bench.one_stream(&handle, format)?;
    drop(handle);
    if quantization.is_none() {
        let between = bench.ceilings("between")?;
        let (handle, _) = bench.start(DType::F32.into())?;
        bench.streams(&handle, DType::F32.into(), &[1, 16], &between)?;
        bench.one_stream(&handle, DType::F32.into())?;
    }
    bench.ceilings("after")?;
    Ok(())
}

/// What the machine can do at most, in GB/s and GFLOP/s.
struct Ceilings {
    read: f64,
    flops: f64,
}

struct Bench {
    settings: Settings,
    commit: String,
    began: CpuTimes,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(settings: Settings) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("config.json"), CONFIG)?;
        Ok(Bench { settings, commit: commit(), began: CpuTimes::now(), folder })
    }

    fn ceilings(&self, when: &str) -> Result<Ceilings> {
        let Settings { threads, isa, rounds, quantization } = self.settings;
        let probe = ReadProbe::new(PROBE_BYTES)?;
        let read = median((0..=rounds).map(|_| probe.bytes_per_second(isa, threads) / 1e9));
        let flops = median((0..=rounds).map(|_| {
            let dots = match quantization {
                None => ceilings::bf16_flops(isa, threads),
                Some(Quantization::Q8_0 | Quantization::Q4_0) => ceilings::int8_ops(isa, threads),
                Some(Quantization::Fp8) => None,
            };
            dots.unwrap_or_else(|| ceilings::f32_flops(isa, threads)) / 1e9
        }));
        self.print(json!({ "what": format!("read {when}"), "unit": "GB/s", "median": read }))?;
        let dots = if quantization.is_none() { "bf16" } else { "int8" };
        let what = format!("{dots} (or f32 where there is none) {when}");
        self.print(json!({ "what": what, "unit": "GFLOP/s", "median": flops }))?;
        Ok(Ceilings { read, flops })
    }

    /// Loads and answers one token; gives the time from nothing to that token.
    fn start(&self, format: WeightFormat) -> Result<(EngineHandle, Duration)> {
        let began = Instant::now();
        let (dtype, quantization) = match format {
            WeightFormat::Plain(dtype) => (dtype, None),
            WeightFormat::Quantized(quantization) => (DType::Bf16, Some(quantization)),
        };
        let options = LoadOptions {
            dtype: Some(dtype),
            quantization,
            max_model_len: Some(MAX_MODEL_LEN),
            max_num_seqs: Some(64),
            max_num_batched_tokens: Some(512),
            kv: KvBudget::Bytes(1 << 30),
            threads: Some(u32::try_from(self.settings.threads)?),
            isa: Some(self.settings.isa.name().into()),
            ..LoadOptions::default()
        };
        let folder: &Path = self.folder.path();
        let source = ModelSource::Dummy { folder: folder.into(), seed: 1 };
        let loaded = pagoda_engine::model::load(&source, &options, &|_| {})?;
        let settings = SchedulerSettings::default();
        let (handle, _thread) = pagoda_engine::step::start(loaded.runner, loaded.info, settings)?;
        run(&handle, vec![request(0, 1, 1)])?;
        Ok((handle, began.elapsed()))
    }

    fn prefill(&self, handle: &EngineHandle, ceilings: &Ceilings) -> Result<()> {
        let mut seconds = Vec::new();
        for round in 0..=self.settings.rounds {
            let outcome = run(handle, vec![request(1000 + round, PREFILL, 1)])?;
            seconds.push(outcome.elapsed.as_secs_f64());
        }
        // The first run touches the pages of buffers and cache.
        let seconds = median(seconds.into_iter().skip(1));
        let flops = 2.0 * PREFILL_PARAMETERS * PREFILL as f64 / seconds / 1e9;
        self.print(json!({
            "what": "prefill of 512 tokens", "unit": "tokens/s", "median": PREFILL as f64 / seconds,
            "share_of_peak": flops / ceilings.flops, "rounds": self.settings.rounds,
        }))
    }

    /// Sets of requests that arrive together, and what 16 gain over one.
    ///
    /// One stream is bound by reading the weights, many by arithmetic: the machine allows a gain of
    /// `peak / (2 flops a weight) ÷ read / (bytes a weight)`, whatever the program.
    fn streams(
        &self,
        handle: &EngineHandle,
        format: WeightFormat,
        sets: &[usize],
        ceilings: &Ceilings,
    ) -> Result<()> {
        let mut rates = Vec::new();
        for &streams in sets {
            rates.push((streams, self.decode(handle, format, streams, ceilings)?));
        }
        let rate = |of: usize| rates.iter().find(|(streams, _)| *streams == of).map(|(_, r)| *r);
        let gain = rate(16).zip(rate(1)).map(|(many, one)| many / one);
        let allowed = (ceilings.flops / 2.0) / (ceilings.read / weight_bytes(format));
        self.print(json!({
            "what": "16 streams over 1", "unit": "times", "dtype": format.name(), "median": gain,
            "machine_allows": allowed.min(16.0), "rounds": self.settings.rounds,
        }))
    }

    /// Tokens/s while all of `streams` decode.
    fn decode(
        &self,
        handle: &EngineHandle,
        format: WeightFormat,
        streams: usize,
        ceilings: &Ceilings,
    ) -> Result<f64> {
        let mut output = Vec::new();
        let mut decode = Vec::new();
        let mut first = Vec::new();
        for round in 0..self.settings.rounds {
            let seed = 10_000 * streams + 100 * round;
            let requests = (0..streams).map(|i| request(seed + i, PROMPT, OUTPUT)).collect();
            let outcome = run(handle, requests)?;
            let tokens = streams as f64 * f64::from(OUTPUT);
            output.push(tokens / outcome.elapsed.as_secs_f64());
            first.push(outcome.last_first_s());
            decode.push(outcome.decode_rate());
        }
        output.sort_by(f64::total_cmp);
        let decode = median(decode.into_iter());
        let flops = decode * DECODE_PARAMETERS * 2.0;
        self.print(json!({
            "what": "streams", "streams": streams, "dtype": format.name(), "prompt": PROMPT,
            "output": OUTPUT, "unit": "tokens/s", "median": output[output.len() / 2],
            "min": output.first(), "max": output.last(), "rounds": self.settings.rounds,
            "decode_tokens_per_s": decode, "last_first_token_s": median(first.into_iter()),
            "share_of_peak": flops / 1e9 / ceilings.flops,
        }))?;
        Ok(decode)
    }

    /// Decode of one stream, each round beside what the memory gives just before and just after it.
    fn one_stream(&self, handle: &EngineHandle, format: WeightFormat) -> Result<()> {
        let Settings { threads, isa, rounds, .. } = self.settings;
        let probe = ReadProbe::new(PROBE_BYTES)?;
        let read = || median((0..3).map(|_| probe.bytes_per_second(isa, threads)));
        let (mut shares, mut reads, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ONE_STREAM_ROUNDS * rounds {
            let before = read();
            let rate = run(handle, vec![request(5000 + round, PROMPT, OUTPUT)])?.decode_rate();
            let mean = f64::midpoint(before, read());
            shares.push(rate * DECODE_PARAMETERS * weight_bytes(format) / mean);
            reads.push(mean / 1e9);
            rates.push(rate);
        }
        shares.sort_by(f64::total_cmp);
        self.print(json!({
            "what": "decode of one stream", "dtype": format.name(), "prompt": PROMPT, "output": OUTPUT,
            "unit": "tokens/s", "median": median(rates.into_iter()), "rounds": shares.len(),
            "read_beside": median(reads.into_iter()), "share_of_read": shares[shares.len() / 2],
            "share_min": shares.first(), "share_max": shares.last(),
        }))
    }

    #[expect(clippy::print_stdout, reason = "the result of this program")]
    fn print(&self, mut line: Value) -> Result<()> {
        let fields = line.as_object_mut().context("a line is an object")?;
        fields.insert("isa".into(), self.settings.isa.name().into());
        fields.insert("threads".into(), self.settings.threads.into());
        fields.insert("commit".into(), self.commit.as_str().into());
        fields.insert("load".into(), load().into());
        let steal = CpuTimes::now().steal_percent_since(&self.began);
        fields.insert("steal_percent".into(), steal.into());
        println!("{line}");
        Ok(())
    }
}

/// Bytes that a weight takes, with its share of a scale.
fn weight_bytes(format: WeightFormat) -> f64 {
    format.row_bytes(HIDDEN) as f64 / HIDDEN as f64
}

fn median(samples: impl Iterator<Item = f64>) -> f64 {
    let mut samples: Vec<f64> = samples.collect();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}
