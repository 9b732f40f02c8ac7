//! How much a tokenizer.json may make of a text before it is tokens, and of tokens behind it.
//!
//! Stages of normalization follow each other, so a few that each double a text fill any memory; a
//! frame may repeat a prompt as often. Looked at before the library sees the file: it normalizes
//! tokens while it reads it. No tokenizer of a real model comes near the bounds.

use base64::Engine;
use serde::Deserialize;
use serde_json::Value;

use super::TokenizerError;

/// Bytes that normalization may make of one. Real ones: 33 of a ligature, 3 of a space.
const GROWTH_MAX: f64 = 512.0;
/// Bytes that it may put in front.
const PREPEND_BYTES_MAX: usize = 1 << 10;
/// Times that a frame may repeat a prompt,
const REPEATS_MAX: usize = 8;
/// and tokens that it may add.
const FRAME_TOKENS_MAX: usize = 1 << 12;
/// Stages of a list, at any depth.
const STAGES_MAX: usize = 64;

#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    post_processor: Value,
}

/// Refuses a file whose parts grow a text beyond all measure. That it is JSON is seen on the way.
pub(super) fn check(json: &[u8]) -> Result<(), TokenizerError> {
    let Parts { normalizer, post_processor } =
        serde_json::from_slice(json).map_err(|error| TokenizerError::Damaged(error.to_string()))?;
    let too_large = |what: String| Err(TokenizerError::TooLarge(what));
    let stages = flat(&normalizer, "normalizers");
    let frames = flat(&post_processor, "processors");
    if stages.len().max(frames.len()) > STAGES_MAX {
        return too_large(format!("{STAGES_MAX} stages of one kind"));
    }
    if stages.iter().copied().map(growth).product::<f64>() > GROWTH_MAX {
        return too_large(format!("{GROWTH_MAX} bytes of normalized text for one of text"));
    }
    if frames.iter().copied().map(repeats).fold(1, usize::saturating_mul) > REPEATS_MAX {
        return too_large(format!("{REPEATS_MAX} times the prompt in what frames it"));
    }
    if frames.iter().copied().map(added).fold(0, usize::saturating_add) > FRAME_TOKENS_MAX {
        return too_large(format!("{FRAME_TOKENS_MAX} tokens around a prompt"));
    }
    Ok(())
}

/// The stages of a part in their order; lists may hold lists, named by `key`.
fn flat<'a>(part: &'a Value, key: &str) -> Vec<&'a Value> {
    match part[key].as_array() {
        Some(members) => members.iter().flat_map(|member| flat(member, key)).collect(),
        None => vec![part],
    }
}

/// Bytes that a stage makes of one, at most; infinite where it is beyond a bound of its own.
fn growth(stage: &Value) -> f64 {
    let len = |text: &Value| text.as_str().map_or(0, str::len);
    match stage["type"].as_str() {
        Some("Replace") => {
            let content = len(&stage["content"]) as f64;
            // A regular expression is taken to match a byte at least.
            let pattern = len(&stage["pattern"]["String"]).max(1) as f64;
            (content / pattern).max(1.0)
        }
        Some("Prepend") if len(&stage["prepend"]) > PREPEND_BYTES_MAX => f64::INFINITY,
        Some("Precompiled") => longest_replacement(&stage["precompiled_charsmap"]) as f64,
        Some("NFKC" | "NFKD") => 18.0,
        Some("NFC" | "NFD" | "BertNormalizer" | "Lowercase") => 4.0,
        Some("ByteLevel") => 2.0,
        _ => 1.0,
    }
}

/// Bytes of the longest text that sentencepiece's map puts in a character's place: behind a length
/// and a trie of that length they stand, each with a zero at its end.
fn longest_replacement(map: &Value) -> usize {
    let map = map.as_str().unwrap_or_default();
    let bytes = base64::engine::general_purpose::STANDARD.decode(map).unwrap_or_default();
    let texts = bytes
        .split_first_chunk::<4>()
        .and_then(|(len, rest)| rest.get(usize::try_from(u32::from_le_bytes(*len)).ok()?..));
    // Without such a place the library refuses it, or takes all of it for the trie.
    let texts = texts.unwrap_or_default();
    texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0).max(1)
}

/// Pieces of a frame.
fn pieces(frame: &Value) -> impl Iterator<Item = &Value> {
    let both = [&frame["single"], &frame["pair"]];
    both.into_iter().filter_map(Value::as_array).flatten()
}

/// How often a frame has the prompt, or the first of a pair.
fn repeats(frame: &Value) -> usize {
    pieces(frame).filter(|piece| piece["Sequence"]["id"] == "A").count().max(1)
}

/// Tokens that a frame adds: for each of its pieces as many as the longest of its tokens has ids.
fn added(frame: &Value) -> usize {
    let tokens = frame["special_tokens"].as_object().into_iter().flatten();
    let ids = tokens.filter_map(|(_, token)| token["ids"].as_array().map(Vec::len)).max();
    pieces(frame).count().saturating_mul(ids.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(parts: &Value) -> String {
        check(parts.to_string().as_bytes())
            .map_err(|error| error.to_string())
            .err()
            .unwrap_or_default()
    }

    #[test]
    fn a_normalizer_that_grows_a_text_over_and_over_is_refused() {
        let replace =
            |by: &str| json!({"type": "Replace", "pattern": {"String": " "}, "content": by});
        let list = |stages: Vec<Value>| {
            told(&json!({"normalizer": {"type": "Sequence", "normalizers": stages}}))
        };
        let real = vec![json!({"type": "NFKC"}), json!({"type": "Lowercase"}), replace("▁")];
        assert_eq!(list(real), "");
        let nested = json!({"type": "Sequence", "normalizers": vec![replace("  "); 5]});
        for stages in [
            vec![replace("  "); 10],
            vec![replace("▁"); 65],
            vec![nested.clone(), nested],
            vec![replace(&"a".repeat(600))],
            vec![json!({"type": "Prepend", "prepend": "a".repeat(2000)})],
            vec![json!({"type": "ByteLevel"}); 10],
        ] {
            assert!(list(stages.clone()).contains("more than"), "{}", stages[0]);
        }
        let map = [&8_u32.to_le_bytes()[..], &[0; 8], &[b'a'; 600], b"\0b\0"].concat();
        let map = base64::engine::general_purpose::STANDARD.encode(map);
        let stage = json!({"type": "Precompiled", "precompiled_charsmap": map});
        assert!(list(vec![stage]).contains("more than"));
    }

    #[test]
    fn a_frame_that_repeats_the_prompt_is_refused() {
        let prompt = json!({"Sequence": {"id": "A", "type_id": 0}});
        let frame = |pieces: Vec<Value>, ids: usize| {
            json!({"type": "TemplateProcessing", "single": pieces, "pair": [],
                "special_tokens": {"<s>": {"id": "<s>", "ids": vec![1; ids], "tokens": ["<s>"]}}})
        };
        let of = |frame: Value| told(&json!({ "post_processor": frame }));
        assert_eq!(of(frame(vec![prompt.clone()], 2)), "");
        let twice = frame(vec![prompt.clone(); 2], 1);
        assert!(of(json!({"type": "Sequence", "processors": vec![twice; 4]})).contains("times"));
        assert!(of(frame(vec![prompt.clone(); 9], 1)).contains("times"));
        assert!(of(frame(vec![prompt], 5000)).contains("tokens around"));
    }
}
