//! The engine thread's own time a step: from `finish` returning to the next `launch` returning,
//! with a runner that computes nothing and 256 sequences that each gain a token.
//!
//! A second thread reads all streams, as connections would. One JSON line for each depth.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pagoda_benches::machine::{CpuTimes, commit, load};
use pagoda_benches::timed::{Timed, Watched};
use pagoda_engine::handle::border;
use pagoda_engine::model::info::{InstanceInfo, KvGroupInfo, KvGroupKind};
use pagoda_engine::request::{Request, SamplerParams, Segment, StopParams, Tenant};
use pagoda_engine::runner::NullRunner;
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_engine::step::{Parts, StepLoop, Turn};
use pagoda_kernels::dtype::DType;

const SEQUENCES: u32 = 256;
const PROMPT: u32 = 128;
const STEPS: usize = 1_800;

fn info(depth: u32) -> InstanceInfo {
    let group = |kind| KvGroupInfo { kind, num_layers: 1, num_blocks: 20_000, bytes_per_block: 1 };
    InstanceInfo {
        max_model_len: 4_096,
        vocab: 1_000,
        block_size: 32,
        groups: vec![group(KvGroupKind::Full)],
        max_num_seqs: SEQUENCES,
        max_num_batched_tokens: 4_096,
        max_logits_rows: SEQUENCES,
        max_logprobs: 20,
        numerics: "null".into(),
        eos_token_ids: vec![2],
        default_sampling: Default::default(),
        dtype: DType::F32,
        quantization: None,
        kv_dtype: DType::F32.into(),
        weight_bytes: 0,
        depth,
        device: "null".into(),
    }
}

fn request(number: u32) -> Request {
    Request {
        id: "bench".into(),
        input: vec![Segment::Tokens((0..PROMPT).map(|i| (i * 7 + number) % 1_000).collect())],
        sampler: SamplerParams::default(),
        stop: StopParams {
            max_tokens: STEPS as u32 + 100,
            min_tokens: 0,
            eos_token_ids: vec![2],
            stop_token_ids: vec![],
        },
        n: 1,
        prompt_logprobs: None,
        tenant: Tenant::default(),
        priority: 0,
    }
}

/// Times [`STEPS`] steps at `depth`.
fn measure(depth: u32) -> Result<Vec<Duration>> {
    let (handle, inbox) = border(info(depth), SchedulerSettings::default());
    let (runner, notes) = Timed::new(Box::new(NullRunner::new(depth as usize, 3)));
    notes.watch(Watched { seqs: SEQUENCES as usize, steps: STEPS, repeat: (0, 0) });
    let runner = Box::new(runner);
    let clock = Box::new(Instant::now);
    let mut step_loop = StepLoop::new(Parts { runner, inbox, clock, drafts: None, reaper: None });
    let mut streams = Vec::new();
    for number in 0..SEQUENCES {
        streams.push(handle.submit(request(number))?);
    }
    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    let reader = std::thread::spawn(move || {
        while !stop.load(Relaxed) {
            for stream in &mut streams {
                while stream.try_next().is_some() {}
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    while notes.left() > 0 && step_loop.turn()? == Turn::Stepped {}
    done.store(true, Relaxed);
    reader.join().ok().context("the reader ended badly")?;
    let mut times = notes.read().host;
    times.sort_unstable();
    Ok(times)
}

fn main() -> Result<()> {
    for depth in [1, 2] {
        let before = CpuTimes::now();
        let times = measure(depth)?;
        let percentile = |percent: usize| {
            let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(index).map(|time| time.as_nanos() as f64 / 1e3)
        };
        let line = serde_json::json!({
            "bench": "scheduler",
            "depth": depth,
            "sequences": SEQUENCES,
            "steps": times.len(),
            "median_us": percentile(50),
            "p99_us": percentile(99),
            "optimised": !cfg!(debug_assertions),
            "commit": commit(),
            "load": load(),
            "steal_percent": CpuTimes::now().steal_percent_since(&before),
        });
        writeln!(std::io::stdout(), "{line}")?;
    }
    Ok(())
}
