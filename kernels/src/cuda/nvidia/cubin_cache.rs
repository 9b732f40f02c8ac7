//! Compiled kernels on disk, one file each: made once for a card and a compiler.
//!
//! ```text
//! magic (8) │ blake3 of the code (32) │ code
//! ```
//! Files appear whole, by a rename. One that is damaged is as good as none.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::key::Key;

/// A folder of compiled kernels.
#[derive(Clone, Debug)]
pub(crate) struct CubinCache {
    folder: PathBuf,
}

const MAGIC: &[u8; 8] = b"PGDCUBN1";
const HEAD_BYTES: usize = MAGIC.len() + 32;

/// Code of a source is a few MiB at most.
const BYTES_MAX: u64 = 256 << 20;

impl CubinCache {
    /// The cache in `folder`, which need not exist.
    pub(crate) fn new(folder: &Path) -> Self {
        CubinCache { folder: folder.to_owned() }
    }

    fn path(&self, key: Key) -> PathBuf {
        self.folder.join(format!("{}.cubin", key.hex()))
    }

    /// What was kept under `key`, if it is whole.
    pub(crate) fn read(&self, key: Key) -> Option<Vec<u8>> {
        let file = std::fs::File::open(self.path(key)).ok()?;
        let mut bytes = Vec::new();
        file.take(BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
        let code = bytes.get(HEAD_BYTES..)?;
        let is_whole = bytes.starts_with(MAGIC)
            && bytes[MAGIC.len()..HEAD_BYTES] == *blake3::hash(code).as_bytes();
        (is_whole && !code.is_empty()).then(|| code.to_vec())
    }

    /// Keeps `code` under `key`.
    pub(crate) fn write(&self, key: Key, code: &[u8]) -> std::io::Result<()> {
        // Two processes may write the same at once: each to a name of its own.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        std::fs::create_dir_all(&self.folder)?;
        let temporary = format!(".{}.{}.{number}", key.hex(), std::process::id());
        let temporary = self.folder.join(temporary);
        let written = std::fs::File::create(&temporary).and_then(|mut file| {
            file.write_all(MAGIC)?;
            file.write_all(blake3::hash(code).as_bytes())?;
            file.write_all(code)?;
            file.sync_data()?;
            std::fs::rename(&temporary, self.path(key))
        });
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key([7; 32]);

    #[test]
    fn what_was_kept_comes_back_and_nothing_else_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CubinCache::new(&folder.path().join("deep/down"));
        assert_eq!(cache.read(KEY), None);
        cache.write(KEY, b"code").unwrap();
        cache.write(KEY, b"code two").unwrap();
        assert_eq!(cache.read(KEY).as_deref(), Some(&b"code two"[..]));
        assert_eq!(cache.read(Key([8; 32])), None);
        assert_eq!(std::fs::read_dir(folder.path().join("deep/down")).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CubinCache::new(folder.path());
        cache.write(KEY, b"some code").unwrap();
        let path = cache.path(KEY);
        let whole = std::fs::read(&path).unwrap();
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(cache.read(KEY), None, "byte {place}");
            std::fs::write(&path, &whole[..place]).unwrap();
            assert_eq!(cache.read(KEY), None, "{place} bytes");
        }
        std::fs::write(&path, &whole).unwrap();
        assert!(cache.read(KEY).is_some());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_and_no_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = CubinCache::new(&file.path().join("below a file"));
        assert!(cache.write(KEY, b"code").is_err());
        assert_eq!(cache.read(KEY), None);
    }
}
