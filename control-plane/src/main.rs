//! The binary `pagoda-control`: a command, its exit code and one line if it was not done.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use pagoda_control::command::CommandLine;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let line = CommandLine::parse();
    start_logging();
    match line.run() {
        Ok(told) => {
            if !told.is_empty() {
                // Nobody reads it if this fails.
                let _ = writeln!(std::io::stdout(), "{told}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "pagoda-control: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Lines on stderr; the filter comes from PAGODA_LOG.
fn start_logging() {
    let filter = EnvFilter::try_from_env("PAGODA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
}
