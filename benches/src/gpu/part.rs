//! The parts, in the order of their worth, and what each does.

use anyhow::Result;
use pagoda_kernels::cuda::suite::{self, Suite};

use super::arguments::Settings;
use super::child::Message;
use super::{demo, engine, goldens};

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
    /// Says what was found, and whether it is right.
    pub(super) say: &'a dyn Fn(serde_json::Value, bool) -> Result<()>,
}

/// What every kernel includes.
const BASE: [&str; 2] = ["kernels/cuda/prelude.cuh", "kernels/cuda/ptx.cuh"];
const KERNELS: [&str; 2] = ["kernels/cuda", "kernels/src/cuda"];
const ENGINE: [&str; 3] = ["kernels/cuda", "kernels/src/cuda", "engine/src"];

/// All of them. Correctness comes before speed: a fast kernel that is wrong is worth nothing.
pub static PARTS: [Part; 8] = [
    Part {
        name: "wrappers",
        about: "each PTX wrapper against the emulation: bit for bit, or within a stated bound",
        code: &BASE,
        seconds: 5,
        run: |task| task.suite(suite::Part::Wrappers),
    },
    Part {
        name: "ops",
        about: "random shapes of each op against float64",
        code: &KERNELS,
        seconds: 60,
        run: |task| task.suite(suite::Part::Ops),
    },
    Part {
        name: "ceilings",
        about: "this card's own: read, copy, matrix and multiply-add rates, the cost of a launch",
        code: &["kernels/cuda/suite_ceilings.cu"],
        seconds: 10,
        run: |task| task.suite(suite::Part::Ceilings),
    },
    Part {
        name: "kernels",
        about: "each kernel's share of the ceilings over the shapes of 1B, 8B and 32B models",
        code: &KERNELS,
        seconds: 90,
        run: |task| task.suite(suite::Part::Kernels),
    },
    Part {
        name: "goldens",
        about: "log-probabilities of each family against transformers, and against the CPU in bf16",
        code: &ENGINE,
        seconds: 60,
        run: goldens::run,
    },
    Part {
        name: "demo",
        about: "the built-in model's answers against the CPU's",
        code: &ENGINE,
        seconds: 20,
        run: demo::run,
    },
    Part {
        name: "llama-8b",
        about: "the engine at Llama-3.1-8B's shape: tokens/s at 1 to 256 requests, TTFT, start-up",
        code: &ENGINE,
        seconds: 120,
        run: |task| engine::run(task, &engine::LLAMA_8B),
    },
    Part {
        name: "qwen3-30b-a3b",
        about: "the same at Qwen3-30B-A3B's shape",
        code: &ENGINE,
        seconds: 180,
        run: |task| engine::run(task, &engine::QWEN3_30B_A3B),
    },
];

/// The part of a name.
pub fn find(name: &str) -> Option<&'static Part> {
    PARTS.iter().find(|part| part.name == name)
}

impl Part {
    /// Runs it in this process and says what it finds on standard output.
    pub fn run(&self, settings: &Settings, keeps_going: &dyn Fn() -> bool) -> Result<()> {
        let say = |what, right| Message::Finding { what, right }.say();
        let task = Task { settings, keeps_going, say: &say };
        let end = match (self.run)(&task) {
            Ok(all) => Message::End { all },
            Err(error) => Message::Error { text: format!("{error:#}") },
        };
        end.say()
    }
}

impl Task<'_> {
    fn suite(&self, part: suite::Part) -> Result<bool> {
        let device = self.settings.open()?;
        let suite = Suite::new(&device, self.settings.size(), self.settings.seed);
        let mut failed = None;
        let ended = suite.run(part, self.keeps_going, &mut |finding| {
            let said = serde_json::to_value(&finding)
                .map_err(anyhow::Error::from)
                .and_then(|what| (self.say)(what, finding.is_right()));
            failed = failed.take().or_else(|| said.err());
        })?;
        failed.map_or(Ok(ended), Err)
    }
}
