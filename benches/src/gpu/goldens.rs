//! Golden checkpoints of each family on the device: teacher-forced log-probabilities.
//!
//! In f32 against what transformers computed, within the bound that the CPU keeps, too. In bf16 against
//! the CPU at the same prompt: log-probabilities within a bound, and the most likely token wherever the
//! first two are further apart than that; so too for random weights of a model that is wide enough for
//! Hopper's own products. The checkpoints are part of the program.

use anyhow::{Context, Result};
use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::files::Checkpoint;
use pagoda_engine::model::load::{load_checkpoint, load_on};
use pagoda_engine::model::{LoadOptions, LoadedModel, ModelSource};
use pagoda_kernels::cuda::CudaDevice;
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
/// Rows of a step at most: enough for the kernels of many rows.
const STEP_ROWS: usize = 192;

/// A model of random weights that is wide enough for products of many rows to fill Hopper, which is what its
/// own kernels are chosen for; and the tokens of a prompt. Under emulation the device is smaller.
const WIDE: [(&str, usize); 2] = [
    (
        r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": 4352, "intermediate_size": 2304, "num_hidden_layers": 2, "num_attention_heads": 68,
  "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4352, "max_position_embeddings": 2048,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16"
}"#,
        400,
    ),
    (
        r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": 64, "intermediate_size": 272, "num_hidden_layers": 1, "num_attention_heads": 2,
  "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 200, "max_position_embeddings": 2048,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16"
}"#,
        101,
    ),
];

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
            known(
                load_on(&device, open()?, &options(golden.max_model_len, dtype), &|_| ())?,
                &golden,
            )
        };
        let distance = golden.distance(&on_device(DType::F32)?)?;
        task.within(format!("{} in f32, from transformers", case.name), distance, F32_BOUND)?;
        let options = options(golden.max_model_len, DType::Bf16);
        let cpu = known(load_checkpoint(open()?, &options, &|_| ())?, &golden)?;
        task.beside_cpu(case.name, &on_device(DType::Bf16)?, &cpu)?;
    }
    if !(task.keeps_going)() {
        return Ok(false);
    }
    let (config, len) = WIDE[usize::from(is_tiny)];
    let (gpu, cpu) = wide(&device, config, len)?;
    task.beside_cpu("random weights, wide", &gpu, &cpu)?;
    Ok(true)
}

/// A model of random weights on a device and on the CPU.
fn wide(device: &CudaDevice, config: &str, len: usize) -> Result<(PromptValues, PromptValues)> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("config.json"), config)?;
    let open = || Checkpoint::open(&ModelSource::Dummy { folder: folder.path().into(), seed: 1 });
    let tokens: Vec<u32> = (0..len as u32).map(|at| at * 37 % 197).collect();
    let lengths = [1, 65, len - 1, len];
    let options = options(512, DType::Bf16);
    Ok((
        values(load_on(device, open()?, &options, &|_| ())?, &tokens, &lengths)?,
        values(load_checkpoint(open()?, &options, &|_| ())?, &tokens, &lengths)?,
    ))
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

    /// Compares what a device gives in bf16 with what the CPU does.
    fn beside_cpu(&self, name: &str, gpu: &PromptValues, cpu: &PromptValues) -> Result<()> {
        self.within(format!("{name} in bf16, from the CPU"), furthest(gpu, cpu)?, BF16_BOUND)?;
        self.likeliest(name, gpu, cpu)
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

fn options(max_model_len: u32, dtype: DType) -> LoadOptions {
    LoadOptions {
        dtype: Some(dtype),
        kv_dtype: Some(dtype.into()),
        max_model_len: Some(max_model_len),
        // Every row wants its logits.
        max_num_seqs: Some(STEP_ROWS as u32),
        max_num_batched_tokens: Some(STEP_ROWS as u32),
        max_logprobs: u32::MAX,
        kv: KvBudget::Bytes(16 << 20),
        ..LoadOptions::default()
    }
}

/// Of a golden's prompt.
fn known(model: LoadedModel, golden: &Golden) -> Result<PromptValues> {
    let len = golden.tokens.len();
    let lengths: Vec<usize> =
        golden.lengths().into_iter().filter(|length| *length <= len).collect();
    values(model, &golden.tokens, &lengths)
}

/// A prompt in small chunks, in large ones, and its end token by token.
fn values(mut model: LoadedModel, tokens: &[u32], lengths: &[usize]) -> Result<PromptValues> {
    let len = tokens.len();
    let chunk = |done: usize| match done {
        0 => 33,
        33 => 1,
        done => len.saturating_sub(2 + done).clamp(1, STEP_ROWS),
    };
    let run = PromptRun { prompts: vec![tokens], chunk: &chunk, lengths, last_position_shift: 0 };
    run.run(model.runner.as_mut(), &model.info)?.pop().context("no values")
}

/// The largest distance of any target's log-probability.
fn furthest(got: &PromptValues, want: &PromptValues) -> Result<f32> {
    anyhow::ensure!(got.targets.len() == want.targets.len(), "another number of values");
    let distances = got.targets.iter().zip(&want.targets).map(|(got, want)| (got - want).abs());
    Ok(distances
        .fold(0.0, |worst, next| if next.is_nan() { f32::INFINITY } else { next.max(worst) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_prompts_fit_into_steps() {
        let golden: Golden = serde_json::from_slice(CASES[0].golden).unwrap();
        let folder = CASES[0].folder().unwrap();
        let source = ModelSource::Folder(folder.path().into());
        let options = options(golden.max_model_len, DType::F32);
        let model = load_checkpoint(Checkpoint::open(&source).unwrap(), &options, &|_| ()).unwrap();
        let distance = golden.distance(&known(model, &golden).unwrap()).unwrap();
        assert!(golden.tokens.len() > 5 * STEP_ROWS && distance < F32_BOUND, "{distance}");
    }
}
