//! Deltas against whole decodes: every split of every stream of ids gives the same text.

use super::*;
use crate::model::families::{Dialect, dialect};
use crate::text::TextModel;
use proptest::prelude::*;
use std::path::PathBuf;

fn tokenizer(folder: &str) -> Arc<Tokenizer> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/tokenizers");
    let dialects: &[&Dialect] = if folder == "qwen1" { &[&dialect::QWEN] } else { &[] };
    TextModel::from_folder(&root.join(folder), dialects).unwrap().tokenizer
}

fn stream(tokenizer: &Arc<Tokenizer>, ids: &[u32], start: Start, skip: bool) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), start, skip);
    let mut deltas: Vec<String> = ids
        .iter()
        .map(|&id| {
            let mut delta = String::new();
            detokenizer.push(id, &mut delta);
            delta
        })
        .collect();
    let mut last = String::new();
    detokenizer.finish(&mut last);
    deltas.push(last);
    deltas
}

/// Byte-level decoding in one step: all bytes together, then UTF-8.
fn whole_byte_level(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> String {
    let kept = ids.iter().filter(|&&id| !(skip && tokenizer.is_special(id)));
    let bytes: Vec<u8> = kept.flat_map(|&id| tokenizer.token_bytes(id).to_vec()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Decoding with byte fallback in one step: all bytes together, then UTF-8, a mark for each byte
/// that is broken, then the first spaces.
fn whole_byte_fallback(tokenizer: &Tokenizer, ids: &[u32], skip: bool, spaces: usize) -> String {
    let kept = ids.iter().filter(|&&id| !(skip && tokenizer.is_special(id)));
    let bytes: Vec<u8> = kept.flat_map(|&id| tokenizer.token_bytes(id).to_vec()).collect();
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '\u{FFFD}'));
    }
    let leading = text.len() - text.trim_start_matches(' ').len();
    text.split_off(leading.min(spaces))
}

/// Ids of older vocabularies in any order, as sentencepiece and tiktoken decode them.
#[test]
fn any_ids_decode_as_elsewhere_whole_and_in_pieces() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/tokenizers");
    let cases = std::fs::read(root.join("decodings.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_slice(&cases).unwrap();
    let mut tokenizers = std::collections::BTreeMap::new();
    for case in &cases {
        let folder = case["folder"].as_str().unwrap();
        let tokenizer = tokenizers.entry(folder).or_insert_with(|| tokenizer(folder));
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), case["decoded"], "{folder} {ids:?}");
        let deltas = stream(tokenizer, &ids, Start::Text, false);
        assert_eq!(deltas.concat(), case["decoded"], "{folder} {ids:?}");
        assert!(deltas.iter().all(|delta| delta.len() <= 4 * 64), "{folder} {ids:?}");
    }
    assert_eq!(tokenizers.len(), 7);
}

#[test]
fn a_character_comes_out_with_its_last_byte() {
    let tokenizer = tokenizer("qwen3");
    let ids = tokenizer.encode("好🙂", false).unwrap();
    assert!(ids.len() > 2, "the small vocabulary has no token of its own for them");
    for (index, delta) in stream(&tokenizer, &ids, Start::Text, true).iter().enumerate() {
        assert!(!delta.contains('\u{FFFD}'), "delta {index} is {delta:?}");
    }
}

#[test]
fn byte_fallback_ends_with_a_mark_for_each_byte() {
    let tokenizer = tokenizer("llama2");
    let byte = |b: u8| tokenizer.id(&format!("<0x{b:02X}>")).unwrap();
    let deltas = stream(&tokenizer, &[byte(0xE4), byte(0xBD)], Start::Text, true);
    assert_eq!(deltas, ["", "", "\u{FFFD}\u{FFFD}"]);
    let deltas = stream(&tokenizer, &[byte(0xE4), byte(0xBD), byte(0xA0)], Start::Text, true);
    assert_eq!(deltas, ["", "", "你", ""]);
}

#[test]
fn the_first_space_goes_only_where_a_text_begins() {
    let tokenizer = tokenizer("llama2");
    let ids = tokenizer.encode("hello world", false).unwrap();
    assert_eq!(stream(&tokenizer, &ids, Start::Text, true).concat(), "hello world");
    assert_eq!(stream(&tokenizer, &ids, Start::Continuation, true).concat(), " hello world");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn deltas_of_any_ids_make_the_whole_byte_level_decode(
        ids in prop::collection::vec(0u32..700, 0..60),
        skip: bool,
    ) {
        static TOKENIZER: std::sync::LazyLock<Arc<Tokenizer>> =
            std::sync::LazyLock::new(|| tokenizer("qwen3"));
        let whole = whole_byte_level(&TOKENIZER, &ids, skip);
        prop_assert_eq!(stream(&TOKENIZER, &ids, Start::Text, skip).concat(), &*whole);
        prop_assert_eq!(TOKENIZER.decode(&ids, skip), whole);
    }

    #[test]
    fn deltas_of_any_text_make_the_text_with_byte_fallback(text in "\\PC{0,40}") {
        static TOKENIZER: std::sync::LazyLock<Arc<Tokenizer>> =
            std::sync::LazyLock::new(|| tokenizer("llama2"));
        let ids = TOKENIZER.encode(&text, false).unwrap();
        // The vocabulary's own mark of a space is the one character that does not come back.
        let expected = text.replace('▁', " ");
        prop_assert_eq!(stream(&TOKENIZER, &ids, Start::Text, false).concat(), expected);
    }

    #[test]
    fn deltas_of_any_ids_of_older_vocabularies_make_the_whole_decode(
        ids in prop::collection::vec(0u32..1100, 0..60),
        skip: bool,
    ) {
        static TOKENIZERS: std::sync::LazyLock<[(Arc<Tokenizer>, Option<usize>); 5]> =
            std::sync::LazyLock::new(|| {
                let folders = [("llama2_spm", Some(1)), ("phi3_spm", Some(1)),
                    ("gemma_spm", Some(0)), ("unigram_spm", Some(usize::MAX)), ("qwen1", None)];
                folders.map(|(folder, spaces)| (tokenizer(folder), spaces))
            });
        for (tokenizer, spaces) in TOKENIZERS.iter() {
            let whole = match spaces {
                Some(spaces) => whole_byte_fallback(tokenizer, &ids, skip, *spaces),
                None => whole_byte_level(tokenizer, &ids, skip),
            };
            prop_assert_eq!(stream(tokenizer, &ids, Start::Text, skip).concat(), &*whole);
            prop_assert_eq!(tokenizer.decode(&ids, skip), whole);
        }
    }
}
