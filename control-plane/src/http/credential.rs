//! The credential of a request: one bearer, or none.
//!
//! A request that names two credentials is refused, never served as the weaker one, and a wrong one
//! never counts as none.

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use pagoda_wire::api_key::ApiKey;

use crate::fault::{Fault, Unknown};

/// What a caller shows.
#[derive(Clone, Debug)]
pub enum Credential {
    /// An API key.
    Key(ApiKey),
    /// What may be an access token.
    Token(Token),
}

/// A token's text, which is never shown.
#[derive(Clone)]
pub struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(***)")
    }
}

/// The credential in `headers`; `None` if there is none at all.
pub fn credential(headers: &HeaderMap) -> Result<Option<Credential>, Fault> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let Some(header) = given.next() else { return Ok(None) };
    let wrong = || Fault::Unauthenticated(Unknown::Wrong);
    // Two could be read as either by whoever stands before us.
    if given.next().is_some() {
        return Err(wrong());
    }
    let text = header.to_str().map_err(|_| wrong())?;
    let (scheme, text) = text.split_once(' ').ok_or_else(wrong)?;
    let text = text.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || text.is_empty() {
        return Err(wrong());
    }
    if text.starts_with("sk-") {
        return ApiKey::parse(text).map(Credential::Key).map(Some).ok_or_else(wrong);
    }
    Ok(Some(Credential::Token(Token(text.into()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn of(values: &[&str]) -> Result<Option<Credential>, Fault> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        credential(&headers)
    }

    #[test]
    fn one_bearer_or_none() {
        let key = ApiKey::generate().unwrap().reveal();
        assert!(matches!(of(&[]), Ok(None)));
        assert!(matches!(of(&[&format!("Bearer {key}")]), Ok(Some(Credential::Key(_)))));
        assert!(matches!(of(&["bearer a.b.c"]), Ok(Some(Credential::Token(_)))));
    }

    #[test]
    fn attack_06_a_bad_credential_never_counts_as_another_or_as_none() {
        let key = format!("Bearer {}", ApiKey::generate().unwrap().reveal());
        for wrong in [
            &[""][..],
            &["Bearer"],
            &["Bearer "],
            &["Basic YTpi"],
            &[&key, &key],
            &[&key, "Bearer x"],
        ] {
            assert!(matches!(of(wrong), Err(Fault::Unauthenticated(Unknown::Wrong))), "{wrong:?}");
        }
        let cut = &key[..key.len() - 1];
        assert!(matches!(of(&[cut]), Err(Fault::Unauthenticated(Unknown::Wrong))));
    }

    #[test]
    fn nothing_of_it_is_shown() {
        let key = ApiKey::generate().unwrap().reveal();
        let shown =
            format!("{:?}{:?}", of(&[&format!("Bearer {key}")]), of(&["Bearer secret.a.b"]));
        assert!(!shown.contains(&key[16..]) && !shown.contains("secret"), "{shown}");
    }
}
