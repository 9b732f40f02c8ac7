//! `pagoda kernels build`: all GPU kernels in one file, for machines that have the driver alone.
//!
//! Runs by itself, without a model and without a GPU.

use std::path::{Path, PathBuf};

use pagoda_kernels::cuda::nvidia::{Arch, Places, build};
use pagoda_kernels::error::KernelError;

use crate::memory::gib;

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No compiler, or sources that it refuses.
    #[error(transparent)]
    Kernels(#[from] KernelError),
    /// The file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Compiles for `archs` into `output`, which appears whole or not at all. Gives a line that says so.
pub fn build_file(archs: &[Arch], output: &Path) -> Result<String, BuildError> {
    let mut archs = archs.to_vec();
    archs.sort();
    archs.dedup();
    let (bytes, report) = build(&archs, &Places::of_this_machine(None))?;
    write_whole(output, &bytes)
        .map_err(|source| BuildError::Write { path: output.into(), source })?;
    let names: Vec<String> = archs.iter().map(Arch::to_string).collect();
    let (major, minor) = report.compiler;
    Ok(format!(
        "{}: {} sources for {}, {}, compiled by NVRTC {major}.{minor} in {:.1} s",
        output.display(),
        report.sources,
        names.join(" and "),
        gib(report.bytes as u64),
        report.took.as_secs_f32()
    ))
}

fn write_whole(output: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut temporary = output.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written =
        std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, output));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}
