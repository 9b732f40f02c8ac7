//! Checksums of files, as the hub names them: SHA-256 of large files, git's blob hash of others.
//!
//! A blob in the cache is named by its checksum, so what is kept there is what its name says.

use std::fmt::{self, Display};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// What a file must hash to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Digest {
    /// SHA-256 of the content.
    Sha256([u8; 32]),
    /// Git's name of the content: SHA-1 of a short head and the content.
    Git([u8; 20]),
}

impl Digest {
    /// Reads hexadecimal digits, bare or as an entity tag has them.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
        match digits.len() {
            64 => Some(Digest::Sha256(bytes(digits)?)),
            40 => Some(Digest::Git(bytes(digits)?)),
            _ => None,
        }
    }

    /// Begins to hash a file of `size` bytes.
    pub(super) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Digest::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Digest::Git(_) => {
                Hasher::Git(Sha1::new_with_prefix(format!("blob {size}\0").as_bytes()))
            }
        }
    }
}

impl Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = match self {
            Digest::Sha256(bytes) => &bytes[..],
            Digest::Git(bytes) => &bytes[..],
        };
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A checksum under way.
#[derive(Clone)]
pub(super) enum Hasher {
    /// Of the content.
    Sha256(Sha256),
    /// Of git's head and the content.
    Git(Sha1),
}

impl Hasher {
    /// Takes in the next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Git(hasher) => hasher.update(bytes),
        }
    }

    /// The checksum of all bytes so far.
    pub(super) fn digest(&self) -> Digest {
        match self.clone() {
            Hasher::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Hasher::Git(hasher) => Digest::Git(hasher.finalize().into()),
        }
    }
}

fn bytes<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // What is no hexadecimal digit is refused, a sign too.
    if digits.len() != 2 * N || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashed(digest: &str, parts: &[&str]) -> String {
        let size = parts.iter().map(|part| part.len() as u64).sum();
        let mut hasher = Digest::parse(digest).unwrap().hasher(size);
        parts.iter().for_each(|part| hasher.update(part.as_bytes()));
        hasher.digest().to_string()
    }

    #[test]
    fn published_values_come_out_whatever_the_parts() {
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hashed(sha, &["abc"]), sha);
        assert_eq!(hashed(sha, &["a", "", "bc"]), sha);
        // `printf 'test content\n' | git hash-object --stdin`
        let git = "d670460b4b4aece5915caf5c68d12f560a9fe3e4";
        assert_eq!(hashed(git, &["test ", "content\n"]), git);
        assert_ne!(hashed(git, &["test content"]), git);
    }

    #[test]
    fn a_tag_is_read_and_nothing_else() {
        let git = "d670460b4b4aece5915caf5c68d12f560a9fe3e4";
        for tag in [git.to_owned(), format!("\"{git}\""), format!("W/\"{git}\"")] {
            assert_eq!(Digest::parse(&tag).unwrap().to_string(), git);
        }
        for bad in ["", "abc", "../../etc", &git.replace('d', "+"), &git.replace('d', "é")] {
            assert_eq!(Digest::parse(bad), None, "{bad}");
        }
    }
}
