//! Access tokens: JWTs signed with Ed25519, of one form only (RFC 7519, RFC 9068, RFC 8037).
//!
//! A verifier knows the whole text of the header that goes with each of its keys, and compares it
//! byte for byte: there is no field in which a token could ask for another algorithm, key or type.
//! Every claim must be there with its type; an unknown or doubled one is refused.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, ParsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api_key::base64url;
use crate::secret::Secret;

/// Who may do what, at its coarsest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Uses models, and owns sessions, files and keys.
    User,
    /// Changes everybody's.
    Admin,
}

/// What a token says. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// Who signed it.
    pub iss: String,
    /// For whom it is.
    pub aud: String,
    /// The user.
    pub sub: Uuid,
    /// The login that it came from.
    pub sid: Uuid,
    /// What the user may do.
    pub role: Role,
    /// Counts what ended all tokens of the user: a ban, another role, another password.
    pub epoch: i64,
    /// Since when.
    pub iat: i64,
    /// Not before.
    pub nbf: i64,
    /// Not from then on.
    pub exp: i64,
}

/// Why a token opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no token of ours, or somebody changed it.
    #[error("the access token is not valid")]
    Invalid,
    /// Its time is over.
    #[error("the access token has expired")]
    Expired,
    /// Its time has not come, by more than clocks may differ.
    #[error("the access token is not valid yet")]
    Early,
}

/// Seconds by which clocks of two planes may differ.
pub const SKEW_S: i64 = 5;

/// Longest life that a token may claim, in seconds.
pub const LIFE_MAX_S: i64 = 600;

/// Longest text that is looked at.
const TOKEN_BYTES_MAX: usize = 2048;

/// Signs tokens.
pub struct Signer {
    kid: String,
    header: String,
    pair: Ed25519KeyPair,
}

/// A public key by its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// Its id.
    pub kid: String,
    /// 32 bytes as base64url, as in a JWK's `x`.
    pub x: String,
}

/// Verifies tokens of one issuer for one audience.
#[derive(Clone)]
pub struct Verifier {
    issuer: String,
    audience: String,
    keys: Vec<Known>,
}

#[derive(Clone)]
struct Known {
    kid: String,
    header: String,
    key: std::sync::Arc<ParsedPublicKey>,
}

/// A token that is whole, ours and in its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<'a> {
    /// What it says.
    pub claims: Claims,
    /// The id of the key that says so.
    pub kid: &'a str,
}

/// No Ed25519 key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 key")]
pub struct NoKey;

impl Signer {
    /// A signer whose key comes from `seed`. Its id is derived from the public key.
    pub fn from_seed(seed: &Secret) -> Result<Self, NoKey> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.bytes()).map_err(|_| NoKey)?;
        let kid = base64url(&pair.public_key().as_ref()[..12]);
        Ok(Signer { header: header(&kid), kid, pair })
    }

    /// What verifiers need.
    pub fn public_key(&self) -> PublicKey {
        PublicKey { kid: self.kid.clone(), x: base64url(self.pair.public_key().as_ref()) }
    }

    /// The token that says `claims`.
    pub fn sign(&self, claims: &Claims) -> String {
        // Strings and numbers only: this cannot fail, and an empty payload verifies nowhere.
        let payload = serde_json::to_vec(claims).unwrap_or_default();
        let mut token = format!("{}.{}", self.header, base64url(&payload));
        let signature = self.pair.sign(token.as_bytes());
        token.push('.');
        token.push_str(&base64url(signature.as_ref()));
        token
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.kid)
    }
}

impl PublicKey {
    fn parsed(&self) -> Result<ParsedPublicKey, NoKey> {
        let bytes = URL_SAFE_NO_PAD.decode(&self.x).map_err(|_| NoKey)?;
        if bytes.len() != 32 {
            return Err(NoKey);
        }
        ParsedPublicKey::new(&ED25519, bytes).map_err(|_| NoKey)
    }
}

impl Verifier {
    /// A verifier that takes tokens under any of `keys`.
    pub fn new(issuer: &str, audience: &str, keys: &[PublicKey]) -> Result<Self, NoKey> {
        let known = |key: &PublicKey| {
            Ok(Known {
                kid: key.kid.clone(),
                header: header(&key.kid),
                key: std::sync::Arc::new(key.parsed()?),
            })
        };
        Ok(Verifier {
            issuer: issuer.into(),
            audience: audience.into(),
            keys: keys.iter().map(known).collect::<Result<_, _>>()?,
        })
    }

    /// What `token` says at `now`, if it is whole, ours and in its time, and the key that says so.
    pub fn verify(&self, token: &str, now: i64) -> Result<Verified<'_>, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Invalid);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Invalid)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Invalid)?;
        let known = self.keys.iter().find(|known| known.header == header);
        let known = known.ok_or(TokenError::Invalid)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Invalid)?;
        let verified = known.key.verify_sig(signed.as_bytes(), &signature);
        verified.map_err(|_| TokenError::Invalid)?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| TokenError::Invalid)?;
        let claims: Claims = serde_json::from_slice(&payload).map_err(|_| TokenError::Invalid)?;
        self.check(&claims, now)?;
        Ok(Verified { claims, kid: &known.kid })
    }

    fn check(&self, claims: &Claims, now: i64) -> Result<(), TokenError> {
        let Claims { iat, nbf, exp, .. } = *claims;
        let life = exp.checked_sub(iat).ok_or(TokenError::Invalid)?;
        let is_ours = claims.iss == self.issuer && claims.aud == self.audience;
        if !is_ours || !(1..=LIFE_MAX_S).contains(&life) || iat < 0 || nbf < 0 {
            return Err(TokenError::Invalid);
        }
        if now >= exp {
            return Err(TokenError::Expired);
        }
        if nbf.max(iat) > now.saturating_add(SKEW_S) {
            return Err(TokenError::Early);
        }
        Ok(())
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({} keys)", self.keys.len())
    }
}

/// The one header that goes with a key, as it stands in tokens.
fn header(kid: &str) -> String {
    base64url(format!(r#"{{"alg":"EdDSA","typ":"at+jwt","kid":"{kid}"}}"#).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::hmac;
    use proptest::prelude::*;

    const NOW: i64 = 1_800_000_000;

    fn signer() -> Signer {
        Signer::from_seed(&Secret::from([7; 32])).unwrap()
    }

    fn verifier(signer: &Signer) -> Verifier {
        Verifier::new("pagoda", "pagoda", &[signer.public_key()]).unwrap()
    }

    fn claims() -> Claims {
        Claims {
            iss: "pagoda".into(),
            aud: "pagoda".into(),
            sub: Uuid::from_u128(1),
            sid: Uuid::from_u128(2),
            role: Role::User,
            epoch: 0,
            iat: NOW,
            nbf: NOW,
            exp: NOW + 300,
        }
    }

    /// A token over any header and payload, signed with the right key.
    fn signed(header: &str, payload: &str) -> String {
        let token = format!("{}.{}", base64url(header.as_bytes()), base64url(payload.as_bytes()));
        let signature = signer().pair.sign(token.as_bytes());
        format!("{token}.{}", base64url(signature.as_ref()))
    }

    fn own_header() -> String {
        format!(r#"{{"alg":"EdDSA","typ":"at+jwt","kid":"{}"}}"#, signer().kid)
    }

    #[test]
    fn a_token_says_what_was_signed_in_its_time_alone() {
        let (signer, claims) = (signer(), claims());
        let verifier = verifier(&signer);
        let token = signer.sign(&claims);
        let says = |now| verifier.verify(&token, now).map(|verified| verified.claims);
        assert_eq!(says(NOW), Ok(claims.clone()));
        assert_eq!(says(NOW + 299), Ok(claims.clone()));
        assert_eq!(says(NOW + 300), Err(TokenError::Expired));
        assert_eq!(says(NOW - SKEW_S), Ok(claims));
        assert_eq!(says(NOW - SKEW_S - 1), Err(TokenError::Early));
    }

    #[test]
    fn another_key_issuer_or_audience_opens_nothing() {
        let signer = signer();
        let token = signer.sign(&claims());
        let other = Signer::from_seed(&Secret::from([8; 32])).unwrap().public_key();
        let own = signer.public_key();
        let refused = |issuer: &str, audience: &str, keys: &[PublicKey]| {
            let verifier = Verifier::new(issuer, audience, keys).unwrap();
            verifier.verify(&token, NOW) == Err(TokenError::Invalid)
        };
        assert!(refused("pagoda", "pagoda", &[]));
        assert!(refused("pagoda", "pagoda", std::slice::from_ref(&other)));
        assert!(refused("pagoda", "pagoda", &[PublicKey { x: other.x.clone(), ..own.clone() }]));
        assert!(refused("other", "pagoda", std::slice::from_ref(&own)));
        assert!(refused("pagoda", "other", std::slice::from_ref(&own)));
        assert!(!refused("pagoda", "pagoda", &[other, own]));
    }

    #[test]
    fn no_header_but_ours_is_read() {
        let payload = serde_json::to_string(&claims()).unwrap();
        let kid = signer().kid;
        let verifier = verifier(&signer());
        assert!(verifier.verify(&signed(&own_header(), &payload), NOW).is_ok());
        let headers = [
            r#"{"alg":"none"}"#.to_string(),
            format!(r#"{{"alg":"none","typ":"at+jwt","kid":"{kid}"}}"#),
            format!(r#"{{"alg":"HS256","typ":"at+jwt","kid":"{kid}"}}"#),
            format!(r#"{{"alg":"EdDSA","typ":"at+jwt","kid":"{kid}x"}}"#),
            format!(r#"{{"alg":"EdDSA","typ":"JWT","kid":"{kid}"}}"#),
            r#"{"alg":"EdDSA","typ":"at+jwt"}"#.to_string(),
            format!(r#"{{"alg":"EdDSA","typ":"at+jwt","kid":"{kid}","jku":"https://evil"}}"#),
            format!(r#"{{"alg":"EdDSA","typ":"at+jwt","kid":"{kid}","jwk":{{}}}}"#),
            format!(r#"{{"alg":"EdDSA","typ":"at+jwt","kid":"{kid}","crit":["exp"]}}"#),
            format!(r#"{{"alg":"EdDSA","alg":"none","typ":"at+jwt","kid":"{kid}"}}"#),
            format!(r#"{{"typ":"at+jwt","alg":"EdDSA","kid":"{kid}"}}"#),
        ];
        for header in headers {
            let token = signed(&header, &payload);
            assert_eq!(verifier.verify(&token, NOW), Err(TokenError::Invalid), "{header}");
        }
    }

    #[test]
    fn a_mac_under_the_public_key_is_no_signature() {
        let public = URL_SAFE_NO_PAD.decode(signer().public_key().x).unwrap();
        let payload = base64url(serde_json::to_string(&claims()).unwrap().as_bytes());
        for header in [own_header(), r#"{"alg":"HS256","typ":"at+jwt"}"#.to_string()] {
            let text = format!("{}.{payload}", base64url(header.as_bytes()));
            let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &public), text.as_bytes());
            let token = format!("{text}.{}", base64url(mac.as_ref()));
            assert_eq!(verifier(&signer()).verify(&token, NOW), Err(TokenError::Invalid));
        }
    }

    #[test]
    fn claims_have_their_types_and_are_all_there() {
        let verifier = verifier(&signer());
        let whole = serde_json::to_value(claims()).unwrap();
        let mut payloads = Vec::new();
        for name in whole.as_object().unwrap().keys() {
            let mut less = whole.clone();
            less.as_object_mut().unwrap().remove(name);
            payloads.push(less.to_string());
        }
        for name in ["exp", "nbf", "iat", "epoch"] {
            for wrong in
                ["\"1900000000\"", "\"never\"", "1.9e9", "-1", "9223372036854775808", "null"]
            {
                // A negative epoch is a number like any other.
                if (name, wrong) == ("epoch", "-1") {
                    continue;
                }
                let mut text = whole.clone();
                text[name] = serde_json::Value::String("here".into());
                payloads.push(text.to_string().replace("\"here\"", wrong));
            }
        }
        let text = whole.to_string();
        payloads.push(text.replacen('{', r#"{"exp":4102444800,"#, 1));
        payloads.push(text.replacen('{', r#"{"admin":true,"#, 1));
        payloads.push(text.replace(r#""aud":"pagoda""#, r#""aud":["pagoda"]"#));
        payloads.push(text.replace(&(NOW + 300).to_string(), &(NOW + LIFE_MAX_S + 1).to_string()));
        payloads.push(text.replace(&(NOW + 300).to_string(), &i64::MAX.to_string()));
        payloads.push(format!("{text} x"));
        payloads.push("[]".into());
        payloads.push(String::new());
        for payload in payloads {
            let token = signed(&own_header(), &payload);
            assert_eq!(verifier.verify(&token, NOW), Err(TokenError::Invalid), "{payload}");
        }
    }

    #[test]
    fn every_cut_every_addition_and_every_changed_character_is_refused() {
        let signer = signer();
        let verifier = verifier(&signer);
        let token = signer.sign(&claims());
        for end in 0..token.len() {
            assert_eq!(verifier.verify(&token[..end], NOW), Err(TokenError::Invalid));
        }
        for more in [".", "=", "A", " ", "\0", ".x"] {
            assert!(verifier.verify(&format!("{token}{more}"), NOW).is_err());
            assert!(verifier.verify(&format!("{more}{token}"), NOW).is_err());
        }
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(verifier.verify(&changed, NOW).is_err(), "{at}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_a_fault(text in r"[\PC.]{0,300}") {
            prop_assert!(verifier(&signer()).verify(&text, NOW).is_err());
        }
    }
}
