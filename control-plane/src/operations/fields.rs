//! Values of users and keys that can be what they say: made once at the border, never checked again.
//!
//! What cannot be one is the caller's fault, by the field's name. A password is never part of a
//! message.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use pagoda_wire::snapshot::{RateClass, Scope};
use pagoda_wire::token::Role;

use crate::fault::Fault;

/// What a user logs in as: 1 to 64 ASCII letters, digits, `.`, `_` and `-`. No `@`, so that it is
/// never taken for an e-mail address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Username(String);

/// An e-mail address: 3 to 254 printable ASCII characters around one `@`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Email(String);

/// What people call a user or a key: at most 200 characters, none of control.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label(String);

/// A password to be set: 8 to 1024 bytes, all of them counted.
#[derive(Clone)]
pub struct Password(String);

/// Part of a name that a list is searched for: at most 200 characters, all of them plain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search(String);

impl Username {
    /// From what a caller wrote.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let is_one = (1..=64).contains(&text.len()) && text.bytes().all(is_name_byte);
        is_one.then(|| Username(text.into())).ok_or_else(|| {
            let message = "username must be 1 to 64 ASCII letters, digits, '.', '_' and '-'";
            Fault::invalid("username", message)
        })
    }

    /// A name for who gave an address alone. Anybody may have it already.
    pub fn from_email(email: &Email, more: &str) -> Self {
        let local = email.0.split('@').next().unwrap_or_default();
        let plain: String =
            local.bytes().filter(|byte| is_name_byte(*byte)).map(char::from).collect();
        let start = if plain.is_empty() { "user" } else { &plain[..plain.len().min(50)] };
        Username(format!("{start}{more}"))
    }

    /// Its text, as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

impl Email {
    /// From what a caller wrote.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let is_printable = text.bytes().all(|byte| byte.is_ascii_graphic());
        let parts: Vec<&str> = text.split('@').collect();
        let is_one = (3..=254).contains(&text.len())
            && is_printable
            && matches!(parts[..], [local, domain] if !local.is_empty() && !domain.is_empty());
        is_one
            .then(|| Email(text.into()))
            .ok_or_else(|| Fault::invalid("email", "email must be an e-mail address"))
    }

    /// Its text, as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Label {
    /// From what a caller wrote in `field`.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Fault> {
        if text.chars().count() > 200 || text.chars().any(char::is_control) {
            let message = format!("{field} must have at most 200 characters, none of control");
            return Err(Fault::invalid(field, message));
        }
        Ok(Label(text.into()))
    }

    /// As [`Label::parse`], and not empty.
    pub fn required(field: &'static str, text: &str) -> Result<Self, Fault> {
        match Self::parse(field, text.trim())? {
            Label(text) if text.is_empty() => {
                Err(Fault::invalid(field, format!("{field} must not be empty")))
            }
            label => Ok(label),
        }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Password {
    /// Longest, in bytes: past that hashing would be work for nothing.
    pub const BYTES_MAX: usize = 1024;

    /// From what a caller wrote.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Fault> {
        let is_one = (8..=Self::BYTES_MAX).contains(&text.len());
        is_one
            .then(|| Password(text.into()))
            .ok_or_else(|| Fault::invalid(field, format!("{field} must have 8 to 1024 bytes")))
    }

    /// Its bytes, to be hashed.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(***)")
    }
}

impl Search {
    /// From what a caller wrote in `field`.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Fault> {
        let label = Label::parse(field, text)?;
        Ok(Search(label.0.to_lowercase()))
    }

    /// Its text, in lower case. Compared as it is: no character stands for others.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Most entries of a list of networks, models or scopes.
pub const ENTRIES_MAX: usize = 100;

/// Networks as a caller wrote them: `10.0.0.0/8`, or an address alone.
pub fn parse_networks(field: &'static str, texts: &[String]) -> Result<Vec<IpNet>, Fault> {
    if texts.len() > ENTRIES_MAX {
        return Err(Fault::invalid(field, format!("{field} must be at most {ENTRIES_MAX}")));
    }
    let mut networks: Vec<IpNet> = Vec::with_capacity(texts.len());
    for text in texts {
        let network = text.parse::<IpNet>().map(|network| network.trunc()).ok();
        let address = || text.parse::<IpAddr>().ok().map(|address| address.to_canonical().into());
        let network = network.or_else(address);
        let network = network.filter(|network| match network {
            // Addresses of this range are compared as what they stand for.
            IpNet::V6(network) => network.addr().to_ipv4_mapped().is_none(),
            IpNet::V4(_) => true,
        });
        let message = || format!("{field} must be addresses or networks such as 10.0.0.0/8");
        networks.push(network.ok_or_else(|| Fault::invalid(field, message()))?);
    }
    Ok(networks)
}

/// Whether a caller at `address` is in one of `networks`; no networks are everywhere. Whoever has
/// no address is in none.
pub fn is_within(networks: &[IpNet], address: Option<IpAddr>) -> bool {
    let within = |address: IpAddr| {
        let address = address.to_canonical();
        networks.iter().any(|network| network.contains(&address))
    };
    networks.is_empty() || address.is_some_and(within)
}

/// Model names of an allow-list.
pub fn parse_models(field: &'static str, names: Vec<String>) -> Result<Vec<String>, Fault> {
    let is_name = |name: &String| {
        let length = name.chars().count();
        (1..=200).contains(&length) && !name.chars().any(|c| c == '/' || c.is_control())
    };
    if names.len() > ENTRIES_MAX || !names.iter().all(is_name) {
        let message = format!("{field} must be at most {ENTRIES_MAX} names of models");
        return Err(Fault::invalid(field, message));
    }
    Ok(names)
}

/// A value of a closed list, by the text that stands for it in the database and at the border.
pub trait Named: Sized + Copy + PartialEq + 'static {
    /// All of them.
    const ALL: &'static [(Self, &'static str)];

    /// Its text.
    fn text(self) -> &'static str {
        Self::ALL.iter().find(|(value, _)| *value == self).map_or("", |(_, text)| text)
    }

    /// From its text.
    fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, own)| *own == text).map(|(value, _)| *value)
    }
}

impl Named for Role {
    const ALL: &'static [(Self, &'static str)] = &[(Role::User, "user"), (Role::Admin, "admin")];
}

impl Named for RateClass {
    const ALL: &'static [(Self, &'static str)] =
        &[(RateClass::User, "user"), (RateClass::Enterprise, "enterprise")];
}

impl Named for Scope {
    const ALL: &'static [(Self, &'static str)] = &[
        (Scope::Inference, "inference"),
        (Scope::Sessions, "sessions"),
        (Scope::ModelsWrite, "models:write"),
        (Scope::Admin, "admin"),
    ];
}

impl Named for pagoda_wire::snapshot::Window {
    const ALL: &'static [(Self, &'static str)] =
        &[(Self::Day, "day"), (Self::Month, "month"), (Self::Total, "total")];
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_cannot_be_a_name_is_refused() {
        for fine in ["a", "A.b_c-9", &"x".repeat(64)] {
            assert_eq!(Username::parse(fine).unwrap().as_str(), fine);
        }
        for wrong in ["", "a@b", "a b", "é", "a\0", "a/b", "%", &"x".repeat(65)] {
            assert!(Username::parse(wrong).is_err(), "{wrong:?}");
        }
        for fine in ["a@b", "First.Last+tag@example.org", "admin@localhost"] {
            assert_eq!(Email::parse(fine).unwrap().as_str(), fine);
        }
        let long = format!("{}@b", "x".repeat(253));
        for wrong in ["", "@", "a@", "@b", "ab", "a@b@c", "a @b", "a@b\n", "a@\0b", "ä@b", &long] {
            assert!(Email::parse(wrong).is_err(), "{wrong:?}");
        }
        assert!(Label::required("name", " \t").is_err());
        assert!(Label::parse("name", "a\r\nb").is_err());
        assert!(Label::parse("name", &"é".repeat(201)).is_err());
        assert_eq!(Label::required("name", &"é".repeat(200)).unwrap().as_str().len(), 400);
        assert!(parse_models("models", vec!["a/b".into()]).is_err());
        assert!(parse_models("models", vec!["m".into(); ENTRIES_MAX + 1]).is_err());
    }

    #[test]
    fn a_password_is_counted_in_bytes_and_never_shown() {
        assert!(Password::parse("password", "sevenby").is_err());
        assert!(Password::parse("password", &"x".repeat(1025)).is_err());
        let whole = "é".repeat(512);
        let password = Password::parse("password", &whole).unwrap();
        assert_eq!(password.bytes(), whole.as_bytes());
        assert_eq!(format!("{password:?}"), "Password(***)");
    }

    #[test]
    fn a_name_made_of_an_address_is_one() {
        for (email, name) in [("a.b+c@d", "a.bc-1"), ("++@d", "user-1")] {
            let username = Username::from_email(&Email::parse(email).unwrap(), "-1");
            assert_eq!(username.as_str(), name);
        }
        let long = Email::parse(&format!("{}@d", "x".repeat(200))).unwrap();
        let username = Username::from_email(&long, "-0123456789");
        assert!(Username::parse(username.as_str()).is_ok());
    }

    #[test]
    fn networks_hold_addresses_in_either_form() {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let networks = ["10.1.2.3/8", "192.0.2.7", "2001:db8::/32", "::ffff:198.51.100.1"];
        let networks = parse_networks("networks", &texts(&networks)).unwrap();
        assert_eq!(networks[0].to_string(), "10.0.0.0/8");
        assert_eq!(networks[3].to_string(), "198.51.100.1/32");
        for (address, inside) in [
            ("10.255.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("192.0.2.8", false),
            ("2001:db8:1::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(is_within(&networks, address.parse().ok()), inside, "{address}");
        }
        assert!(!is_within(&networks, None) && is_within(&[], None));
        for wrong in ["", "10.0.0.0/33", "10.1", "host", "10.0.0.1/8/8", "::ffff:0:0/96"] {
            assert!(parse_networks("networks", &texts(&[wrong])).is_err(), "{wrong}");
        }
        assert!(parse_networks("networks", &vec!["10.0.0.1".into(); 101]).is_err());
    }

    proptest! {
        #[test]
        fn no_text_is_a_fault(text in ".{0,300}") {
            let _ = (Username::parse(&text), Label::required("name", &text));
            let _ = (Search::parse("search", &text), Password::parse("password", &text));
            let _ = parse_networks("networks", std::slice::from_ref(&text));
            if let Ok(email) = Email::parse(&text) {
                prop_assert!(Username::parse(Username::from_email(&email, "").as_str()).is_ok());
            }
        }
    }
}
