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
