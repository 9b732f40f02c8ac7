//! Bodies of requests that change models, read once: every field known, typed and bounded.
//!
//! An unknown field is refused: an option that is misspelt must not load another model than meant.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::api::DEFAULT_NAME;
use crate::api::error::ApiError;
use crate::profiles::openai::values::{Read, integer, missing, string, wrong_type};

/// A model that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Name that clients will use.
    pub name: String,
    /// Its folder.
    pub path: String,
    /// Settings of its own.
    pub options: Map<String, Value>,
    /// How long requests on a replaced one may go on.
    pub drain_timeout: Option<Duration>,
}

/// A name in the path of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addressed {
    /// It.
    pub name: String,
    /// Whether a model is served under it.
    pub is_served: bool,
}

/// How a model is to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Going {
    /// How long requests on it may go on.
    pub drain_timeout: Option<Duration>,
}

/// Bytes of a name,
const NAME_BYTES_MAX: usize = 128;
/// of a path,
const PATH_BYTES_MAX: usize = 1024;
/// and seconds of a drain: a day.
const DRAIN_SECONDS_MAX: i64 = 86_400;

impl Asked {
    /// Reads a body; the name stands there, unless the path of the request has it. That of a model
    /// that is served may have any signs: who started the process chose it.
    pub fn read(body: &Map<String, Value>, name: Option<Addressed>) -> Read<Self> {
        let known = match name {
            None => &["name", "path", "options"][..],
            Some(_) => &["path", "options", "drain_timeout"],
        };
        only(body, known)?;
        let text = |field: &'static str, most: usize| match present(body, field) {
            Some(value) => string(field, value, most),
            None => Err(missing(field)),
        };
        let (name, is_served) = match name {
            Some(Addressed { name, is_served }) => (name, is_served),
            None => (text("name", NAME_BYTES_MAX)?, false),
        };
        if !is_served {
            check_name(&name)?;
        }
        let options = match present(body, "options") {
            None => Map::new(),
            Some(Value::Object(options)) => options.clone(),
            Some(other) => return Err(wrong_type("options", "an object", other)),
        };
        let path = text("path", PATH_BYTES_MAX)?;
        Ok(Asked { name, path, options, drain_timeout: drain_timeout(body)? })
    }
}

impl Going {
    /// Reads a body.
    pub fn read(body: &Map<String, Value>) -> Read<Self> {
        only(body, &["drain_timeout"])?;
        Ok(Going { drain_timeout: drain_timeout(body)? })
    }
}

fn drain_timeout(body: &Map<String, Value>) -> Read<Option<Duration>> {
    let seconds = |value| integer("drain_timeout", value, 0..=DRAIN_SECONDS_MAX);
    let seconds = present(body, "drain_timeout").map(seconds).transpose()?;
    Ok(seconds.map(|seconds| Duration::from_secs(seconds.unsigned_abs())))
}

fn present<'a>(body: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
    body.get(field).filter(|value| !value.is_null())
}

/// A name that can stand in a path (where dots alone lead elsewhere), a label and a line of the log.
fn check_name(name: &str) -> Read<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.:/@+".contains(c);
    if name.is_empty()
        || name.len() > NAME_BYTES_MAX
        || !name.chars().all(fine)
        || name.chars().all(|c| c == '.')
        || name == DEFAULT_NAME
    {
        let message = format!(
            "Invalid 'name': expected up to {NAME_BYTES_MAX} letters, digits and -_.:/@+, and not \
             `{DEFAULT_NAME}`."
        );
        return Err(ApiError::invalid("name", "invalid_value", message));
    }
    Ok(())
}

fn only(body: &Map<String, Value>, known: &[&str]) -> Read<()> {
    match body.keys().find(|field| !known.contains(&field.as_str())) {
        None => Ok(()),
        Some(field) => {
            let field: String = field.chars().filter(char::is_ascii_graphic).take(64).collect();
            let message = format!("Unknown field '{field}': expected {}.", known.join(", "));
            Err(ApiError::invalid(field, "unknown_parameter", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: &Value, name: Option<&str>) -> Result<Asked, String> {
        let name = name.map(|name| Addressed { name: name.to_owned(), is_served: false });
        let asked = Asked::read(body.as_object().unwrap(), name);
        asked.map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_that_is_served_may_be_any_and_a_new_one_may_not() {
        let body = json!({"path": "x"});
        let read = |name: &str, is_served| {
            let name = Addressed { name: name.into(), is_served };
            Asked::read(body.as_object().unwrap(), Some(name))
        };
        assert_eq!(read("my model", true).unwrap().name, "my model");
        assert!(read("my model", false).is_err() && read("my-model", false).is_ok());
    }

    #[test]
    fn a_whole_body_is_read() {
        let body = json!({"name": "org/a", "path": "x", "options": {"seed": 3}});
        let asked = read(&body, None).unwrap();
        assert_eq!((asked.name.as_str(), asked.path.as_str()), ("org/a", "x"));
        assert_eq!((asked.options["seed"].as_u64(), asked.drain_timeout), (Some(3), None));
        let asked = read(&json!({"path": "x", "drain_timeout": 5}), Some("a")).unwrap();
        assert_eq!(asked.drain_timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, told) in [
            (json!({"path": "x"}), "name"),
            (json!({"name": "a"}), "path"),
            (json!({"name": "a", "path": 3}), "path"),
            (json!({"name": "a", "path": "x".repeat(2000)}), "path"),
            (json!({"name": "", "path": "x"}), "'name'"),
            (json!({"name": "default", "path": "x"}), "'name'"),
            (json!({"name": "a b", "path": "x"}), "'name'"),
            (json!({"name": "..", "path": "x"}), "'name'"),
            (json!({"name": "a\n", "path": "x"}), "'name'"),
            (json!({"name": "a", "path": "x", "options": [1]}), "options"),
            (json!({"name": "a", "path": "x", "quantization": "q8_0"}), "'quantization'"),
            (json!({"name": "a", "path": "x", "drain_timeout": 3}), "'drain_timeout'"),
        ] {
            let error = read(&body, None).unwrap_err();
            assert!(error.contains(told), "{body}: {error}");
        }
        for wrong in [json!(-1), json!(1.5), json!("3"), json!(1_000_000)] {
            assert!(read(&json!({"path": "x", "drain_timeout": wrong}), Some("a")).is_err());
            let body = json!({"drain_timeout": wrong});
            assert!(Going::read(body.as_object().unwrap()).is_err(), "{body}");
        }
    }
}
