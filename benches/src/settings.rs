//! What the command line of a benchmark asks for.

use anyhow::{Context, Result, bail};
use pagoda_kernels::cpu::isa::Isa;
use pagoda_kernels::weight_format::Quantization;

/// `[--threads N] [--isa NAME] [--rounds N] [--quantization FORMAT]`.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Workers of the team; one a core unless asked otherwise.
    pub threads: usize,
    /// Instruction set; the widest there is unless asked otherwise.
    pub isa: Isa,
    /// How often each figure is taken.
    pub rounds: usize,
    /// How weights are quantized, instead of the plain formats.
    pub quantization: Option<Quantization>,
}

impl Settings {
    /// Reads this process's arguments. `rounds` unless asked otherwise.
    pub fn parse(rounds: usize) -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut settings = Settings { threads, isa: Isa::detect(), rounds, quantization: None };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--threads" => settings.threads = value.parse()?,
                "--rounds" => settings.rounds = value.parse()?,
                "--quantization" => {
                    settings.quantization = Some(serde_json::from_value(value.into())?);
                }
                "--isa" => settings.isa = serde_json::from_value(value.into())?,
                _ => bail!("unknown argument {name}"),
            }
        }
        if settings.threads == 0 || settings.rounds == 0 {
            bail!("--threads and --rounds start at 1");
        }
        Ok(settings)
    }
}
