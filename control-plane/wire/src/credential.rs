//! Credentials of upstreams: sealed where they are typed in, opened where they are sent.
//!
//! A sealed credential opens for its own upstream and origin alone: whoever changes where an
//! upstream is, or moves the sealed bytes to another one, has bytes that open nowhere. Both planes
//! derive the key from the secret that they share, so the database and the feed hold no plain one.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use uuid::Uuid;

use crate::secret::{Secret, random};
use crate::snapshot::SealedCredential;

/// A provider's key: 1 to 4096 visible ASCII characters, so that it is one header's value.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Credential(String);

/// A text is no credential. What the text was is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a credential has 1 to {CREDENTIAL_MAX} visible ASCII characters")]
pub struct NoCredential;

/// A credential cannot be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system's cryptography does not work")]
pub struct CannotSeal;

/// Seals and opens credentials.
pub struct CredentialCipher {
    cipher: LessSafeKey,
    key_id: String,
}

impl Credential {
    /// What is sent to the upstream; not to be kept or shown.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Credential {
    type Error = NoCredential;

    fn try_from(text: String) -> Result<Self, NoCredential> {
        let is_sendable = text.bytes().all(|byte| byte.is_ascii_graphic());
        match is_sendable && (1..=CREDENTIAL_MAX).contains(&text.len()) {
            true => Ok(Credential(text)),
            false => Err(NoCredential),
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(***)")
    }
}

impl CredentialCipher {
    /// Under a key of its own, derived from what the planes share.
    pub fn new(planes: &Secret) -> Result<Self, CannotSeal> {
        let salt = Salt::new(HKDF_SHA256, b"pagoda upstream credentials 1");
        let (mut key, mut id) = ([0; 32], [0; 32]);
        let root = salt.extract(planes.bytes());
        for (purpose, out) in [(&b"key"[..], &mut key), (b"id", &mut id)] {
            let info = [purpose];
            let expanded = root.expand(&info, HKDF_SHA256).map_err(|_| CannotSeal)?;
            expanded.fill(out).map_err(|_| CannotSeal)?;
        }
        let cipher = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| CannotSeal)?;
        let key_id = URL_SAFE_NO_PAD.encode(&id[..9]);
        Ok(CredentialCipher { cipher: LessSafeKey::new(cipher), key_id })
    }

    /// Seals a credential for one upstream at one origin.
    pub fn seal(
        &self,
        upstream: Uuid,
        origin: &str,
        credential: &Credential,
    ) -> Result<SealedCredential, CannotSeal> {
        let nonce: [u8; NONCE_LEN] = random().map_err(|_| CannotSeal)?;
        let mut text = credential.0.clone().into_bytes();
        let aad = Aad::from(place(upstream, origin));
        let nonce_once = Nonce::assume_unique_for_key(nonce);
        let tag = self.cipher.seal_in_place_append_tag(nonce_once, aad, &mut text);
        tag.map_err(|_| CannotSeal)?;
        let sealed = URL_SAFE_NO_PAD.encode([&nonce[..], &text].concat());
        Ok(SealedCredential { sealed, key_id: self.key_id.clone(), origin: origin.into() })
    }

    /// Opens a credential for a call to `origin` of `upstream`. `None`: it was sealed for another
    /// upstream, another origin or under another key.
    pub fn open(
        &self,
        upstream: Uuid,
        origin: &str,
        credential: &SealedCredential,
    ) -> Option<Credential> {
        let sealed = URL_SAFE_NO_PAD.decode(&credential.sealed).ok()?;
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = text.to_vec();
        let aad = Aad::from(place(upstream, origin));
        let plain = self.cipher.open_in_place(nonce, aad, &mut text).ok()?;
        String::from_utf8(plain.to_vec()).ok()?.try_into().ok()
    }
}

impl fmt::Debug for CredentialCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CredentialCipher({})", self.key_id)
    }
}

fn place(upstream: Uuid, origin: &str) -> Vec<u8> {
    format!("{upstream} {origin}").into_bytes()
}

/// Characters of the longest credential.
const CREDENTIAL_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_10_a_credential_opens_for_its_upstream_and_origin_alone() {
        let planes = Secret::random().unwrap();
        let cipher = CredentialCipher::new(&planes).unwrap();
        let (upstream, origin) = (Uuid::now_v7(), "https://api.openai.com:443");
        let plain = Credential::try_from("sk-canary".to_owned()).unwrap();
        let sealed = cipher.seal(upstream, origin, &plain).unwrap();
        assert_eq!(cipher.open(upstream, origin, &sealed), Some(plain.clone()));
        assert_eq!(cipher.open(Uuid::now_v7(), origin, &sealed), None);
        for elsewhere in ["https://evil.com:443", "http://api.openai.com:443", ""] {
            assert_eq!(cipher.open(upstream, elsewhere, &sealed), None);
            // The origin that is written beside it opens nothing by itself.
            let moved = SealedCredential { origin: elsewhere.into(), ..sealed.clone() };
            assert_eq!(cipher.open(upstream, elsewhere, &moved), None);
        }
        let other = CredentialCipher::new(&Secret::random().unwrap()).unwrap();
        assert_eq!(other.open(upstream, origin, &sealed), None);
        let cut = SealedCredential { sealed: sealed.sealed[..8].into(), ..sealed.clone() };
        assert_eq!(cipher.open(upstream, origin, &cut), None);
        assert_ne!(cipher.seal(upstream, origin, &plain).unwrap().sealed, sealed.sealed);
        // Another process with the same secret opens it.
        let again = CredentialCipher::new(&planes).unwrap();
        assert_eq!(again.open(upstream, origin, &sealed), Some(plain));
    }

    #[test]
    fn attack_16_a_credential_is_never_shown() {
        let plain = Credential::try_from("sk-canary".to_owned()).unwrap();
        assert!(!format!("{plain:?}").contains("canary"));
        let error = serde_json::from_str::<Credential>("\"can ary\"").unwrap_err().to_string();
        assert!(!error.contains("ary"), "{error}");
    }

    #[test]
    fn attack_20_a_credential_ends_no_header() {
        for wrong in ["", "a\r\nb", "a b", "é", &"a".repeat(CREDENTIAL_MAX + 1)] {
            assert_eq!(Credential::try_from(wrong.to_owned()), Err(NoCredential));
        }
    }
}
