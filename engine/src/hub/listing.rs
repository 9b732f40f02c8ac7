//! Which files a model has at a commit, and which of them the engine reads.
//!
//! Names come from a server. Only plain ones are kept, so that none leaves a folder.

use serde::Deserialize;

use super::digest::Digest;
use super::id::is_commit;
use crate::model::files::small_files;

/// A model's files at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listing {
    /// The commit, in full.
    pub(super) commit: String,
    entries: Vec<Entry>,
}

/// A file by name, and what the list says of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// A plain name.
    pub(super) name: String,
    /// Size and checksum, where the list has them.
    pub(super) content: Option<Content>,
}

/// What a file must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// Bytes.
    pub(super) size: u64,
    /// Checksum.
    pub(super) digest: Digest,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Listing {
    /// Reads what the hub answers about a revision.
    pub(super) fn parse(answer: &[u8]) -> Result<Self, String> {
        let Answer { sha: commit, siblings } = serde_json::from_slice(answer)
            .map_err(|error| format!("its list of files: {error}"))?;
        if !is_commit(&commit) {
            return Err("its list of files names no commit".to_owned());
        }
        let siblings = siblings.into_iter().filter(|sibling| is_plain(&sibling.rfilename));
        Ok(Listing { commit, entries: siblings.map(Sibling::entry).collect() })
    }

    /// The file of that name.
    pub(super) fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// The files that are read besides weights.
    pub(super) fn small(&self) -> Vec<&Entry> {
        let names = small_files(self.entries.iter().map(|entry| entry.name.as_str()));
        names.iter().filter_map(|name| self.find(name)).collect()
    }

    /// What there is instead of readable weights, in words.
    pub(super) fn weight_formats(&self) -> String {
        let ends = [".bin", ".pt", ".pth", ".gguf", ".safetensors", ".h5", ".msgpack", ".onnx"];
        let has = |end: &&str| self.entries.iter().any(|entry| entry.name.ends_with(*end));
        let found: Vec<&str> = ends.iter().filter(|end| has(end)).copied().collect();
        match &found[..] {
            [] => "no weights at all".to_owned(),
            some => format!("files that end in {}", some.join(", ")),
        }
    }
}

impl Sibling {
    fn entry(self) -> Entry {
        let of_lfs = self.lfs.map(|lfs| (Some(lfs.size), lfs.sha256));
        let plain = self.blob_id.map(|id| (self.size, id));
        let content = of_lfs.or(plain).and_then(|(size, digest)| {
            Some(Content { size: size?, digest: Digest::parse(&digest)? })
        });
        Entry { name: self.rfilename, content }
    }
}

fn is_plain(name: &str) -> bool {
    let bad = |c: char| matches!(c, '/' | '\\' | ':') || c.is_control();
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && !name.contains(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn listing(siblings: serde_json::Value) -> Listing {
        let answer = json!({"sha": "a".repeat(40), "siblings": siblings});
        Listing::parse(answer.to_string().as_bytes()).unwrap()
    }

    fn names(entries: &[&Entry]) -> Vec<String> {
        entries.iter().map(|entry| entry.name.clone()).collect()
    }

    #[test]
    fn a_file_has_the_checksum_of_where_it_is_stored() {
        let (sha, git) = ("1".repeat(64), "2".repeat(40));
        let listing = listing(json!([
            {"rfilename": "a", "size": 3, "blobId": git},
            {"rfilename": "b", "size": 5, "blobId": git,
             "lfs": {"sha256": sha, "size": 5, "pointerSize": 130}},
            {"rfilename": "c"},
            {"rfilename": "d", "size": 3, "blobId": "../../x"},
        ]));
        let content = |name: &str| {
            let content = listing.find(name).unwrap().content.clone();
            content.map(|content| (content.size, content.digest.to_string()))
        };
        assert_eq!(content("a"), Some((3, git)));
        assert_eq!(content("b"), Some((5, sha)));
        assert_eq!((content("c"), content("d")), (None, None));
    }

    #[test]
    fn only_what_is_read_is_wanted() {
        let file = |name: &str| json!({"rfilename": name});
        let all = [
            "config.json",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer.model",
            "x.tiktoken",
            "model.safetensors",
            "modeling_x.py",
            "onnx/config.json",
            ".gitattributes",
            "tokenizer_config.json",
            "chat_template.jinja",
            "generation_config.json",
        ];
        let whole = listing(all.iter().copied().map(file).collect());
        let mut wanted = names(&whole.small());
        wanted.sort();
        assert_eq!(
            wanted,
            [
                "chat_template.jinja",
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "tokenizer_config.json"
            ]
        );
        let older =
            listing(all.iter().copied().filter(|n| *n != "tokenizer.json").map(file).collect());
        let older = names(&older.small());
        assert!(older.contains(&"tokenizer.model".to_owned()), "{older:?}");
        assert!(!older.contains(&"x.tiktoken".to_owned()), "{older:?}");
    }

    #[test]
    fn names_that_leave_the_folder_are_not_there() {
        let bad = ["../config.json", "/etc/passwd", "a\\b", "..", "", "a\0b", "c:config.json"];
        let listing = listing(bad.iter().map(|name| json!({"rfilename": name})).collect());
        assert_eq!(listing.entries, []);
        for bad in ["{}", "[]", "{\"sha\": \"main\"}", "{\"sha\": \"../../../x\"}", "<html>"] {
            assert!(Listing::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
