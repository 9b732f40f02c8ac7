//! Names of models and of their revisions, as far as they may become paths and addresses.
//!
//! Whatever is in here is safe as a part of a path below the cache and of an address below the
//! hub's. A name that is not is no model's.

use std::fmt::{self, Display};

/// `org/name`, or the one word of the oldest models.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelId(String);

impl ModelId {
    /// The model that a person named; `None` if it can only be a path.
    pub fn parse(text: &str) -> Option<Self> {
        let (org, name) = text.split_once('/')?;
        let is_one = is_plain(org) && is_plain(name) && text.len() <= LEN_MAX;
        is_one.then(|| ModelId(text.to_owned()))
    }

    /// The model of a folder of the cache.
    pub fn of_folder(folder: &str) -> Option<Self> {
        let rest = folder.strip_prefix(FOLDER_PREFIX)?;
        let parts: Vec<&str> = rest.split("--").collect();
        let is_one = parts.len() <= 2 && parts.iter().all(|part| is_plain(part));
        is_one.then(|| ModelId(parts.join("/")))
    }

    /// Its folder in the cache.
    pub fn folder(&self) -> String {
        format!("{FOLDER_PREFIX}{}", self.0.replace('/', "--"))
    }
}

impl Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision(String);

impl Revision {
    /// What a person named. A branch may have slashes, but never leaves its folder.
    pub fn parse(text: &str) -> Option<Self> {
        let is_part = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-+@".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(plain)
        };
        let is_one = text.len() <= LEN_MAX && text.split('/').all(is_part);
        is_one.then(|| Revision(text.to_owned()))
    }

    /// The commit, if it is one in full: what it names never changes.
    pub fn as_commit(&self) -> Option<&str> {
        is_commit(&self.0).then_some(self.0.as_str())
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether this is a commit in full, as a folder of the cache is named.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

const FOLDER_PREFIX: &str = "models--";

/// The hub's own bound on a model's name; of a revision's far beyond any.
const LEN_MAX: usize = 96;

fn is_plain(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let fits = !part.is_empty() && part.chars().all(plain);
    // Nor may it end so: behind `a-` the folder's name would part elsewhere.
    let ends = part.starts_with(['.', '-']) || part.ends_with(['.', '-']);
    fits && !ends && !part.contains("--") && !part.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_two_plain_words() {
        for good in ["Qwen/Qwen3-0.6B", "a/b", "meta-llama/Llama-3.1-8B_x"] {
            let id = ModelId::parse(good).unwrap();
            assert_eq!(ModelId::of_folder(&id.folder()), Some(id.clone()));
            assert_eq!(id.to_string(), good);
        }
        assert_eq!(ModelId::parse("a/b").unwrap().folder(), "models--a--b");
        assert_eq!(ModelId::of_folder("models--gpt2").unwrap().to_string(), "gpt2");
        let long = format!("a/{}", "b".repeat(95));
        for bad in [
            "", "a", "/a", "a/", "a/b/c", "./a", "../a", "a/..", "a/.b", "a/b--c", "a/b c", "~/a",
            "a/b?c", "a\\b/c", "a/-b", "a-/b", "a/b-", "a/b.", &long,
        ] {
            assert_eq!(ModelId::parse(bad), None, "{bad:?}");
        }
        for bad in ["datasets--a--b", "models--a--b--c", "models--..--b", "models--", "models"] {
            assert_eq!(ModelId::of_folder(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_revision_stays_in_its_folder() {
        for good in ["main", "v1.0", "refs/pr/3", "a+b"] {
            assert_eq!(Revision::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "..", "a/../b", "/a", "a/", "a//b", "a b", "a?b", ".a", "a/.git"] {
            assert_eq!(Revision::parse(bad), None, "{bad:?}");
        }
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(Revision::parse(commit).unwrap().as_commit(), Some(commit));
        assert_eq!(Revision::parse("main").unwrap().as_commit(), None);
        assert!(!is_commit(&commit.to_uppercase()) && !is_commit(&commit[1..]));
    }
}
