//! The binary `pagoda`: flags to settings, settings to a served model.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use pagoda_engine::config::flags::CommandLine;
use pagoda_engine::serve::serve;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let config = match CommandLine::parse().into_written().resolve() {
        Ok(config) => config,
        Err(error) => return fail(&error, 2),
    };
    start_logging(config.log_json);
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, error.exit_code()),
    }
}

/// One line with the whole chain of causes.
fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    let mut line = format!("pagoda: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        let told = inner.to_string();
        // Some errors already say what their cause says.
        if !line.ends_with(&told) && !line.contains(&told) {
            line.push_str(": ");
            line.push_str(&told);
        }
        cause = inner.source();
    }
    // Nobody reads it if this fails.
    let _ = writeln!(std::io::stderr(), "{line}");
    ExitCode::from(code)
}

/// Lines on stderr; the filter comes from PAGODA_LOG.
fn start_logging(json: bool) {
    let filter = EnvFilter::try_from_env("PAGODA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if json { lines.json().flatten_event(true).init() } else { lines.with_target(false).init() }
}
