//! Golden checkpoints of each family on the device: teacher-forced log-probabilities.
//!
//! In f32 against what transformers computed, within the bound that the CPU keeps, too. In bf16 against
//! the CPU at the same prompt: log-probabilities within a bound, and the most likely token wherever the
//! first two are further apart than that. The checkpoints are part of the program.

use anyhow::{Context, Result};
use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::files::Checkpoint;
use pagoda_engine::model::load::{load_checkpoint, load_on};
use pagoda_engine::model::{LoadOptions, LoadedModel, ModelSource};
use pagoda_kernels::cuda::suite::{Check, Figure, Finding};
use pagoda_kernels::dtype::DType;
use pagoda_tests::golden::Golden;
use pagoda_tests::prompts::{PromptRun, PromptValues};

use super::part::Task;

/// A checkpoint and what is known of it.
struct Case {
    name: &'static str,
    config: &'static [u8],
    weights: &'static [u8],
    golden: &'static [u8],
}

macro_rules! case {
    ($name:literal) => {
        Case {
            name: $name,
            config: include_bytes!(concat!("../../../tests/goldens/", $name, "/config.json")),
            weights: include_bytes!(concat!(
                "../../../tests/goldens/",
                $name,
                "/model.safetensors"
            )),
            golden: include_bytes!(concat!("../../../tests/goldens/", $name, "/golden.json")),
        }
    };
}

/// Of each shape of heads, rope, window and norm that kernels see.
static CASES: [Case; 11] = [
    case!("qwen3"),
    case!("llama3"),
    case!("qwen3_moe"),
    case!("qwen2_window"),
    case!("qwen2"),
    case!("llama2"),
    case!("llama_yarn"),
    case!("gemma2"),
    case!("gemma3"),
    case!("glm4"),
    case!("phi4_mini"),
];

/// Largest distance from transformers, in f32.
const F32_BOUND: f32 = 0.001;
/// Largest distance from the CPU, in bf16: sums in another order round another way.
const BF16_BOUND: f32 = 0.1;
/// Under emulation: cases, and tokens of each, in two chunks.
const TINY: (usize, usize) = (1, 34);

pub(super) fn run(task: &Task<'_>) -> Result<bool> {
    let device = task.settings.open()?;
    let is_tiny = task.settings.is_tiny();
    let cases = if is_tiny { &CASES[..TINY.0] } else { &CASES[..] };
    for case in cases {
        if !(task.keeps_going)() {
            return Ok(false);
        }
        let folder = case.folder()?;
        let mut golden: Golden = serde_json::from_slice(case.golden)?;
        if is_tiny {
            golden.tokens.truncate(TINY.1);
        }
        let open = || Checkpoint::open(&ModelSource::Folder(folder.path().into()));
        let on_device = |dtype| -> Result<PromptValues> {
            values(load_on(&device, open()?, &options(&golden, dtype), &|_| ())?, &golden)
        };
        let distance = golden.distance(&on_device(DType::F32)?)?;
        task.within(format!("{} in f32, from transformers", case.name), distance, F32_BOUND)?;
        let cpu =
            values(load_checkpoint(open()?, &options(&golden, DType::Bf16), &|_| ())?, &golden)?;
        let gpu = on_device(DType::Bf16)?;
        task.within(
            format!("{} in bf16, from the CPU", case.name),
            furthest(&gpu, &cpu)?,
            BF16_BOUND,
        )?;
        task.likeliest(case.name, &gpu, &cpu)?;
    }
    Ok(true)
}

impl Case {
    /// A folder that holds it.
    fn folder(&self) -> Result<tempfile::TempDir> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("config.json"), self.config)?;
        std::fs::write(folder.path().join("model.safetensors"), self.weights)?;
        Ok(folder)
    }
}

impl Task<'_> {
    /// Says a distance, and whether it is within its bound.
    fn within(&self, what: String, distance: f32, bound: f32) -> Result<()> {
        let right = distance <= bound;
        let wrong = if right { vec![] } else { vec![format!("{distance} is over {bound}")] };
        let check = Check { what: what.clone(), cases: 1, num_wrong: wrong.len(), wrong };
        (self.say)(serde_json::to_value(Finding::Check(check))?, right)?;
        // A distance of nothing is a figure, too.
        let figure = Figure::one(what, "nats", f64::from(distance));
        (self.say)(serde_json::to_value(Finding::Figure(figure))?, true)
    }

    /// Compares the most likely tokens wherever the first two are apart, and says how often they are.
    fn likeliest(&self, name: &str, gpu: &PromptValues, cpu: &PromptValues) -> Result<()> {
        let (mut apart, mut wrong) = (0, Vec::new());
        for (length, top) in &cpu.tops {
            let best = |top: &[(u32, f32)]| top.first().map(|first| first.0);
            let margin = top.first().zip(top.get(1)).map_or(0.0, |(first, next)| first.1 - next.1);
            if margin <= 2.0 * BF16_BOUND {
                continue;
            }
            apart += 1;
            let got = gpu.tops.get(length).context("a top list is missing")?;
            if best(got) != best(top) {
                wrong.push(format!("after {length}: {:?} instead of {:?}", best(got), best(top)));
            }
        }
        let right = wrong.is_empty();
        let share = apart as f64 / cpu.tops.len().max(1) as f64;
        let what = format!("{name}: most likely tokens, where the first two are apart");
        let check = Check { what, cases: apart, num_wrong: wrong.len(), wrong };
        (self.say)(serde_json::to_value(Finding::Check(check))?, right)?;
        let what = format!("{name}: tokens whose first two are further apart than twice the bound");
        let figure = Figure::one(what, "%", 100.0 * share);
        (self.say)(serde_json::to_value(Finding::Figure(figure))?, true)
    }
}

fn options(golden: &Golden, dtype: DType) -> LoadOptions {
    LoadOptions {
        dtype: Some(dtype),
        kv_dtype: Some(dtype.into()),
        max_model_len: Some(golden.max_model_len),
        max_num_seqs: Some(64),
        max_num_batched_tokens: Some(64),
        max_logprobs: u32::MAX,
        kv: KvBudget::Bytes(16 << 20),
        ..LoadOptions::default()
    }
}

/// The prompt in chunks, its end token by token.
fn values(mut model: LoadedModel, golden: &Golden) -> Result<PromptValues> {
    let len = golden.tokens.len();
    let lengths: Vec<usize> =
        golden.lengths().into_iter().filter(|length| *length <= len).collect();
    let chunk =
        |done: usize| if done < 64 { [33, 1, 30][done % 3] } else { (len - 2 - done).max(1) };
    let prompts = vec![&golden.tokens[..]];
    let run = PromptRun { prompts, chunk: &chunk, lengths: &lengths, last_position_shift: 0 };
    run.run(model.runner.as_mut(), &model.info)?.pop().context("no values")
}

/// The largest distance of any target's log-probability.
fn furthest(got: &PromptValues, want: &PromptValues) -> Result<f32> {
    anyhow::ensure!(got.targets.len() == want.targets.len(), "another number of values");
    let distances = got.targets.iter().zip(&want.targets).map(|(got, want)| (got - want).abs());
    Ok(distances
        .fold(0.0, |worst, next| if next.is_nan() { f32::INFINITY } else { next.max(worst) }))
}
