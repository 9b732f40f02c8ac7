//! Parameters of sampling that an agent brings: a closed list, each in its range.
//!
//! They are put into requests to engines and upstreams, so nothing else may be among them: no
//! address, no header, no field that a provider would act on.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::fault::Fault;

/// Parameters that are known and in range.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Parameters(Map<String, Value>);

/// A parameter that is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// Nobody knows it.
    #[error("there is no parameter {0:?}")]
    Unknown(String),
    /// Its value.
    #[error("{name} must be {range}")]
    Range {
        /// The parameter.
        name: &'static str,
        /// What it may be.
        range: &'static str,
    },
}

impl Parameters {
    /// The parameters.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Checks each.
    pub fn new(given: Map<String, Value>) -> Result<Self, ParameterError> {
        for (name, value) in &given {
            let known = KNOWN.iter().find(|known| known.name == name);
            let short = || ParameterError::Unknown(name.chars().take(40).collect());
            let known = known.ok_or_else(short)?;
            if !(known.holds)(value) {
                return Err(ParameterError::Range { name: known.name, range: known.range });
            }
        }
        Ok(Parameters(given))
    }
}

impl TryFrom<Map<String, Value>> for Parameters {
    type Error = ParameterError;

    fn try_from(given: Map<String, Value>) -> Result<Self, ParameterError> {
        Parameters::new(given)
    }
}

impl From<ParameterError> for Fault {
    fn from(error: ParameterError) -> Self {
        Fault::invalid("parameters", error.to_string())
    }
}

struct Parameter {
    name: &'static str,
    range: &'static str,
    holds: fn(&Value) -> bool,
}

const KNOWN: &[Parameter] = &[
    Parameter { name: "temperature", range: "0 to 2", holds: |v| between(v, 0.0, 2.0) },
    Parameter { name: "top_p", range: "above 0 to 1", holds: |v| between(v, 1e-9, 1.0) },
    Parameter { name: "min_p", range: "0 to 1", holds: |v| between(v, 0.0, 1.0) },
    Parameter { name: "top_k", range: "a whole number from 0", holds: |v| v.as_u64().is_some() },
    Parameter {
        name: "max_tokens",
        range: "a whole number from 1 to 10000000",
        holds: |v| v.as_u64().is_some_and(|tokens| (1..=10_000_000).contains(&tokens)),
    },
    Parameter { name: "presence_penalty", range: "-2 to 2", holds: |v| between(v, -2.0, 2.0) },
    Parameter { name: "frequency_penalty", range: "-2 to 2", holds: |v| between(v, -2.0, 2.0) },
    Parameter {
        name: "repetition_penalty",
        range: "above 0 to 10",
        holds: |v| between(v, 1e-9, 10.0),
    },
    Parameter { name: "seed", range: "a whole number", holds: |v| v.as_i64().is_some() },
    Parameter { name: "stop", range: "a text or up to 16 texts", holds: is_stop },
];

fn between(value: &Value, min: f64, max: f64) -> bool {
    value.as_f64().is_some_and(|number| (min..=max).contains(&number))
}

fn is_stop(value: &Value) -> bool {
    let is_text =
        |value: &Value| value.as_str().is_some_and(|text| (1..=1000).contains(&text.len()));
    match value {
        Value::Array(texts) => texts.len() <= 16 && texts.iter().all(is_text),
        text => is_text(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(value: Value) -> Result<Parameters, serde_json::Error> {
        serde_json::from_value(value)
    }

    #[test]
    fn known_ones_in_range_are_taken() {
        let all = json!({
            "temperature": 0.7, "top_p": 1, "min_p": 0, "top_k": 40, "max_tokens": 2000,
            "presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1.1,
            "seed": -1, "stop": ["\n", "END"]
        });
        assert_eq!(Value::Object(of(all.clone()).unwrap().as_map().clone()), all);
        assert!(of(json!({ "stop": "x" })).is_ok());
        for wrong in [
            json!({ "temperature": 2.1 }),
            json!({ "temperature": "hot" }),
            json!({ "top_p": 0 }),
            json!({ "max_tokens": 0 }),
            json!({ "max_tokens": 1.5 }),
            json!({ "stop": [1] }),
            json!({ "stop": "" }),
        ] {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn attack_10_no_parameter_reaches_an_upstream_that_says_where_to_go() {
        for name in ["api_base", "base_url", "api_key", "headers", "extra_headers", "model", "url"]
        {
            assert!(of(json!({ name: "https://evil.com" })).is_err(), "{name}");
        }
    }
}
