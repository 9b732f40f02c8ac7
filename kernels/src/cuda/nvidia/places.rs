//! Where NVIDIA's libraries, built kernels and the cubin cache may lie.
//!
//! The one place of this crate that reads the environment. Opens nothing.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Folders and files of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Searched for libraries before the system's loader is asked.
    pub first: Vec<PathBuf>,
    /// Searched after it. They exist.
    pub folders: Vec<PathBuf>,
    /// Where compiled kernels are kept; `None` keeps none.
    pub cache: Option<PathBuf>,
    /// A file of `pagoda kernels build`.
    pub kernels: Option<PathBuf>,
}

impl Places {
    /// What this process's environment and the usual folders say.
    pub fn of_this_machine(kernels: Option<PathBuf>) -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Places { kernels, ..Self::of(&variable, Path::new("/")) }
    }

    /// The same from variables and below `root`.
    fn of(variable: &dyn Fn(&str) -> Option<OsString>, root: &Path) -> Self {
        let path = |name: &str| variable(name).map(PathBuf::from);
        let list = |name: &str| -> Vec<PathBuf> {
            variable(name).map(|list| std::env::split_paths(&list).collect()).unwrap_or_default()
        };
        let mut folders = vec![
            root.join("usr/local/nvidia/lib64"),
            root.join("usr/lib/wsl/lib"),
            root.join("usr/local/cuda/lib64"),
        ];
        folders.extend(["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|name| path(name)).map(lib64));
        let toolkits = children(&root.join("usr/local"), "cuda-");
        folders.extend(toolkits.into_iter().rev().map(lib64));
        let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| path(name));
        // A Python on the path has its packages beside its own folder.
        let on_path = list("PATH");
        let on_path = on_path.iter().filter_map(|bin| bin.parent().map(Path::to_owned));
        let own = path("HOME").map(|home| home.join(".local"));
        for prefix in environments.chain(on_path).chain(own).chain([root.join("usr/local")]) {
            folders.extend(wheels(&prefix));
        }
        let mut seen = BTreeSet::new();
        folders.retain(|folder| folder.is_dir() && seen.insert(folder.clone()));
        let cache = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
        Places {
            first: list("PAGODA_CUDA_LIB"),
            folders,
            cache: cache.filter(|cache| cache.is_absolute()).map(|c| c.join("pagoda/cubin")),
            kernels: None,
        }
    }
}

fn lib64(toolkit: PathBuf) -> PathBuf {
    toolkit.join("lib64")
}

/// Folders of NVIDIA's wheels below a Python's prefix, and a Conda environment's own libraries.
fn wheels(prefix: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for python in children(&prefix.join("lib"), "python3").into_iter().rev() {
        for packages in ["site-packages", "dist-packages"] {
            let nvidia = python.join(packages).join("nvidia");
            let parts = ["cu13/lib", "cuda_nvrtc/lib", "cublas/lib"];
            folders.extend(parts.map(|part| nvidia.join(part)));
        }
    }
    if prefix.join("conda-meta").is_dir() {
        folders.push(prefix.join("lib"));
    }
    folders
}

/// Paths in `folder` whose names start so, in ascending order.
fn children(folder: &Path, start: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
    let mut paths: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_searched_in_a_fixed_order_and_only_where_there_is_something() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let folder = root.path().join(path);
            std::fs::create_dir_all(&folder).unwrap();
            folder
        };
        let old = make("usr/local/cuda-12.9/lib64");
        let new = make("usr/local/cuda-13.0/lib64");
        let linked = make("usr/local/cuda/lib64");
        let venv = make("venv/lib/python3.12/site-packages/nvidia/cu13/lib");
        let system = make("py/lib/python3.11/dist-packages/nvidia/cuda_nvrtc/lib");
        let variable = |name: &str| {
            let path = |path: &str| Some(root.path().join(path).into_os_string());
            match name {
                "VIRTUAL_ENV" => path("venv"),
                "PATH" => Some(
                    std::env::join_paths(["venv/bin", "py/bin"].map(|p| root.path().join(p)))
                        .unwrap(),
                ),
                "HOME" => path("me"),
                "PAGODA_CUDA_LIB" => Some("/a:/b".into()),
                _ => None,
            }
        };
        let places = Places::of(&variable, root.path());
        assert_eq!(places.folders, [linked, new, old, venv, system]);
        assert_eq!(places.first, [Path::new("/a"), Path::new("/b")]);
        assert_eq!(places.cache, Some(root.path().join("me/.cache/pagoda/cubin")));
    }

    #[test]
    fn without_a_home_nothing_is_kept() {
        let places = Places::of(&|_| None, Path::new("/no/such/root"));
        assert_eq!(places, Places::default());
        let relative = |name: &str| (name == "XDG_CACHE_HOME").then(|| "cache".into());
        assert_eq!(Places::of(&relative, Path::new("/no/such/root")).cache, None);
    }
}
