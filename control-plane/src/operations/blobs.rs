//! Where bytes of files are: a small trait, and folders on a disk.
//!
//! Blocking: operations call it on threads that may block. An object store would be one more
//! implementation; the crates that speak to one bring a second HTTP client and a second TLS
//! library's cryptography with them, so there is none yet.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pagoda_wire::secret::{NoRandomness, random};

/// What a blob is called: 128 random bits as 32 hexadecimal digits, and never anything that a
/// caller chose.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlobName(String);

/// A place for bytes. Every call may block.
pub trait BlobStore: Send + Sync + 'static {
    /// Begins a blob, which nobody sees until it is kept.
    fn create(&self, blob: &BlobName) -> io::Result<Box<dyn NewBlob>>;

    /// Opens a blob that was kept.
    fn open(&self, blob: &BlobName) -> io::Result<Box<dyn Read + Send>>;

    /// Deletes a blob, kept or begun. One that is not there is deleted.
    fn delete(&self, blob: &BlobName) -> io::Result<()>;
}

/// A blob that is being written. Dropped without [`NewBlob::keep`] it never was.
pub trait NewBlob: Write + Send {
    /// Makes it last: after this it is there also when the machine's power fails.
    fn keep(self: Box<Self>) -> io::Result<()>;
}

/// Blobs as files, in a folder for each first two digits of their names.
#[derive(Clone, Debug)]
pub struct FolderStore {
    root: PathBuf,
}

impl BlobName {
    /// A new one.
    pub fn random() -> Result<Self, NoRandomness> {
        let bytes: [u8; 16] = random()?;
        Ok(BlobName(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The name that a text is, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == 32 && text.bytes().all(is_digit)).then(|| BlobName(text.into()))
    }

    /// Its digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FolderStore {
    /// Blobs below `root`, which is made if it is not there and is nobody else's to read.
    pub fn open(root: &Path) -> io::Result<Self> {
        make_folder(root)?;
        Ok(FolderStore { root: root.into() })
    }

    fn folder(&self, blob: &BlobName) -> PathBuf {
        self.root.join(&blob.0[..2])
    }

    fn path(&self, blob: &BlobName) -> PathBuf {
        self.folder(blob).join(&blob.0)
    }

    fn unfinished(&self, blob: &BlobName) -> PathBuf {
        self.folder(blob).join(format!("{}.part", blob.0))
    }
}

impl BlobStore for FolderStore {
    fn create(&self, blob: &BlobName) -> io::Result<Box<dyn NewBlob>> {
        make_folder(&self.folder(blob))?;
        let unfinished = self.unfinished(blob);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        Ok(Box::new(Unfinished { file, unfinished, path: self.path(blob), is_kept: false }))
    }

    fn open(&self, blob: &BlobName) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::open(self.path(blob))?))
    }

    fn delete(&self, blob: &BlobName) -> io::Result<()> {
        for path in [self.unfinished(blob), self.path(blob)] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

struct Unfinished {
    file: File,
    unfinished: PathBuf,
    path: PathBuf,
    is_kept: bool,
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl NewBlob for Unfinished {
    fn keep(mut self: Box<Self>) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.unfinished, &self.path)?;
        self.is_kept = true;
        // The name lasts once its folder does, and the folder's own name once the root does.
        let folder = self.path.parent().unwrap_or(&self.path);
        File::open(folder)?.sync_all()?;
        File::open(folder.parent().unwrap_or(folder))?.sync_all()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = std::fs::remove_file(&self.unfinished);
        }
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn files(root: &Path) -> usize {
        let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
        folders.map(|folder| std::fs::read_dir(folder).unwrap().count()).sum()
    }

    #[test]
    fn a_blob_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::open(&folder.path().join("files")).unwrap();
        let blob = BlobName::random().unwrap();
        let mut new = store.create(&blob).unwrap();
        new.write_all(b"half").unwrap();
        assert!(store.open(&blob).is_err());
        assert!(store.create(&blob).is_err());
        drop(new);
        assert_eq!(files(&store.root), 0);

        let mut new = store.create(&blob).unwrap();
        new.write_all(b"whole").unwrap();
        new.keep().unwrap();
        let mut text = String::new();
        store.open(&blob).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), files(&store.root)), ("whole", 1));
        let path = store.path(&blob);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(store.root.metadata().unwrap().mode() & 0o777, 0o700);

        // What a process that died left behind goes with the name, too.
        std::fs::write(store.unfinished(&blob), "left").unwrap();
        store.delete(&blob).unwrap();
        store.delete(&blob).unwrap();
        assert_eq!(files(&store.root), 0);
    }

    #[test]
    fn attack_13_a_blob_s_name_is_no_path() {
        for wrong in ["", "../../../../etc/passwd0000000000", "/", &"A".repeat(32), &"0".repeat(31)]
        {
            assert_eq!(BlobName::parse(wrong), None, "{wrong}");
        }
        let name = BlobName::random().unwrap();
        assert_eq!(BlobName::parse(name.as_str()), Some(name));
    }
}
