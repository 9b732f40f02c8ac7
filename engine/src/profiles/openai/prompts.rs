//! `prompt` of a completions request: a string, strings, token ids, or lists of token ids.

use serde_json::Value;

use crate::profiles::openai::values::{Read, array, count, wrong_type};

/// One prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Text, to be tokenized.
    Text(String),
    /// Token ids, checked against the vocabulary when submitted.
    Tokens(Vec<u32>),
}

/// Reads one to `prompts_max` prompts. Token ids are bounded by the body's size.
pub fn parse(name: &str, value: &Value, prompts_max: usize) -> Read<Vec<Prompt>> {
    if let Some(text) = value.as_str() {
        return Ok(vec![Prompt::Text(text.to_string())]);
    }
    let items = array(name, value, usize::MAX)?;
    if items[0].is_number() {
        return Ok(vec![Prompt::Tokens(tokens(name, items)?)]);
    }
    let items = array(name, value, prompts_max)?;
    let one = |(index, item): (usize, &Value)| {
        let name = format!("{name}[{index}]");
        match item {
            Value::String(text) => Ok(Prompt::Text(text.clone())),
            Value::Array(_) => Ok(Prompt::Tokens(tokens(&name, array(&name, item, usize::MAX)?)?)),
            _ => Err(wrong_type(&name, "a string or an array of token IDs", item)),
        }
    };
    items.iter().enumerate().map(one).collect()
}

fn tokens(name: &str, items: &[Value]) -> Read<Vec<u32>> {
    // The whole name is put together only for a refusal: lists of ids are long.
    let id = |(index, item): (usize, &Value)| match item.as_u64().map(u32::try_from) {
        Some(Ok(id)) => Ok(id),
        _ => count(&format!("{name}[{index}]"), item, 0..=u32::MAX),
    };
    items.iter().enumerate().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(value: Value) -> Result<Vec<Prompt>, String> {
        parse("prompt", &value, 3).map_err(|error| match error {
            crate::api::error::ApiError::Invalid { param, code, .. } => format!("{param} {code}"),
            other => other.to_string(),
        })
    }

    #[test]
    fn all_four_forms_are_read() {
        let text = |text: &str| Prompt::Text(text.into());
        assert_eq!(parsed(json!("a")), Ok(vec![text("a")]));
        assert_eq!(parsed(json!(["a", "b"])), Ok(vec![text("a"), text("b")]));
        assert_eq!(parsed(json!([1, 2])), Ok(vec![Prompt::Tokens(vec![1, 2])]));
        assert_eq!(
            parsed(json!([[1], [2, 3]])),
            Ok(vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])])
        );
    }

    #[test]
    fn other_forms_are_refused_where_they_go_wrong() {
        for (value, told) in [
            (json!([]), "prompt empty_array"),
            (json!([[]]), "prompt[0] empty_array"),
            (json!([1, "a"]), "prompt[1] invalid_type"),
            (json!(["a", 1]), "prompt[1] invalid_type"),
            (json!([1, -1]), "prompt[1] integer_below_min_value"),
            (json!([[1], [4_294_967_296_u64]]), "prompt[1][0] integer_above_max_value"),
            (json!(["a", "b", "c", "d"]), "prompt array_above_max_length"),
            (json!({}), "prompt invalid_type"),
        ] {
            assert_eq!(parsed(value), Err(told.into()));
        }
    }
}
