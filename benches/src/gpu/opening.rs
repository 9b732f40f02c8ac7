//! What taking a device costs: its code found, loaded, and compiled anew.

use std::time::Instant;

use anyhow::Result;
use pagoda_kernels::cuda::GpuOptions;
use pagoda_kernels::cuda::nvidia::{KernelReport, Places};
use pagoda_kernels::cuda::suite::{Figure, Finding, Note, Suite};

use super::part::Task;

const WHAT: &str = "opening a device";

pub(super) fn run(task: &Task<'_>) -> Result<bool> {
    let settings = task.settings;
    if settings.is_emulated() {
        task.note(Note::not_measured(WHAT, "the emulation loads no code"))?;
        return Ok(true);
    }
    let places = settings.places();
    // The first also starts the driver, and leaves the code where the next finds it.
    let (first, _) = open(task, &places)?;
    task.seconds("opening a device, the first time", first)?;
    let (again, report) = open(task, &places)?;
    task.note(Note { what: WHAT.into(), text: report.to_string() })?;
    task.seconds("opening a device", again)?;
    task.seconds("opening a device: code found", report.took.as_secs_f64())?;
    let modules = report.built + report.cached + report.compiled;
    let loading = again - report.took.as_secs_f64();
    task.seconds("opening a device: code loaded", loading)?;
    task.seconds("opening a device: code loaded, a module", loading / modules.max(1) as f64)?;
    if settings.is_tiny() {
        task.note(Note::not_measured("compiling all kernels", "no tiny size of it"))?;
        return Ok(true);
    }
    let folder = tempfile::tempdir()?;
    let bare = Places { cache: Some(folder.path().into()), kernels: None, ..places };
    match open(task, &bare) {
        Ok((_, report)) => {
            task.seconds("compiling all kernels", report.took.as_secs_f64())?;
            let text = format!("{} of {modules}", report.compiled);
            task.note(Note { what: "compiling all kernels".into(), text })?;
        }
        Err(why) => task.note(Note::not_measured("compiling all kernels", format!("{why:#}")))?,
    }
    Ok(true)
}

/// Seconds, and where the code came from.
fn open(task: &Task<'_>, places: &Places) -> Result<(f64, KernelReport)> {
    let began = Instant::now();
    // A library of products holds the card's context for longer than a device lives: the next one would
    // not be taken anew.
    let gpu = GpuOptions { own_products: true, ..task.settings.gpu_options()? };
    let (device, report) = Suite::open(gpu, places, &|_| ())?;
    let took = began.elapsed().as_secs_f64();
    drop(device);
    Ok((took, report))
}

impl Task<'_> {
    fn seconds(&self, what: &str, seconds: f64) -> Result<()> {
        let finding = Finding::Figure(Figure::one(what.into(), "s", seconds));
        (self.say)(serde_json::to_value(&finding)?, finding.is_right())
    }
}
