//! The engine at the shapes of published models, with random weights, without the network.
//!
//! Start-up, then sets of requests that arrive together: tokens/s, time to the first token, time
//! between tokens; a decode's rate beside the floor that reading its weights sets.

use std::time::Instant;

use anyhow::{Context, Result};
use pagoda_engine::handle::EngineHandle;
use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::files::Checkpoint;
use pagoda_engine::model::load::load_on;
use pagoda_engine::model::{LoadOptions, ModelSource};
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_kernels::cuda::CudaDevice;
use pagoda_kernels::cuda::suite::{self, Figure, Finding, Suite};
use pagoda_kernels::dtype::DType;

use super::part::Task;
use crate::streams::{Outcome, request, run as run_streams};

/// A published shape.
pub(super) struct Shape {
    config: &'static str,
    /// Bytes of weights in bf16 that one decoded token reads.
    read_bytes: f64,
}

/// Llama-3.1-8B: all but the input embedding.
pub(super) const LLAMA_8B: Shape = Shape {
    config: r#"{
      "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
      "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
      "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
      "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
      "tie_word_embeddings": false, "torch_dtype": "bfloat16"
    }"#,
    read_bytes: 15.01e9,
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
    read_bytes: 6.06e9,
};

/// In place of either, under emulation.
const TINY: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2,
  "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 200, "max_position_embeddings": 256,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16"
}"#;

/// How much is asked.
struct Load {
    config: &'static str,
    max_model_len: u32,
    kv_bytes: u64,
    sets: &'static [usize],
    prompt: usize,
    output: u32,
    rounds: usize,
}

impl Load {
    fn new(task: &Task<'_>, shape: &Shape) -> Self {
        if task.settings.is_tiny() {
            let (max_model_len, kv_bytes, sets) = (64, 1 << 20, &[1, 2][..]);
            let (prompt, output, rounds) = (5, 3, 1);
            return Load { config: TINY, max_model_len, kv_bytes, sets, prompt, output, rounds };
        }
        Load {
            config: shape.config,
            max_model_len: 4096,
            kv_bytes: 24 << 30,
            sets: &[1, 4, 16, 64, 256],
            prompt: 512,
            output: 128,
            rounds: 3,
        }
    }
}

pub(super) fn run(task: &Task<'_>, shape: &Shape) -> Result<bool> {
    let device = task.settings.open()?;
    let read = read_ceiling(task, &device)?;
    let load = Load::new(task, shape);
    let began = Instant::now();
    let handle = start(&device, &load)?;
    task.figure(Figure::one(
        "start-up, to the first token".into(),
        "s",
        began.elapsed().as_secs_f64(),
    ))?;
    for &streams in load.sets {
        if !(task.keeps_going)() {
            return Ok(false);
        }
        let mut outcomes = Vec::new();
        for round in 0..load.rounds {
            let seed = 10_000 * streams + 1000 * round;
            let requests = (0..streams).map(|i| load.request(seed + i)).collect();
            outcomes.push(run_streams(&handle, requests)?);
        }
        for figure in figures(&load, shape, streams, &outcomes, read) {
            task.figure(figure)?;
        }
    }
    Ok(true)
}

impl Load {
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

impl Task<'_> {
    fn figure(&self, figure: Figure) -> Result<()> {
        let finding = Finding::Figure(figure);
        (self.say)(serde_json::to_value(&finding)?, finding.is_right())
    }
}

/// Bytes a second, measured on this device now.
fn read_ceiling(task: &Task<'_>, device: &CudaDevice) -> Result<f64> {
    let suite = Suite::new(device, task.settings.size(), task.settings.seed);
    let mut read = None;
    suite.run(suite::Part::Ceilings, &|| true, &mut |finding| {
        if let Finding::Figure(figure) = finding
            && figure.what == "read"
        {
            read = Some(figure.median * 1e9);
        }
    })?;
    read.context("the ceilings have no read")
}

/// Loads, and answers one token.
fn start(device: &CudaDevice, load: &Load) -> Result<EngineHandle> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("config.json"), load.config)?;
    let most = load.sets.iter().max().copied().unwrap_or(1);
    let options = LoadOptions {
        dtype: Some(DType::Bf16),
        max_model_len: Some(load.max_model_len),
        max_num_seqs: Some(u32::try_from(most)?),
        max_num_batched_tokens: Some(load.max_model_len.min(2048)),
        kv: KvBudget::Bytes(load.kv_bytes),
        ..LoadOptions::default()
    };
    let checkpoint =
        Checkpoint::open(&ModelSource::Dummy { folder: folder.path().into(), seed: 1 })?;
    let loaded = load_on(device, checkpoint, &options, &|_| ())?;
    let settings = SchedulerSettings::default();
    let (handle, _thread) = pagoda_engine::step::start(loaded.runner, loaded.info, settings)?;
    run_streams(&handle, vec![load.request(0)])?;
    Ok(handle)
}

/// What `streams` requests at once gave.
fn figures(
    load: &Load,
    shape: &Shape,
    streams: usize,
    outcomes: &[Outcome],
    read: f64,
) -> Vec<Figure> {
    let of =
        |what: &str| format!("{streams} requests of {} + {}: {what}", load.prompt, load.output);
    let samples = |value: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(value).collect::<Vec<_>>();
    let total = streams as f64 * f64::from(load.output);
    let output = samples(&|outcome| total / outcome.elapsed.as_secs_f64());
    let decode = samples(&Outcome::decode_rate);
    let first = samples(&|outcome| {
        let mut seconds = outcome.first_tokens_s.clone();
        seconds.sort_by(f64::total_cmp);
        1e3 * seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
    });
    let between = decode.iter().map(|rate| 1e3 * streams as f64 / rate).collect();
    // One request's floor is reading the weights it meets; that of many is not so simple.
    let mut decode = Figure::new(of("decode"), "tokens/s", decode);
    if streams == 1 {
        let share = decode.median * shape.read_bytes / read;
        decode = decode.share(share, "read");
    }
    vec![
        Figure::new(of("output"), "tokens/s", output),
        decode,
        Figure::new(of("first token"), "ms", first),
        Figure::new(of("between tokens"), "ms", between),
    ]
}
