//! Sources become libraries for the emulation, by the host's C++ compiler, once for all processes.
//!
//! Files are found by a hash of all that goes into them and appear by a rename. Whatever a test plants
//! in a source is planted here; how it runs is `emulated`'s.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cuda::emulated::Fault;
use crate::cuda::source::Source;
use crate::error::KernelError;

/// The library of a source, or `only` of one of its kernels, compiled unless one of the same content
/// is there.
pub(crate) fn compile(
    folder: &Path,
    source: &Source,
    fault: Option<Fault>,
    only: Option<&str>,
) -> Result<PathBuf, KernelError> {
    let refused = |what: &str, why: &dyn std::fmt::Display| {
        KernelError::Unsupported(format!("cannot {what} {} for emulation: {why}", source.name))
    };
    let mut texts = texts_of(source);
    if let Some(Fault { from, to }) = fault {
        let place = texts.iter_mut().find(|(_, text)| text.contains(from));
        let (_, text) = place.ok_or_else(|| refused("plant a fault in", &from))?;
        *text = text.replacen(from, to, 1);
    }
    let mut hasher = DefaultHasher::new();
    // A fault mostly costs its compilation, and what is sound mostly runs.
    let optimization = if fault.is_some() { "-O1" } else { "-O2" };
    (&texts, FLAGS, optimization, only).hash(&mut hasher);
    let key = format!("{}-{:016x}", source.name.trim_end_matches(".cu"), hasher.finish());
    let library = folder.join(&key).join("kernels.so");
    if library.exists() {
        return Ok(library);
    }
    let build = folder.join(format!("{key}.{}", std::process::id()));
    let write = |name: &str, text: &str| {
        let path = build.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&build))?;
        std::fs::write(path, text)
    };
    let written = texts.iter().try_for_each(|(name, text)| write(name, text));
    written.map_err(|why| refused("write", &why))?;
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut command = Command::new(&compiler);
    command.args(only.map(|kernel| format!("-DEMULATE_ONLY=\"{kernel}\"")));
    command.arg(optimization).args(FLAGS).args(["-shared", "-o", "kernels.so"]);
    command.arg("-include").arg(standard_headers(folder, &compiler, (&texts, optimization)));
    command.args(["-x", "c++", source.name]);
    command.current_dir(&build);
    let output =
        command.output().map_err(|why| refused("compile", &format!("{compiler}: {why}")))?;
    if !output.status.success() {
        return Err(refused("compile", &String::from_utf8_lossy(&output.stderr)));
    }
    // Another process may have been faster: its library is as good.
    if std::fs::rename(&build, folder.join(&key)).is_err() {
        let _ = std::fs::remove_dir_all(&build);
    }
    Ok(library)
}

/// A file of the standard headers that these texts include, which the compiler has read once for all
/// sources; a compiler that cannot keep what it read reads them again.
fn standard_headers(
    folder: &Path,
    compiler: &str,
    (texts, optimization): (&[(&str, String)], &str),
) -> PathBuf {
    let lines = texts.iter().flat_map(|(_, text)| text.lines());
    let includes: BTreeSet<&str> = lines.filter(|line| line.starts_with("#include <")).collect();
    let text: String = includes.iter().flat_map(|line| [*line, "\n"]).collect();
    let mut hasher = DefaultHasher::new();
    (&text, FLAGS, optimization, compiler).hash(&mut hasher);
    let header = folder.join(format!("standard-{:016x}.h", hasher.finish()));
    let read = header.with_extension("h.gch");
    if !read.exists() {
        let own = folder.join(format!("standard-{}", std::process::id()));
        let _ = std::fs::write(&own, text).and_then(|()| std::fs::rename(&own, &header));
        let mut command = Command::new(compiler);
        command.arg(optimization).args(FLAGS).args(["-x", "c++-header"]).arg(&header);
        let made = command.arg("-o").arg(&own).output();
        if made.is_ok_and(|output| output.status.success()) {
            let _ = std::fs::rename(&own, &read);
        }
    }
    header
}

/// Names and texts of a source and of all that it includes, the source first.
fn texts_of(source: &Source) -> Vec<(&'static str, String)> {
    let texts = std::iter::once(source).chain(source.includes_emulated());
    texts.map(|Source { name, text }| (*name, (*text).to_owned())).collect()
}

/// Of the C++ compiler.
const FLAGS: [&str; 6] = [
    "-std=c++17",
    // Else libraries would share their kernels: a sound one and one with a fault.
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
    "-fPIC",
];
