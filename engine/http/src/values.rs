//! Counts the values of a JSON text as it arrives, so that room for them is taken before they are
//! made.
//!
//! Every value but the outermost stands behind a comma, a colon or an opening bracket; whether the
//! text is JSON at all is for the parser to say, which never gets further than the count.

/// Values that a text can have at most, as far as it has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct ValueCount {
    count: u64,
    in_string: bool,
    /// The next byte belongs to the backslash before it.
    escaped: bool,
}

impl ValueCount {
    /// Goes on with the text's next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.escaped {
                self.escaped = false;
            } else if self.in_string {
                self.escaped = byte == b'\\';
                self.in_string = byte != b'"';
            } else {
                self.in_string = byte == b'"';
                self.count += u64::from(matches!(byte, b',' | b':' | b'[' | b'{'));
            }
        }
    }

    /// So many at most.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn count(text: &str, cut: usize) -> u64 {
        let (first, second) = text.as_bytes().split_at(cut.min(text.len()));
        let mut count = ValueCount::default();
        count.feed(first);
        count.feed(second);
        count.count()
    }

    /// Values below the outermost one.
    fn num_inner(value: &Value) -> u64 {
        match value {
            Value::Array(items) => items.iter().map(|item| 1 + num_inner(item)).sum(),
            Value::Object(items) => items.values().map(|item| 1 + num_inner(item)).sum(),
            _ => 0,
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i32>().prop_map(Value::from),
            any::<String>().prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..8)
                    .prop_map(|map| map.into_iter().collect::<Value>()),
            ]
        })
    }

    #[test]
    fn what_stands_in_a_string_is_no_value() {
        assert_eq!(count(r#"{"a,[": "{\\\"\",:[", "b": 1}"#, 9), 4);
        assert_eq!(count("[[],[],[]]", 3), 6);
    }

    proptest! {
        #[test]
        fn no_value_is_missed_wherever_the_text_is_cut(value in any_value(), cut in 0_usize..200) {
            let text = value.to_string();
            let count = count(&text, cut);
            prop_assert!(count >= num_inner(&value));
            // Each has at most a comma or bracket before it, a colon, and a bracket of its own.
            prop_assert!(count <= 3 * num_inner(&value) + 1);
        }
    }
}
