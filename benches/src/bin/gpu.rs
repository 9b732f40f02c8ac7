//! The hardware suite: one command on a machine with a GPU, or under emulation without.
//!
//! `gpu [--parts a,b] [--budget-s N] [--resume FILE]`; `gpu --list` says what there is. Each part runs
//! in a process of its own and leaves a line of JSON in the results when it ends.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use pagoda_benches::gpu::arguments::Arguments;
use pagoda_benches::gpu::conductor::{Conductor, Tally};
use pagoda_benches::gpu::part::{self, PARTS, Part};
use pagoda_kernels::cuda::nvidia::Places;
use pagoda_kernels::cuda::suite::Suite;

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(path) = &arguments.write_expectations {
        let settings = &arguments.settings;
        let suite = Suite::new(&settings.open()?, settings.size(), settings.seed);
        std::fs::write(path, suite.expectations()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let [arch, path] = &arguments.build_kernels[..] {
        let places = Places::of_this_machine(None);
        let (bytes, report) = Suite::build_kernels(arch.parse()?, &places)?;
        std::fs::write(path, bytes)?;
        tell(&format!("{path}: {} sources for {arch}, {} bytes", report.sources, report.bytes));
        return Ok(ExitCode::SUCCESS);
    }
    let deadline = Instant::now() + Duration::from_secs(arguments.budget_s);
    if let Some(name) = &arguments.child {
        let part = part::find(name).with_context(|| format!("no part is named {name}"))?;
        part.run(&arguments.settings, deadline)?;
        return Ok(ExitCode::SUCCESS);
    }
    conduct(&arguments, deadline)
}

fn conduct(arguments: &Arguments, deadline: Instant) -> Result<ExitCode> {
    let named = arguments.parts.iter().map(|name| {
        part::find(name).with_context(|| format!("no part is named {name}; --list has them"))
    });
    let mut parts: Vec<&Part> = named.collect::<Result<_>>()?;
    if parts.is_empty() {
        parts = PARTS.iter().collect();
    }
    let program = std::env::current_exe()?;
    let settings = &arguments.settings;
    let process = |part: &Part, time: Duration| {
        let mut command = Command::new(&program);
        command.args(["--child", part.name, "--device", &settings.device]);
        command.args(["--seed", &settings.seed.to_string()]);
        command.args(settings.tiny.then_some("--tiny"));
        command.args(["--budget-s", &time.as_secs().to_string()]);
        command
    };
    let conductor = Conductor {
        results: arguments.results(),
        commit: &arguments.commit(),
        settings,
        deadline,
        process: &process,
        tell: &tell,
    };
    let Tally { right, wrong, left } = conductor.run(&parts)?;
    tell(&format!("{right} right, {wrong} wrong, {left} left"));
    Ok(ExitCode::from(match (wrong, left) {
        (0, 0) => 0,
        (0, _) => 3,
        _ => 1,
    }))
}

fn list() {
    for part in &PARTS {
        tell(&format!("{:17} about {:3} s  {}", part.name, part.seconds, part.about));
    }
}

#[expect(clippy::print_stdout, reason = "the result of this program")]
fn tell(text: &str) {
    println!("{text}");
}
