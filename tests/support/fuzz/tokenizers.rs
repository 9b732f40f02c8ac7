//! Tokenizers in all forms of their files, and a few texts through those that can be read.
//!
//! A text's ids must decode alike whole and token by token, and no text may count as surely longer
//! than it is. Encoding may panic on a strange tokenizer.json: the pool that requests encode in ends
//! that request alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use pagoda_engine::model::ModelFiles;
use pagoda_engine::model::families::{Dialect, architectures, find};
use pagoda_engine::text::{
    Chat, Content, Detokenizer, Message, Rendering, Start, TextModel, Tokenizer,
};
use serde_json::Map;

use super::{Target, is_told, parts, seeds};

/// tokenizer.json, tokenizer_config.json.
pub(super) const TOKENIZER: Target = Target {
    name: "tokenizer",
    run: tokenizer,
    seeds: seeds::tokenizers,
    words: &[
        "added_tokens",
        "added_tokens_decoder",
        "normalizer",
        "pre_tokenizer",
        "post_processor",
        "decoder",
        "ByteLevel",
        "ByteFallback",
        "Metaspace",
        "Replace",
        "Strip",
        "Fuse",
        "Sequence",
        "Split",
        "Regex",
        "String",
        "Prepend",
        "NFC",
        "Unigram",
        "WordPiece",
        "WordLevel",
        "BPE",
        "merges",
        "vocab",
        "unk_token",
        "unk_id",
        "byte_fallback",
        "chat_template",
        "bos_token",
        "lstrip",
        "TemplateProcessing",
        "(a+)+$",
        "\\u0000",
    ],
};

/// tokenizer.model or *.tiktoken, tokenizer_config.json.
pub(super) const VOCABULARY: Target = Target {
    name: "vocabulary",
    run: vocabulary,
    seeds: seeds::vocabularies,
    words: &[
        "▁",
        "▁▁",
        "<0x0A>",
        "<unk>",
        "<s>",
        "\u{8}\u{1}",
        "\u{18}\u{4}",
        "\u{18}\u{2}",
        "YWI= 300\n",
        "YQ== 0\n",
        "added_tokens_decoder",
        "add_prefix_space",
        "legacy",
        "single_word",
    ],
};

fn tokenizer(input: &[u8]) -> String {
    let [json, config] = parts(input);
    let files = ModelFiles {
        tokenizer: Some(Bytes::copy_from_slice(json)),
        tokenizer_config: (!config.is_empty()).then(|| Bytes::copy_from_slice(config)),
        ..ModelFiles::default()
    };
    model(&files, config.len())
}

fn vocabulary(input: &[u8]) -> String {
    let [file, config] = parts(input);
    let files = ModelFiles {
        vocabulary: Some(("tokenizer.model".into(), Bytes::copy_from_slice(file))),
        tokenizer_config: (!config.is_empty()).then(|| Bytes::copy_from_slice(config)),
        ..ModelFiles::default()
    };
    model(&files, config.len())
}

/// Reads the files by the rules of some family.
fn model(files: &ModelFiles, choice: usize) -> String {
    let families: Vec<&[&Dialect]> =
        architectures().filter_map(find).map(|family| family.dialects).collect();
    match TextModel::from_files(files, families[choice % families.len()], &Rendering::Here) {
        Ok(model) => used(&model),
        Err(error) => {
            let told = error.to_string();
            let about = if told.contains("chat template") { "chat template" } else { "tokenizer" };
            is_told(told, about)
        }
    }
}

const TEXTS: [&str; 6] = [
    "",
    "Hello, world: 17 + 25 = 42",
    "  a  b\n\n\t c\r\n  ",
    "<s>x</s> <|im_start|>user [gMASK]sop<0x41>",
    "é世界🙂e\u{301}\u{0}\u{feff}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab",
];

fn used(model: &TextModel) -> String {
    let tokenizer = &model.tokenizer;
    let mut panics = 0;
    for (index, text) in TEXTS.into_iter().enumerate() {
        let encoded = catch_unwind(AssertUnwindSafe(|| tokenizer.encode(text, index % 2 == 1)));
        let ids = match encoded {
            Ok(Ok(ids)) => ids,
            Ok(Err(error)) => return is_told(error, "could not be tokenized"),
            Err(_) => {
                panics += 1;
                continue;
            }
        };
        let long = tokenizer.surely_exceeds(text, ids.len());
        assert!(!long, "{text:?} has {} tokens and counts as longer", ids.len());
        decoded(tokenizer, &ids);
    }
    let last = tokenizer.vocab_size() - 1;
    decoded(tokenizer, &[0, 1, 2, last / 2, last, last + 1, u32::MAX]);
    if let Some(template) = &model.template {
        let said = Message {
            role: "user".into(),
            content: Content::Text("hi".into()),
            fields: Map::new(),
        };
        let chat = Chat {
            messages: &[said],
            add_generation_prompt: true,
            continue_final_message: false,
            tools: None,
            kwargs: &Map::new(),
            now: SystemTime::UNIX_EPOCH,
        };
        if let Err(error) = template.render(&chat) {
            assert!(error.to_string().len() < 4096);
        }
    }
    let bound = tokenizer.token_bytes_max().is_some();
    format!("tokens, {panics} panics, bound {bound}, template {}", model.template.is_some())
}

/// Ids to text, whole and token by token.
fn decoded(tokenizer: &Arc<Tokenizer>, ids: &[u32]) {
    for skip_special in [false, true] {
        let whole = tokenizer.decode(ids, skip_special);
        let mut stream = Detokenizer::new(tokenizer.clone(), Start::Text, skip_special);
        let mut text = String::new();
        for id in ids {
            let mut delta = String::new();
            stream.push(*id, &mut delta);
            text.push_str(&delta);
        }
        stream.finish(&mut text);
        assert_eq!(whole, text, "{ids:?}");
    }
}
