//! The binary `pagoda`: flags to settings, settings to a served model; and what helps with that.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use pagoda_engine::config::flags::{
    Command, CommandLine, Doctor, Kernels, Models, RENDER, Written,
};
use pagoda_engine::config::hub::HubSettings;
use pagoda_engine::doctor::{describe, try_device};
use pagoda_engine::kernel_file::build_file;
use pagoda_engine::models;
use pagoda_engine::serve::{Stop, chain, serve};
use pagoda_engine::text::Rendering;
use pagoda_engine::text::template::{Program, answer_renderings};
use pagoda_kernels::leave::leave_at_once;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match CommandLine::parse().into_command() {
        Command::Serve(written) => start(*written),
        Command::Doctor(doctor) => examine(doctor),
        Command::Models(Models { json }) => {
            match models::list(&HubSettings::of_environment(), json) {
                Ok(text) => say(text.trim_end()),
                Err(error) => fail(&error, 2),
            }
        }
        Command::Kernels(Kernels::Build { arch, output }) => match build_file(&arch, &output) {
            Ok(line) => say(&line),
            Err(error) => fail(&error, 1),
        },
        // Nobody reads what it would say.
        Command::Render => ExitCode::from(u8::from(answer_renderings().is_err())),
    }
}

fn start(written: Written) -> ExitCode {
    let config = match written.resolve() {
        Ok(config) => config,
        Err(error) => return fail(&error, 2),
    };
    start_logging(config.log_json);
    let rendering = match Program::own(&[RENDER]) {
        Ok(program) => Rendering::Apart(program),
        Err(error) => return fail(&error, 2),
    };
    match serve(config, rendering) {
        Ok(Stop::Clean) => ExitCode::SUCCESS,
        Ok(Stop::Busy) => leave_at_once(0),
        Err(error) => fail(&error, error.exit_code()),
    }
}

/// Tells what there is; fails only if a device was asked for that cannot be used.
fn examine(Doctor { device, kernels }: Doctor) -> ExitCode {
    let is_asked_for = device.is_some();
    let written = Written { device, kernels, ..Written::default() };
    let config = match written.resolve() {
        Ok(config) => config,
        Err(error) => return fail(&error, 2),
    };
    let device = &config.models[0].device;
    let said = say(describe(device.kernels.as_deref()).trim_end());
    if !is_asked_for {
        return said;
    }
    match try_device(device) {
        Ok(line) => say(&line),
        Err(reason) => {
            let _ = writeln!(std::io::stderr(), "pagoda: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) -> ExitCode {
    // Nobody reads it if this fails.
    let _ = writeln!(std::io::stdout(), "{text}");
    ExitCode::SUCCESS
}

/// One line with the whole chain of causes.
fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    // Nobody reads it if this fails.
    let _ = writeln!(std::io::stderr(), "pagoda: {}", chain(error));
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
