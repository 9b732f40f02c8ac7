//! What the command line of `gpu` asks for.

use std::path::PathBuf;

use clap::Parser;
use serde::{Deserialize, Serialize};

/// The hardware suite of Pagoda. Ends with 0 when every part asked for ended and was right, 1 when
/// something was wrong, 3 when only the budget left parts undone.
#[derive(Debug, Parser)]
#[command(name = "gpu", version)]
pub struct Arguments {
    /// Lists the parts and ends.
    #[arg(long)]
    pub list: bool,

    /// Parts to run, by name, in this order; all of them unless given.
    #[arg(long, value_delimiter = ',')]
    pub parts: Vec<String>,

    /// Seconds after which no part goes on. A part that is stopped keeps what it found.
    #[arg(long, default_value_t = 540)]
    pub budget_s: u64,

    /// Results are appended here, a line a part.
    #[arg(long, default_value = "gpu.jsonl")]
    pub results: PathBuf,

    /// Goes on where these results end: parts that ended right at the same commit, on the same kind of
    /// device and with the same settings are not run again. Appends here, too.
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,

    /// The commit that this program was built from, where the build could not say.
    #[arg(long)]
    pub commit: Option<String>,

    /// What results depend on.
    #[command(flatten)]
    pub settings: Settings,

    /// Compiles all kernels of the suite for this architecture into this file and ends: with it, named by
    /// `PAGODA_KERNELS`, a machine needs no compiler. Needs NVRTC and no GPU.
    #[arg(long, num_args = 2, value_names = ["ARCH", "FILE"])]
    pub build_kernels: Vec<String>,

    /// Makes the file of what every wrapper gives, on this device, and ends.
    #[arg(long, value_name = "FILE", hide = true)]
    pub write_expectations: Option<PathBuf>,

    /// Runs this part in this process: findings go to standard output.
    #[arg(long, hide = true)]
    pub child: Option<String>,
}

/// What results depend on besides the machine and the commit.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
pub struct Settings {
    /// `emulated`, or a GPU: `cuda:0`.
    #[arg(long, default_value = "cuda:0")]
    pub device: String,

    /// Draws shapes and numbers.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Asks as little of a GPU as of the emulation: to try the program, not the card.
    #[arg(long)]
    pub tiny: bool,
}

impl Settings {
    /// Whether kernels run on the host.
    pub fn is_emulated(&self) -> bool {
        self.device == "emulated"
    }

    /// Whether little is asked: figures mean nothing.
    pub fn is_tiny(&self) -> bool {
        self.tiny || self.is_emulated()
    }
}

impl Arguments {
    /// Where lines go.
    pub fn results(&self) -> &PathBuf {
        self.resume.as_ref().unwrap_or(&self.results)
    }

    /// The commit: said by the build, by the command line, or by the checkout.
    pub fn commit(&self) -> String {
        self.commit.clone().unwrap_or_else(crate::machine::commit)
    }
}
