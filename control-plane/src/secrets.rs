//! What the installation alone knows: one root secret in a file, and what is derived from it.
//!
//! Everything secret that the database holds (seeds of signing keys, peppers, credentials of
//! upstreams) is sealed under a key from here, so a copy of the database alone opens nothing. The
//! root never leaves this module.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use pagoda_wire::secret::{Secret, random};

/// Keys of one installation.
pub struct Secrets {
    cipher: LessSafeKey,
    planes: Secret,
    refresh: Secret,
}

/// The root secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The file cannot be read or made.
    #[error("cannot use the secret file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others may read it.
    #[error("others may read the secret file {0}: chmod 600 it, and make a new one if they did")]
    Open(PathBuf),
    /// It holds no secret.
    #[error("the secret file {0} does not hold 32 bytes as base64url")]
    Damaged(PathBuf),
    /// The system has no randomness, or no cipher.
    #[error("the system's cryptography does not work")]
    System,
}

impl Secrets {
    /// Opens the root secret at `path`; makes one if there is no file.
    pub fn open_or_make(path: &Path) -> Result<Self, SecretsError> {
        match Self::open(path) {
            Err(SecretsError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                make(path)?;
                Self::open(path)
            }
            opened => opened,
        }
    }

    /// Opens the root secret at `path`.
    pub fn open(path: &Path) -> Result<Self, SecretsError> {
        let fail = |source| SecretsError::File { path: path.into(), source };
        let mut file = File::open(path).map_err(fail)?;
        if file.metadata().map_err(fail)?.mode() & 0o077 != 0 {
            return Err(SecretsError::Open(path.into()));
        }
        let mut text = String::new();
        Read::by_ref(&mut file).take(1024).read_to_string(&mut text).map_err(fail)?;
        let root = Secret::from_text(text.trim());
        Self::from_root(&root.ok_or_else(|| SecretsError::Damaged(path.into()))?)
    }

    /// From a root secret that somebody else keeps.
    pub fn from_root(root: &Secret) -> Result<Self, SecretsError> {
        let cipher = UnboundKey::new(&AES_256_GCM, derived(root, b"columns")?.bytes());
        let cipher = LessSafeKey::new(cipher.map_err(|_| SecretsError::System)?);
        Ok(Secrets {
            cipher,
            planes: derived(root, b"planes")?,
            refresh: derived(root, b"refresh tokens")?,
        })
    }

    /// What data planes and control planes seal their talk with.
    pub fn planes(&self) -> &Secret {
        &self.planes
    }

    /// What marks refresh tokens, so that anything else is refused before the database is asked.
    pub fn refresh(&self) -> &Secret {
        &self.refresh
    }

    /// Seals `plain` for one place: the same bytes open nowhere else.
    pub fn seal(&self, plain: &[u8], place: &str) -> Result<Vec<u8>, SecretsError> {
        let nonce: [u8; NONCE_LEN] = random().map_err(|_| SecretsError::System)?;
        let mut sealed = nonce.to_vec();
        let mut text = plain.to_vec();
        let aad = Aad::from(place.as_bytes());
        let tag = self.cipher.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            aad,
            &mut text,
        );
        tag.map_err(|_| SecretsError::System)?;
        sealed.append(&mut text);
        Ok(sealed)
    }

    /// Opens what was sealed for this place. `None`: it was not, or not under this root.
    pub fn unseal(&self, sealed: &[u8], place: &str) -> Option<Vec<u8>> {
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = text.to_vec();
        let plain = self.cipher.open_in_place(nonce, Aad::from(place.as_bytes()), &mut text);
        plain.ok().map(|plain| plain.to_vec())
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(***)")
    }
}

/// A key of its own for each purpose.
fn derived(root: &Secret, purpose: &[u8]) -> Result<Secret, SecretsError> {
    let salt = Salt::new(HKDF_SHA256, b"pagoda control plane 1");
    let mut key = [0; 32];
    let info = [purpose];
    let okm = salt.extract(root.bytes());
    let okm = okm.expand(&info, HKDF_SHA256).map_err(|_| SecretsError::System)?;
    okm.fill(&mut key).map_err(|_| SecretsError::System)?;
    Ok(key.into())
}

/// Writes a new root secret, whole or not at all; who comes second keeps the first one's.
fn make(path: &Path) -> Result<(), SecretsError> {
    let fail = |source| SecretsError::File { path: path.into(), source };
    let root = Secret::random().map_err(|_| SecretsError::System)?;
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder).map_err(fail)?;
    let unfinished = path.with_extension(format!("{}.new", uuid::Uuid::now_v7()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(fail)?;
    let written = writeln!(file, "{}", root.to_text()).and_then(|()| file.sync_all());
    // A link fails where the name is taken; a rename would replace what another start made.
    let linked = written.and_then(|()| match std::fs::hard_link(&unfinished, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    let _ = std::fs::remove_file(&unfinished);
    linked.and_then(|()| File::open(folder)?.sync_all()).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_sealed_opens_in_its_place_under_its_root_alone() {
        let root = Secret::random().unwrap();
        let secrets = Secrets::from_root(&root).unwrap();
        let sealed = secrets.seal(b"provider key", "upstream 1 https://a").unwrap();
        assert_ne!(sealed, secrets.seal(b"provider key", "upstream 1 https://a").unwrap());
        assert_eq!(secrets.unseal(&sealed, "upstream 1 https://a").unwrap(), b"provider key");
        assert!(secrets.unseal(&sealed, "upstream 2 https://a").is_none());
        let other = Secrets::from_root(&Secret::random().unwrap()).unwrap();
        assert!(other.unseal(&sealed, "upstream 1 https://a").is_none());
        for end in 0..sealed.len() {
            assert!(secrets.unseal(&sealed[..end], "upstream 1 https://a").is_none());
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(secrets.unseal(&changed, "upstream 1 https://a").is_none());
        }
        assert_ne!(secrets.planes(), &root);
    }

    #[test]
    fn a_start_makes_the_file_once_and_refuses_one_that_others_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/secret");
        let first = Secrets::open_or_make(&path).unwrap();
        let again = Secrets::open_or_make(&path).unwrap();
        assert_eq!(first.planes(), again.planes());
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(matches!(Secrets::open(&path), Err(SecretsError::Open(_))));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, "short\n").unwrap();
        assert!(matches!(Secrets::open_or_make(&path), Err(SecretsError::Damaged(_))));
    }

    #[test]
    fn starts_at_once_agree_on_one_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let starts: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || Secrets::open_or_make(&path).unwrap().planes().clone())
            })
            .collect();
        let keys: Vec<_> = starts.into_iter().map(|start| start.join().unwrap()).collect();
        assert!(keys.iter().all(|key| key == &keys[0]));
    }
}
