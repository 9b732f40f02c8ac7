//! API keys: `sk-<public id, 12 letters and digits>-<secret, 43 characters of base64url>`.
//!
//! The public id finds the record, the secret proves the right to it. Only a MAC of the secret is
//! ever stored, so whoever reads the database or a snapshot cannot call. The layout is fixed:
//! whatever has another length or another character is no key, before any MAC is computed.

use std::fmt;

use aws_lc_rs::{constant_time, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::secret::{NoRandomness, Secret, random};

/// Characters of a public id.
pub const PUBLIC_ID_LEN: usize = 12;

/// Bytes of a whole key.
pub const KEY_LEN: usize = 3 + PUBLIC_ID_LEN + 1 + 43;

/// What finds a key's record. May be shown and logged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicId([u8; PUBLIC_ID_LEN]);

/// A key as its owner holds it.
#[derive(Clone)]
pub struct ApiKey {
    /// Finds the record.
    pub public_id: PublicId,
    secret: Secret,
}

/// What is stored of a key: HMAC-SHA-256 under a pepper.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyMac(Secret);

impl PublicId {
    /// Its text.
    pub fn as_str(&self) -> &str {
        // Made of ASCII letters and digits only.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// From its text.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; PUBLIC_ID_LEN] = text.as_bytes().try_into().ok()?;
        bytes.iter().all(u8::is_ascii_alphanumeric).then_some(PublicId(bytes))
    }

    fn random() -> Result<Self, NoRandomness> {
        const LETTERS: &[u8; 62] =
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let mut id = [0; PUBLIC_ID_LEN];
        let mut filled = 0;
        while filled < PUBLIC_ID_LEN {
            // Six bits a letter; the two values too many are drawn again.
            for byte in random::<16>()? {
                if let (Some(place), Some(letter)) =
                    (id.get_mut(filled), LETTERS.get(usize::from(byte >> 2)))
                {
                    *place = *letter;
                    filled += 1;
                }
            }
        }
        Ok(PublicId(id))
    }
}

impl ApiKey {
    /// A new key of 256 random bits.
    pub fn generate() -> Result<Self, NoRandomness> {
        Ok(ApiKey { public_id: PublicId::random()?, secret: Secret::random()? })
    }

    /// The key that a caller presents. `None`: no key of ours has this form.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != KEY_LEN {
            return None;
        }
        let rest = text.strip_prefix("sk-")?;
        let (id, rest) = rest.split_at_checked(PUBLIC_ID_LEN)?;
        let secret = Secret::from_text(rest.strip_prefix('-')?)?;
        Some(ApiKey { public_id: PublicId::parse(id)?, secret })
    }

    /// The whole key: shown once, to whom it is made for.
    pub fn reveal(&self) -> String {
        format!("sk-{}-{}", self.public_id.as_str(), self.secret.to_text())
    }

    /// What is stored of it.
    pub fn mac(&self, pepper: &Secret) -> KeyMac {
        let key = hmac::Key::new(hmac::HMAC_SHA256, pepper.bytes());
        let mut context = hmac::Context::with_key(&key);
        context.update(b"pagoda api key 1\0");
        context.update(&self.public_id.0);
        context.update(self.secret.bytes());
        let mut mac = [0; 32];
        mac.copy_from_slice(context.sign().as_ref());
        KeyMac(mac.into())
    }
}

impl KeyMac {
    /// Compares in a time that tells nothing of where they differ.
    pub fn is(&self, other: &KeyMac) -> bool {
        constant_time::verify_slices_are_equal(self.0.bytes(), other.0.bytes()).is_ok()
    }

    /// The bytes, for the database.
    pub fn bytes(&self) -> &[u8; 32] {
        self.0.bytes()
    }

    /// From the database's bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; 32] = bytes.try_into().ok()?;
        Some(KeyMac(bytes.into()))
    }
}

impl fmt::Debug for KeyMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyMac(***)")
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sk-{}-***", self.public_id.as_str())
    }
}

impl fmt::Debug for PublicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for PublicId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for PublicId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        PublicId::parse(&text).ok_or_else(|| serde::de::Error::custom("no public id of a key"))
    }
}

/// Base64url without padding, as everywhere in this crate.
pub(crate) fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_comes_back_and_proves_itself_under_its_pepper_alone() {
        let pepper = Secret::random().unwrap();
        let key = ApiKey::generate().unwrap();
        let text = key.reveal();
        assert_eq!(text.len(), KEY_LEN);
        let again = ApiKey::parse(&text).unwrap();
        assert_eq!(again.public_id, key.public_id);
        assert!(again.mac(&pepper).is(&key.mac(&pepper)));
        assert!(!again.mac(&Secret::random().unwrap()).is(&key.mac(&pepper)));
        assert!(!ApiKey::generate().unwrap().mac(&pepper).is(&key.mac(&pepper)));
        assert!(!format!("{key:?}").contains(&text[16..]));
    }

    #[test]
    fn the_secret_of_one_key_does_not_open_another() {
        let pepper = Secret::random().unwrap();
        let (a, b) = (ApiKey::generate().unwrap(), ApiKey::generate().unwrap());
        let mixed = format!("sk-{}-{}", a.public_id.as_str(), b.secret.to_text());
        assert!(!ApiKey::parse(&mixed).unwrap().mac(&pepper).is(&a.mac(&pepper)));
        assert!(!ApiKey::parse(&mixed).unwrap().mac(&pepper).is(&b.mac(&pepper)));
    }

    #[test]
    fn other_layouts_are_no_keys() {
        let text = ApiKey::generate().unwrap().reveal();
        let changed = |at: usize, by: &str| {
            let mut text = text.clone();
            text.replace_range(at..at + 1, by);
            text
        };
        let wrong = [
            String::new(),
            "sk-".into(),
            text[..KEY_LEN - 1].into(),
            format!("{text}="),
            format!(" {text}"),
            changed(0, "S"),
            changed(2, "_"),
            changed(5, "-"),
            changed(5, "\0"),
            changed(3 + PUBLIC_ID_LEN, "_"),
            changed(30, "+"),
            changed(30, "="),
            // Bits that no byte has: the same secret must not have two texts.
            changed(KEY_LEN - 1, "_"),
        ];
        for wrong in wrong {
            assert!(ApiKey::parse(&wrong).is_none(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_a_fault(text in ".{0,80}") {
            let _ = ApiKey::parse(&text);
        }

        #[test]
        fn what_parses_is_what_reveals(text in "sk-[0-9a-zA-Z]{12}-[0-9a-zA-Z_-]{43}") {
            if let Some(key) = ApiKey::parse(&text) {
                prop_assert_eq!(key.reveal(), text);
            }
        }
    }
}
