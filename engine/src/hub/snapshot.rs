//! From what a person wrote after `--model` to a folder: one that is there, one of the cache, or one
//! of the cache once what it lacks was downloaded.
//!
//! Small files come first: a configuration that cannot be served is told before hours go into its
//! weights. What the network refuses is served from the cache if it is whole there.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::cache::{Cache, ModelCache, missing};
use super::error::HubError;
use super::fetch::{Download, Wanted};
use super::id::{ModelId, Revision};
use super::listing::{Entry, Listing};
use super::patience::{Patience, Tries};
use super::progress::Progress;
use super::remote::{Asked, Remote};
use crate::config::hub::HubSettings;
use crate::model::config::read_config;
use crate::model::files::read_bounded;
use crate::model::source::safetensors::{INDEX, SINGLE, shards};

/// What is wanted of the hub.
pub struct Wish<'a> {
    /// As a person wrote it: a folder, or `org/name`.
    pub model: &'a Path,
    /// Branch, tag or commit; `main` if none is named.
    pub revision: Option<&'a str>,
    /// Whether the weights are read, too.
    pub weights: bool,
}

/// The folder of a model, all of whose files that are read are there.
pub fn resolve(wish: &Wish<'_>, settings: &HubSettings) -> Result<PathBuf, HubError> {
    resolve_patiently(wish, settings, &Patience::default())
}

/// The same with other limits of time.
pub(super) fn resolve_patiently(
    wish: &Wish<'_>,
    settings: &HubSettings,
    patience: &Patience,
) -> Result<PathBuf, HubError> {
    let refuse = |reason: String| HubError::Setting { setting: "revision", reason };
    let id = wish.model.to_str().and_then(ModelId::parse);
    let id = match id {
        Some(id) if !wish.model.is_dir() => id,
        id => {
            if wish.revision.is_some() {
                let place = wish.model.display();
                return Err(refuse(format!("is for models of the hub, and {place} is a folder")));
            }
            if id.is_some() {
                let folder = wish.model.display();
                tracing::info!("{folder} is a folder here: no model of the hub is looked for");
            }
            return Ok(wish.model.to_owned());
        }
    };
    let written = wish.revision.unwrap_or("main");
    let revision = Revision::parse(written)
        .ok_or_else(|| refuse(format!("{written:?} is no branch, tag or commit")))?;
    let root = settings.cache.as_deref().ok_or(HubError::NoCache)?;
    let cache = Cache::at(root).model(&id);
    Model { id, revision, cache, weights: wish.weights }.folder(settings, patience)
}

/// A model of the hub that is to be had.
struct Model {
    id: ModelId,
    revision: Revision,
    cache: ModelCache,
    weights: bool,
}

impl Model {
    fn folder(&self, settings: &HubSettings, patience: &Patience) -> Result<PathBuf, HubError> {
        let commit = self.cache.commit(&self.revision);
        let cached = commit.map(|commit| self.cache.snapshot(&commit));
        let lack = match &cached {
            Some(folder) => missing(folder, self.weights),
            None => Some("the whole of it".to_owned()),
        };
        match (&cached, lack) {
            // What a commit names does not change: nobody has to be asked.
            (Some(folder), None) if self.revision.as_commit().is_some() => Ok(folder.clone()),
            (Some(folder), None) if settings.offline => Ok(folder.clone()),
            (Some(folder), None) => {
                let moved = self.listing(settings, &patience.short());
                moved.and_then(|listing| self.fetch(&listing, settings, patience)).or_else(
                    |error| {
                        tracing::warn!(%error, "what was downloaded earlier is used");
                        Ok(folder.clone())
                    },
                )
            }
            (_, Some(missing)) if settings.offline => Err(HubError::NotCached {
                id: self.id.to_string(),
                revision: self.revision.to_string(),
                cache: self.cache.root().to_owned(),
                missing,
            }),
            (_, _) => self.fetch(&self.listing(settings, patience)?, settings, patience),
        }
    }

    /// Asks the hub what there is.
    fn listing(&self, settings: &HubSettings, patience: &Patience) -> Result<Listing, HubError> {
        let remote = Remote::new(settings, patience)?;
        let asked = Asked { id: &self.id, revision: &self.revision, file: None };
        Tries::of(self.id.to_string(), patience).run(|| remote.listing(asked))
    }

    /// Fetches what is not in the cache.
    fn fetch(
        &self,
        listing: &Listing,
        settings: &HubSettings,
        patience: &Patience,
    ) -> Result<PathBuf, HubError> {
        let remote = Remote::new(settings, patience)?;
        let fetch = Fetch { model: self, remote: &remote, patience, listing };
        let folder = self.cache.snapshot(&listing.commit);
        let mut small = listing.small();
        if self.weights {
            small.extend(listing.find(INDEX));
        }
        fetch.all(&small, SMALL_BYTES_MAX)?;
        self.refuse_unusable(&folder)?;
        if self.weights {
            fetch.all(&self.weight_files(listing, &folder)?, u64::MAX)?;
        }
        self.cache.remember(&self.revision, &listing.commit)?;
        Ok(folder)
    }

    /// Refuses a configuration that no weights could make useful.
    fn refuse_unusable(&self, folder: &Path) -> Result<(), HubError> {
        let path = folder.join("config.json");
        let Ok(bytes) = read_bounded(&path, CONFIG_BYTES_MAX) else {
            return Err(HubError::NoFile { id: self.id.to_string(), file: "config.json".into() });
        };
        let read = read_config("config.json", &bytes);
        read.map(drop).map_err(|source| HubError::Unusable { id: self.id.to_string(), source })
    }

    /// The files with weights that a load will open.
    fn weight_files<'a>(
        &self,
        listing: &'a Listing,
        folder: &Path,
    ) -> Result<Vec<&'a Entry>, HubError> {
        let id = || self.id.to_string();
        if listing.find(INDEX).is_some() {
            let names = shards(&folder.join(INDEX))
                .map_err(|error| HubError::NoWeights { id: id(), found: error.to_string() })?;
            let find = |file: String| {
                listing.find(&file).ok_or_else(|| HubError::NoFile { id: id(), file })
            };
            return names.into_iter().map(find).collect();
        }
        let none = || HubError::NoWeights { id: id(), found: listing.weight_formats() };
        Ok(vec![listing.find(SINGLE).ok_or_else(none)?])
    }
}

/// More than a load reads of any file but weights.
const SMALL_BYTES_MAX: u64 = 256 << 20;

/// As large as a load reads one.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// A download of a model at a commit.
struct Fetch<'a> {
    model: &'a Model,
    remote: &'a Remote,
    patience: &'a Patience,
    listing: &'a Listing,
}

impl Fetch<'_> {
    /// Fetches these files of at most `bytes_max` each, some at a time.
    fn all(&self, entries: &[&Entry], bytes_max: u64) -> Result<(), HubError> {
        let files = entries.iter().map(|entry| self.wanted(entry));
        let files = files.collect::<Result<Vec<Wanted>, HubError>>()?;
        self.refuse_too_large(&files, bytes_max)?;
        let cache = &self.model.cache;
        let (there, new): (Vec<_>, Vec<_>) = files.iter().partition(|file| file.is_there(cache));
        // Sizes are a server's words: they may come to more than any number.
        let sizes = new.iter().map(|file| file.content.size);
        let total = sizes.fold(0, u64::saturating_add);
        self.refuse_more_than_fits(&new, total)?;
        let (progress, failed) = (Progress::of(total), OnceLock::new());
        let download = Download {
            remote: self.remote,
            patience: self.patience,
            cache,
            id: &self.model.id,
            revision: &self.model.revision,
            commit: &self.listing.commit,
            progress: &progress,
            failed: &failed,
        };
        there.into_iter().try_for_each(|file| download.fetch(file))?;
        fetch_some_at_a_time(&download, &new);
        drop(progress);
        match failed.into_inner() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Refuses a file that nobody would read, before it is fetched.
    fn refuse_too_large(&self, files: &[Wanted], bytes_max: u64) -> Result<(), HubError> {
        match files.iter().find(|file| file.content.size > bytes_max) {
            None => Ok(()),
            Some(Wanted { name, content }) => Err(HubError::Answer {
                hub: self.remote.endpoint().to_owned(),
                what: format!("{name} of {}", self.model.id),
                why: format!("it has {} bytes, more than are read of it", content.size),
            }),
        }
    }

    /// What a file must be; the hub is asked if its list does not say.
    fn wanted(&self, entry: &Entry) -> Result<Wanted, HubError> {
        let name = entry.name.clone();
        let content = match &entry.content {
            Some(content) => content.clone(),
            None => {
                let Model { id, revision, .. } = self.model;
                let asked = Asked { id, revision, file: Some(&name) };
                let tries = Tries::of(format!("{name} of {id}"), self.patience);
                tries.run(|| self.remote.content(asked, &self.listing.commit))?
            }
        };
        Ok(Wanted { name, content })
    }

    /// Tells that a disk is too small before it is full.
    fn refuse_more_than_fits(&self, new: &[&Wanted], total: u64) -> Result<(), HubError> {
        if new.is_empty() {
            return Ok(());
        }
        let Model { id, cache, .. } = self.model;
        let place = cache.root();
        std::fs::create_dir_all(place).map_err(HubError::disk(place))?;
        let of = rustix::fs::statvfs(place).map_err(|error| HubError::disk(place)(error.into()))?;
        let there = new.iter().map(|file| file.bytes_there(cache)).sum();
        let (needed, free) = (total.saturating_sub(there), of.f_bavail.saturating_mul(of.f_frsize));
        tracing::info!(
            model = %id, revision = %self.model.revision, from = self.remote.endpoint(),
            files = new.len(), bytes = crate::memory::gib(needed), "downloading"
        );
        if needed <= free {
            return Ok(());
        }
        Err(HubError::NoRoom { id: id.to_string(), needed, free, place: place.to_owned() })
    }
}

/// Files that are fetched at a time: one connection seldom fills a line.
const FILES_AT_A_TIME: usize = 4;

fn fetch_some_at_a_time(download: &Download<'_>, files: &[&Wanted]) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            if download.failed.get().is_some() {
                return;
            }
            if let Err(error) = download.fetch(file) {
                // The first reason is the one that is told.
                let _ = download.failed.set(error);
            }
        }
    };
    std::thread::scope(|scope| {
        (0..FILES_AT_A_TIME.min(files.len())).for_each(|_| {
            scope.spawn(work);
        });
    });
}
