//! `tojson` of chat templates, spelled as Python spells it.
//!
//! Hugging Face renders `json.dumps(value, ensure_ascii=False)`: a space after separators,
//! characters beyond ASCII as they are, floats as Python's `repr`. A model was trained on exactly
//! that text, so a different spelling would cost accuracy without an error.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde_json::Value as Json;

/// The filter; takes `ensure_ascii`, `indent`, `separators` and `sort_keys` like `json.dumps`.
pub(super) fn tojson(
    value: &Value,
    indent: Option<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    if value.is_undefined() {
        let what = "an undefined value is not JSON serializable";
        return Err(Error::new(ErrorKind::BadSerialization, what));
    }
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kwargs.get::<Option<Value>>("indent")?,
    };
    let indent = indent.filter(|value| !value.is_none()).map(indent_text).transpose()?;
    let separators = kwargs.get::<Option<Vec<String>>>("separators")?;
    let (item, key) = match separators.as_deref() {
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            let what = "separators must be two strings";
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
    };
    let style = Style {
        indent,
        item,
        key,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let json = serde_json::to_value(value).map_err(|error| {
        Error::new(ErrorKind::BadSerialization, "not JSON serializable").with_source(error)
    })?;
    let mut out = String::new();
    style.write(&json, 0, &mut out);
    Ok(out)
}

fn indent_text(indent: Value) -> Result<String, Error> {
    if let Some(text) = indent.as_str() {
        return Ok(text.to_string());
    }
    let spaces = indent.as_usize().filter(|&n| n <= 64);
    spaces.map(|n| " ".repeat(n)).ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, "indent must be a string or a number up to 64")
    })
}

struct Style {
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    ascii: bool,
}

impl Style {
    fn write(&self, json: &Json, depth: usize, out: &mut String) {
        match json {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Json::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(value) => out.push_str(&python_float(value)),
                None => out.push_str(&number.to_string()),
            },
            Json::String(text) => self.write_string(text, out),
            Json::Array(items) => {
                self.write_list(['[', ']'], depth, out, items.iter(), |item, out| {
                    self.write(item, depth + 1, out);
                });
            }
            Json::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.write_list(
                    ['{', '}'],
                    depth,
                    out,
                    entries.into_iter(),
                    |(key, value), out| {
                        self.write_string(key, out);
                        out.push_str(&self.key);
                        self.write(value, depth + 1, out);
                    },
                );
            }
        }
    }

    fn write_list<T>(
        &self,
        [open, close]: [char; 2],
        depth: usize,
        out: &mut String,
        items: impl ExactSizeIterator<Item = T>,
        write: impl Fn(T, &mut String),
    ) {
        out.push(open);
        let empty = items.len() == 0;
        for (index, item) in items.enumerate() {
            if index > 0 {
                out.push_str(&self.item);
            }
            self.new_line(depth + 1, out);
            write(item, out);
        }
        if !empty {
            self.new_line(depth, out);
        }
        out.push(close);
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn write_string(&self, text: &str, out: &mut String) {
        let quoted = Json::from(text).to_string();
        if !self.ascii {
            return out.push_str(&quoted);
        }
        for c in quoted.chars() {
            // Python escapes the last of them, too.
            if matches!(c, ' '..='~') {
                out.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
}

/// Python's `repr` of a float: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) || value == 0.0 {
        let plain = value.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::value::Serde;

    fn render(template: &str) -> String {
        let mut env = minijinja::Environment::new();
        env.add_filter("tojson", tojson);
        let value = serde_json::json!({"b": [1, 2.0, "你\"\n🙂<"], "a": {}, "n": null});
        let context = Value::from(Serde(serde_json::json!({ "v": value })));
        env.render_str(template, context).unwrap()
    }

    #[test]
    fn spelled_like_json_dumps() {
        assert_eq!(
            render("{{ v|tojson }}"),
            "{\"b\": [1, 2.0, \"你\\\"\\n🙂<\"], \"a\": {}, \"n\": null}"
        );
        assert_eq!(
            render("{{ v|tojson(separators=(',', ':'), sort_keys=true) }}"),
            "{\"a\":{},\"b\":[1,2.0,\"你\\\"\\n🙂<\"],\"n\":null}"
        );
        assert_eq!(
            render("{{ v|tojson(indent=1, ensure_ascii=true) }}"),
            "{\n \"b\": [\n  1,\n  2.0,\n  \"\\u4f60\\\"\\n\\ud83d\\ude42<\"\n ],\n \"a\": {},\n \
             \"n\": null\n}"
        );
    }

    #[test]
    fn ascii_is_what_can_be_printed() {
        assert_eq!(render("{{ '~\u{7f}'|tojson(ensure_ascii=true) }}"), "\"~\\u007f\"");
        assert_eq!(render("{{ '~\u{7f}'|tojson }}"), "\"~\u{7f}\"");
    }

    #[test]
    fn floats_as_python_writes_them() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-1.25e-7, "-1.25e-07"),
            (0.1, "0.1"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }
}
