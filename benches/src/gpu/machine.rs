//! The device that parts run on, and what machine it is in.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use pagoda_kernels::cuda::nvidia::Places;
use pagoda_kernels::cuda::suite::{Size, Suite};
use pagoda_kernels::cuda::{CudaDevice, GpuOptions};
use serde::{Deserialize, Serialize};

use super::arguments::Settings;

/// Where a part ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The GPU's name, or `emulated`.
    pub gpu: String,
    /// What NVIDIA's tool says before the part, where there is one: driver, clocks, power, heat.
    pub before: Option<String>,
    /// The same after it.
    pub after: Option<String>,
}

/// What is asked of NVIDIA's tool.
const QUERY: &str = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,\
                     temperature.gpu,memory.used,memory.total";

impl Settings {
    /// Opens the device.
    pub fn open(&self) -> Result<CudaDevice> {
        self.open_as(|gpu| gpu)
    }

    /// Opens the device, taken in another way; the emulation has one alone.
    pub(super) fn open_as(&self, way: fn(GpuOptions) -> GpuOptions) -> Result<CudaDevice> {
        if self.is_emulated() {
            return Ok(CudaDevice::emulated(&emulation_folder(), self.seed));
        }
        let opened = Suite::open(way(self.gpu_options()?), &self.places(), &|_| ());
        Ok(opened.with_context(|| format!("{} cannot be used", self.device))?.0)
    }

    /// Which GPU.
    pub(super) fn gpu_options(&self) -> Result<GpuOptions> {
        let index = self.device.strip_prefix("cuda:").and_then(|index| index.parse().ok());
        let index = index.with_context(|| format!("{} is no device", self.device))?;
        Ok(GpuOptions { index, ..GpuOptions::default() })
    }

    /// Where libraries and kernels are. `PAGODA_KERNELS` names a file of built ones.
    pub(super) fn places(&self) -> Places {
        let built = std::env::var_os("PAGODA_KERNELS").filter(|path| !path.is_empty());
        let mut places = Places::of_this_machine(built.map(PathBuf::from));
        // Each part is a process: what one compiled is there for the next.
        places.cache = places.cache.or_else(|| Some(std::env::temp_dir().join("pagoda-cubin")));
        places
    }

    /// How much is asked of it.
    pub fn size(&self) -> Size {
        if self.is_tiny() { Size::Tiny } else { Size::Full }
    }

    /// The GPU's name, without opening it.
    pub fn gpu(&self) -> String {
        if self.is_emulated() {
            return "emulated".into();
        }
        self.ask("name").unwrap_or_else(|| self.device.clone())
    }

    /// Driver, clocks, power and heat, now.
    pub fn state(&self) -> Option<String> {
        if self.is_emulated() { None } else { self.ask(QUERY) }
    }

    fn ask(&self, query: &str) -> Option<String> {
        let index = self.device.strip_prefix("cuda:")?;
        let mut command = Command::new("nvidia-smi");
        command.args(["-i", index, "--format=csv,noheader", &format!("--query-gpu={query}")]);
        let output = command.output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// Compiled kernels are kept beside this program; in a build folder, where its tests keep theirs.
fn emulation_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let built = program.with_file_name("deps");
    if built.is_dir() {
        return built.join("emulated-kernels");
    }
    program.with_file_name("emulated-kernels")
}
