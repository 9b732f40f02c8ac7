//! The cache on this machine, laid out as all tools of the hub lay it out:
//!
//! ```text
//! models--org--name/blobs/<checksum>               a file's bytes, whole and checked
//! models--org--name/blobs/<checksum>.incomplete    what there is of one so far
//! models--org--name/snapshots/<commit>/<name>      a link to its blob
//! models--org--name/refs/<branch or tag>           the commit that it was
//! .locks/models--org--name/<checksum>.lock         held by whoever downloads it
//! ```
//!
//! Nothing here is ever half there under its own name: files and links appear by a rename.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::error::HubError;
use super::id::{ModelId, Revision, is_commit};
use crate::model::source::safetensors::{INDEX, SINGLE, shards};

/// Models of the hub on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct ModelCache {
    root: PathBuf,
    folder: PathBuf,
    locks: PathBuf,
}

/// A commit of a model, as far as it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// In full.
    pub(crate) commit: String,
    /// Branches and tags that were it when they were downloaded, ascending.
    pub(crate) revisions: Vec<String>,
    /// Its files.
    pub(crate) folder: PathBuf,
}

impl Snapshot {
    /// Bytes of its files; those that other commits share count here, too.
    pub(crate) fn disk_bytes(&self) -> u64 {
        let size = |name: String| fs::metadata(self.folder.join(name)).map_or(0, |of| of.len());
        names_in(&self.folder).into_iter().map(size).sum()
    }
}

impl Cache {
    /// The cache at `root`, which need not exist.
    pub(crate) fn at(root: &Path) -> Self {
        Cache { root: root.to_owned() }
    }

    /// Its models, by name.
    pub(crate) fn models(&self) -> Vec<ModelId> {
        let names = names_in(&self.root);
        let mut models: Vec<_> = names.iter().filter_map(|name| ModelId::of_folder(name)).collect();
        models.sort();
        models
    }

    /// The part of a model.
    pub(crate) fn model(&self, id: &ModelId) -> ModelCache {
        let name = id.folder();
        ModelCache {
            root: self.root.clone(),
            folder: self.root.join(&name),
            locks: self.root.join(".locks").join(name),
        }
    }
}

impl ModelCache {
    /// The whole cache's folder.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// What there is of it, the commits that have a name first.
    pub(crate) fn snapshots(&self) -> Vec<Snapshot> {
        let mut refs = Vec::new();
        collect_refs(&self.folder.join("refs"), "", &mut refs);
        refs.sort();
        let commits = names_in(&self.folder.join("snapshots"));
        let mut snapshots: Vec<Snapshot> = commits
            .into_iter()
            .filter(|commit| is_commit(commit))
            .map(|commit| {
                let named = refs.iter().filter(|(_, of)| *of == commit);
                let revisions = named.map(|(name, _)| name.clone()).collect();
                Snapshot { revisions, folder: self.snapshot(&commit), commit }
            })
            .collect();
        snapshots.sort_by_key(|one| (one.revisions.is_empty(), one.commit.clone()));
        snapshots
    }

    /// Bytes of files that are not whole.
    pub(crate) fn partial_bytes(&self) -> u64 {
        let blobs = self.folder.join("blobs");
        let names = names_in(&blobs).into_iter().filter(|name| name.ends_with(".incomplete"));
        names.map(|name| fs::symlink_metadata(blobs.join(name)).map_or(0, |of| of.len())).sum()
    }

    /// The commit that a revision was when it was last downloaded.
    pub(super) fn commit(&self, revision: &Revision) -> Option<String> {
        if let Some(commit) = revision.as_commit() {
            return Some(commit.to_owned());
        }
        read_ref(&self.folder.join("refs").join(revision.as_str()))
    }

    /// Remembers it. Says nothing if it is known already, so that a cache may be read-only.
    pub(super) fn remember(&self, revision: &Revision, commit: &str) -> Result<(), HubError> {
        let path = self.folder.join("refs").join(revision.as_str());
        if revision.as_commit().is_some() || read_ref(&path).as_deref() == Some(commit) {
            return Ok(());
        }
        appear(&path, |fresh| {
            let mut file = File::create(fresh)?;
            file.write_all(commit.as_bytes())?;
            // Its new name must not be older than what is in it, whatever ends the machine.
            file.sync_all()
        })
    }

    /// The folder of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The file of a checksum.
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.to_string())
    }

    /// Waits until nobody else downloads this blob, and keeps others away until it is dropped.
    pub(super) fn lock(&self, digest: &Digest, name: &str) -> Result<File, HubError> {
        let path = self.locks.join(format!("{digest}.lock"));
        let failed = || HubError::disk(&path);
        fs::create_dir_all(&self.locks).map_err(failed())?;
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(failed())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                tracing::info!(file = name, "another process downloads it: waiting");
                file.lock().map_err(failed())?;
            }
            Err(fs::TryLockError::Error(error)) => return Err(failed()(error)),
        }
        Ok(file)
    }

    /// Puts a blob into a snapshot under its name.
    pub(super) fn link(&self, commit: &str, name: &str, digest: &Digest) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(name);
        let target = PathBuf::from("../../blobs").join(digest.to_string());
        if fs::read_link(&path).is_ok_and(|is| is == target) {
            return Ok(());
        }
        appear(&path, |fresh| std::os::unix::fs::symlink(&target, fresh))
    }
}

/// What a folder lacks to be served, by name; `None` if nothing. Text files are not asked for: which
/// of them a model has only the hub knows.
pub(crate) fn missing(folder: &Path, weights: bool) -> Option<String> {
    let lacks = |name: &&str| !folder.join(name).exists();
    if lacks(&"config.json") {
        return Some("config.json".to_owned());
    }
    let index = folder.join(INDEX);
    match (weights, index.exists()) {
        (false, _) => None,
        (true, false) => Some(SINGLE).filter(lacks).map(str::to_owned),
        (true, true) => match shards(&index) {
            Ok(names) => names.into_iter().find(|name| lacks(&name.as_str())),
            Err(error) => Some(format!("a sound index ({error})")),
        },
    }
}

/// Makes a file or link under another name and renames it, over what was there.
fn appear(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    let fresh = parent.join(format!(".{}.tmp", uuid::Uuid::new_v4().simple()));
    let made = fs::create_dir_all(parent)
        .and_then(|()| make(&fresh))
        .and_then(|()| fs::rename(&fresh, path));
    made.map_err(|cause| {
        // Nothing is lost if it stays.
        let _ = fs::remove_file(&fresh);
        HubError::disk(path)(cause)
    })
}

/// Branches and tags with their commits; names may have slashes.
fn collect_refs(folder: &Path, prefix: &str, refs: &mut Vec<(String, String)>) {
    if prefix.matches('/').count() > REF_DEPTH_MAX {
        return;
    }
    for name in names_in(folder) {
        let path = folder.join(&name);
        let whole = format!("{prefix}{name}");
        match read_ref(&path) {
            Some(commit) => refs.push((whole, commit)),
            None => collect_refs(&path, &format!("{whole}/"), refs),
        }
    }
}

/// `refs/pr/1`, and a little more.
const REF_DEPTH_MAX: usize = 4;

fn read_ref(path: &Path) -> Option<String> {
    let text = crate::model::files::read_bounded(path, 100).ok()?;
    let commit = String::from_utf8(text).ok()?.trim().to_owned();
    is_commit(&commit).then_some(commit)
}

/// Names in a folder that do not begin with a dot; none if it cannot be read.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| !name.starts_with('.')).collect()
}
