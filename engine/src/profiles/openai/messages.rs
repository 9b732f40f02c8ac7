//! `messages` of a chat request: roles and text. Images, audio, files and tool calls are refused.

use serde_json::Value;

use crate::profiles::openai::values::{
    Read, array, missing, object, string, unsupported, wrong_type,
};
use crate::text::{Content, Message};

/// Messages, and the names in them that nobody reads.
#[derive(Debug)]
pub struct Messages {
    /// The conversation.
    pub messages: Vec<Message>,
    /// Unknown names, as `messages[].name`.
    pub ignored: Vec<String>,
}

/// Reads one to `messages_max` messages.
pub fn parse(name: &str, value: &Value, messages_max: usize) -> Read<Messages> {
    let mut parsed = Messages { messages: Vec::new(), ignored: Vec::new() };
    for (index, item) in array(name, value, messages_max)?.iter().enumerate() {
        let message = message(&format!("{name}[{index}]"), item, &mut parsed.ignored)?;
        parsed.messages.push(message);
    }
    Ok(parsed)
}

fn message(name: &str, value: &Value, ignored: &mut Vec<String>) -> Read<Message> {
    let fields = object(name, value)?;
    let role_name = format!("{name}.role");
    let role = string(&role_name, fields.get("role").ok_or_else(|| missing(&role_name))?, 64)?;
    let role = match role.as_str() {
        "system" | "user" | "assistant" => role,
        // Templates know the older name only.
        "developer" => "system".to_string(),
        "tool" | "function" => return Err(unsupported(&role_name, "tools are not supported")),
        _ => {
            let message = "Supported values are: 'system', 'developer', 'user' and 'assistant'";
            return Err(unsupported(&role_name, message));
        }
    };
    let mut message = Message { role, ..Message::default() };
    for (field, value) in fields {
        let whole_name = || format!("{name}.{field}");
        match field.as_str() {
            _ if value.is_null() => {}
            "role" => {}
            "content" => message.content = content(&whole_name(), value)?,
            "name" | "reasoning_content" | "reasoning" => {
                let text = string(&whole_name(), value, usize::MAX)?;
                message.fields.insert(field.clone(), text.into());
            }
            "tool_calls" if value.as_array().is_some_and(Vec::is_empty) => {}
            "tool_calls" | "function_call" | "tool_call_id" => {
                return Err(unsupported(&whole_name(), "tools are not supported"));
            }
            "audio" => return Err(unsupported(&whole_name(), "audio is not supported")),
            // What the SDK gives back of an answer without a refusal or with no annotation.
            "refusal" | "annotations" => {}
            _ => ignore(ignored, field),
        }
    }
    if message.content == Content::None {
        return Err(missing(&format!("{name}.content")));
    }
    Ok(message)
}

/// Keeps one entry a name, however many messages hold it.
fn ignore(ignored: &mut Vec<String>, field: &str) {
    let name = format!("messages[].{field}");
    if !ignored.contains(&name) && ignored.len() < IGNORED_MAX {
        ignored.push(name);
    }
}

/// Names that are remembered; more tell nothing new.
const IGNORED_MAX: usize = 16;

fn content(name: &str, value: &Value) -> Read<Content> {
    match value {
        Value::String(text) => Ok(Content::Text(text.clone())),
        Value::Array(_) => {
            let parts = array(name, value, usize::MAX)?.iter().enumerate();
            let texts: Read<Vec<String>> = parts
                .map(|(index, part)| text_of_part(&format!("{name}[{index}]"), part))
                .collect();
            Ok(Content::Parts(texts?))
        }
        _ => Err(wrong_type(name, "a string or an array of content parts", value)),
    }
}

fn text_of_part(name: &str, part: &Value) -> Read<String> {
    let fields = object(name, part)?;
    let kind_name = format!("{name}.type");
    let kind = string(&kind_name, fields.get("type").ok_or_else(|| missing(&kind_name))?, 64)?;
    let field = match kind.as_str() {
        "text" => "text",
        "refusal" => "refusal",
        "image_url" => return Err(unsupported(&kind_name, "the model reads no images")),
        "input_audio" => return Err(unsupported(&kind_name, "the model hears no audio")),
        "file" => return Err(unsupported(&kind_name, "the model reads no files")),
        _ => return Err(unsupported(&kind_name, "content parts are of type 'text'")),
    };
    let text_name = format!("{name}.{field}");
    string(&text_name, fields.get(field).ok_or_else(|| missing(&text_name))?, usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(value: Value) -> String {
        match parse("messages", &value, 3) {
            Ok(parsed) => format!("{:?}", parsed.messages),
            Err(crate::api::error::ApiError::Invalid { param, code, .. }) => {
                format!("{param} {code}")
            }
            Err(other) => other.to_string(),
        }
    }

    #[test]
    fn text_and_parts_are_read_and_unknown_names_listed_once() {
        let value = json!([
            {"role": "developer", "content": "s", "name": "n", "x": 1},
            {"role": "user", "content": [{"type": "text", "text": "a"}], "x": 2},
            {"role": "assistant", "content": "b", "refusal": null, "tool_calls": [], "audio": null},
        ]);
        let parsed = parse("messages", &value, 3).unwrap();
        assert_eq!(parsed.ignored, ["messages[].x"]);
        assert_eq!(parsed.messages[0].role, "system");
        assert_eq!(parsed.messages[0].fields["name"], "n");
        assert_eq!(parsed.messages[1].content, Content::Parts(vec!["a".into()]));
    }

    #[test]
    fn what_we_lack_is_refused_where_it_stands() {
        let with = |message: Value| told(json!([message]));
        let user = |content: Value| with(json!({"role": "user", "content": content}));
        assert_eq!(told(json!([])), "messages empty_array");
        assert_eq!(told(json!("hi")), "messages invalid_type");
        assert_eq!(with(json!("hi")), "messages[0] invalid_type");
        assert_eq!(with(json!({"content": "x"})), "messages[0].role missing_required_parameter");
        assert_eq!(
            with(json!({"role": "wizard", "content": "x"})),
            "messages[0].role unsupported_value"
        );
        assert_eq!(
            with(json!({"role": "tool", "content": "x", "tool_call_id": "1"})),
            "messages[0].role unsupported_value"
        );
        assert_eq!(
            with(json!({"role": "assistant", "tool_calls": [{}]})),
            "messages[0].tool_calls unsupported_value"
        );
        assert_eq!(user(json!(null)), "messages[0].content missing_required_parameter");
        assert_eq!(user(json!(5)), "messages[0].content invalid_type");
        assert_eq!(user(json!([])), "messages[0].content empty_array");
        assert_eq!(
            user(json!([{"type": "image_url", "image_url": {"url": "x"}}])),
            "messages[0].content[0].type unsupported_value"
        );
        assert_eq!(
            user(json!([{"type": "text"}])),
            "messages[0].content[0].text missing_required_parameter"
        );
    }
}
