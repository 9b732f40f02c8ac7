//! Read-only mappings of weight files.
//!
//! A checkpoint is read through the page cache and packed tensor by tensor; [`FileMap::release`]
//! gives pages back once packed, so that a load never holds the file twice. The only place that
//! maps memory from files. The files must not shrink or change while they are loaded: whoever may
//! write to a model's folder already decides what the model says.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::{Advice, Mmap, UncheckedAdvice};

/// A whole file, mapped read-only.
#[derive(Debug)]
pub struct FileMap {
    map: Mmap,
}

impl FileMap {
    /// Maps a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("is not a regular file"));
        }
        // SAFETY: the mapping is private and read-only and lives as long as its `Mmap`. Another
        // process that truncates or rewrites the file meanwhile is outside what we defend against
        // (module documentation).
        let map = unsafe { Mmap::map(&file)? };
        // Advice only: a kernel that refuses it still reads correctly.
        let _ = map.advise(Advice::Sequential);
        Ok(FileMap { map })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Gives back the pages that lie wholly within `range`; they are read again if touched.
    pub fn release(&self, range: Range<usize>) {
        let start = range.start.min(self.map.len()).next_multiple_of(PAGE);
        let end = range.end.min(self.map.len()) / PAGE * PAGE;
        if start < end {
            // SAFETY: the mapping is read-only and backed by the file, so dropped pages come back
            // with the same bytes; the range lies within the mapping and on page borders.
            let _ = unsafe {
                self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start)
            };
        }
    }
}

/// Largest page size of the machines we run on (arm64 may use 64 KiB), so that only whole pages
/// are given back.
const PAGE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_read_the_same_again() {
        let path = std::env::temp_dir().join(format!("pagoda-file-map-{}", std::process::id()));
        let content: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let map = FileMap::open(&path).unwrap();
        assert_eq!(map.bytes(), &content[..]);
        map.release(100..299_999);
        map.release(0..usize::MAX);
        map.release(Range { start: 200_000, end: 100 });
        assert_eq!(map.bytes(), &content[..]);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_no_file_is_refused() {
        assert!(FileMap::open(Path::new("/")).is_err());
        assert!(FileMap::open(Path::new("/no/such/file")).is_err());
    }
}
