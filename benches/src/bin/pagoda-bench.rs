//! The binary `pagoda-bench`: what a server does under load, as its clients see it.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use pagoda_benches::serve::arguments::{Command, CommandLine};
use pagoda_benches::serve::plan::Plan;
use pagoda_benches::serve::run;

fn main() -> ExitCode {
    let Command::Serve(arguments) = CommandLine::parse().command;
    let api_key = std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty());
    let plan = match Plan::new(*arguments, api_key) {
        Ok(plan) => plan,
        Err(error) => return fail(&error, 2),
    };
    match measure(&plan) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error, 1),
    }
}

fn measure(plan: &Plan) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(plan, &mut std::io::stdout()))
}

/// One line with the whole chain of causes.
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    // Nobody reads it if this fails.
    let _ = writeln!(std::io::stderr(), "pagoda-bench: {error:#}");
    ExitCode::from(code)
}
