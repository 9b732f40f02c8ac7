//! Texts that people give: bounded once, where they come in.
//!
//! A value of these types can be stored, shown and logged. It may still hold markup, braces or
//! anything else that letters can say: nobody behind this evaluates it.

use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// `MIN` to `MAX` characters without control characters: it ends no header and no log line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Line<const MIN: usize, const MAX: usize>(String);

/// At most `MAX` characters in any number of lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Text<const MAX: usize>(String);

/// Why a text is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Too short or too long.
    #[error("it must have {min} to {max} characters")]
    Length {
        /// Characters of the shortest
        min: usize,
        /// and the longest.
        max: usize,
    },
    /// Characters that nobody sees.
    #[error("it holds a control character")]
    Control,
    /// A name of what stands in paths.
    #[error("it holds a /")]
    Slash,
}

impl<const MIN: usize, const MAX: usize> Line<MIN, MAX> {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> Text<MAX> {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MIN: usize, const MAX: usize> TryFrom<String> for Line<MIN, MAX> {
    type Error = TextError;

    fn try_from(text: String) -> Result<Self, TextError> {
        if text.contains(char::is_control) {
            return Err(TextError::Control);
        }
        measured(text, MIN, MAX).map(Line)
    }
}

impl<const MAX: usize> TryFrom<String> for Text<MAX> {
    type Error = TextError;

    fn try_from(text: String) -> Result<Self, TextError> {
        if text.contains(|c: char| c.is_control() && !"\t\n\r".contains(c)) {
            return Err(TextError::Control);
        }
        measured(text, 0, MAX).map(Text)
    }
}

/// `text` as a value of a field, with a fault that names the field.
pub fn field<T: TryFrom<String, Error = TextError>>(
    name: &'static str,
    text: impl Into<String>,
) -> Result<T, Fault> {
    T::try_from(text.into()).map_err(|error| Fault::invalid(name, format!("{name}: {error}")))
}

fn measured(text: String, min: usize, max: usize) -> Result<String, TextError> {
    match (min..=max).contains(&text.chars().count()) {
        true => Ok(text),
        false => Err(TextError::Length { min, max }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_20_a_line_ends_no_header_and_a_text_holds_nothing_unseen() {
        type Name = Line<1, 5>;
        assert_eq!(field::<Name>("name", "naïve").unwrap().as_str(), "naïve");
        for wrong in ["", "longer", "a\r\nb", "a\0", "a\u{85}"] {
            assert!(
                matches!(field::<Name>("name", wrong), Err(Fault::Invalid { .. })),
                "{wrong:?}"
            );
        }
        assert_eq!(field::<Text<9>>("text", "a\r\n\tb").unwrap().as_str(), "a\r\n\tb");
        for wrong in ["ten letters", "a\0", "\u{1b}[31m"] {
            assert!(matches!(field::<Text<9>>("text", wrong), Err(Fault::Invalid { .. })));
        }
        assert!(serde_json::from_str::<Name>("\"a\\nb\"").is_err());
    }
}
