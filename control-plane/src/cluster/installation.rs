//! Which Postgres of this machine serves: the newest, or the one whose version made the data.
//!
//! Never downloads one.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::ClusterError;

/// Programs of one Postgres.
#[derive(Clone, Debug)]
pub(crate) struct Installation {
    folder: PathBuf,
    major: u32,
}

/// The oldest that our SQL needs.
pub(super) const OLDEST: u32 = 15;

impl Installation {
    /// Looks in `folder` alone, or in the usual places. `major` is the version of the data in
    /// `data`, if there are any.
    pub(super) fn find(
        folder: Option<&Path>,
        major: Option<u32>,
        data: &Path,
    ) -> Result<Self, ClusterError> {
        let folders = folder.map_or_else(usual_folders, |folder| vec![folder.into()]);
        let mut found: Vec<_> = folders.iter().filter_map(|folder| Self::at(folder)).collect();
        found.sort_by_key(|installation| std::cmp::Reverse(installation.major));
        let chosen = found.iter().find(|found| match major {
            Some(major) => found.major == major,
            None => found.major >= OLDEST,
        });
        match (chosen, major) {
            (Some(chosen), _) => Ok(chosen.clone()),
            (None, Some(major)) if !found.is_empty() => Err(ClusterError::OtherVersion {
                data: data.into(),
                major: major.to_string(),
                found: words(found.iter().map(|found| found.major.to_string())),
            }),
            (None, _) => Err(ClusterError::NotInstalled {
                searched: words(folders.iter().map(|folder| folder.display().to_string())),
            }),
        }
    }

    /// One of its programs.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn at(folder: &Path) -> Option<Self> {
        // Of a link the file: the other programs may be linked elsewhere or not at all.
        let server = folder.join("postgres").canonicalize().ok()?;
        let folder = server.parent()?.to_owned();
        if !folder.join("initdb").is_file() {
            return None;
        }
        let answer = Command::new(server).arg("--version").output().ok()?;
        let major = major(&String::from_utf8_lossy(&answer.stdout))?;
        Some(Installation { folder, major })
    }
}

/// From "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)" or "… 18beta1".
fn major(version: &str) -> Option<u32> {
    let number = version.strip_prefix("postgres (PostgreSQL) ")?;
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().ok()
}

/// The search path, and where distributions put servers outside of it.
fn usual_folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    let below = |parent: &str, start: &str, end: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        let names = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
        names.map(|entry| entry.path().join(end)).collect()
    };
    folders.extend(below("/usr/lib/postgresql", "", "bin"));
    folders.extend(below("/usr", "pgsql-", "bin"));
    folders.extend(below("/usr/libexec", "postgresql", ""));
    folders.dedup();
    folders
}

/// A program of the search path.
pub(super) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn words(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn versions_are_read_as_servers_print_them() {
        assert_eq!(major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major("postgres (PostgreSQL) 17"), Some(17));
        assert_eq!(major("pg_ctl (PostgreSQL) 15.1"), None);
        assert_eq!(major(""), None);
    }
}
