//! The tokenizer against what transformers made of the same strings (tests/goldens/tokenizers).

use super::*;
use crate::text::template::{Chat, Content, Message, TemplateError};
use crate::text::{TextModel, Tokenizer};
use std::path::PathBuf;
use std::time::SystemTime;

pub(crate) const FOLDERS: [&str; 4] = ["llama2", "llama3", "qwen2.5", "qwen3"];

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/tokenizers")
}

pub(crate) fn model(folder: &str) -> TextModel {
    TextModel::from_folder(&goldens().join(folder)).unwrap()
}

fn cases(file: &str) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(goldens().join(file)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn every_string_encodes_and_decodes_as_in_transformers() {
    for folder in FOLDERS {
        let tokenizer = model(folder).tokenizer;
        let cases = cases("encodings.json");
        let mut cases = cases.iter().filter(|case| case["folder"] == folder).peekable();
        assert!(cases.peek().is_some(), "{folder} has no cases");
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let (with, bare) = (ids(&case["ids"]), ids(&case["bare_ids"]));
            assert_eq!(tokenizer.encode(text, true).unwrap(), with, "{folder} {text:?}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), bare, "{folder} {text:?}");
            assert_eq!(tokenizer.decode(&bare, false), case["decoded"], "{folder} {text:?}");
            let without = &case["decoded_without_special"];
            assert_eq!(tokenizer.decode(&with, true), *without, "{folder} {text:?}");
        }
    }
}

#[test]
fn every_token_has_the_bytes_that_the_library_decodes() {
    for folder in FOLDERS {
        let tokenizer = model(folder).tokenizer;
        let context = tokenizer.encode("x", false).unwrap();
        let library = |ids: &[u32]| tokenizer.inner.decode(ids, false).unwrap();
        let before = library(&context);
        for id in 0..tokenizer.vocab_size() {
            let whole = library(&[context.as_slice(), &[id]].concat());
            let bytes = tokenizer.token_bytes(id);
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(before.clone() + &text, whole, "{folder} {id}");
            let token = tokenizer.token(id).unwrap();
            assert_eq!(tokenizer.id(&token), Some(id), "{folder} {token}");
        }
        assert_eq!(tokenizer.token(tokenizer.vocab_size()), None);
        assert_eq!(tokenizer.token_bytes(u32::MAX), b"");
    }
}

#[test]
fn no_text_has_fewer_tokens_than_are_foretold() {
    for folder in FOLDERS {
        let tokenizer = model(folder).tokenizer;
        let longest = (0..tokenizer.vocab_size())
            .filter_map(|id| std::str::from_utf8(tokenizer.token_bytes(id)).ok())
            .max_by_key(|piece| piece.len());
        let cases = cases("encodings.json");
        let mut texts: Vec<&str> =
            cases.iter().map(|case| case["text"].as_str().unwrap()).collect();
        // One syllable in three letters, white space of all kinds, and what has no token of its own.
        texts.extend(["\u{1100}\u{1161}\u{11a8}", " \n\t\u{3000}\u{a0}", "\u{10ffff}\0", "ﬃ①"]);
        texts.extend(longest);
        for text in texts {
            for text in [text.to_string(), text.repeat(60)] {
                let tokens = tokenizer.encode(&text, false).unwrap().len();
                let fewest = tokenizer.fewest_tokens(&text);
                assert!(fewest <= tokens, "{folder} {text:?}: {fewest} of {tokens}");
            }
        }
        let word = longest.unwrap().trim();
        assert!(tokenizer.fewest_tokens(&word.repeat(600)) >= 100, "{folder} foretells little");
    }
}

#[test]
fn nothing_is_foretold_where_text_may_vanish() {
    let json = |normalizer: Value, dropped: &str| {
        let bytes = crate::text::byte_level::byte_level(300).unwrap();
        let mut json: Value = serde_json::from_str(&bytes.inner.to_string(false).unwrap()).unwrap();
        json["normalizer"] = normalizer;
        json["model"]["vocab"].as_object_mut().unwrap().remove(dropped);
        Tokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap().fewest_tokens("xyz")
    };
    assert_eq!(json(Value::Null, ""), 1);
    assert_eq!(json(Value::Null, "q"), 0);
    assert_eq!(
        json(serde_json::json!({"type": "Strip", "strip_left": true, "strip_right": true}), ""),
        0
    );
    let replace = |from: &str, to: &str| serde_json::json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    assert_eq!(json(replace("xyz", ""), ""), 0);
    assert_eq!(json(replace(" ", "▁"), ""), 1);
}

fn message(json: &Value) -> Message {
    let mut fields = json.as_object().unwrap().clone();
    let role = fields.remove("role").unwrap().as_str().unwrap().to_string();
    let content = match fields.remove("content") {
        Some(Value::String(text)) => Content::Text(text),
        Some(Value::Array(parts)) => Content::Parts(
            parts.iter().map(|part| part["text"].as_str().unwrap().to_string()).collect(),
        ),
        _ => Content::None,
    };
    Message { role, content, fields }
}

#[test]
fn every_chat_renders_as_in_transformers() {
    for folder in FOLDERS {
        let TextModel { tokenizer, template } = model(folder);
        let template = template.expect("a chat template");
        for case in cases("templates.json").iter().filter(|case| case["folder"] == folder) {
            let name = format!("{folder}: {}", case["name"]);
            let list = case["messages"].as_array().unwrap();
            let messages: Vec<Message> = list.iter().map(message).collect();
            let outcome = template.render(&Chat {
                messages: &messages,
                add_generation_prompt: case["add_generation_prompt"] == true,
                continue_final_message: case["continue_final_message"] == true,
                tools: Some(&case["tools"]).filter(|tools| !tools.is_null()),
                kwargs: &case["kwargs"].as_object().cloned().unwrap_or_default(),
                now: SystemTime::UNIX_EPOCH,
            });
            if let Some(words) = case["error"].as_str() {
                assert_eq!(outcome, Err(TemplateError::Raised(words.into())), "{name}");
            } else if !case["refused"].is_null() {
                assert!(outcome.is_err(), "{name}: {outcome:?}");
            } else {
                let text = outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(text, case["text"], "{name}");
                assert_eq!(tokenizer.encode(&text, false).unwrap(), ids(&case["ids"]), "{name}");
            }
        }
    }
}

#[test]
fn a_damaged_file_is_an_error_not_a_panic() {
    let json = std::fs::read(goldens().join("llama2/tokenizer.json")).unwrap();
    for cut in (0..json.len()).step_by(997) {
        assert!(Tokenizer::from_bytes(&json[..cut], None).is_err());
    }
    assert!(Tokenizer::from_bytes(b"{}", None).is_err());
    let config = serde_json::json!({"added_tokens_decoder": {"3": {"content": "<new>"}}});
    let error = Tokenizer::from_bytes(&json, Some(&config)).unwrap_err();
    assert!(error.to_string().contains("<new>"), "{error}");
}
