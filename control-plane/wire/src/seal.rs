//! Seals: a line of JSON behind the MAC of its bytes, so that nobody without the key can have
//! written or changed it. What is sealed is readable; sockets have TLS for that.
//!
//! A seal covers a purpose, too: a line that was made for one use is none in another.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api_key::base64url;
use crate::secret::Secret;

/// Makes and opens sealed lines of one purpose.
#[derive(Clone)]
pub struct Seal {
    key: hmac::Key,
    purpose: &'static str,
}

/// Why a line is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Its MAC is not that of its bytes: it was cut, changed or sealed with another key.
    #[error("the line's seal is broken")]
    Broken,
    /// Whoever sealed it speaks another version.
    #[error("the sealed line is not understood: {0}")]
    Foreign(#[from] serde_json::Error),
}

/// Characters of a MAC.
const MAC_LEN: usize = 43;

impl Seal {
    /// Seals under `key` for one purpose.
    pub fn new(key: &Secret, purpose: &'static str) -> Self {
        Seal { key: hmac::Key::new(hmac::HMAC_SHA256, key.bytes()), purpose }
    }

    /// `value` as a sealed line, without its end.
    pub fn seal<T: Serialize>(&self, value: &T) -> Result<String, serde_json::Error> {
        let json = serde_json::to_string(value)?;
        let mac = base64url(self.sign(json.as_bytes()).as_ref());
        Ok(format!("{mac}.{json}"))
    }

    /// What a sealed line says.
    pub fn open<T: DeserializeOwned>(&self, line: &str) -> Result<T, SealError> {
        let (mac, json) = line.split_at_checked(MAC_LEN).ok_or(SealError::Broken)?;
        let json = json.strip_prefix('.').ok_or(SealError::Broken)?;
        let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| SealError::Broken)?;
        let own = self.sign(json.as_bytes());
        aws_lc_rs::constant_time::verify_slices_are_equal(own.as_ref(), &mac)
            .map_err(|_| SealError::Broken)?;
        Ok(serde_json::from_str(json)?)
    }

    fn sign(&self, bytes: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(self.purpose.as_bytes());
        context.update(b"\0");
        context.update(bytes);
        context.sign()
    }
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seal({})", self.purpose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_opens_whole_with_its_key_and_purpose_alone() {
        let key = Secret::random().unwrap();
        let seal = Seal::new(&key, "feed");
        let line = seal.seal(&[1, 2, 3]).unwrap();
        assert_eq!(seal.open::<Vec<u8>>(&line).unwrap(), [1, 2, 3]);
        assert!(Seal::new(&key, "file").open::<Vec<u8>>(&line).is_err());
        assert!(Seal::new(&Secret::random().unwrap(), "feed").open::<Vec<u8>>(&line).is_err());
        for end in 0..line.len() {
            assert!(matches!(seal.open::<Vec<u8>>(&line[..end]), Err(SealError::Broken)));
        }
        for at in 0..line.len() {
            let mut changed = line.clone().into_bytes();
            changed[at] ^= 1;
            let changed = String::from_utf8_lossy(&changed).into_owned();
            assert!(matches!(seal.open::<Vec<u8>>(&changed), Err(SealError::Broken)), "{at}");
        }
        assert!(matches!(seal.open::<Vec<String>>(&line), Err(SealError::Foreign(_))));
        assert!(matches!(seal.open::<Vec<u8>>("é".repeat(22).as_str()), Err(SealError::Broken)));
    }
}
