//! Numbers with units as people write them: `8k` tokens, `4GiB` of memory.
//!
//! Read from a flag as text, from the settings file as text or as an integer. Never rounds.

use std::str::FromStr;

/// A number of tokens: `8192`, `8k` (thousands), `8K` (1024), `1m`, `1M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(
    /// The number.
    pub u64,
);

/// A number of bytes: `1024`, `512MiB`, `4GiB`, `4GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(
    /// The number.
    pub u64,
);

/// A number that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a whole number with a unit we know.
    #[error("expected a whole number with a unit of {0}")]
    Unreadable(&'static str),
    /// More than 2⁶⁴ − 1.
    #[error("the number is too large")]
    TooLarge,
}

impl FromStr for Count {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let units = [("", 1), ("k", 1000), ("K", 1 << 10), ("m", 1_000_000), ("M", 1 << 20)];
        number(text, &units, "k, K, m, M or none").map(Count)
    }
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let units = [
            ("", 1),
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
            ("kB", 1000),
            ("KB", 1000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
        ];
        number(text, &units, "KiB, MiB, GiB, TiB, kB, MB, GB, TB or none").map(Bytes)
    }
}

fn number(text: &str, units: &[(&str, u64)], known: &'static str) -> Result<u64, UnitError> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if digits.is_empty() {
        return Err(UnitError::Unreadable(known));
    }
    let unit = unit.trim_start();
    let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let factor = factor.ok_or(UnitError::Unreadable(known))?;
    let digits: u64 = digits.parse().map_err(|_| UnitError::TooLarge)?;
    digits.checked_mul(factor).ok_or(UnitError::TooLarge)
}

/// An integer or text, as TOML has it.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Plain {
    Integer(u64),
    Text(String),
}

macro_rules! deserialize_plain {
    ($type:ident) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                match Plain::deserialize(from)? {
                    Plain::Integer(number) => Ok($type(number)),
                    Plain::Text(text) => text.parse().map_err(serde::de::Error::custom),
                }
            }
        }
    };
}

deserialize_plain!(Count);
deserialize_plain!(Bytes);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_exact() {
        assert_eq!("8k".parse(), Ok(Count(8000)));
        assert_eq!("8K".parse(), Ok(Count(8192)));
        assert_eq!("4 GiB".parse(), Ok(Bytes(4 << 30)));
        assert_eq!("4GB".parse(), Ok(Bytes(4_000_000_000)));
        assert_eq!("18446744073709551615".parse(), Ok(Bytes(u64::MAX)));
        for bad in ["", "k", "-1", "1.5k", "1e3", "4 gib", "4GiBs", "٣"] {
            assert!(matches!(bad.parse::<Count>(), Err(UnitError::Unreadable(_))), "{bad}");
            assert!(matches!(bad.parse::<Bytes>(), Err(UnitError::Unreadable(_))), "{bad}");
        }
        assert_eq!("18446744073709551616".parse::<Bytes>(), Err(UnitError::TooLarge));
        assert_eq!("99999999TiB".parse::<Bytes>(), Err(UnitError::TooLarge));
    }
}
