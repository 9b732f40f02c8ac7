//! Prompt text to ids, and ids to tokens.
//!
//! Wraps the `tokenizers` crate for encoding; decoding goes through [`PieceTable`], so that a
//! stream and a whole text are decoded by the same code. A `Tokenizer` is built once per model,
//! never changes and is shared by all threads. Encoding is slow and may panic on a strange
//! tokenizer.json: requests call it inside [`super::pool::TextPool`], never on a socket's thread.

use std::collections::BTreeMap;

use serde_json::Value;
use tokenizers::AddedToken;

use super::detokenizer::{Decode, Start};
use super::pieces::PieceTable;

/// How long a text is in tokens, before it is encoded.
pub mod length;

/// What is wrong with a tokenizer, at load; or with a text, at a request.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Model: the file is not a tokenizer.
    #[error("tokenizer.json: {0}")]
    Damaged(String),
    /// Model: an entry of tokenizer_config.json contradicts tokenizer.json.
    #[error("tokenizer_config.json: {0}")]
    Config(String),
    /// Model: its decoder does not give each token bytes of its own.
    #[error("tokenizer.json: the decoder {0} is not supported")]
    UnsupportedDecoder(String),
    /// Model: larger than anything real.
    #[error("tokenizer.json: more than {0}")]
    TooLarge(String),
    /// Client or us: the text could not be encoded.
    #[error("the text could not be tokenized: {0}")]
    Encode(String),
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: PieceTable,
    named: BTreeMap<String, String>,
    token_bytes_max: Option<usize>,
}

impl Tokenizer {
    /// Reads tokenizer.json and, for special tokens that only it names, tokenizer_config.json.
    pub fn from_bytes(json: &[u8], config: Option<&Value>) -> Result<Self, TokenizerError> {
        let mut inner = parse(json)?;
        // Settings of training batches: a server neither cuts nor pads a prompt.
        inner
            .with_truncation(None)
            .map_err(|error| TokenizerError::Damaged(error.to_string()))?
            .with_padding(None);
        let config = config.unwrap_or(&Value::Null);
        add_missing_tokens(&mut inner, config)?;
        let named = named_tokens(config);
        mark_special(&mut inner, &named);

        let num_ids = num_ids(&inner)?;
        let decoder = serde_json::to_value(inner.get_decoder())
            .map_err(|error| TokenizerError::Damaged(error.to_string()))?;
        let added = inner.get_added_vocabulary();
        let pieces = PieceTable::new(&decoder, num_ids, |id| {
            let token = inner.id_to_token(id)?;
            let special = added.is_special_token(&token);
            Some((token, special))
        })?;
        let token_bytes_max = length::token_bytes_max(&inner, &pieces)?;
        Ok(Self { inner, pieces, named, token_bytes_max })
    }

    /// Ids of `text`. With `add_special` the model's own beginning (and end) tokens are added; a
    /// rendered chat template has them already.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.inner
            .encode_fast(text, add_special)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TokenizerError::Encode(error.to_string()))
    }

    /// Text of `ids` as a text of its own. Ids that the vocabulary lacks give no text; bytes that
    /// are not UTF-8 give U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut decode = Decode::new(self, Start::Text, skip_special);
        let mut text = String::new();
        for &id in ids {
            decode.push(self, id, &mut text);
        }
        decode.finish(&mut text);
        text
    }

    /// Bytes of one token, as it stands inside a text; not always UTF-8.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.pieces.piece(id)
    }

    /// The token as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether the token is a mark of the model's format rather than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// One more than the largest id. The model's own vocabulary may be padded beyond it.
    pub fn vocab_size(&self) -> u32 {
        self.pieces.num_ids()
    }

    /// Special tokens by the name that chat templates use (`bos_token`, `eos_token`, …).
    pub fn named_tokens(&self) -> &BTreeMap<String, String> {
        &self.named
    }

    pub(super) fn pieces(&self) -> &PieceTable {
        &self.pieces
    }
}

/// The library panics on some damaged files, so it is shown JSON only and caught if it does.
fn parse(json: &[u8]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    serde_json::from_slice::<serde::de::IgnoredAny>(json)
        .map_err(|error| TokenizerError::Damaged(error.to_string()))?;
    std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(json))
        .map_err(|_| TokenizerError::Damaged("a part has the wrong type".into()))?
        .map_err(|error| TokenizerError::Damaged(error.to_string()))
}

/// No vocabulary comes near; a damaged file must not make us allocate by its largest id.
const IDS_MAX: u32 = 1 << 22;

fn num_ids(inner: &tokenizers::Tokenizer) -> Result<u32, TokenizerError> {
    let largest = inner.get_vocab(true).into_values().max();
    let largest = largest.ok_or_else(|| TokenizerError::Damaged("no tokens".into()))?;
    if largest >= IDS_MAX {
        return Err(TokenizerError::TooLarge(format!("{IDS_MAX} token ids")));
    }
    Ok(largest + 1)
}

/// Adds the tokens that only `added_tokens_decoder` lists, in the order of their ids.
fn add_missing_tokens(
    inner: &mut tokenizers::Tokenizer,
    config: &Value,
) -> Result<(), TokenizerError> {
    let Some(listed) = config["added_tokens_decoder"].as_object() else { return Ok(()) };
    let mut missing = Vec::new();
    for (id, entry) in listed {
        let bad = || TokenizerError::Config(format!("added_tokens_decoder[{id:?}] is damaged"));
        let number: u32 = id.parse().map_err(|_| bad())?;
        let content = entry["content"].as_str().ok_or_else(bad)?;
        if inner.token_to_id(content).is_none() {
            let flag = |key: &str, absent: bool| entry[key].as_bool().unwrap_or(absent);
            let special = flag("special", false);
            let token = AddedToken::from(content, special)
                .single_word(flag("single_word", false))
                .lstrip(flag("lstrip", false))
                .rstrip(flag("rstrip", false))
                .normalized(flag("normalized", !special));
            missing.push((number, token));
        }
    }
    missing.sort_by_key(|(id, _)| *id);
    for (id, token) in missing {
        let content = token.content.clone();
        inner.add_tokens(&[token]);
        if inner.token_to_id(&content) != Some(id) {
            let what = format!("added token {content:?} cannot have the id {id}");
            return Err(TokenizerError::Config(what));
        }
    }
    Ok(())
}

/// `bos_token`, `eos_token`, …: each a string or an object with `content`.
fn named_tokens(config: &Value) -> BTreeMap<String, String> {
    let entries = config.as_object().into_iter().flatten();
    entries
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, value)| {
            let token = value.as_str().or_else(|| value["content"].as_str())?;
            Some((key.clone(), token.to_string()))
        })
        .collect()
}

/// A token that the configuration names is special, also where tokenizer.json has it as text.
fn mark_special(inner: &mut tokenizers::Tokenizer, named: &BTreeMap<String, String>) {
    for token in named.values() {
        let known = inner.token_to_id(token).is_some();
        if known && !inner.get_added_vocabulary().is_special_token(token) {
            inner.add_special_tokens(&[AddedToken::from(token, true)]);
        }
    }
}

#[cfg(test)]
mod tests;
