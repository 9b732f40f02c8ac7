//! Files that are damaged or ask for what is not here: a line for a person, never a panic. What good
//! files become is held against sentencepiece and tiktoken in the tokenizer's own tests.

use super::proto::Model;
use super::*;
use crate::model::families::dialect::{CHATGLM3, GEMMA, LLAMA2, QWEN};
use crate::text::Tokenizer;
use base64::Engine;
use proptest::prelude::*;
use serde_json::json;
use std::path::PathBuf;

/// A field of a protobuf message that has bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, u64::from(number) << 3 | 2);
    put(&mut out, bytes.len() as u64);
    out.extend_from_slice(bytes);
    out
}

/// One that has a number.
fn number(field: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, field << 3);
    put(&mut out, value);
    out
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn piece(text: &str, score: f32, kind: u64) -> Vec<u8> {
    let score = [vec![2 << 3 | 5], score.to_le_bytes().to_vec()].concat();
    field(1, &[field(1, text.as_bytes()), score, number(3, kind)].concat())
}

/// A small BPE model: unknown, begin, end, and letters that merge to `ab` and `abc`.
fn model(more: &[Vec<u8>]) -> Vec<u8> {
    let pieces = [
        piece("<unk>", 0.0, 2),
        piece("<s>", 0.0, 3),
        piece("</s>", 0.0, 3),
        piece("ab", -0.0, 1),
        piece("abc", -1.0, 1),
        piece("▁ab", -2.0, 1),
        piece("a", -3.0, 1),
        piece("b", -4.0, 1),
        piece("c", -5.0, 1),
        piece("▁", -6.0, 1),
    ];
    let training = field(2, &number(3, 2));
    let normalizer = field(3, &number(4, 0));
    [pieces.concat(), training, normalizer, more.concat()].concat()
}

fn read(bytes: &[u8], config: Value) -> Result<Tokenizer, String> {
    let tokenizer = Tokenizer::from_vocabulary("tokenizer.model", bytes, &[&LLAMA2], Some(&config));
    tokenizer.map_err(|error| error.to_string())
}

fn ids(bytes: &[u8], config: Value, text: &str) -> Vec<u32> {
    read(bytes, config).unwrap().encode(text, false).unwrap()
}

#[test]
fn pieces_merge_by_score_and_a_text_gets_a_space() {
    assert_eq!(ids(&model(&[]), Value::Null, "abc"), [9, 4], "▁ab has a lower score than abc");
    let tokenizer = read(&model(&[]), Value::Null).unwrap();
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [1, 5], "begins with <s>");
    assert_eq!(tokenizer.named_tokens()["eos_token"], "</s>");
    let config = json!({ "add_bos_token": false, "add_eos_token": true });
    assert_eq!(read(&model(&[]), config).unwrap().encode("ab", true).unwrap(), [5, 2]);
}

#[test]
fn legacy_decides_where_else_a_space_goes() {
    let text = "ab</s>ab";
    assert_eq!(ids(&model(&[]), Value::Null, text), [5, 2, 5]);
    assert_eq!(ids(&model(&[]), json!({ "legacy": true }), text), [5, 2, 5]);
    assert_eq!(ids(&model(&[]), json!({ "legacy": false }), text), [5, 2, 3]);
    assert_eq!(ids(&model(&[]), json!({ "legacy": false }), "</s>ab"), [2, 3]);
    assert_eq!(ids(&model(&[]), json!({ "legacy": false }), " ab"), [9, 5], "also before a space");
    assert_eq!(ids(&model(&[]), json!({ "add_prefix_space": false }), text), [3, 2, 3]);
}

#[test]
fn control_tokens_are_made_of_no_letters() {
    // All parts of `</s>` are there, and a merge would lead to it.
    let parts = [piece("</", -7.0, 1), piece("s>", -8.0, 1)];
    let parts = [&parts[..], &[piece("<", -9.0, 1), piece("/", -10.0, 1)]].concat();
    let parts = [&parts[..], &[piece("s", -11.0, 1), piece(">", -12.0, 1)]].concat();
    let bytes = model(&parts);
    let Model { pieces, .. } = Model::read(&bytes).unwrap();
    assert_eq!(pieces.len(), 16);
    let (translation, _) = translate(&bytes, &[&LLAMA2], &Value::Null).unwrap();
    let json = serde_json::to_value(&translation.file).unwrap();
    let merges = json["model"]["merges"].as_array().unwrap();
    assert!(!merges.contains(&json!(["</", "s>"])) && merges.contains(&json!(["<", "/"])));
}

#[test]
fn what_the_user_defined_comes_before_all_else() {
    let more = [piece("bc", 0.0, 4), piece("▁▁", 0.0, 4), piece("▁▁▁", 0.0, 4)];
    let bytes = model(&more);
    let plain = json!({ "add_prefix_space": false });
    assert_eq!(ids(&bytes, plain.clone(), "abc"), [6, 10]);
    assert_eq!(ids(&bytes, plain.clone(), "a    ab"), [6, 12, 5], "the longest run first");
    assert_eq!(ids(&bytes, plain, "   ab"), [12, 3]);
}

#[test]
fn what_the_user_defined_stands_inside_a_text() {
    let bytes = model(&[piece("<t>", 0.0, 4)]);
    for legacy in [true, false] {
        let ids = |text| ids(&bytes, json!({ "legacy": legacy }), text);
        // As sentencepiece has it: a space before the text, and none behind the token.
        assert_eq!(ids("ab<t>ab"), [5, 10, 3], "{legacy}");
        assert_eq!(ids("<t>ab"), [9, 10, 3], "{legacy}");
        assert_eq!(ids(" <t> ab"), [9, 9, 10, 5], "{legacy}");
        assert_eq!(ids("</s><t>")[0], 2, "{legacy}");
    }
}

#[test]
fn tokens_that_look_like_words_are_found_only_as_words() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/tokenizers");
    let bytes = std::fs::read(folder.join("chatglm3/tokenizer.model")).unwrap();
    // Later files list their tokens, without that flag.
    let entry = json!({ "content": "sop", "special": true, "single_word": false });
    for config in [Value::Null, json!({ "added_tokens_decoder": { "703": entry } })] {
        let tokenizer =
            Tokenizer::from_vocabulary("tokenizer.model", &bytes, &[&CHATGLM3], Some(&config))
                .unwrap();
        let sop = tokenizer.id("sop").unwrap();
        assert!(!tokenizer.encode("sophisticated philosophy", false).unwrap().contains(&sop));
        assert_eq!(tokenizer.encode("[gMASK]sop<|user|>", false).unwrap()[1], sop);
    }
}

#[test]
fn appended_tokens_win_over_pieces_of_the_same_text() {
    let bytes = model(&[piece("sop", -20.0, 1)]);
    let tokenizer = Tokenizer::from_vocabulary("m", &bytes, &[&CHATGLM3], None).unwrap();
    assert_eq!((tokenizer.id("sop"), tokenizer.token(10)), (Some(14), None));
    assert_eq!(tokenizer.id("<|observation|>"), Some(19));
}

#[test]
fn what_a_model_of_sentencepiece_may_not_be_is_told() {
    let training = |field: u64, value| self::field(2, &number(field, value));
    let long = "x".repeat(PIECE_BYTES_MAX + 1);
    let cases: [(Vec<u8>, &str); 14] = [
        (Vec::new(), "no tokens"),
        (training(3, 2), "no tokens"),
        (model(&[training(3, 3)]), "model type 3"),
        (model(&[training(24, 1)]), "treat_whitespace_as_suffix"),
        (model(&[field(3, &number(5, 0))]), "escape_whitespaces"),
        (model(&[field(3, &field(2, &[0, 0, 0, 0x7F, 1, 2]))]), "precompiled_charsmap"),
        (model(&[field(3, &field(2, &[1]))]), "precompiled_charsmap"),
        (model(&[piece("ab", -9.0, 1)]), "\"ab\" is there twice"),
        (model(&[piece("", 0.0, 1)]), "token 10: is empty"),
        (model(&[piece("x", f32::NAN, 1)]), "token 10: has a score"),
        (model(&[piece("x", 0.0, 7)]), "token 10: has the unknown type 7"),
        (model(&[piece(&long, 0.0, 1)]), "token 10: has more than"),
        (model(&[field(1, &field(1, &[0xFF]))]), "token 10: is not UTF-8"),
        (vec![0x0B], "wire type 3"),
    ];
    for (bytes, words) in cases {
        let error = read(&bytes, Value::Null).unwrap_err();
        assert!(
            error.starts_with("tokenizer.model: ") && error.contains(words),
            "{error}: {words}"
        );
    }
    let endless = [vec![0x0A], vec![0xFF; 10]].concat();
    assert!(read(&endless, Value::Null).unwrap_err().contains("too long"));
    let huge = [vec![0x0A], vec![0xFF, 0xFF, 0xFF, 0xFF, 0x7F]].concat();
    assert!(read(&huge, Value::Null).unwrap_err().contains("ends early"));
}

fn ranks(more: &str) -> Vec<u8> {
    let encode = |byte: u8| base64::engine::general_purpose::STANDARD.encode([byte]);
    let lines: String = (0..=255).map(|byte| format!("{} {byte}\n", encode(byte))).collect();
    (lines + more).into_bytes()
}

#[test]
fn what_a_file_of_tiktoken_may_not_be_is_told() {
    let read = |bytes: &[u8]| {
        let tokenizer = Tokenizer::from_vocabulary("q.tiktoken", bytes, &[&QWEN], None);
        tokenizer.map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(read(&ranks("")), Ok(()));
    assert_eq!(read(&ranks("\r\nYWI= 256\r\n\n")), Ok(()));
    for (more, words) in [
        ("YWI=\n", "line 257: is not a token and its rank"),
        ("YWI= 1 2\n", "line 257: is not a token and its rank"),
        ("YW 256\n", "line 257: the token is not base64"),
        ("YWI= -1\n", "line 257: the rank is not a number below"),
        ("YWI= 4294967296\n", "line 257: the rank is not a number below"),
        ("YWI= 4194304\n", "line 257: the rank is not a number below"),
        ("= 256\n", "line 257: the token is not base64"),
        ("YWI= 7\n", "the rank 7 is there twice"),
        ("AA== 256\n", "is there twice"),
    ] {
        let error = read(&ranks(more)).unwrap_err();
        assert!(error.starts_with("q.tiktoken: ") && error.contains(words), "{error}: {words}");
    }
    let lacks = ranks("").split_off("AA== 0\n".len());
    assert!(read(&lacks).unwrap_err().contains("no token for the byte 0"));
}

#[test]
fn a_file_cannot_make_us_hold_all_ways_to_merge() {
    let runs = (3..PIECE_BYTES_MAX).map(|len| piece(&"a".repeat(len), -20.0 - len as f32, 1));
    let few: Vec<Vec<u8>> = runs.clone().take(100).collect();
    assert!(read(&model(&few), Value::Null).is_ok());
    let error = read(&model(&runs.collect::<Vec<_>>()), Value::Null).unwrap_err();
    assert!(error.contains("too many ways"), "{error}");
}

#[test]
fn a_number_of_digits_and_a_normal_form_are_the_family_s() {
    let bytes = ranks("MTI= 256\n");
    let ids = |dialects: &[&Dialect], text| {
        let tokenizer = Tokenizer::from_vocabulary("m", &bytes, dialects, None).unwrap();
        (tokenizer.encode(text, false).unwrap(), tokenizer.vocab_size())
    };
    assert_eq!(ids(&[], "12"), (vec![256], 257));
    assert_eq!(ids(&[&QWEN], "12"), (vec![0x31, 0x32], 257 + 208));
    assert_eq!(
        ids(&[&LLAMA2], "e\u{301}").0,
        "e\u{301}".bytes().map(u32::from).collect::<Vec<_>>()
    );
    assert_eq!(ids(&[&QWEN], "e\u{301}").0, "é".bytes().map(u32::from).collect::<Vec<_>>());
}

#[test]
fn a_file_that_is_cut_anywhere_is_no_panic() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/tokenizers");
    for file in ["gemma_spm/tokenizer.model", "unigram_spm/tokenizer.model"] {
        let bytes = std::fs::read(folder.join(file)).unwrap();
        assert!(Model::read(&bytes).is_ok());
        for cut in 0..bytes.len() {
            // Between two pieces a file may end; what is left of the model is then another one.
            let _ = Model::read(&bytes[..cut]);
        }
        for cut in (0..bytes.len()).step_by(1501) {
            let _ = Tokenizer::from_vocabulary("m", &bytes[..cut], &[&GEMMA], None).map(drop);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Model::read(&bytes);
        let _ = Tokenizer::from_vocabulary("m", &bytes, &[&LLAMA2, &QWEN], None).map(drop);
    }

    #[test]
    fn damaged_files_are_read_or_refused(
        damage in prop::collection::vec((0usize..400, any::<u8>()), 1..4),
        text in "\\PC{0,20}",
    ) {
        let normalizer = field(3, &field(2, &[8, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, b'x', 0]));
        for mut bytes in [model(&[normalizer, piece("<0x41>", 0.0, 6)]), ranks("YWI= 256\n")] {
            for (at, byte) in &damage {
                let at = at % bytes.len();
                bytes[at] ^= byte;
            }
            let tokenizer = Tokenizer::from_vocabulary("m", &bytes, &[&LLAMA2, &QWEN], None);
            // Encoding runs where a panic ends one request; here it must only end.
            let encode = || tokenizer.map(|tokenizer| tokenizer.encode(&text, true).is_ok());
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(encode));
        }
    }
}

/// What a text becomes by definition: of all neighbours that make a token together, those whose token
/// comes first in `order` are joined, the leftmost of equals, until there are none.
fn merged(text: &str, order: &[String]) -> Vec<String> {
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    let turn = |pair: &[String]| order.iter().position(|token| *token == pair.concat());
    let next = |parts: &[String]| {
        let pairs = parts.windows(2).enumerate();
        pairs.filter_map(|(at, pair)| Some((turn(pair)?, at))).min()
    };
    while let Some((_, at)) = next(&parts) {
        let second = parts.remove(at + 1);
        parts[at].push_str(&second);
    }
    parts
}

/// Tokens of two letters and more, each once, in any order.
fn tokens(letters: &'static str) -> impl Strategy<Value = Vec<String>> {
    let tokens = prop::collection::vec(letters, 0..24);
    tokens.prop_map(|tokens| {
        let mut seen = std::collections::BTreeSet::new();
        tokens.into_iter().filter(|token| seen.insert(token.clone())).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn ranks_merge_as_defined(order in tokens("[ab]{2,7}"), text in "[ab]{1,24}") {
        let encode = |token: &str| base64::engine::general_purpose::STANDARD.encode(token);
        let lines: String =
            order.iter().zip(256..).map(|(token, rank)| format!("{} {rank}\n", encode(token))).collect();
        let tokenizer = Tokenizer::from_vocabulary("m", &ranks(&lines), &[], None).unwrap();
        let found = tokenizer.encode(&text, false).unwrap();
        let found: Vec<String> = found.iter().map(|id| tokenizer.token(*id).unwrap()).collect();
        let wanted = if order.contains(&text) { vec![text] } else { merged(&text, &order) };
        prop_assert_eq!(found, wanted, "{:?}", order);
    }

    #[test]
    fn scores_merge_as_defined(order in tokens("[xy▁]{2,6}"), text in "[xy ]{1,24}") {
        let letters = [piece("x", -90.0, 1), piece("y", -91.0, 1)];
        let pieces = order.iter().enumerate().map(|(at, token)| piece(token, -10.0 - at as f32, 1));
        let bytes = model(&[letters.concat(), pieces.collect::<Vec<_>>().concat()]);
        let tokenizer = read(&bytes, json!({ "add_prefix_space": false })).unwrap();
        let found = tokenizer.encode(&text, false).unwrap();
        let found: Vec<String> = found.iter().map(|id| tokenizer.token(*id).unwrap()).collect();
        prop_assert_eq!(found, merged(&text.replace(' ', "▁"), &order), "{:?}", order);
    }
}
