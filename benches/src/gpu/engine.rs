//! The engine at the shapes of published models, with random weights, without the network.
//!
//! Start-up in its parts, then sets of requests that arrive together: tokens/s, time to the first token
//! and between tokens, what the host does between two steps, and how far the engine's steps are apart
//! beside the same step behind itself; a decode's rate beside the floor that reading its weights sets.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use pagoda_engine::handle::EngineHandle;
use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::files::Checkpoint;
use pagoda_engine::model::load::load_on;
use pagoda_engine::model::{LoadOptions, ModelSource};
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_engine::step::EngineThread;
use pagoda_kernels::cuda::CudaDevice;
use pagoda_kernels::cuda::suite::{self, Figure, Finding, Note, Suite};
use pagoda_kernels::dtype::DType;
use pagoda_kernels::weight_format::Quantization;

use super::part::Task;
use crate::streams::{Outcome, request, run_looking};
use crate::timed::{Noted, Notes, Timed, Watched};

/// A published shape.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    config: &'static str,
    reads: Reads,
}

/// What a decoded token reads of the weights.
#[derive(Clone, Copy)]
enum Reads {
    /// All but an embedding of so many bytes.
    AllBut(f64),
    /// So many bytes in bf16.
    Bytes(f64),
}

/// Llama-3.1-8B: all but the input embedding, which stays in bf16.
pub(super) const LLAMA_8B: Shape = Shape {
    config: r#"{
      "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
      "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
      "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
      "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
      "tie_word_embeddings": false, "torch_dtype": "bfloat16"
    }"#,
    reads: Reads::AllBut(128_256.0 * 4096.0 * 2.0),
};

/// Qwen3-30B-A3B: attention, router, head, and 8 of 128 experts a layer.
pub(super) const QWEN3_30B_A3B: Shape = Shape {
    config: r#"{
      "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_act": "silu",
      "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
      "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
      "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
      "tie_word_embeddings": false, "torch_dtype": "bfloat16", "num_experts": 128,
      "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": true,
      "decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": false
    }"#,
    reads: Reads::Bytes(6.06e9),
};

/// In place of either, under emulation.
const TINY: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2,
  "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 200, "max_position_embeddings": 256,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16"
}"#;

/// How much is asked of which model.
pub(super) struct Load {
    config: &'static str,
    reads: Reads,
    quantization: Option<Quantization>,
    max_model_len: u32,
    kv_bytes: u64,
    sets: &'static [usize],
    prompt: usize,
    output: u32,
    rounds: usize,
    /// Steps to note, behind how many one is repeated, and how often.
    watched: (usize, usize, usize),
}

/// How often streams are looked at: often beside the time between two tokens.
const LOOK: Duration = Duration::from_micros(20);
/// Requests at once, of a part that shows all of it and of one that shows what a setting costs.
const SETS: [&[usize]; 2] = [&[1, 4, 16, 64, 256], &[1, 16, 64, 256]];

impl Load {
    /// What shows how settings compare: fewer sets, and one round of each.
    pub(super) fn to_compare(task: &Task<'_>, shape: &Shape) -> Self {
        Load { rounds: 1, ..Load::new(task, shape, SETS[1]) }
    }

    fn new(task: &Task<'_>, shape: &Shape, sets: &'static [usize]) -> Self {
        let Shape { config, reads } = *shape;
        if task.settings.is_tiny() {
            return Load {
                config: TINY,
                reads: Reads::AllBut(200.0 * 64.0 * 2.0),
                quantization: None,
                max_model_len: 64,
                kv_bytes: 1 << 20,
                sets: &[1, 2],
                prompt: 5,
                output: 7,
                rounds: 1,
                watched: (6, 2, 2),
            };
        }
        Load {
            config,
            reads,
            quantization: None,
            max_model_len: 4096,
            kv_bytes: 24 << 30,
            sets,
            prompt: 512,
            output: 128,
            rounds: 3,
            watched: (96, 24, 32),
        }
    }

    fn request(&self, seed: usize) -> pagoda_engine::request::Request {
        let mut request = request(seed, self.prompt, self.output);
        if self.config == TINY {
            // Tokens of the large vocabulary are none of the small one.
            for segment in &mut request.input {
                let pagoda_engine::request::Segment::Tokens(tokens) = segment;
                tokens.iter_mut().for_each(|token| *token %= 200);
            }
        }
        request
    }
}

/// The engine at `shape`, its products quantized or not.
pub(super) fn run(
    task: &Task<'_>,
    shape: &Shape,
    quantization: Option<Quantization>,
) -> Result<bool> {
    let sets = SETS[usize::from(quantization.is_some())];
    let load = Load { quantization, ..Load::new(task, shape, sets) };
    let began = Instant::now();
    let device = task.settings.open()?;
    task.figure(seconds("start-up: kernels", began.elapsed()))?;
    let read = read_ceiling(task, &device)?;
    let engine = Engine::start(task, &device, &load)?;
    let ended = engine.measure(task, &load, Some(read))?;
    engine.end()?;
    Ok(ended.is_some())
}

fn seconds(what: &str, time: Duration) -> Figure {
    Figure::one(what.into(), "s", time.as_secs_f64())
}

impl Task<'_> {
    pub(super) fn figure(&self, figure: Figure) -> Result<()> {
        let finding = Finding::Figure(figure);
        (self.say)(serde_json::to_value(&finding)?, finding.is_right())
    }
}

/// Bytes a second, measured on this device now.
fn read_ceiling(task: &Task<'_>, device: &CudaDevice) -> Result<f64> {
    let suite = Suite::new(device, task.settings.size(), task.settings.seed);
    let read = Cell::new(None);
    // It comes first; nothing else is waited for.
    suite.run(suite::Part::Ceilings, &|| read.get().is_none(), &|_| (), &mut |finding| {
        if let Finding::Figure(figure) = finding
            && figure.what == "read"
        {
            read.set(Some(figure.median * 1e9));
        }
    })?;
    read.get().context("the ceilings have no read")
}

/// A model that answers.
pub(super) struct Engine {
    handle: EngineHandle,
    thread: EngineThread,
    notes: Notes,
    /// Bytes of weights that a decoded token reads.
    read_bytes: f64,
}

impl Engine {
    /// Loads, and answers one token; says how long each part took.
    pub(super) fn start(task: &Task<'_>, device: &CudaDevice, load: &Load) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("config.json"), load.config)?;
        let most = load.sets.iter().max().copied().unwrap_or(1);
        let options = LoadOptions {
            dtype: Some(DType::Bf16),
            quantization: load.quantization,
            max_model_len: Some(load.max_model_len),
            max_num_seqs: Some(u32::try_from(most)?),
            max_num_batched_tokens: Some(load.max_model_len.min(2048)),
            kv: KvBudget::Bytes(load.kv_bytes),
            ..LoadOptions::default()
        };
        let source = ModelSource::Dummy { folder: folder.path().into(), seed: 1 };
        let began = Instant::now();
        let packed = Cell::new(Duration::ZERO);
        let loaded = load_on(device, Checkpoint::open(&source)?, &options, &|_| {
            packed.set(began.elapsed())
        })?;
        let ready = began.elapsed();
        task.figure(seconds("start-up: weights", packed.get()))?;
        task.figure(seconds("start-up: memory, cache and graphs", ready - packed.get()))?;
        let weight_bytes = loaded.info.weight_bytes as f64;
        let read_bytes = match load.reads {
            Reads::AllBut(embedding) => weight_bytes - embedding,
            Reads::Bytes(bytes) => bytes,
        };
        let (runner, notes) = Timed::new(loaded.runner);
        let settings = SchedulerSettings::default();
        let (handle, thread) = pagoda_engine::step::start(Box::new(runner), loaded.info, settings)?;
        let began = Instant::now();
        run_looking(&handle, vec![load.request(0)], LOOK)?;
        task.figure(seconds("start-up: the first answer", began.elapsed()))?;
        Ok(Engine { handle, thread, notes, read_bytes })
    }

    /// Says what each set of requests gave; `read` is what the card reads a second. Gives the figures
    /// that are compared between modes, or nothing if there was no time for all.
    pub(super) fn measure(
        &self,
        task: &Task<'_>,
        load: &Load,
        read: Option<f64>,
    ) -> Result<Option<Vec<Figure>>> {
        let mut compared = Vec::new();
        for &streams in load.sets {
            if !(task.keeps_going)() {
                return Ok(None);
            }
            let (steps, behind, times) = load.watched;
            let mut outcomes = Vec::new();
            for round in 0..=load.rounds {
                let seed = 10_000 * streams + 1000 * round;
                let requests = (0..streams).map(|i| load.request(seed + i)).collect();
                // The last is watched, which takes time from its tokens.
                let is_watched = round == load.rounds;
                let repeat = (behind, if is_watched { times } else { 0 });
                let steps = if is_watched { steps } else { 0 };
                self.notes.watch(Watched { seqs: streams, steps, repeat });
                let outcome = run_looking(&self.handle, requests, LOOK)?;
                if !is_watched {
                    outcomes.push(outcome);
                }
            }
            let floor = read.map(|read| self.read_bytes / read);
            let figures = figures(load, streams, &outcomes, floor);
            compared.extend(figures.iter().take(COMPARED).cloned());
            for figure in figures {
                task.figure(figure)?;
            }
            self.say_steps(task, streams)?;
        }
        Ok(Some(compared))
    }

    /// Says what was noted of steps of `streams` sequences.
    fn say_steps(&self, task: &Task<'_>, streams: usize) -> Result<()> {
        let Noted { host, between, repeated, .. } = self.notes.read();
        if host.is_empty() || between.is_empty() || repeated.is_empty() {
            let what = format!("{streams} requests: steps");
            return task.note(Note::not_measured(what, "too few steps had all of them"));
        }
        let micros = |times: &[Duration]| -> Vec<f64> {
            times.iter().map(|time| time.as_secs_f64() * 1e6).collect()
        };
        let of = |what: &str| format!("{streams} requests: {what}");
        let host_figure = Figure::new(of("host time between two steps"), "us", micros(&host));
        let p99 = percentile(micros(&host), 99);
        let alone = Figure::new(of("a step behind itself"), "us", micros(&repeated));
        let apart = Figure::new(of("from step to step"), "us", micros(&between));
        let idle = (apart.median - alone.median).max(0.0);
        let busy = alone.median / apart.median;
        task.figure(host_figure)?;
        task.figure(Figure::one(of("host time between two steps, 99%"), "us", p99))?;
        task.figure(alone)?;
        task.figure(apart.share(busy, "a step behind itself"))?;
        // None at all is a figure, too.
        let idle = Figure::one(of("the device waits, at most"), "us", idle);
        (task.say)(serde_json::to_value(Finding::Figure(idle))?, true)
    }

    /// Ends the engine and gives its memory back.
    pub(super) fn end(self) -> Result<()> {
        let Engine { handle, thread, .. } = self;
        drop(handle);
        thread.join().map_err(|_| anyhow!("the engine ended badly"))??;
        Ok(())
    }
}

/// Of [`figures`], those that modes are compared by.
const COMPARED: usize = 4;

/// What `streams` requests at once gave. One token of one request takes `floor` seconds at least.
fn figures(load: &Load, streams: usize, outcomes: &[Outcome], floor: Option<f64>) -> Vec<Figure> {
    let of =
        |what: &str| format!("{streams} requests of {} + {}: {what}", load.prompt, load.output);
    let samples = |value: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(value).collect::<Vec<_>>();
    let total = streams as f64 * f64::from(load.output);
    let output = samples(&|outcome| total / outcome.elapsed.as_secs_f64());
    let decode = samples(&Outcome::decode_rate);
    // No finer than streams are looked at.
    let millis = |value: &dyn Fn(&Outcome) -> Vec<f64>| -> Vec<f64> {
        let finest = LOOK.as_secs_f64();
        outcomes.iter().flat_map(value).map(|seconds| 1e3 * seconds.max(finest)).collect()
    };
    let first = millis(&Outcome::first_tokens_s);
    let between = millis(&Outcome::between_tokens_s);
    // One request's floor is reading the weights it meets; that of many is not so simple.
    let mut decode = Figure::new(of("decode"), "tokens/s", decode);
    if let Some(floor) = floor.filter(|_| streams == 1) {
        let share = decode.median * floor;
        decode = decode.share(share, "read");
    }
    let late = |what: &str, times: &[f64]| {
        Figure::one(of(&format!("{what}, 99%")), "ms", percentile(times.to_vec(), 99))
    };
    let [late_first, late_between] =
        [late("first token", &first), late("between tokens", &between)];
    vec![
        Figure::new(of("output"), "tokens/s", output),
        decode,
        Figure::new(of("first token"), "ms", first),
        Figure::new(of("between tokens"), "ms", between),
        late_first,
        late_between,
    ]
}

/// What `percent` % of `values` do not exceed.
fn percentile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() * percent / 100).min(values.len().saturating_sub(1));
    values.get(at).copied().unwrap_or(f64::NAN)
}
