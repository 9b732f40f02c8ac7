//! Changes inputs: bytes, words, numbers, and the values of JSON where there is any.
//!
//! Everything follows from the random numbers, so a seed gives the same inputs each time.

use pagoda_tests::fuzz::{CUT, Target};
use pagoda_tests::simulation::closed_form::Random;
use serde_json::{Map, Value, json};

/// Bytes of an input at most, but for seeds.
const LEN_MAX: usize = 48 << 10;

/// Numbers at the borders of types, and some that JSON has and types do not.
const NUMBERS: [&str; 30] = [
    "-1",
    "0",
    "1",
    "2",
    "3",
    "7",
    "8",
    "127",
    "128",
    "255",
    "256",
    "4096",
    "32767",
    "65535",
    "65536",
    "1048577",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775809",
    "1e308",
    "1e-320",
    "0.5",
    "-0.0",
];

/// An input made of one of `pool`, by one to four changes.
pub(crate) fn mutated(random: &mut Random, target: &Target, pool: &[Vec<u8>]) -> Vec<u8> {
    // Of two the shorter, mostly: long inputs take time and show little more.
    let (mut input, other) = (any(random, pool), any(random, pool));
    if other.len() < input.len() && random.percent(75) {
        input = other;
    }
    let mut input = input.clone();
    for _ in 0..1 + random.below(4) {
        if random.percent(45) && mutate_json(random, target, &mut input) {
            continue;
        }
        mutate_bytes(random, target, pool, &mut input);
    }
    input.truncate(LEN_MAX);
    input
}

fn any<'a, T>(random: &mut Random, items: &'a [T]) -> &'a T {
    &items[random.below(items.len() as u32) as usize]
}

/// A place in `len` bytes, the end among them.
fn place(random: &mut Random, len: usize) -> usize {
    random.below(len as u32 + 1) as usize
}

/// A few bytes, seldom many.
fn range(random: &mut Random, len: usize) -> std::ops::Range<usize> {
    let start = place(random, len);
    let most = if random.percent(80) { 16 } else { len.max(1) };
    start..(start + place(random, most)).min(len)
}

fn mutate_bytes(random: &mut Random, target: &Target, pool: &[Vec<u8>], input: &mut Vec<u8>) {
    let len = input.len();
    match random.below(10) {
        0 if len > 0 => {
            let at = random.below(len as u32) as usize;
            input[at] ^= 1 << random.below(8);
        }
        1 if len > 0 => {
            let at = random.below(len as u32) as usize;
            input[at] =
                random.pick(&[0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'[', b'\\', b' ', b'\n']);
        }
        2 => drop(input.drain(range(random, len))),
        3 => {
            let part = input[range(random, len)].to_vec();
            let times = random.pick(&[1, 1, 1, 2, 3, 3, 16, 300]);
            let at = place(random, len);
            let room = LEN_MAX.saturating_sub(len) / part.len().max(1);
            input.splice(at..at, part.repeat(times.min(room)));
        }
        4 => {
            let at = place(random, len);
            input.splice(at..at, word(random, target));
        }
        5 => {
            let at = range(random, len);
            input.splice(at, word(random, target));
        }
        6 | 7 => replace_number(random, input),
        8 => {
            let other = any(random, pool);
            let part = other[range(random, other.len())].to_vec();
            let at = range(random, len);
            input.splice(at, part);
        }
        _ => {
            let at = place(random, len);
            let count = 1 + random.below(8);
            let bytes: Vec<u8> = (0..count).map(|_| random.below(256) as u8).collect();
            input.splice(at..at, bytes);
        }
    }
}

fn word(random: &mut Random, target: &Target) -> Vec<u8> {
    match target.words {
        [] => vec![random.below(256) as u8; 1 + random.below(9) as usize],
        words => any(random, words).as_bytes().to_vec(),
    }
}

/// Puts another number where one stands in digits, or else eight bytes of one at the front.
fn replace_number(random: &mut Random, input: &mut Vec<u8>) {
    let starts: Vec<usize> = (0..input.len())
        .filter(|&at| input[at].is_ascii_digit() && (at == 0 || !input[at - 1].is_ascii_digit()))
        .collect();
    if starts.is_empty() || random.percent(5) {
        let number: u64 = random.pick(&[0, 1, 8, 255, 65_536, 1 << 31, 1 << 40, u64::MAX]);
        let end = input.len().min(8);
        input.splice(..end, number.to_le_bytes());
        return;
    }
    let start = *any(random, &starts);
    let digits = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = random.pick(&NUMBERS).bytes().collect::<Vec<u8>>();
    input.splice(start..start + digits, number);
}

/// Changes a value of a part that is JSON, or begins with a length and JSON; false if it is neither.
fn mutate_json(random: &mut Random, target: &Target, input: &mut Vec<u8>) -> bool {
    let part = any(random, &cut(input)).clone();
    let framed = framed_len(&input[part.clone()]);
    let region = framed.map_or_else(|| part.clone(), |len| part.start + 8..part.start + 8 + len);
    let Ok(mut value) = serde_json::from_slice::<Value>(&input[region.clone()]) else {
        return false;
    };
    let mut at = random.below(count(&value));
    change_at(random, target, &mut value, &mut at);
    let text = value.to_string().into_bytes();
    let len = text.len() as u64;
    input.splice(region, text);
    if framed.is_some() {
        input.splice(part.start..part.start + 8, len.to_le_bytes());
    }
    true
}

/// Bytes of the JSON behind a length of eight bytes, as in safetensors.
fn framed_len(input: &[u8]) -> Option<usize> {
    let (length, rest) = input.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    (length > 1 && length <= rest.len() && rest[0] == b'{').then_some(length)
}

/// The parts of an input.
fn cut(input: &[u8]) -> Vec<std::ops::Range<usize>> {
    let (mut parts, mut start) = (Vec::new(), 0);
    while let Some(at) = input[start..].windows(CUT.len()).position(|window| window == CUT) {
        parts.push(start..start + at);
        start += at + CUT.len();
    }
    parts.push(start..input.len());
    parts
}

fn count(value: &Value) -> u32 {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// Goes to value number `at` and changes it.
fn change_at(random: &mut Random, target: &Target, value: &mut Value, at: &mut u32) -> bool {
    if *at == 0 {
        change(random, target, value);
        return true;
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().any(|item| change_at(random, target, item, at)),
        Value::Object(map) => map.values_mut().any(|item| change_at(random, target, item, at)),
        _ => false,
    }
}

fn change(random: &mut Random, target: &Target, value: &mut Value) {
    match (random.below(8), &mut *value) {
        (0 | 1, Value::Object(map)) if !map.is_empty() => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let key = any(random, &keys);
            let old = map.remove(key).unwrap_or_default();
            // Under another name, or gone.
            if random.percent(50) {
                map.insert(name(random, target), old);
            }
        }
        (2 | 3, Value::Object(map)) => drop(map.insert(name(random, target), leaf(random, target))),
        (0, Value::Array(items)) if !items.is_empty() => {
            let at = random.below(items.len() as u32) as usize;
            items.remove(at);
        }
        (1 | 2, Value::Array(items)) if !items.is_empty() && items.len() < 2000 => {
            let at = random.below(items.len() as u32) as usize;
            let item = items[at].clone();
            let times = random.pick(&[1, 1, 1, 2, 2, 20, 300]);
            items.splice(at..at, vec![item; times]);
        }
        (3, Value::Array(items)) => items.push(leaf(random, target)),
        (4, Value::String(text)) => {
            let more = String::from_utf8_lossy(&word(random, target)).into_owned();
            text.push_str(&more);
        }
        (5, inner) => *inner = json!([inner.take()]),
        (6, inner) => *inner = json!({ name(random, target): inner.take() }),
        (_, inner) => *inner = leaf(random, target),
    }
}

fn name(random: &mut Random, target: &Target) -> String {
    String::from_utf8_lossy(&word(random, target)).into_owned()
}

fn leaf(random: &mut Random, target: &Target) -> Value {
    match random.below(9) {
        0 => Value::Null,
        1 => Value::Bool(random.percent(50)),
        2..=4 => serde_json::from_str(random.pick(&NUMBERS)).unwrap_or_default(),
        5 => name(random, target).into(),
        6 => "é\u{0}🙂\u{feff}".repeat(random.pick(&[1, 1, 1, 1, 1, 1, 40, 1000])).into(),
        7 => {
            Value::Array(vec![json!(random.below(300)); random.pick(&[0, 1, 2, 3, 3, 3, 3, 2000])])
        }
        _ => {
            let mut deep = Value::Object(Map::new());
            for _ in 0..random.pick(&[0, 1, 3, 100]) {
                deep = if random.percent(50) { json!([deep]) } else { json!({ "a": deep }) };
            }
            deep
        }
    }
}
