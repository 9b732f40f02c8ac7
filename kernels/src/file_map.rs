//! Read-only mappings of weight files.
//!
//! A checkpoint is read through the page cache and packed tensor by tensor; [`FileMap::release`]
//! gives pages back once packed, so that a load never holds the file twice. The only place that
//! maps memory from files, and none but regular ones: whatever else lies under a file's name is
//! refused without waiting for it. A page that cannot be read any more reads as zeros and is
//! remembered (`faults`): whoever used the bytes asks [`FileMap::check`] before it believes them.

use std::fs::{File, FileType};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use memmap2::{Advice, Mmap, UncheckedAdvice};

use self::faults::Watched;

/// Pages that cannot be read any more.
mod faults;

/// Opens a regular file to be read, through links, and nothing else: a FIFO would have us wait for
/// whoever writes to it, and a device may do anything.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Some devices act when they are opened, so this is asked before; and again of what was opened.
    refuse_other(std::fs::metadata(path)?.file_type())?;
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    refuse_other(file.metadata()?.file_type())?;
    Ok(file)
}

fn refuse_other(of: FileType) -> io::Result<()> {
    let kind = match () {
        () if of.is_file() => return Ok(()),
        () if of.is_dir() => "folder",
        () if of.is_fifo() => "FIFO",
        () if of.is_socket() => "socket",
        () => "device",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("is a {kind}, not a regular file")))
}

/// A whole file, mapped read-only.
#[derive(Debug)]
pub struct FileMap {
    // Before the map: nobody watches what is no longer mapped.
    watched: Watched,
    map: Mmap,
    file: File,
}

impl FileMap {
    /// Maps a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open_regular(path)?;
        // SAFETY: the mapping is private and read-only and lives as long as its `Mmap`. Its bytes
        // are numbers to us, so that another process may at most change what a model says; pages
        // that it takes away read as zeros (module documentation).
        let map = unsafe { Mmap::map(&file)? };
        let watched = Watched::new(map.as_ptr_range())?;
        // Advice only: a kernel that refuses it still reads correctly.
        let _ = map.advise(Advice::Sequential);
        Ok(FileMap { watched, map, file })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// An error if bytes that were read so far may have been none of the file's: it was cut short
    /// after it was mapped, or could not be read.
    pub fn check(&self) -> io::Result<()> {
        // The rest of a page that is cut within reads as zeros without a fault.
        let (was, is) = (self.map.len() as u64, self.file.metadata()?.len());
        if is < was {
            let reason = format!("was cut from {was} to {is} bytes while it was read");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
        }
        match self.watched.has_faults() {
            false => Ok(()),
            true => Err(io::Error::other("could not be read: what it is stored on failed")),
        }
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
        for (path, kind) in [("/", "folder"), ("/dev/zero", "device")] {
            let said = FileMap::open(Path::new(path)).unwrap_err().to_string();
            assert_eq!(said, format!("is a {kind}, not a regular file"));
        }
        assert!(FileMap::open(Path::new("/no/such/file")).is_err());
    }

    #[test]
    fn a_file_that_is_cut_while_it_is_mapped_reads_as_zeros_and_is_told() {
        let path = std::env::temp_dir().join(format!("pagoda-file-cut-{}", std::process::id()));
        std::fs::write(&path, vec![7; 40 * PAGE]).unwrap();
        let (map, whole) = (FileMap::open(&path).unwrap(), FileMap::open(&path).unwrap());
        assert_eq!((map.bytes()[39 * PAGE], whole.bytes()[PAGE]), (7, 7));
        map.check().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(10 * PAGE as u64 - 1).unwrap();
        // All at once, as a load reads on all cores.
        let sum = &|range: Range<usize>| -> u64 {
            let bytes = &map.bytes()[range.start * PAGE..range.end * PAGE];
            bytes.iter().map(|byte| u64::from(*byte)).sum()
        };
        let sums = std::thread::scope(|scope| {
            let threads =
                [0..20, 10..40, 20..40, 30..40].map(|range| scope.spawn(move || sum(range)));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(sums, [70 * PAGE as u64 - 7, 0, 0, 0]);
        let said = map.check().unwrap_err().to_string();
        let (was, is) = (40 * PAGE, 10 * PAGE - 1);
        assert_eq!(said, format!("was cut from {was} to {is} bytes while it was read"));
        // Also where only bytes were read that are still there, or within a page; not of a file
        // that is mapped later, nor once a lost one is as long as it was.
        assert_eq!(whole.bytes()[9 * PAGE], 7);
        assert!(whole.check().is_err());
        FileMap::open(&path).unwrap().check().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(40 * PAGE as u64).unwrap();
        whole.check().unwrap();
        let said = map.check().unwrap_err().to_string();
        assert_eq!(said, "could not be read: what it is stored on failed");
        std::fs::remove_file(&path).unwrap();
    }
}
