//! The file of `pagoda kernels build`: compiled kernels of several architectures, for machines that
//! have the driver alone.
//!
//! ```text
//! magic (8) │ blake3 of the rest (32) │ count (4)
//!           │ count × { key (32) │ architecture (1 + n) │ source (1 + n) │ bytes (8) }
//!           │ the code of each, in the same order
//! ```
//! Numbers are little-endian, texts begin with their length. The reader trusts no number: whatever
//! does not fit exactly is refused.

use std::io::Read;
use std::path::Path;

use super::arch::Arch;
use super::key::Key;
use crate::cuda::source::Source;

/// Compiled kernels of one version of the sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BuiltFile {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    key: Key,
    arch: Arch,
    source: String,
    code: Vec<u8>,
}

const MAGIC: &[u8; 8] = b"PGDKERN1";
const HEAD_BYTES: usize = MAGIC.len() + 32;

/// Bounds of what is read, far beyond what is ever built.
const BYTES_MAX: u64 = 1 << 30;
const ENTRIES_MAX: u32 = 4096;

impl BuiltFile {
    /// Adds compiled code of `source`.
    pub(crate) fn add(&mut self, source: &Source, arch: Arch, code: Vec<u8>) {
        let key = Key::built(source, arch);
        self.entries.push(Entry { key, arch, source: source.name.to_owned(), code });
    }

    /// The best code of `source` for a card of this compute capability. `None`: there is none, or it
    /// was compiled from another text.
    pub(crate) fn code(&self, source: &Source, capability: (u32, u32)) -> Option<&[u8]> {
        let fits = |entry: &&Entry| {
            entry.arch.runs_on(capability) && entry.key == Key::built(source, entry.arch)
        };
        let best = self.entries.iter().filter(fits).max_by_key(|entry| entry.arch);
        best.map(|entry| entry.code.as_slice())
    }

    /// The architectures in it, each once.
    pub(crate) fn archs(&self) -> Vec<Arch> {
        let mut archs: Vec<Arch> = self.entries.iter().map(|entry| entry.arch).collect();
        archs.sort();
        archs.dedup();
        archs
    }

    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let place = path.display();
        let file =
            std::fs::File::open(path).map_err(|why| format!("cannot open {place}: {why}"))?;
        let mut bytes = Vec::new();
        let read = file.take(BYTES_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|why| format!("cannot read {place}: {why}"))?;
        Self::parse(&bytes).map_err(|why| format!("{place} {why}"))
    }

    /// Reads a file's bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if !bytes.starts_with(MAGIC) {
            return Err("is no file of `pagoda kernels build` of this version");
        }
        let damaged = "is damaged: build it again";
        let rest = bytes.get(HEAD_BYTES..).ok_or(damaged)?;
        if bytes[MAGIC.len()..HEAD_BYTES] != *blake3::hash(rest).as_bytes() {
            return Err(damaged);
        }
        Self::parse_entries(rest).ok_or(damaged)
    }

    /// What follows the checksum.
    fn parse_entries(rest: &[u8]) -> Option<Self> {
        let mut reader = Reader { rest };
        let count = u32::from_le_bytes(reader.array()?);
        if count > ENTRIES_MAX {
            return None;
        }
        let mut heads = Vec::new();
        for _ in 0..count {
            let key = Key(reader.array()?);
            let arch = reader.text()?.parse().ok()?;
            let source = reader.text()?.to_owned();
            let bytes = usize::try_from(u64::from_le_bytes(reader.array()?)).ok()?;
            heads.push((key, arch, source, bytes));
        }
        let mut entries = Vec::new();
        for (key, arch, source, bytes) in heads {
            let code = reader.take(bytes)?.to_vec();
            if code.is_empty() {
                return None;
            }
            entries.push(Entry { key, arch, source, code });
        }
        reader.rest.is_empty().then_some(BuiltFile { entries })
    }

    /// The file's bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut rest = (self.entries.len() as u32).to_le_bytes().to_vec();
        for Entry { key, arch, source, code } in &self.entries {
            rest.extend(key.0);
            for text in [arch.to_string().as_str(), source] {
                // Names of ours, far shorter.
                rest.push(text.len() as u8);
                rest.extend(text.as_bytes());
            }
            rest.extend((code.len() as u64).to_le_bytes());
        }
        for entry in &self.entries {
            rest.extend(&entry.code);
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend(blake3::hash(&rest).as_bytes());
        bytes.extend(rest);
        bytes
    }
}

/// What is still to be read.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const SIZE: usize>(&mut self) -> Option<[u8; SIZE]> {
        self.take(SIZE)?.try_into().ok()
    }

    fn text(&mut self) -> Option<&'a str> {
        let [length] = self.array()?;
        std::str::from_utf8(self.take(length.into())?).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cuda::source::{EMBED, NORM};

    fn arch(name: &str) -> Arch {
        name.parse().unwrap()
    }

    fn built() -> BuiltFile {
        let mut built = BuiltFile::default();
        built.add(&NORM, arch("sm_80"), vec![1; 300]);
        built.add(&NORM, arch("sm_90a"), vec![2; 5]);
        built.add(&EMBED, arch("sm_80"), vec![3]);
        built
    }

    #[test]
    fn a_card_gets_the_newest_code_that_it_runs() {
        let bytes = built().to_bytes();
        let built = BuiltFile::parse(&bytes).unwrap();
        let first = |source: &Source, capability| built.code(source, capability).map(|c| c[0]);
        assert_eq!(first(&NORM, (9, 0)), Some(2));
        assert_eq!(first(&NORM, (8, 9)), Some(1));
        assert_eq!(first(&EMBED, (8, 0)), Some(3));
        assert_eq!(first(&EMBED, (9, 0)), None);
        assert_eq!(built.archs(), [arch("sm_80"), arch("sm_90a")]);
        let changed = Source { name: NORM.name, text: "another text" };
        assert_eq!(first(&changed, (9, 0)), None);
    }

    #[test]
    fn every_truncated_file_and_every_flipped_bit_is_refused() {
        let whole = built().to_bytes();
        for length in 0..whole.len() {
            assert!(BuiltFile::parse(&whole[..length]).is_err(), "{length} bytes");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(BuiltFile::parse(&flipped).is_err(), "bit {bit}");
        }
        let longer = [whole.as_slice(), b"x"].concat();
        assert!(BuiltFile::parse(&longer).is_err());
    }

    proptest! {
        // Behind the checksum, which a file made on purpose may well have right.
        #[test]
        fn no_numbers_make_the_reader_fail(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut rest = built().to_bytes().split_off(HEAD_BYTES);
            for (place, byte) in edits {
                let place = place.index(rest.len());
                rest[place] = byte;
            }
            let cut = cut.index(rest.len() + 1);
            for rest in [&rest[..], &rest[..cut]] {
                if let Some(file) = BuiltFile::parse_entries(rest) {
                    // What is accepted is the same when it is written again.
                    prop_assert_eq!(BuiltFile::parse(&file.to_bytes()), Ok(file));
                }
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Some(file) = BuiltFile::parse_entries(&bytes) {
                prop_assert!(file.entries.iter().all(|entry| !entry.code.is_empty()));
            }
        }
    }
}
