//! Names compiled code by what it was made from, and by nothing else: no path, no time.

use super::arch::Arch;
use super::nvrtc::OPTIONS;
use crate::cuda::source::Source;

/// A hash of a source, all that it includes, the architecture and the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(pub(crate) [u8; 32]);

impl Key {
    /// In a built file, which belongs to a version of the sources and not of the compiler.
    pub(crate) fn built(source: &Source, arch: Arch) -> Self {
        Self::of(source, arch, None)
    }

    /// In the cache, where the next version of the compiler shall compile anew.
    pub(crate) fn cached(source: &Source, arch: Arch, compiler: (u32, u32)) -> Self {
        Self::of(source, arch, Some(compiler))
    }

    fn of(source: &Source, arch: Arch, compiler: Option<(u32, u32)>) -> Self {
        let mut hasher = blake3::Hasher::new();
        // Each part with its length, so that no two lists of parts are the same bytes.
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(b"pagoda cubin 1");
        part(arch.to_string().as_bytes());
        for option in OPTIONS {
            part(option.to_bytes());
        }
        if let Some((major, minor)) = compiler {
            part(format!("{major}.{minor}").as_bytes());
        }
        for Source { name, text } in std::iter::once(source).chain(source.includes()) {
            part(name.as_bytes());
            part(text.as_bytes());
        }
        Key(*hasher.finalize().as_bytes())
    }

    /// In hexadecimal, for a file's name.
    pub(crate) fn hex(self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::source::{EMBED, NORM};

    #[test]
    fn whatever_changes_code_changes_its_key() {
        let arch = |name: &str| name.parse::<Arch>().unwrap();
        let source = |text| Source { name: "a.cu", text };
        let (plain, with_header) = (source("int x;"), source("#include \"ptx.cuh\""));
        let renamed = Source { name: "b.cu", ..plain };
        let mut keys = vec![
            Key::built(&NORM, arch("sm_80")),
            Key::built(&NORM, arch("sm_90")),
            Key::built(&NORM, arch("sm_90a")),
            Key::built(&EMBED, arch("sm_80")),
            Key::cached(&NORM, arch("sm_80"), (13, 0)),
            Key::cached(&NORM, arch("sm_80"), (13, 1)),
            Key::cached(&NORM, arch("sm_80"), (1, 30)),
            Key::built(&plain, arch("sm_80")),
            Key::built(&renamed, arch("sm_80")),
            Key::built(&source("int y;"), arch("sm_80")),
            Key::built(&with_header, arch("sm_80")),
        ];
        assert_eq!(Key::built(&NORM, arch("sm_80")), keys[0]);
        let num_keys = keys.len();
        keys.sort_by_key(|key| key.0);
        keys.dedup();
        assert_eq!(keys.len(), num_keys);
        assert!(keys.iter().all(|key| key.hex().len() == 64));
    }

    #[test]
    fn a_header_is_part_of_the_key_of_what_includes_it() {
        let includes = Source { name: "a.cu", text: "#include \"ptx.cuh\"" };
        let only_names = Source { name: "a.cu", text: "// \"ptx.cuh\"     " };
        assert!(includes.includes().iter().any(|header| header.name == "ptx.cuh"));
        assert!(only_names.includes().is_empty());
        let arch = Arch::of((8, 0));
        // A key of a source alone.
        let bare = |source: &Source| {
            let mut hasher = blake3::Hasher::new();
            let parts = [
                "pagoda cubin 1",
                "sm_80",
                "--std=c++17",
                "--fmad=false",
                source.name,
                source.text,
            ];
            for part in parts {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part.as_bytes());
            }
            Key(*hasher.finalize().as_bytes())
        };
        assert_eq!(Key::built(&only_names, arch), bare(&only_names));
        assert_ne!(Key::built(&includes, arch), bare(&includes));
    }
}
