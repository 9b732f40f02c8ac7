//! What the two processes say to each other: a length, and a JSON value in bytes of our own.
//!
//! Not JSON's text: floats must arrive as the bits that they are, since a template writes them. Both
//! ends are one program, so a value that cannot be read is a fault of ours, never a reason to panic.

use std::io::{self, Read, Write};

use serde_json::{Map, Number, Value as Json};

use super::{Chat, Message};

/// A chat that owns what it is made of.
#[derive(serde::Deserialize)]
pub(super) struct OwnedChat {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    continue_final_message: bool,
    tools: Option<Json>,
    kwargs: Map<String, Json>,
    now: std::time::SystemTime,
}

impl OwnedChat {
    pub(super) fn as_chat(&self) -> Chat<'_> {
        Chat {
            messages: &self.messages,
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            tools: self.tools.as_ref(),
            kwargs: &self.kwargs,
            now: self.now,
        }
    }
}

/// Writes a value with its length.
pub(super) fn send(to: &mut impl Write, what: &impl serde::Serialize) -> io::Result<()> {
    let json = serde_json::to_value(what).map_err(io::Error::other)?;
    let mut bytes = vec![0; 8];
    put(&json, &mut bytes);
    drop(json);
    let length = bytes.len() as u64 - 8;
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    to.write_all(&bytes)?;
    to.flush()
}

/// Reads a value of at most `bytes_max`; `None` where nothing comes any more.
pub(super) fn receive<T: serde::de::DeserializeOwned>(
    from: &mut impl Read,
    bytes_max: u64,
) -> io::Result<Option<T>> {
    let mut length = [0; 8];
    if from.read(&mut length[..1])? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[1..])?;
    let length = u64::from_le_bytes(length);
    if length > bytes_max {
        return Err(damaged());
    }
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    let mut rest = &bytes[..];
    let json =
        take(&mut rest, DEPTH_MAX).filter(|_| rest.is_empty() && bytes.len() as u64 == length);
    let json = json.ok_or_else(damaged)?;
    drop(bytes);
    serde_json::from_value(json).map(Some).map_err(|_| damaged())
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no message of ours")
}

/// Bodies of requests are 128 deep at most.
const DEPTH_MAX: usize = 200;

const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const NEGATIVE: u8 = 3;
const WHOLE: u8 = 4;
const FLOAT: u8 = 5;
const STRING: u8 = 6;
const ARRAY: u8 = 7;
const OBJECT: u8 = 8;

fn put(json: &Json, out: &mut Vec<u8>) {
    let mut number = |kind: u8, bits: u64| {
        out.push(kind);
        out.extend_from_slice(&bits.to_le_bytes());
    };
    match json {
        Json::Null => out.push(NULL),
        Json::Bool(value) => out.push(if *value { TRUE } else { FALSE }),
        Json::Number(of) => match (of.as_u64(), of.as_i64()) {
            (Some(whole), _) => number(WHOLE, whole),
            (_, Some(negative)) => number(NEGATIVE, negative as u64),
            _ => number(FLOAT, of.as_f64().unwrap_or(0.0).to_bits()),
        },
        Json::String(text) => {
            number(STRING, text.len() as u64);
            out.extend_from_slice(text.as_bytes());
        }
        Json::Array(items) => {
            number(ARRAY, items.len() as u64);
            items.iter().for_each(|item| put(item, out));
        }
        Json::Object(map) => {
            number(OBJECT, map.len() as u64);
            for (key, value) in map {
                out.extend_from_slice(&(key.len() as u64).to_le_bytes());
                out.extend_from_slice(key.as_bytes());
                put(value, out);
            }
        }
    }
}

/// The next value; `depth` is how far lists and objects may lie in each other.
fn take(from: &mut &[u8], depth: usize) -> Option<Json> {
    let depth = depth.checked_sub(1)?;
    let (kind, rest) = from.split_first()?;
    *from = rest;
    Some(match *kind {
        NULL => Json::Null,
        FALSE => Json::Bool(false),
        TRUE => Json::Bool(true),
        NEGATIVE => Json::from(take_bits(from)? as i64),
        WHOLE => Json::from(take_bits(from)?),
        FLOAT => Json::Number(Number::from_f64(f64::from_bits(take_bits(from)?))?),
        STRING => Json::String(take_text(from)?),
        ARRAY => {
            let items = (0..take_bits(from)?).map(|_| take(from, depth));
            Json::Array(items.collect::<Option<_>>()?)
        }
        OBJECT => {
            let entries =
                (0..take_bits(from)?).map(|_| Some((take_text(from)?, take(from, depth)?)));
            Json::Object(entries.collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

fn take_bits(from: &mut &[u8]) -> Option<u64> {
    let (bits, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(u64::from_le_bytes(*bits))
}

fn take_text(from: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(take_bits(from)?).ok()?;
    let (text, rest) = from.split_at_checked(length)?;
    *from = rest;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn there_and_back(json: &Json) -> Option<Json> {
        let mut bytes = Vec::new();
        send(&mut bytes, json).unwrap();
        receive(&mut &bytes[..], 1 << 20).unwrap()
    }

    #[test]
    fn values_arrive_as_they_are() {
        let odd = json!({
            "b": [null, true, false, "", "é🙂\u{0}"], "a": {"z": {}, "y": []},
            "n": [0, -1, i64::MIN, i64::MAX, u64::MAX, 0.1, -0.0, 5e-324, 1e308, 3.0],
        });
        let back = there_and_back(&odd).unwrap();
        // As text: it tells 3.0 from 3, -0.0 from 0.0 and one order of keys from another.
        assert_eq!(back.to_string(), odd.to_string());
        assert!(receive::<Json>(&mut &[][..], 9).unwrap().is_none());
        let deep = |depth| (1..depth).fold(json!([]), |inner, _| json!([inner]));
        assert_eq!(there_and_back(&deep(DEPTH_MAX)), Some(deep(DEPTH_MAX)));
        let mut bytes = Vec::new();
        send(&mut bytes, &deep(DEPTH_MAX + 1)).unwrap();
        assert!(receive::<Json>(&mut &bytes[..], 1 << 20).is_err(), "too deep");
        let mut bytes = Vec::new();
        send(&mut bytes, &odd).unwrap();
        assert!(receive::<Json>(&mut &bytes[..], 9).is_err(), "too long");
        for cut in 1..bytes.len() {
            assert!(receive::<Json>(&mut &bytes[..cut], 1 << 20).is_err(), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn floats_keep_their_bits(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            let back = there_and_back(&json!(value)).unwrap();
            prop_assert_eq!(back.as_f64().unwrap().to_bits(), bits);
        }

        #[test]
        fn no_bytes_are_a_panic(bytes: Vec<u8>) {
            let mut whole = (bytes.len() as u64).to_le_bytes().to_vec();
            whole.extend_from_slice(&bytes);
            let _ = receive::<Json>(&mut &whole[..], 1 << 20);
        }
    }
}
