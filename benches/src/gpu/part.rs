//! The parts, in the order of their worth, and what each does.

use std::time::{Duration, Instant};

use anyhow::Result;
use pagoda_kernels::cuda::suite::{self, Suite};
use pagoda_kernels::cuda::{CudaDevice, GpuOptions};
use pagoda_kernels::weight_format::Quantization;

use super::arguments::Settings;
use super::child::Message;
use super::{demo, engine, goldens, opening, peers, sanitizer, ways};

/// One part of the suite.
pub struct Part {
    /// Its name on the command line and in results.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Files and folders that its findings speak of.
    pub code: &'static [&'static str],
    /// Seconds that it takes on an H200 or so, guessed until measured; without as many left it is not
    /// begun.
    pub seconds: u64,
    /// Says what it finds; returns whether it came to its end.
    run: fn(&Task<'_>) -> Result<bool>,
}

/// What a part is given.
pub(super) struct Task<'a> {
    pub(super) settings: &'a Settings,
    /// Whether there is time for more.
    pub(super) keeps_going: &'a dyn Fn() -> bool,
    /// When there is none.
    pub(super) deadline: Instant,
    /// Says what was found, and whether it is right.
    pub(super) say: &'a dyn Fn(serde_json::Value, bool) -> Result<()>,
}

/// What every kernel includes.
const BASE: [&str; 2] = ["kernels/cuda/prelude.cuh", "kernels/cuda/ptx.cuh"];
const HOPPER: [&str; 2] = ["kernels/cuda/ptx90.cuh", "kernels/cuda/suite_hopper.cu"];
const CEILINGS: [&str; 2] = ["kernels/cuda/suite_ceilings.cu", HOPPER[1]];
const COSTS: [&str; 2] = ["kernels/cuda/suite_ceilings.cu", DRIVER[0]];
const DRIVER: [&str; 1] = ["kernels/src/cuda/nvidia"];
const KERNELS: [&str; 2] = ["kernels/cuda", "kernels/src/cuda"];
const ENGINE: [&str; 3] = ["kernels/cuda", "kernels/src/cuda", "engine/src"];

const PEERS: [&str; 2] = ["benches/peers", "kernels/src/cuda/suite/shapes.rs"];

const fn part(
    (name, seconds): (&'static str, u64),
    about: &'static str,
    code: &'static [&'static str],
    run: fn(&Task<'_>) -> Result<bool>,
) -> Part {
    Part { name, about, code, seconds, run }
}

/// All of them. Correctness comes before speed: a fast kernel that is wrong is worth nothing. Peers come
/// last.
pub static PARTS: [Part; 23] = [
    part(
        ("wrappers", 5),
        "each PTX wrapper against the emulation: bit for bit, or within a stated bound",
        &BASE,
        |task| task.suite(suite::Part::Wrappers),
    ),
    part(
        ("hopper", 10),
        "Hopper's own instructions against what they are defined to do, drawn at random",
        &HOPPER,
        |task| task.suite(suite::Part::Hopper),
    ),
    part(
        ("ops", 90),
        "random shapes of each op against float64, and each of Hopper's kernels",
        &KERNELS,
        |task| task.suite(suite::Part::Ops),
    ),
    part(
        ("library", 20),
        "products by cuBLASLt in every way it offers, and in the one that a start finds, against float64",
        &KERNELS,
        |task| task.suite(suite::Part::Library),
    ),
    part(
        ("ceilings", 10),
        "this card's own: read, copy, matrix and multiply-add rates, the cost of a launch",
        &CEILINGS,
        |task| task.suite(suite::Part::Ceilings),
    ),
    part(
        ("goldens", 60),
        "log-probabilities of each family against transformers, and against the CPU in bf16",
        &ENGINE,
        goldens::run,
    ),
    part(
        ("demo", 25),
        "the built-in model's answers against the CPU's; deterministic, alone and in a crowd",
        &ENGINE,
        demo::run,
    ),
    part(
        ("kernels", 50),
        "each kernel's share of the ceilings over the shapes of 1B, 8B and 32B models, in bf16",
        &KERNELS,
        |task| task.suite(suite::Part::Kernels),
    ),
    part(
        ("formats", 70),
        "the same in f16 and f32, over an fp8 cache, deterministic, as on a smaller card",
        &KERNELS,
        |task| task.suite(suite::Part::Formats),
    ),
    part(
        ("llama-8b", 120),
        "the engine at Llama-3.1-8B's shape: start-up, then tokens/s, TTFT, ITL and steps at 1 to 256",
        &ENGINE,
        |task| engine::run(task, &engine::LLAMA_8B, None),
    ),
    part(("qwen3-30b-a3b", 150), "the same at Qwen3-30B-A3B's shape", &ENGINE, |task| {
        engine::run(task, &engine::QWEN3_30B_A3B, None)
    }),
    part(
        ("costs", 15),
        "nodes of graphs with an early start and one by one, copies from and to the host, marks",
        &COSTS,
        |task| task.costs(),
    ),
    part(
        ("opening", 30),
        "a device taken: code found, loaded, compiled anew",
        &DRIVER,
        opening::run,
    ),
    part(
        ("sampling", 15),
        "the same as kernels for sampling over vocabularies",
        &KERNELS,
        |task| task.suite(suite::Part::Sampling),
    ),
    part(("experts", 15), "the same for routing and the products of experts", &KERNELS, |task| {
        task.suite(suite::Part::Experts)
    }),
    part(("quantized", 60), "the same for q8_0, q4_0 and fp8, of packed bytes", &KERNELS, |task| {
        task.suite(suite::Part::Quantized)
    }),
    part(
        ("ways", 150),
        "Llama-3.1-8B's shape as it is, deterministic, kernels one by one, without cuBLASLt",
        &ENGINE,
        |task| ways::run(task, &engine::LLAMA_8B),
    ),
    part(("llama-8b-q8_0", 90), "llama-8b with weights in q8_0", &ENGINE, |task| {
        engine::run(task, &engine::LLAMA_8B, Some(Quantization::Q8_0))
    }),
    part(("llama-8b-fp8", 90), "llama-8b with weights in fp8", &ENGINE, |task| {
        engine::run(task, &engine::LLAMA_8B, Some(Quantization::Fp8))
    }),
    part(
        ("sanitizer", 120),
        "compute-sanitizer over tiny shapes: memory, races, barriers",
        &KERNELS,
        sanitizer::run,
    ),
    part(
        ("peer-cublaslt", 90),
        "the best of sixteen algorithms of cuBLASLt at the products of kernels",
        &PEERS,
        |task| peers::run(task, &peers::CUBLASLT),
    ),
    part(
        ("peer-attention", 120),
        "cuDNN's attention and flex_attention of PyTorch at the steps of kernels",
        &PEERS,
        |task| peers::run(task, &peers::ATTENTION),
    ),
    part(
        ("peer-transformers", 150),
        "transformers' continuous batching at Llama-3.1-8B's shape: a weak peer",
        &PEERS,
        |task| peers::run(task, &peers::TRANSFORMERS),
    ),
];

/// The part of a name.
pub fn find(name: &str) -> Option<&'static Part> {
    PARTS.iter().find(|part| part.name == name)
}

impl Part {
    /// Runs it in this process until `deadline` and says what it finds on standard output.
    pub fn run(&self, settings: &Settings, deadline: Instant) -> Result<()> {
        let say = |what, right| Message::Finding { what, right }.say();
        let keeps_going = || Instant::now() < deadline;
        let task = Task { settings, keeps_going: &keeps_going, deadline, say: &say };
        let end = match (self.run)(&task) {
            Ok(all) => Message::End { all },
            Err(error) => Message::Error { text: format!("{error:#}") },
        };
        end.say()
    }
}

impl Task<'_> {
    /// Time for more.
    pub(super) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Costs, and where the device can do otherwise once more with kernels one by one.
    fn costs(&self) -> Result<bool> {
        let ended = self.suite(suite::Part::Costs)?;
        if !ended || self.settings.is_emulated() {
            return Ok(ended);
        }
        let device = self.settings.open_as(|gpu| GpuOptions { one_by_one: true, ..gpu })?;
        let say = |what, right| (self.say)(prefixed(what, "one by one: "), right);
        Task { say: &say, ..*self }.suite_on(&device, suite::Part::Costs)
    }

    fn suite(&self, part: suite::Part) -> Result<bool> {
        self.suite_on(&self.settings.open()?, part)
    }

    fn suite_on(&self, device: &CudaDevice, part: suite::Part) -> Result<bool> {
        let suite = Suite::new(device, self.settings.size(), self.settings.seed);
        let mut failed = None;
        // Nobody listens any more if it cannot be said, which the next finding tells.
        let begins = |case: &str| drop(Message::Case { text: case.to_owned() }.say());
        let ended = suite.run(part, self.keeps_going, &begins, &mut |finding| {
            let said = serde_json::to_value(&finding)
                .map_err(anyhow::Error::from)
                .and_then(|what| (self.say)(what, finding.is_right()));
            failed = failed.take().or_else(|| said.err());
        })?;
        failed.map_or(Ok(ended), Err)
    }
}

/// A finding whose name begins with `prefix`.
pub(super) fn prefixed(mut finding: serde_json::Value, prefix: &str) -> serde_json::Value {
    for kind in ["figure", "check", "note"] {
        let what = finding.get_mut(kind).and_then(|found| found.get_mut("what"));
        if let Some(serde_json::Value::String(what)) = what {
            what.insert_str(0, prefix);
        }
    }
    finding
}
