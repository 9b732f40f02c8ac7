//! Typed readers of JSON values, with ranges, in the words that OpenAI's API uses for refusals.
//!
//! Each takes the parameter's name as clients know it. None of them quotes more of a client's
//! value than a number or a short name.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::api::error::ApiError;

/// A refused value.
pub type Read<T> = Result<T, ApiError>;

/// A number in a closed range.
pub fn number(name: &str, value: &Value, range: RangeInclusive<f64>) -> Read<f32> {
    let number = value.as_f64().ok_or_else(|| wrong_type(name, "a decimal", value))?;
    if number < *range.start() {
        let low = range.start();
        return Err(below(name, "decimal", low, number));
    }
    if number > *range.end() {
        let high = range.end();
        return Err(above(name, "decimal", high, number));
    }
    // Every range of ours lies within f32.
    Ok(number as f32)
}

/// A whole number in a closed range. `3.0` counts as whole, as in JSON's own terms.
pub fn integer(name: &str, value: &Value, range: RangeInclusive<i64>) -> Read<i64> {
    let whole = value.as_i64().or_else(|| whole_float(value));
    let Some(number) = whole else {
        return match value.as_u64() {
            Some(number) => Err(above(name, "integer", range.end(), number)),
            None => Err(wrong_type(name, "an integer", value)),
        };
    };
    if number < *range.start() {
        return Err(below(name, "integer", range.start(), number));
    }
    if number > *range.end() {
        return Err(above(name, "integer", range.end(), number));
    }
    Ok(number)
}

/// A whole number from `low` to `high`.
pub fn count(name: &str, value: &Value, range: RangeInclusive<u32>) -> Read<u32> {
    let range = i64::from(*range.start())..=i64::from(*range.end());
    // The range keeps it within u32.
    Ok(u32::try_from(integer(name, value, range)?).unwrap_or(u32::MAX))
}

/// `true` or `false`.
pub fn boolean(name: &str, value: &Value) -> Read<bool> {
    value.as_bool().ok_or_else(|| wrong_type(name, "a boolean", value))
}

/// A string of at most `bytes_max` bytes.
pub fn string(name: &str, value: &Value, bytes_max: usize) -> Read<String> {
    let text = value.as_str().ok_or_else(|| wrong_type(name, "a string", value))?;
    if text.len() > bytes_max {
        return Err(ApiError::invalid(
            name,
            "string_above_max_length",
            format!(
                "Invalid '{name}': string too long. Expected a string with maximum length \
                 {bytes_max}, but got a string with length {} instead.",
                text.len()
            ),
        ));
    }
    Ok(text.to_string())
}

/// An array with at least one and at most `len_max` items.
pub fn array<'a>(name: &str, value: &'a Value, len_max: usize) -> Read<&'a Vec<Value>> {
    let items = value.as_array().ok_or_else(|| wrong_type(name, "an array", value))?;
    if items.is_empty() {
        return Err(ApiError::invalid(
            name,
            "empty_array",
            format!(
                "Invalid '{name}': empty array. Expected an array with minimum length 1, but got \
                 an empty array instead."
            ),
        ));
    }
    bounded(name, items, len_max)?;
    Ok(items)
}

/// An object.
pub fn object<'a>(name: &str, value: &'a Value) -> Read<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| wrong_type(name, "an object", value))
}

/// Arguments of a chat template: few and short, because their values wait for the tokenizers beside
/// the text that they come with, and room is kept for text alone.
pub fn template_kwargs(name: &str, value: &Value) -> Read<Map<String, Value>> {
    let kwargs = object(name, value)?;
    let (num_values, num_bytes) = kwargs.iter().fold((0, 0), add_entry);
    if num_values <= KWARGS_VALUES_MAX && num_bytes <= KWARGS_BYTES_MAX {
        return Ok(kwargs.clone());
    }
    Err(ApiError::invalid(
        name,
        "object_above_max_length",
        format!(
            "Invalid '{name}': object too large. Expected at most {KWARGS_VALUES_MAX} values with \
             {KWARGS_BYTES_MAX} bytes of text, but got {num_values} values with {num_bytes} bytes \
             instead."
        ),
    ))
}

/// Values in a template's arguments, at any depth.
const KWARGS_VALUES_MAX: usize = 512;

/// Bytes of strings and names in them.
const KWARGS_BYTES_MAX: usize = 64 << 10;

/// Adds an entry of an object to a number of values and one of bytes.
fn add_entry(sum: (usize, usize), (name, value): (&String, &Value)) -> (usize, usize) {
    let (num_values, num_bytes) = add_value(sum, value);
    (num_values, num_bytes + name.len())
}

/// Adds a value with all that is in it. As deep as the parser went, which is bounded.
fn add_value((num_values, num_bytes): (usize, usize), value: &Value) -> (usize, usize) {
    let sum = (num_values + 1, num_bytes);
    match value {
        Value::Array(items) => items.iter().fold(sum, add_value),
        Value::Object(entries) => entries.iter().fold(sum, add_entry),
        Value::String(text) => (sum.0, sum.1 + text.len()),
        Value::Null | Value::Bool(_) | Value::Number(_) => sum,
    }
}

/// A list of token ids, possibly empty, in the order given.
pub fn token_ids(name: &str, value: &Value, len_max: usize) -> Read<Vec<u32>> {
    let items = value.as_array().ok_or_else(|| wrong_type(name, "an array of integers", value))?;
    bounded(name, items, len_max)?;
    let id = |(index, item)| count(&format!("{name}[{index}]"), item, 0..=u32::MAX);
    items.iter().enumerate().map(id).collect()
}

/// `logit_bias`: token id to bias, ascending by token.
pub fn logit_bias(name: &str, value: &Value, len_max: usize) -> Read<Vec<(u32, f32)>> {
    let map = object(name, value)?;
    if map.len() > len_max {
        return Err(ApiError::invalid(
            name,
            "object_above_max_properties",
            format!(
                "Invalid '{name}': too many properties. Expected an object with at most \
                 {len_max} properties, but got an object with {} properties instead.",
                map.len()
            ),
        ));
    }
    let mut biases = Vec::with_capacity(map.len());
    for (token, bias) in map {
        // "1", "01" and "+1" would name the same token: only the first is a token id.
        let id: Option<u32> = token.parse().ok().filter(|id: &u32| id.to_string() == *token);
        let token = id.ok_or_else(|| {
            let message = format!("Invalid key in '{name}': only token IDs are allowed as keys.");
            ApiError::invalid(name, "invalid_key", message)
        })?;
        biases.push((token, number(&format!("{name}.{token}"), bias, -100.0..=100.0)?));
    }
    biases.sort_unstable_by_key(|(token, _)| *token);
    Ok(biases)
}

/// One string or a list of strings: stop strings.
pub fn stop_strings(
    name: &str,
    value: &Value,
    len_max: usize,
    bytes_max: usize,
) -> Read<Vec<String>> {
    if value.is_string() {
        return Ok(non_empty(string(name, value, bytes_max)?).into_iter().collect());
    }
    let Some(items) = value.as_array() else {
        return Err(wrong_type(name, "a string or an array of strings", value));
    };
    bounded(name, items, len_max)?;
    let stop = |(index, item)| string(&format!("{name}[{index}]"), item, bytes_max);
    let stops: Read<Vec<String>> = items.iter().enumerate().map(stop).collect();
    Ok(stops?.into_iter().filter_map(non_empty).collect())
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// The value has another type than the field.
pub fn wrong_type(name: &str, expected: &str, value: &Value) -> ApiError {
    let got = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    let message = format!("Invalid type for '{name}': expected {expected}, but got {got} instead.");
    ApiError::invalid(name, "invalid_type", message)
}

/// A field that must be there is not.
pub fn missing(name: &str) -> ApiError {
    let message = format!("Missing required parameter: '{name}'.");
    ApiError::invalid(name, "missing_required_parameter", message)
}

/// A field, or this value of it, asks for something that we lack.
pub fn unsupported(name: &str, what: &str) -> ApiError {
    let message = format!("Unsupported value for '{name}': {what}.");
    ApiError::invalid(name, "unsupported_value", message)
}

fn bounded(name: &str, items: &[Value], len_max: usize) -> Read<()> {
    if items.len() <= len_max {
        return Ok(());
    }
    Err(ApiError::invalid(
        name,
        "array_above_max_length",
        format!(
            "Invalid '{name}': array too long. Expected an array with maximum length {len_max}, \
             but got an array with length {} instead.",
            items.len()
        ),
    ))
}

fn below(
    name: &str,
    kind: &'static str,
    low: impl std::fmt::Display,
    got: impl std::fmt::Display,
) -> ApiError {
    let code =
        if kind == "integer" { "integer_below_min_value" } else { "decimal_below_min_value" };
    let message = format!(
        "Invalid '{name}': {kind} below minimum value. Expected a value >= {low}, but got {got} \
         instead."
    );
    ApiError::invalid(name, code, message)
}

fn above(
    name: &str,
    kind: &'static str,
    high: impl std::fmt::Display,
    got: impl std::fmt::Display,
) -> ApiError {
    let code =
        if kind == "integer" { "integer_above_max_value" } else { "decimal_above_max_value" };
    let message = format!(
        "Invalid '{name}': {kind} above maximum value. Expected a value <= {high}, but got {got} \
         instead."
    );
    ApiError::invalid(name, code, message)
}

fn whole_float(value: &Value) -> Option<i64> {
    let number = value.as_f64()?;
    // 2⁵³: beyond it a float no longer names one integer.
    (number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0).then_some(number as i64)
}
