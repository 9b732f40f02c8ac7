//! Log-probabilities in the shapes of chat, of completions, and of vLLM's prompt.
//!
//! Impossible tokens have −∞, which JSON cannot say: −9999 stands for it, as elsewhere.

use std::collections::BTreeMap;

use pagoda_http::json_text::{List, SharedText};
use serde::{Serialize, Serializer};

use crate::api::instance::Instance;
use crate::profiles::openai::wire::Wire;
use crate::request::TokenOut;
use crate::text::Tokenizer;

/// How tokens are written.
#[derive(Clone, Copy)]
pub struct TokenNames<'a> {
    /// Knows their bytes.
    pub tokenizer: &'a Tokenizer,
    /// As `token_id:N` instead of text.
    pub as_ids: bool,
    /// Special tokens are left out of the text that offsets count.
    pub skip_special: bool,
}

impl<'a> TokenNames<'a> {
    /// As a request wants them.
    pub fn of(wire: &Wire, instance: &'a Instance) -> Self {
        TokenNames {
            tokenizer: instance.tokenizer(),
            as_ids: wire.tokens_as_ids,
            skip_special: wire.options.skip_special,
        }
    }

    /// Characters of the text that begin in a token: they add up to the text's whatever its split
    /// into tokens.
    fn num_chars(self, id: u32) -> usize {
        if self.skip_special && self.tokenizer.is_special(id) {
            return 0;
        }
        let begins = |byte: &&u8| **byte & 0xC0 != 0x80;
        self.tokenizer.token_bytes(id).iter().filter(begins).count()
    }

    /// Text of a token; what is no UTF-8 of its own shows as U+FFFD.
    fn text(self, id: u32) -> String {
        if self.as_ids {
            return format!("token_id:{id}");
        }
        String::from_utf8_lossy(self.tokenizer.token_bytes(id)).into_owned()
    }

    /// Text of a token; what is no UTF-8 of its own shows as `bytes:\x..`, so that different
    /// tokens have different names.
    fn unique_text(self, id: u32) -> String {
        let bytes = self.tokenizer.token_bytes(id);
        match std::str::from_utf8(bytes) {
            _ if self.as_ids => format!("token_id:{id}"),
            Ok(text) => text.to_string(),
            Err(_) => bytes.iter().fold("bytes:".to_string(), |mut text, byte| {
                text.push_str(&format!("\\x{byte:02x}"));
                text
            }),
        }
    }
}

/// `logprobs` of a chat choice.
#[derive(Debug, Serialize)]
pub struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<ChatTopToken>,
}

#[derive(Debug, Serialize)]
struct ChatTopToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// Chat's shape of one token with `num_top` alternatives.
pub fn chat(token: &TokenOut, num_top: u32, names: TokenNames<'_>) -> ChatLogprobs {
    ChatLogprobs { content: vec![chat_token(token, num_top, names)], refusal: None }
}

fn chat_token(token: &TokenOut, num_top: u32, names: TokenNames<'_>) -> ChatToken {
    let bytes = |id: u32| names.tokenizer.token_bytes(id).to_vec();
    let top_token = |&(id, logprob): &(u32, f32)| ChatTopToken {
        token: names.text(id),
        logprob: finite(logprob),
        bytes: bytes(id),
    };
    ChatToken {
        token: names.text(token.id),
        logprob: finite(token.logprob),
        bytes: bytes(token.id),
        top_logprobs: token.top.iter().take(num_top as usize).map(top_token).collect(),
    }
}

/// `logprobs` of a completions choice.
#[derive(Debug, Default, Serialize)]
pub struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Alternatives>>,
    text_offset: Vec<usize>,
}

/// Tokens by name in the order of their likelihood, written as an object. Kept as `f32`, so that
/// a token's log-probability reads the same here and in `token_logprobs`.
#[derive(Debug, Default)]
struct Alternatives(Vec<(String, f32)>);

impl Alternatives {
    /// Those of a token, and the token itself too, as the API promises.
    fn of(token: &TokenOut, num_top: u32, names: TokenNames<'_>) -> Self {
        let mut top = Alternatives::default();
        for &(id, logprob) in token.top.iter().take(num_top as usize) {
            top.add(names.unique_text(id), logprob);
        }
        top.add(names.unique_text(token.id), token.logprob);
        top
    }

    /// Adds a token unless one of its name is there.
    fn add(&mut self, name: String, logprob: f32) {
        if self.0.iter().all(|(known, _)| *known != name) {
            self.0.push((name, finite(logprob)));
        }
    }
}

impl Serialize for Alternatives {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, logprob)| (name, logprob)))
    }
}

impl TextLogprobs {
    /// Adds a token.
    pub fn push(
        &mut self,
        token: &TokenOut,
        num_top: u32,
        names: TokenNames<'_>,
        offset: &mut usize,
    ) {
        self.tokens.push(names.unique_text(token.id));
        self.token_logprobs.push(Some(finite(token.logprob)));
        self.top_logprobs.push(Some(Alternatives::of(token, num_top, names)));
        self.text_offset.push(*offset);
        *offset += names.num_chars(token.id);
    }
}

/// A list that is written token by token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Completions: names,
    Name,
    /// log-probabilities,
    Logprob,
    /// alternatives,
    Top,
    /// and characters before each token.
    Offset,
    /// Chat's `content`.
    Chat,
    /// Ids.
    Id,
}

/// The lists of a completions choice's `logprobs`.
pub const TEXT_COLUMNS: [(&str, Column); 4] = [
    ("tokens", Column::Name),
    ("token_logprobs", Column::Logprob),
    ("top_logprobs", Column::Top),
    ("text_offset", Column::Offset),
];

impl Column {
    /// Adds a token to the column's list. `offset` counts characters.
    pub fn write(
        self,
        token: &TokenOut,
        num_top: u32,
        names: TokenNames<'_>,
        offset: &mut usize,
        list: &mut List,
    ) {
        match self {
            Column::Name => list.push(&names.unique_text(token.id)),
            Column::Logprob => list.push(&finite(token.logprob)),
            Column::Top => list.push(&Alternatives::of(token, num_top, names)),
            Column::Offset => {
                list.push(offset);
                *offset += names.num_chars(token.id);
            }
            Column::Chat => list.push(&chat_token(token, num_top, names)),
            Column::Id => list.push(&token.id),
        }
    }
}

/// The lists of a completions choice's `logprobs`, written token by token.
#[derive(Debug, Default)]
pub struct TextColumns {
    lists: [List; TEXT_COLUMNS.len()],
    offset: usize,
}

/// They, complete.
#[derive(Clone, Debug, Default)]
pub struct WrittenColumns {
    /// What stands between the brackets of each.
    pub texts: [SharedText; TEXT_COLUMNS.len()],
    /// Characters of their tokens.
    pub offset: usize,
}

impl TextColumns {
    /// Adds the first token of an echoed prompt, which has no log-probability.
    pub fn push_first(&mut self, id: u32, names: TokenNames<'_>) {
        for ((_, column), list) in TEXT_COLUMNS.iter().zip(&mut self.lists) {
            match column {
                Column::Name => list.push(&names.unique_text(id)),
                Column::Offset => list.push(&self.offset),
                _ => list.push(&()),
            }
        }
        self.offset += names.num_chars(id);
    }

    /// Adds a token.
    pub fn push(&mut self, token: &TokenOut, num_top: u32, names: TokenNames<'_>) {
        for ((_, column), list) in TEXT_COLUMNS.iter().zip(&mut self.lists) {
            column.write(token, num_top, names, &mut self.offset, list);
        }
    }

    /// The lists, complete.
    pub fn finish(self) -> WrittenColumns {
        let texts = self.lists.map(|list| list.into_text().into_shared());
        WrittenColumns { texts, offset: self.offset }
    }
}

/// vLLM's `prompt_logprobs` of one token, by token id.
pub type PromptLogprobs = BTreeMap<u32, PromptToken>;

/// One entry of it.
#[derive(Debug, Serialize)]
pub struct PromptToken {
    logprob: f32,
    rank: u32,
    decoded_token: String,
}

/// vLLM's shape of a prompt's token; the first one has null instead.
pub fn prompt_entry(token: &TokenOut, names: TokenNames<'_>) -> PromptLogprobs {
    let named = |id, logprob, rank| {
        (id, PromptToken { logprob: finite(logprob), rank, decoded_token: names.text(id) })
    };
    let top = token.top.iter().zip(1_u32..);
    let mut map: PromptLogprobs =
        top.map(|(&(id, logprob), rank)| named(id, logprob, rank)).collect();
    let (id, own) = named(token.id, token.logprob, token.rank);
    map.entry(id).or_insert(own);
    map
}

fn finite(logprob: f32) -> f32 {
    // `max` also replaces NaN, which stands for "not asked for".
    logprob.max(-9999.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::TextModel;

    fn token(id: u8, logprob: f32, top: &[(u8, f32)]) -> TokenOut {
        let top = top.iter().map(|&(id, logprob)| (u32::from(id), logprob)).collect();
        TokenOut { id: id.into(), logprob, rank: 1, top }
    }

    /// Ids of the made-up tokenizer are bytes.
    fn with_names(test: impl Fn(TokenNames<'_>)) {
        let text = TextModel::dummy(300).unwrap();
        test(TokenNames { tokenizer: &text.tokenizer, as_ids: false, skip_special: true });
    }

    #[test]
    fn chat_tokens_have_bytes_and_only_the_alternatives_asked_for() {
        with_names(|names| {
            let token = token(b'a', -0.5, &[(b'a', -0.5), (b'b', f32::NEG_INFINITY)]);
            let value = serde_json::to_value(chat(&token, 2, names)).unwrap();
            assert_eq!(value["content"][0]["token"], "a");
            assert_eq!(value["content"][0]["bytes"], serde_json::json!([97]));
            assert_eq!(value["content"][0]["top_logprobs"][1]["logprob"], -9999.0);
            assert!(value["refusal"].is_null());
            let value = serde_json::to_value(chat(&token, 0, names)).unwrap();
            assert_eq!(value["content"][0]["top_logprobs"], serde_json::json!([]));
        });
    }

    #[test]
    fn offsets_count_characters_and_the_chosen_token_is_always_there() {
        with_names(|names| {
            let mut columns = TextColumns::default();
            columns.push_first(b'x'.into(), names);
            for byte in "é!".bytes() {
                columns.push(&token(byte, -1.0, &[(b'z', -0.1)]), 1, names);
            }
            let WrittenColumns { texts, offset } = columns.finish();
            let mut value = serde_json::json!({});
            for ((name, _), text) in TEXT_COLUMNS.iter().zip(&texts) {
                let list = [b"[", &text.concat()[..], b"]"].concat();
                value[name] = serde_json::from_slice(&list).unwrap();
            }
            assert_eq!(value["text_offset"], serde_json::json!([0, 1, 2, 2]));
            assert_eq!(value["tokens"][1], "bytes:\\xc3");
            assert!(value["token_logprobs"][0].is_null() && value["top_logprobs"][0].is_null());
            assert_eq!(value["top_logprobs"][3]["!"], -1.0);
            assert_eq!(value["top_logprobs"][3].as_object().unwrap().len(), 2);
            assert_eq!(offset, 3);
        });
    }

    #[test]
    fn what_is_left_out_of_the_text_moves_no_offset() {
        with_names(|names| {
            let special =
                (0..names.tokenizer.vocab_size()).find(|id| names.tokenizer.is_special(*id));
            let special = TokenOut { id: special.unwrap(), ..token(0, -1.0, &[]) };
            let shown = names.tokenizer.token_bytes(special.id).len();
            assert!(shown > 0);
            for (skip_special, last) in [(true, 1), (false, 1 + shown)] {
                let names = TokenNames { skip_special, ..names };
                let (mut logprobs, mut offset) = (TextLogprobs::default(), 0);
                for token in [&token(b'x', -1.0, &[]), &special, &token(b'y', -1.0, &[])] {
                    logprobs.push(token, 0, names, &mut offset);
                }
                assert_eq!(logprobs.text_offset, [0, 1, last]);
            }
        });
    }

    #[test]
    fn a_log_probability_is_written_the_same_everywhere() {
        with_names(|names| {
            let mut logprobs = TextLogprobs::default();
            logprobs.push(&token(b'a', -0.1, &[(b'a', -0.1), (b'b', -2.3)]), 2, names, &mut 0);
            let text = serde_json::to_string(&logprobs).unwrap();
            assert!(text.contains(r#""token_logprobs":[-0.1]"#), "{text}");
            assert!(text.contains(r#""top_logprobs":[{"a":-0.1,"b":-2.3}]"#), "{text}");
        });
    }

    #[test]
    fn tokens_can_be_named_by_id() {
        with_names(|names| {
            let names = TokenNames { as_ids: true, ..names };
            let value = serde_json::to_value(chat(&token(7, -1.0, &[]), 0, names)).unwrap();
            assert_eq!(value["content"][0]["token"], "token_id:7");
            let value = serde_json::to_value(prompt_entry(&token(7, -1.0, &[(9, -0.5)]), names));
            let value = value.unwrap();
            assert_eq!(value["7"]["rank"], 1);
            assert_eq!(value["9"]["logprob"], -0.5);
        });
    }
}
