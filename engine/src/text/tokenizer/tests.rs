//! The tokenizer against what transformers, sentencepiece and tiktoken made of the same strings
//! (tests/goldens/tokenizers).

use super::length::{CUT_TOKENS, parts};
use super::*;
use crate::model::families::dialect;
use crate::text::template::{Chat, ChatTemplate, Content, Message, TemplateError};
use crate::text::{TextModel, Tokenizer};
use serde_json::json;
use std::path::PathBuf;
use std::time::SystemTime;

/// Four with a tokenizer.json, then older vocabularies.
const FOLDERS: [&str; 11] = [
    "llama2",
    "llama3",
    "qwen2.5",
    "qwen3",
    "llama2_spm",
    "phi3_spm",
    "gemma_spm",
    "unigram_spm",
    "chatglm3",
    "glm4",
    "qwen1",
];

/// What a folder's family speaks.
fn dialects(folder: &str) -> &'static [&'static Dialect] {
    match folder {
        "llama2_spm" => &[&dialect::LLAMA2],
        "phi3_spm" => &[&dialect::PHI3],
        "gemma_spm" => &[&dialect::GEMMA],
        "chatglm3" | "glm4" => &[&dialect::CHATGLM3, &dialect::GLM4],
        "qwen1" => &[&dialect::QWEN],
        _ => &[],
    }
}

/// The dialect whose template a case is rendered with.
fn named_dialect(name: &str) -> &'static Dialect {
    match name {
        "llama2" => &dialect::LLAMA2,
        "mistral" => &dialect::MISTRAL,
        "phi3" => &dialect::PHI3,
        "gemma" => &dialect::GEMMA,
        "gemma3" => &dialect::GEMMA3,
        "chatglm3" => &dialect::CHATGLM3,
        "glm4" => &dialect::GLM4,
        "qwen" => &dialect::QWEN,
        "chatml" => &dialect::CHATML,
        other => panic!("no dialect {other}"),
    }
}

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/tokenizers")
}

fn model(folder: &str) -> TextModel {
    TextModel::from_folder(&goldens().join(folder), dialects(folder)).unwrap()
}

fn cases(file: &str) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(goldens().join(file)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn every_string_encodes_and_decodes_as_elsewhere() {
    let all = cases("encodings.json");
    let unknown = all.iter().find(|case| FOLDERS.iter().all(|folder| case["folder"] != *folder));
    assert_eq!(unknown, None, "a folder that nothing here opens");
    for folder in FOLDERS {
        let tokenizer = model(folder).tokenizer;
        let mut cases = all.iter().filter(|case| case["folder"] == folder).peekable();
        assert!(cases.peek().is_some(), "{folder} has no cases");
        for case in cases {
            let text = case["text"].as_str().unwrap();
            if let Some(bytes) = case["bytes"].as_str() {
                assert_eq!(String::from_utf8_lossy(&bytes_of(bytes)), text, "{bytes}");
            }
            let (with, bare) = (ids(&case["ids"]), ids(&case["bare_ids"]));
            assert_eq!(tokenizer.encode(text, true).unwrap(), with, "{folder} {text:?}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), bare, "{folder} {text:?}");
            assert_eq!(tokenizer.decode(&bare, false), case["decoded"], "{folder} {text:?}");
            let without = &case["decoded_without_special"];
            assert_eq!(tokenizer.decode(&with, true), *without, "{folder} {text:?}");
        }
    }
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
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
fn a_cut_adds_few_tokens_to_a_text() {
    for folder in FOLDERS {
        let tokenizer = model(folder).tokenizer;
        let cases = cases("encodings.json");
        let mut texts: Vec<&str> =
            cases.iter().map(|case| case["text"].as_str().unwrap()).collect();
        texts.extend([
            "\u{1100}\u{1161}\u{11a8}",
            " \n\t\u{3000}\u{a0}",
            "<|im_start|>",
            "a",
            "ﬃ①",
        ]);
        for text in texts {
            let text = text.repeat(800_usize.div_ceil(text.len().max(1)));
            let whole = tokenizer.encode(&text, false).unwrap().len();
            let (mut sum, mut cuts, mut joined) = (0, 0, String::new());
            for part in parts(&text, 200) {
                assert!(part.len() <= 200);
                sum += tokenizer.encode(part, false).unwrap().len();
                cuts += 1;
                joined.push_str(part);
            }
            assert_eq!(joined, text);
            assert!(sum <= whole + cuts * CUT_TOKENS / 4, "{folder} {text:?}: {sum} of {whole}");
        }
    }
}

#[test]
fn a_text_that_fits_is_never_told_to_exceed_and_one_that_is_far_too_long_is() {
    for folder in FOLDERS {
        let tokenizer = model(folder).tokenizer;
        let text = "Twelve words and 3.14, 你好 and\n\ttabs. ".repeat(20);
        let tokens = tokenizer.encode(&text, false).unwrap().len();
        assert!(text.len() < 4 * tokens, "a short text is not looked at");
        assert!(!tokenizer.exceeds(&text, tokens).unwrap());
        let long = text.repeat(100_000 / text.len());
        let exceeds = |most| tokenizer.exceeds(&long, most).unwrap();
        assert!(exceeds(20_000) && exceeds(10) && !exceeds(100_000), "{folder}");
        let long = " ".repeat(40_000);
        let tokens = tokenizer.encode(&long, false).unwrap().len();
        assert!(!tokenizer.exceeds(&long, tokens).unwrap(), "{folder}");
    }
}

#[test]
fn no_token_stands_for_more_bytes_than_its_bound() {
    for folder in FOLDERS {
        let tokenizer = model(folder).tokenizer;
        let Some(bound) = tokenizer.token_bytes_max() else {
            // One drops spaces, one has tokens that take them in.
            assert!(["unigram_spm", "phi3_spm"].contains(&folder), "{folder} knows all bytes");
            continue;
        };
        let longest = (0..tokenizer.vocab_size()).map(|id| tokenizer.token_bytes(id));
        let longest = longest.max_by_key(|bytes| bytes.len()).unwrap();
        let longest = String::from_utf8_lossy(longest);
        let units =
            [&longest, " ", "▁", "\u{1fbe}\u{308}\u{301}", "ᄀ\u{1161}\u{11a8}", "\u{212a}", "🦀"];
        for unit in units {
            let text = unit.repeat(100);
            let tokens = tokenizer.encode(&text, false).unwrap().len();
            assert!(text.len() <= tokens * bound, "{folder} {unit:?}");
            assert!(!tokenizer.surely_exceeds(&text, tokens));
        }
        let text = "x".repeat(10 * bound + 1);
        assert!(tokenizer.surely_exceeds(&text, 10) && !tokenizer.surely_exceeds(&text[1..], 10));
        assert!(bound <= 4 * 64, "{folder} {bound}");
    }
}

#[test]
fn a_tokenizer_that_drops_text_has_no_bound() {
    let bound = |change: fn(&mut Value)| {
        let json = std::fs::read(goldens().join("qwen3/tokenizer.json")).unwrap();
        let mut json: Value = serde_json::from_slice(&json).unwrap();
        change(&mut json);
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap();
        tokenizer.token_bytes_max()
    };
    assert!(bound(|_| {}).is_some());
    let strips = |json: &mut Value| {
        let strip = serde_json::json!({"type": "Strip", "strip_left": true, "strip_right": true});
        json["normalizer"] = strip;
    };
    assert_eq!(bound(strips), None);
    assert_eq!(bound(|json| json["added_tokens"][0]["lstrip"] = true.into()), None);
    assert_eq!(
        bound(|json| json["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed".into()),
        None
    );
    assert_eq!(bound(|json| json["pre_tokenizer"] = Value::Null), None, "unknown characters");
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
    let mut models = BTreeMap::new();
    let mut seen = BTreeMap::new();
    for case in cases("templates.json") {
        let folder = case["folder"].as_str().unwrap();
        let dialect = case["dialect"].as_str();
        let name = format!("{folder} {}: {}", dialect.unwrap_or_default(), case["name"]);
        let key = (folder.to_owned(), dialect.map(str::to_owned));
        let model: &TextModel = models.entry(key).or_insert_with(|| {
            let mut model = model(folder);
            if let Some(dialect) = dialect {
                let source = named_dialect(dialect).template;
                let template = ChatTemplate::new(source, model.tokenizer.named_tokens()).unwrap();
                model.template = Some(template.into());
            }
            model
        });
        let outcome = render(model.template.as_ref().expect("a chat template"), &case);
        if let Some(words) = case["error"].as_str() {
            assert_eq!(outcome, Err(TemplateError::Raised(words.into())), "{name}");
        } else if !case["refused"].is_null() {
            assert!(outcome.is_err(), "{name}: {outcome:?}");
        } else {
            let text = outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(text, case["text"], "{name}");
            let encoded = model.tokenizer.encode(&text, false).unwrap();
            assert_eq!(encoded, ids(&case["ids"]), "{name}");
            *seen.entry(dialect.map(str::to_owned)).or_insert(0) += 1;
        }
    }
    assert!(seen.len() == 10 && seen.values().all(|renders| *renders >= 5), "{seen:?}");
}

fn render(template: &ChatTemplate, case: &Value) -> Result<String, TemplateError> {
    let list = case["messages"].as_array().unwrap();
    let messages: Vec<Message> = list.iter().map(message).collect();
    template.render(&Chat {
        messages: &messages,
        add_generation_prompt: case["add_generation_prompt"] == true,
        continue_final_message: case["continue_final_message"] == true,
        tools: Some(&case["tools"]).filter(|tools| !tools.is_null()),
        kwargs: &case["kwargs"].as_object().cloned().unwrap_or_default(),
        now: SystemTime::UNIX_EPOCH,
    })
}

#[test]
fn a_dialect_is_spoken_by_tokenizers_that_know_its_tokens() {
    let own = |folder: &str| model(folder).template.is_some();
    assert!(own("llama2_spm") && own("gemma_spm") && own("glm4") && !own("unigram_spm"));
    let speaks = |folder: &str, dialects: &[&Dialect]| {
        let model = TextModel::from_folder(&goldens().join(folder), dialects).unwrap();
        (model.template.is_some(), model.ends)
    };
    assert_eq!(speaks("llama2_spm", &[&dialect::GEMMA]), (false, vec![]));
    let marks = |folder: &str, tokens: [&str; 2]| {
        let tokenizer = model(folder).tokenizer;
        tokens.map(|token| tokenizer.id(token).unwrap()).to_vec()
    };
    let glm = marks("glm4", ["<|user|>", "<|observation|>"]);
    assert_eq!(speaks("glm4", &[&dialect::CHATGLM3, &dialect::GLM4]), (true, glm));
    let qwen = marks("qwen1", ["<|im_start|>", "<|im_end|>"]);
    assert_eq!(speaks("qwen1", &[&dialect::QWEN]), (true, qwen));
    // A checkpoint's own template wins, and its answers end there all the same.
    let own = model("qwen2.5").template.unwrap();
    let with = TextModel::from_folder(&goldens().join("qwen2.5"), &[&dialect::QWEN]).unwrap();
    let case = json!({ "messages": [{ "role": "user", "content": "a" }] });
    assert_eq!(render(&with.template.unwrap(), &case), render(&own, &case));
    assert_eq!(with.ends, marks("qwen2.5", ["<|im_start|>", "<|im_end|>"]));
}

#[test]
fn white_space_without_end_is_refused_where_it_would_change_what_follows() {
    for (folder, looks_ahead) in [("qwen3", true), ("qwen1", true), ("llama2_spm", false)] {
        let tokenizer = model(folder).tokenizer;
        let ends = |spaces: usize| {
            let ids = tokenizer.encode(&(" ".repeat(spaces) + " hello world"), false)?;
            Ok::<_, TokenizerError>(tokenizer.decode(&ids[ids.len() - 4..], false))
        };
        let usual = ends(1000).unwrap();
        assert_eq!(ends(998_000).unwrap(), usual, "{folder}");
        match ends(1_000_100) {
            Ok(end) => assert!(!looks_ahead && end == usual, "{folder}: {end:?}"),
            Err(error) => assert!(looks_ahead && error.to_string().contains("in a row"), "{error}"),
        }
    }
}

#[test]
fn a_text_has_the_same_ids_each_time() {
    let json = std::fs::read(goldens().join("qwen3/tokenizer.json")).unwrap();
    let plain = Tokenizer::from_bytes(&json, None).unwrap();
    let mut json: Value = serde_json::from_slice(&json).unwrap();
    json["model"]["dropout"] = 0.5.into();
    let trained = Tokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap();
    let text = "The same words, again and again. ".repeat(20);
    assert_eq!(trained.encode(&text, false).unwrap(), plain.encode(&text, false).unwrap());
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
