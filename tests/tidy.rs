//! House style as a test: what neither rustc nor clippy can see.
//!
//! Reads every file that git knows of or would add. Each rule is a function from a file to what is
//! wrong with it, and is itself shown to notice a planted fault.

#![allow(clippy::expect_used, reason = "test code")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file with its path from the root of the project.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/")
    }

    /// Line numbers and lines that are not comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        lines.filter(|(_, line)| !line.starts_with("//"))
    }
}

type Rule = fn(&Source) -> Vec<String>;

/// Lines of a file outside tests: past that it holds more than one concept.
const LINES_MAX: usize = 500;

fn length(file: &Source) -> Vec<String> {
    let lines = file.text.lines().count();
    let too_long = file.is_rust() && !file.is_test() && lines > LINES_MAX;
    too_long.then(|| format!("{lines} lines")).into_iter().collect()
}

fn header(file: &Source) -> Vec<String> {
    let missing = file.is_rust() && !file.text.starts_with("//! ");
    missing.then(|| "does not begin with //! lines".into()).into_iter().collect()
}

/// Names that say nothing.
fn names(file: &Source) -> Vec<String> {
    const PARTS: [&str; 7] = ["utils", "util", "common", "helpers", "helper", "misc", "types"];
    const ENDS: [&str; 4] = ["Manager", "Helper", "Mixin", "Processor"];
    let mut wrong = Vec::new();
    if !file.is_rust() {
        return wrong;
    }
    for part in file.path.split(['/', '.']) {
        if PARTS.contains(&part) {
            wrong.push(format!("is named {part}"));
        }
    }
    for (number, line) in file.code() {
        for kind in ["struct ", "enum ", "trait "] {
            let Some((before, after)) = line.split_once(kind) else { continue };
            if !before.is_empty() && !before.starts_with("pub") {
                continue;
            }
            let name = after.split(|c: char| !c.is_alphanumeric() && c != '_').next();
            let name = name.unwrap_or_default();
            if ENDS.iter().any(|end| name.ends_with(end)) {
                wrong.push(format!("line {number}: type {name}"));
            }
        }
    }
    wrong
}

fn unsafety(file: &Source) -> Vec<String> {
    if !file.is_rust() || file.path.starts_with("kernels/") {
        return Vec::new();
    }
    let starts = ["{", "fn ", "impl ", "extern ", "trait "].map(|word| format!("unsafe {word}"));
    let found = file.code().filter(|(_, line)| starts.iter().any(|start| line.starts_with(start)));
    found.map(|(number, _)| format!("line {number}: unsafe outside kernels/")).collect()
}

fn promises(file: &Source) -> Vec<String> {
    let words =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:"), concat!("HA", "CK")];
    let mut wrong = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for word in words.iter().filter(|word| line.contains(*word)) {
            wrong.push(format!("line {}: {word}; open an issue or do it", index + 1));
        }
    }
    wrong
}

fn machine_paths(file: &Source) -> Vec<String> {
    let roots = ["work", "root", "home", "opt", "Users"].map(|root| format!("/{root}/"));
    let mut wrong = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for root in &roots {
            // A path begins where no longer one or an address does.
            let begins = line.match_indices(root.as_str()).any(|(at, _)| {
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-~}*".contains(c))
            });
            if begins {
                wrong.push(format!("line {}: a path below {root}", index + 1));
            }
        }
    }
    wrong
}

const RULES: [(&str, Rule); 6] = [
    ("length", length),
    ("header", header),
    ("names", names),
    ("unsafe", unsafety),
    ("promises", promises),
    ("machine paths", machine_paths),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All text files of the project, without data and lock files.
fn sources() -> Vec<Source> {
    let listing = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs");
    assert!(listing.status.success(), "git ls-files failed");
    let paths = String::from_utf8(listing.stdout).expect("paths are UTF-8");
    let data = |path: &str| {
        path == "Cargo.lock"
            || [".json", ".jsonl", ".txt", ".log"].iter().any(|e| path.ends_with(e))
    };
    let read = |path: &str| {
        // A file that was deleted but not yet committed is listed, too.
        let bytes = std::fs::read(root().join(path)).ok()?;
        Some(Source { path: path.into(), text: String::from_utf8(bytes).ok()? })
    };
    let paths = paths.split('\0').filter(|path| !path.is_empty() && !data(path));
    paths.filter_map(read).collect()
}

#[test]
fn every_file_keeps_every_rule() {
    let sources = sources();
    assert!(sources.len() > 50, "only {} files were found", sources.len());
    let mut wrong = Vec::new();
    for (name, rule) in RULES {
        for file in &sources {
            wrong.extend(rule(file).iter().map(|what| format!("{name}: {}: {what}", file.path)));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_rust_file_is_part_of_a_crate() {
    let sources = sources();
    let text =
        |path: &str| sources.iter().find(|file| file.path == path).map(|file| file.text.as_str());
    let mut dead = Vec::new();
    for file in sources.iter().filter(|file| file.is_rust()) {
        let path = Path::new(&file.path);
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let folder = path.parent().unwrap_or_else(|| Path::new(""));
        // Crate roots, examples and the targets that a Cargo.toml names by path.
        let manifest = sources.iter().any(|other| {
            other.path.ends_with("Cargo.toml")
                && Path::new(&other.path)
                    .parent()
                    .and_then(|crate_root| path.strip_prefix(crate_root).ok())
                    .is_some_and(|inner| other.text.contains(&format!("\"{}\"", inner.display())))
        });
        let targets = ["src/bin", "examples", "benches", "tests"];
        let target = targets.iter().any(|target| {
            let deep = folder.components().count() > 1;
            deep && folder.ends_with(target)
                && text(&format!("{}/mod.rs", folder.display())).is_none()
        });
        if manifest || target || ["lib", "main", "build"].contains(&name) {
            continue;
        }
        let (name, folder) = match name {
            "mod" => (
                folder.file_name().and_then(|name| name.to_str()).unwrap_or_default(),
                folder.parent().unwrap_or_else(|| Path::new("")),
            ),
            name => (name, folder),
        };
        let parents = [
            format!("{}/mod.rs", folder.display()),
            format!("{}.rs", folder.display()),
            format!("{}/lib.rs", folder.display()),
            format!("{}/main.rs", folder.display()),
        ];
        let declared = parents.iter().filter_map(|parent| text(parent)).any(|parent| {
            parent.lines().any(|line| line.trim_end().ends_with(&format!("mod {name};")))
        });
        if !declared {
            dead.push(file.path.clone());
        }
    }
    assert!(dead.is_empty(), "no module declares these files:\n{}", dead.join("\n"));
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let manifests = sources().into_iter().filter(|file| file.path.ends_with("/Cargo.toml"));
    let mut seen = 0;
    for file in manifests {
        seen += 1;
        // kernels is the one crate with unsafe, and fuzz is no member, so they write their own tables.
        let own = ["kernels/Cargo.toml", "tests/fuzz/Cargo.toml"].contains(&file.path.as_str());
        let table = if own { "[lints.rust]" } else { "[lints]\nworkspace = true" };
        assert!(file.text.contains(table), "{} lacks {table:?}", file.path);
    }
    assert!(seen >= 4);
}

#[test]
fn every_rule_notices_a_planted_fault() {
    let fine = "//! A concept.\nfn f() {}\n";
    let planted: [(Rule, &str, String); 9] = [
        (length, "engine/src/a.rs", fine.to_string() + &"\n".repeat(LINES_MAX)),
        (header, "engine/src/a.rs", "fn f() {}\n".into()),
        (names, "engine/src/utils.rs", fine.into()),
        (names, "engine/src/common/mod.rs", fine.into()),
        (names, "engine/src/a.rs", fine.to_string() + "pub struct BlockManager;\n"),
        (unsafety, "engine/src/a.rs", fine.to_string() + "unsafe { f() }\n"),
        (promises, "deploy/up", concat!("# TO", "DO: later\n").into()),
        (machine_paths, "README.md", concat!("see /ho", "me/someone/x\n").into()),
        (machine_paths, "tests/run", concat!("cd \"/wo", "rk/x\"\n").into()),
    ];
    for (rule, path, text) in planted {
        assert!(!rule(&Source::new(path, &text)).is_empty(), "{path}: {text:.60}");
        assert!(rule(&Source::new("engine/src/a.rs", fine)).is_empty());
    }
    let url = Source::new("README.md", concat!("https://example.org/ho", "me/x"));
    assert!(machine_paths(&url).is_empty());
    assert!(unsafety(&Source::new("kernels/src/a.rs", "//! K.\nunsafe { f() }\n")).is_empty());
}
