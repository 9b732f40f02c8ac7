//! What planes alone can read: AES-256-GCM under a key that is derived from theirs, so that the log
//! of changes, backups and the saved copies of data planes hold nothing that opens anything.
//!
//! A text is bound to its place: it opens nowhere else. Knows nothing of what it holds.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::api_key::base64url;
use crate::secret::{Secret, random};

/// Seals and opens under the planes' key.
pub struct Vault {
    key: LessSafeKey,
}

/// Why a vault gives nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// It was sealed under another key or for another place, or somebody changed it.
    #[error("the sealed text does not open here")]
    Closed,
    /// The system has no randomness, or no cipher.
    #[error("the system's cryptography does not work")]
    System,
}

impl Vault {
    /// The vault of all who have `planes`.
    pub fn new(planes: &Secret) -> Result<Self, VaultError> {
        let mut key = [0; 32];
        let salt = Salt::new(HKDF_SHA256, b"pagoda planes' vault 1").extract(planes.bytes());
        let material = salt.expand(&[b"aes-256-gcm"], HKDF_SHA256);
        let filled = material.and_then(|material| material.fill(&mut key));
        filled.map_err(|_| VaultError::System)?;
        let key = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| VaultError::System)?;
        Ok(Vault { key: LessSafeKey::new(key) })
    }

    /// Seals `plain` for one place.
    pub fn seal(&self, plain: &[u8], place: &str) -> Result<String, VaultError> {
        let nonce: [u8; NONCE_LEN] = random().map_err(|_| VaultError::System)?;
        let mut text = plain.to_vec();
        let (aad, for_this) = (Aad::from(place), Nonce::assume_unique_for_key(nonce));
        let sealed = self.key.seal_in_place_append_tag(for_this, aad, &mut text);
        sealed.map_err(|_| VaultError::System)?;
        Ok(base64url(&[&nonce[..], &text].concat()))
    }

    /// What was sealed for this place.
    pub fn open(&self, sealed: &str, place: &str) -> Result<Vec<u8>, VaultError> {
        let bytes = URL_SAFE_NO_PAD.decode(sealed).map_err(|_| VaultError::Closed)?;
        let (nonce, text) = bytes.split_at_checked(NONCE_LEN).ok_or(VaultError::Closed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| VaultError::Closed)?;
        let mut text = text.to_vec();
        let plain = self.key.open_in_place(nonce, Aad::from(place), &mut text);
        plain.map(|plain| plain.to_vec()).map_err(|_| VaultError::Closed)
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::PepperRecord;
    use uuid::Uuid;

    #[test]
    fn it_opens_whole_in_its_place_for_planes_alone() {
        let planes = Secret::random().unwrap();
        let vault = Vault::new(&planes).unwrap();
        let sealed = vault.seal(b"canary", "here").unwrap();
        assert_ne!(sealed, vault.seal(b"canary", "here").unwrap());
        assert_eq!(Vault::new(&planes).unwrap().open(&sealed, "here").unwrap(), b"canary");
        assert_eq!(vault.open(&sealed, "there"), Err(VaultError::Closed));
        let other = Vault::new(&Secret::random().unwrap()).unwrap();
        assert_eq!(other.open(&sealed, "here"), Err(VaultError::Closed));
        for end in 0..sealed.len() {
            assert_eq!(vault.open(&sealed[..end], "here"), Err(VaultError::Closed));
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(vault.open(&changed, "here"), Err(VaultError::Closed), "{at}");
        }
    }

    #[test]
    fn a_pepper_travels_sealed_and_under_its_own_id() {
        let vault = Vault::new(&Secret::random().unwrap()).unwrap();
        let pepper = Secret::random().unwrap();
        let record = PepperRecord::seal(Uuid::from_u128(1), &pepper, &vault).unwrap();
        assert_eq!(record.open(&vault).unwrap(), pepper);
        assert!(!serde_json::to_string(&record).unwrap().contains(&pepper.to_text()));
        let moved = PepperRecord { id: Uuid::from_u128(2), ..record };
        assert_eq!(moved.open(&vault), Err(VaultError::Closed));
    }
}
