//! Log-probabilities in the shapes of chat, of completions, and of vLLM's prompt.
//!
//! Impossible tokens have −∞, which JSON cannot say: −9999 stands for it, as elsewhere.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::request::TokenOut;
use crate::text::Tokenizer;

/// How tokens are written.
#[derive(Clone, Copy)]
pub struct TokenNames<'a> {
    /// Knows their bytes.
    pub tokenizer: &'a Tokenizer,
    /// As `token_id:N` instead of text.
    pub as_ids: bool,
}

impl TokenNames<'_> {
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

/// Chat's shape of `tokens` with `num_top` alternatives each.
pub fn chat(tokens: &[TokenOut], num_top: u32, names: TokenNames<'_>) -> ChatLogprobs {
    let bytes = |id: u32| names.tokenizer.token_bytes(id).to_vec();
    let top_token = |&(id, logprob): &(u32, f32)| ChatTopToken {
        token: names.text(id),
        logprob: finite(logprob),
        bytes: bytes(id),
    };
    let token = |token: &TokenOut| ChatToken {
        token: names.text(token.id),
        logprob: finite(token.logprob),
        bytes: bytes(token.id),
        top_logprobs: token.top.iter().take(num_top as usize).map(top_token).collect(),
    };
    ChatLogprobs { content: tokens.iter().map(token).collect(), refusal: None }
}

/// `logprobs` of a completions choice.
#[derive(Debug, Default, Serialize)]
pub struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

impl TextLogprobs {
    /// Adds the first token of an echoed prompt: nothing comes before it, so it has no
    /// log-probability. `offset` counts characters.
    pub fn push_first(&mut self, id: u32, names: TokenNames<'_>, offset: &mut usize) {
        self.tokens.push(names.unique_text(id));
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
        self.text_offset.push(*offset);
        *offset += num_chars_begun(names.tokenizer.token_bytes(id));
    }

    /// Adds a token. Its alternatives hold the token itself too, as the API promises.
    pub fn push(
        &mut self,
        token: &TokenOut,
        num_top: u32,
        names: TokenNames<'_>,
        offset: &mut usize,
    ) {
        let text = names.unique_text(token.id);
        let mut top: Map<String, Value> = token
            .top
            .iter()
            .take(num_top as usize)
            .map(|&(id, logprob)| (names.unique_text(id), finite(logprob).into()))
            .collect();
        top.entry(text.clone()).or_insert_with(|| finite(token.logprob).into());
        self.tokens.push(text);
        self.token_logprobs.push(Some(finite(token.logprob)));
        self.top_logprobs.push(Some(top));
        self.text_offset.push(*offset);
        *offset += num_chars_begun(names.tokenizer.token_bytes(token.id));
    }
}

/// vLLM's `prompt_logprobs`: nothing for the first token, then by token id.
pub type PromptLogprobs = Vec<Option<BTreeMap<u32, PromptToken>>>;

/// One entry of it.
#[derive(Debug, Serialize)]
pub struct PromptToken {
    logprob: f32,
    rank: u32,
    decoded_token: String,
}

/// vLLM's shape of the prompt's tokens from the second one on.
pub fn prompt(tokens: &[TokenOut], names: TokenNames<'_>) -> PromptLogprobs {
    let entry = |token: &TokenOut| {
        let named = |id, logprob, rank| {
            (id, PromptToken { logprob: finite(logprob), rank, decoded_token: names.text(id) })
        };
        let top = token.top.iter().zip(1_u32..);
        let mut map: BTreeMap<u32, PromptToken> =
            top.map(|(&(id, logprob), rank)| named(id, logprob, rank)).collect();
        let (id, own) = named(token.id, token.logprob, token.rank);
        map.entry(id).or_insert(own);
        Some(map)
    };
    std::iter::once(None).chain(tokens.iter().map(entry)).collect()
}

fn finite(logprob: f32) -> f32 {
    // `max` also replaces NaN, which stands for "not asked for".
    logprob.max(-9999.0)
}

/// Characters that begin in these bytes: whole texts add up whatever their split into tokens.
fn num_chars_begun(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count()
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
        test(TokenNames { tokenizer: &text.tokenizer, as_ids: false });
    }

    #[test]
    fn chat_tokens_have_bytes_and_only_the_alternatives_asked_for() {
        with_names(|names| {
            let tokens = [token(b'a', -0.5, &[(b'a', -0.5), (b'b', f32::NEG_INFINITY)])];
            let value = serde_json::to_value(chat(&tokens, 2, names)).unwrap();
            assert_eq!(value["content"][0]["token"], "a");
            assert_eq!(value["content"][0]["bytes"], serde_json::json!([97]));
            assert_eq!(value["content"][0]["top_logprobs"][1]["logprob"], -9999.0);
            assert!(value["refusal"].is_null());
            let value = serde_json::to_value(chat(&tokens, 0, names)).unwrap();
            assert_eq!(value["content"][0]["top_logprobs"], serde_json::json!([]));
        });
    }

    #[test]
    fn offsets_count_characters_and_the_chosen_token_is_always_there() {
        with_names(|names| {
            let (mut logprobs, mut offset) = (TextLogprobs::default(), 0);
            logprobs.push_first(b'x'.into(), names, &mut offset);
            for byte in "é!".bytes() {
                logprobs.push(&token(byte, -1.0, &[(b'z', -0.1)]), 1, names, &mut offset);
            }
            let value = serde_json::to_value(&logprobs).unwrap();
            assert_eq!(value["text_offset"], serde_json::json!([0, 1, 2, 2]));
            assert_eq!(value["tokens"][1], "bytes:\\xc3");
            assert!(value["token_logprobs"][0].is_null() && value["top_logprobs"][0].is_null());
            assert_eq!(value["top_logprobs"][3]["!"], -1.0);
            assert_eq!(value["top_logprobs"][3].as_object().unwrap().len(), 2);
            assert_eq!(offset, 3);
        });
    }

    #[test]
    fn tokens_can_be_named_by_id() {
        with_names(|names| {
            let names = TokenNames { as_ids: true, ..names };
            let value = serde_json::to_value(chat(&[token(7, -1.0, &[])], 0, names)).unwrap();
            assert_eq!(value["content"][0]["token"], "token_id:7");
            let value = serde_json::to_value(prompt(&[token(7, -1.0, &[(9, -0.5)])], names));
            let value = value.unwrap();
            assert!(value[0].is_null());
            assert_eq!(value[1]["7"]["rank"], 1);
            assert_eq!(value[1]["9"]["logprob"], -0.5);
        });
    }
}
