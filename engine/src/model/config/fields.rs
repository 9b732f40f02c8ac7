//! Typed, bounded access to one JSON object of a checkpoint.
//!
//! Every read names the field and its bounds, so that each refusal can say file, field and reason:
//! a field is asked for by our name, found under the family's, and refused under the file's own.
//! `null` counts as absent, as in the files that transformers writes. Never panics and never
//! converts silently: a number that is not whole is not a size.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::model::error::readable;
use crate::model::families::Family;

/// A checkpoint's file says something that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {field}: {reason}")]
pub struct ConfigError {
    /// The file, as the person who wrote it knows it.
    pub file: String,
    /// The field, with the objects it is inside of.
    pub field: String,
    /// What is wrong, with the value and what was expected.
    pub reason: String,
}

impl ConfigError {
    /// Field and reason, for an error of an object around.
    pub(crate) fn in_words(&self) -> String {
        format!("{}: {}", self.field, self.reason)
    }
}

/// One JSON object and where it stands.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    file: &'a str,
    parent: Option<&'a str>,
    map: &'a Map<String, Value>,
    /// The object around a nested one; what it says of [`OF_THE_WHOLE`] counts.
    outer: Option<&'a Map<String, Value>>,
    /// Fields that the file calls otherwise: our name, then the file's.
    names: &'static [(&'static str, &'static str)],
    /// What fields mean that the file does not have, by our names.
    defaults: Option<&'a Map<String, Value>>,
}

/// What a file that describes more than a decoder says once, of all of it.
const OF_THE_WHOLE: [&str; 6] = [
    "dtype",
    "torch_dtype",
    "eos_token_id",
    "tie_word_embeddings",
    "quantization_config",
    "compression_config",
];

/// Parses a whole file that must hold an object.
pub(crate) fn parse_object(file: &str, bytes: &[u8]) -> Result<Map<String, Value>, ConfigError> {
    let whole = |reason: String| ConfigError {
        file: file.to_owned(),
        field: "(whole file)".to_owned(),
        reason: readable(reason),
    };
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(whole("is not a JSON object".to_owned())),
        Err(error) => Err(whole(format!("is not valid JSON: {error}"))),
    }
}

impl<'a> Fields<'a> {
    pub(crate) fn new(file: &'a str, map: &'a Map<String, Value>) -> Self {
        Fields { file, parent: None, map, outer: None, names: &[], defaults: None }
    }

    /// The object that describes the decoder in a family's files, read in the family's words.
    pub(crate) fn of_family(
        self,
        family: &'static Family,
        defaults: &'a Map<String, Value>,
    ) -> Result<Self, ConfigError> {
        let inner = match family.nested {
            None => self,
            Some(name) => Fields { outer: Some(self.map), ..self.need_object(name)? },
        };
        Ok(Fields { names: family.fields, defaults: Some(defaults), ..inner })
    }

    /// What the file calls a field.
    pub(crate) fn name<'n>(&self, field: &'n str) -> &'n str {
        let alias = self.names.iter().find(|(ours, _)| *ours == field);
        alias.map_or(field, |(_, name)| name)
    }

    /// The value, unless it is absent or null.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        let name = self.name(field);
        let value = match self.of_the_whole(name) {
            Some(value) => Some(value),
            None => self.map.get(name).or_else(|| self.defaults?.get(field)),
        };
        value.filter(|value| !value.is_null())
    }

    /// What the object around this one says, if the field is a matter of both.
    fn of_the_whole(&self, name: &str) -> Option<&'a Value> {
        let outer = self.outer.filter(|_| OF_THE_WHOLE.contains(&name))?;
        outer.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn error(&self, field: &str, reason: impl Into<String>) -> ConfigError {
        let name = self.name(field);
        let field = match self.parent.filter(|_| self.of_the_whole(name).is_none()) {
            Some(parent) => format!("{parent}.{name}"),
            None => name.to_owned(),
        };
        let (field, reason) = (readable(field), readable(reason));
        ConfigError { file: self.file.to_owned(), field, reason }
    }

    fn wrong(&self, field: &str, value: &Value, expected: &str) -> ConfigError {
        self.error(field, format!("is {}, expected {expected}", shorten(value)))
    }

    /// An object inside this one.
    pub(crate) fn object(&self, field: &'a str) -> Result<Option<Fields<'a>>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Fields { parent: Some(field), ..Fields::new(self.file, map) }))
            }
            Some(other) => Err(self.wrong(field, other, "an object")),
        }
    }

    /// The same, where it must be there.
    pub(crate) fn need_object(&self, field: &'a str) -> Result<Fields<'a>, ConfigError> {
        self.object(field)?.ok_or_else(|| self.error(field, "is missing"))
    }

    /// The names that the file has in this object.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.map.keys().map(String::as_str)
    }

    /// A whole number within `bounds`.
    pub(crate) fn size(
        &self,
        field: &str,
        bounds: RangeInclusive<u32>,
    ) -> Result<Option<u32>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let whole = value.as_u64().and_then(|n| u32::try_from(n).ok());
        match whole.filter(|n| bounds.contains(n)) {
            Some(n) => Ok(Some(n)),
            None => {
                let expected =
                    format!("a whole number from {} to {}", bounds.start(), bounds.end());
                Err(self.wrong(field, value, &expected))
            }
        }
    }

    /// A size that must be there.
    pub(crate) fn need_size(
        &self,
        field: &str,
        bounds: RangeInclusive<u32>,
    ) -> Result<u32, ConfigError> {
        self.size(field, bounds)?.ok_or_else(|| self.error(field, "is missing"))
    }

    /// A number within `bounds`; never NaN or infinite.
    pub(crate) fn number(
        &self,
        field: &str,
        bounds: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_f64().filter(|n| bounds.contains(n)) {
            Some(n) => Ok(Some(n)),
            None => {
                let expected = format!("a number from {} to {}", bounds.start(), bounds.end());
                Err(self.wrong(field, value, &expected))
            }
        }
    }

    /// A number that must be there.
    pub(crate) fn need_number(
        &self,
        field: &str,
        bounds: RangeInclusive<f64>,
    ) -> Result<f64, ConfigError> {
        self.number(field, bounds)?.ok_or_else(|| self.error(field, "is missing"))
    }

    pub(crate) fn flag(&self, field: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(field, other, "true or false")),
        }
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(field, other, "a string")),
        }
    }

    /// A list of at most `max_len` values.
    pub(crate) fn list(
        &self,
        field: &str,
        max_len: usize,
    ) -> Result<Option<&'a [Value]>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Array(items)) if items.len() <= max_len => Ok(Some(items)),
            Some(Value::Array(items)) => Err(self
                .error(field, format!("has {} entries, expected at most {max_len}", items.len()))),
            Some(other) => Err(self.wrong(field, other, "a list")),
        }
    }
}

/// A value as an error message may show it.
fn shorten(value: &Value) -> String {
    const SHOWN: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str, read: impl Fn(&Fields<'_>) -> Result<(), ConfigError>) -> String {
        let map = parse_object("config.json", json.as_bytes()).unwrap();
        read(&Fields::new("config.json", &map)).unwrap_err().to_string()
    }

    #[test]
    fn refusals_name_file_field_value_and_what_was_expected() {
        let size = |f: &Fields<'_>| f.need_size("hidden_size", 1..=100).map(drop);
        assert_eq!(
            refusal(r#"{"hidden_size": -3}"#, size),
            "config.json: hidden_size: is -3, expected a whole number from 1 to 100"
        );
        assert_eq!(refusal("{}", size), "config.json: hidden_size: is missing");
        assert_eq!(
            refusal(r#"{"hidden_size": 1.5}"#, size),
            "config.json: hidden_size: is 1.5, expected a whole number from 1 to 100"
        );
        let inner = |f: &Fields<'_>| {
            f.object("rope_scaling")?.map(|r| r.need_number("factor", 1.0..=2.0)).transpose()?;
            Ok(())
        };
        assert_eq!(
            refusal(r#"{"rope_scaling": {"factor": "x"}}"#, inner),
            "config.json: rope_scaling.factor: is \"x\", expected a number from 1 to 2"
        );
        assert!(parse_object("config.json", b"[]").is_err());
        assert!(parse_object("config.json", b"{").is_err());
    }

    #[test]
    fn long_values_are_cut_at_a_character() {
        let shown = shorten(&Value::String("é".repeat(200)));
        assert!(shown.chars().count() == 61 && shown.ends_with('…'));
    }
}
