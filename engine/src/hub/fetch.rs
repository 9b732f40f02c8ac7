//! One file into the cache: what is there already is hashed and kept, the rest is asked for, as
//! often as it takes, and only what has its checksum gets its name.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::cache::ModelCache;
use super::digest::Hasher;
use super::error::HubError;
use super::id::{ModelId, Revision};
use super::listing::Content;
use super::patience::{Failure, Patience, Tries};
use super::progress::Progress;
use super::remote::{Asked, Remote};

/// What all files of a download have in common.
pub(super) struct Download<'a> {
    pub(super) remote: &'a Remote,
    pub(super) patience: &'a Patience,
    pub(super) cache: &'a ModelCache,
    pub(super) id: &'a ModelId,
    pub(super) revision: &'a Revision,
    pub(super) commit: &'a str,
    pub(super) progress: &'a Progress,
    /// Why it ends early; other files then end where they are.
    pub(super) failed: &'a OnceLock<HubError>,
}

/// A file to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// A plain name.
    pub(super) name: String,
    /// What it must be.
    pub(super) content: Content,
}

impl Wanted {
    /// Whether its bytes are in the cache. A blob of another size is none.
    pub(super) fn is_there(&self, cache: &ModelCache) -> bool {
        let blob = cache.blob(&self.content.digest);
        fs::metadata(blob).is_ok_and(|of| of.is_file() && of.len() == self.content.size)
    }

    /// Bytes of it that an earlier start left.
    pub(super) fn bytes_there(&self, cache: &ModelCache) -> u64 {
        let partial = partial_path(&cache.blob(&self.content.digest));
        fs::symlink_metadata(partial).map_or(0, |of| of.len().min(self.content.size))
    }
}

impl Download<'_> {
    /// Fetches a file, and puts it into the snapshot.
    pub(super) fn fetch(&self, file: &Wanted) -> Result<(), HubError> {
        let Wanted { name, content } = file;
        if !file.is_there(self.cache) {
            let _lock = self.cache.lock(&content.digest, name)?;
            // Whoever had the lock before may have brought it.
            match file.is_there(self.cache) {
                true => self.progress.found(content.size),
                false => self.fetch_locked(file)?,
            }
        }
        if self.failed.get().is_some() {
            return Ok(());
        }
        self.cache.link(self.commit, name, &content.digest)
    }

    fn fetch_locked(&self, file: &Wanted) -> Result<(), HubError> {
        let blob = self.cache.blob(&file.content.digest);
        for _ in 0..2 {
            let mut partial = Partial::open(&blob, &file.content)?;
            self.progress.found(partial.len);
            self.fill(&mut partial, file)?;
            if self.failed.get().is_some() {
                return Ok(());
            }
            if partial.hasher.digest() == file.content.digest {
                return partial.keep(&blob);
            }
            self.progress.lost(partial.len);
            partial.discard()?;
            tracing::warn!(file = file.name, "it does not have its checksum: deleted");
        }
        Err(HubError::Damaged { id: self.id.to_string(), file: file.name.clone() })
    }

    /// Asks for what is missing until nothing is.
    fn fill(&self, partial: &mut Partial, file: &Wanted) -> Result<(), HubError> {
        let mut tries = Tries::of(format!("{} of {}", file.name, self.id), self.patience);
        while partial.len < file.content.size && self.failed.get().is_none() {
            let before = partial.len;
            if let Err(failure) = self.fill_once(partial, file) {
                if partial.len > before {
                    tries.forget();
                }
                tries.pause_after(failure, || self.failed.get().is_some())?;
            }
        }
        Ok(())
    }

    fn fill_once(&self, partial: &mut Partial, file: &Wanted) -> Result<(), Failure> {
        let asked = Asked { id: self.id, revision: self.revision, file: Some(&file.name) };
        let (begins, mut body) = self.remote.bytes(asked, self.commit, partial.len)?;
        if begins == 0 && partial.len > 0 {
            self.progress.lost(partial.len);
            partial.restart()?;
        }
        let mut piece = vec![0; PIECE_BYTES];
        while partial.len < file.content.size && self.failed.get().is_none() {
            let got = body.read(&mut piece).map_err(|error| Failure::passing(error.to_string()))?;
            if got == 0 {
                return Err(Failure::passing("it ended early"));
            }
            // What comes beyond the size is not the file's.
            let room = file.content.size - partial.len;
            let got = usize::try_from(room).map_or(got, |room| got.min(room));
            partial.write(&piece[..got])?;
            self.progress.arrived(got as u64);
        }
        Ok(())
    }
}

/// Bytes that are read, hashed and written at a time.
const PIECE_BYTES: usize = 256 << 10;

/// What there is of a file.
struct Partial {
    path: PathBuf,
    file: File,
    content: Content,
    hasher: Hasher,
    /// Bytes in the file, all of them hashed.
    len: u64,
}

impl Partial {
    /// Takes up what an earlier start left.
    fn open(blob: &Path, content: &Content) -> Result<Self, HubError> {
        let path = partial_path(blob);
        let failed = || HubError::disk(&path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed())?;
        }
        // A link would have us write to wherever it leads.
        if fs::symlink_metadata(&path).is_ok_and(|of| !of.is_file()) {
            fs::remove_file(&path).map_err(failed())?;
        }
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(failed())?;
        let hasher = content.digest.hasher(content.size);
        let mut partial = Partial { file, content: content.clone(), hasher, len: 0, path };
        partial.take_up()?;
        Ok(partial)
    }

    fn take_up(&mut self) -> Result<(), HubError> {
        let failed = || HubError::disk(&self.path);
        if self.file.metadata().map_err(failed())?.len() > self.content.size {
            return self.restart();
        }
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let got = self.file.read(&mut piece).map_err(failed())?;
            if got == 0 {
                return Ok(());
            }
            self.hasher.update(&piece[..got]);
            self.len += got as u64;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::disk(&self.path))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Throws away what there is.
    fn restart(&mut self) -> Result<(), HubError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(HubError::disk(&self.path))?;
        self.hasher = self.content.digest.hasher(self.content.size);
        self.len = 0;
        Ok(())
    }

    /// Gives it its name, once it is safe on the disk.
    fn keep(self, blob: &Path) -> Result<(), HubError> {
        let kept = self.file.sync_all().and_then(|()| fs::rename(&self.path, blob));
        kept.map_err(HubError::disk(blob))
    }

    fn discard(self) -> Result<(), HubError> {
        fs::remove_file(&self.path).map_err(HubError::disk(&self.path))
    }
}

/// Where the bytes of a blob are until they are all there.
fn partial_path(blob: &Path) -> PathBuf {
    let mut path = blob.to_owned().into_os_string();
    path.push(".incomplete");
    PathBuf::from(path)
}
