//! What the control plane told last, on the disk: so that a data plane that starts while there is
//! none serves whom it served before.
//!
//! One sealed line beside the time at which it was heard, for its owner's eyes alone. A file that
//! was cut, changed or written under another secret is as good as none.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use pagoda_wire::seal::Seal;
use pagoda_wire::secret::Secret;
use pagoda_wire::snapshot::Snapshot;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The folder of what a data plane keeps.
#[derive(Clone, Debug)]
pub struct State {
    folder: PathBuf,
    seal: Seal,
}

/// What is saved.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    /// When the control plane was last heard, in Unix seconds.
    pub heard_at: i64,
    /// What it told.
    pub snapshot: Snapshot,
}

const FILE: &str = "snapshot";
const ID: &str = "plane-id";

impl State {
    /// The folder, made if it is not there.
    pub fn open(folder: &Path, planes: &Secret) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(State { folder: folder.into(), seal: Seal::new(planes, "saved snapshot") })
    }

    /// The id of this data plane, made once.
    pub fn id(&self) -> io::Result<Uuid> {
        let path = self.folder.join(ID);
        match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = Uuid::now_v7();
                self.write(ID, &id.to_string()).map(|()| id)
            }
            Err(error) => Err(error),
        }
    }

    /// What was saved; `None` if nothing that counts was.
    pub fn load(&self) -> Option<Saved> {
        let text = std::fs::read_to_string(self.folder.join(FILE)).ok()?;
        match self.seal.open(text.trim_end()) {
            Ok(saved) => Some(saved),
            Err(error) => {
                tracing::warn!(%error, "the saved snapshot is not used");
                None
            }
        }
    }

    /// Saves, whole or not at all.
    pub fn save(&self, saved: &Saved) -> io::Result<()> {
        let line = self.seal.seal(saved).map_err(io::Error::other)?;
        self.write(FILE, &line)
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let unfinished = self.folder.join(format!("{name}.new"));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        std::fs::rename(&unfinished, self.folder.join(name))?;
        File::open(&self.folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_was_saved_comes_back_under_its_secret_and_whole_alone() {
        let folder = tempfile::tempdir().unwrap();
        let secret = Secret::random().unwrap();
        let state = State::open(&folder.path().join("state"), &secret).unwrap();
        assert!(state.load().is_none());
        assert_eq!(state.id().unwrap(), state.id().unwrap());
        let saved = Saved { heard_at: 7, snapshot: Snapshot { revision: 3, items: vec![] } };
        state.save(&saved).unwrap();
        let again = state.load().unwrap();
        assert_eq!((again.heard_at, again.snapshot.revision), (7, 3));
        let path = folder.path().join("state").join(FILE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let other = State::open(&folder.path().join("state"), &Secret::random().unwrap()).unwrap();
        assert!(other.load().is_none());
        let whole = std::fs::read(&path).unwrap();
        for end in 0..whole.len() - 1 {
            std::fs::write(&path, &whole[..end]).unwrap();
            assert!(state.load().is_none(), "{end}");
        }
    }
}
