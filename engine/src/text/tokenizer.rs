//! Prompt text to ids, and ids to tokens.
//!
//! Wraps the `tokenizers` crate for encoding; decoding goes through [`PieceTable`], so that a
//! stream and a whole text are decoded by the same code. A `Tokenizer` is built once per model,
//! never changes and is shared by all threads. Encoding is slow and may panic on a strange
//! tokenizer.json: requests call it inside [`super::pool::TextPool`], never on a socket's thread.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use super::detokenizer::{Decode, Start};
use super::pieces::PieceTable;
use crate::model::error::readable;
use crate::model::families::Dialect;

/// Tokens that stand for themselves in a text, and those that frame a prompt.
mod added;

/// How much a file may make of a text.
mod bounds;

/// Vocabularies without tokenizer.json.
mod vocabulary;

/// How long a text is in tokens, before it is encoded.
pub mod length;

/// What is wrong with a tokenizer, at load; or with a text, at a request.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Model: the file is not a tokenizer.
    #[error("tokenizer.json: {}", readable(.0))]
    Damaged(String),
    /// Model: a vocabulary file is damaged, or asks for what is not here.
    #[error("{file}: {}", readable(.reason))]
    Vocabulary {
        /// Its name.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Model: an entry of tokenizer_config.json contradicts tokenizer.json.
    #[error("tokenizer_config.json: {}", readable(.0))]
    Config(String),
    /// Model: its decoder does not give each token bytes of its own.
    #[error("tokenizer.json: the decoder {} is not supported", readable(.0))]
    UnsupportedDecoder(String),
    /// Model: larger than anything real.
    #[error("tokenizer.json: more than {0}")]
    TooLarge(String),
    /// Client or us: the text could not be encoded.
    #[error("the text could not be tokenized: {}", readable(.0))]
    Encode(String),
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: PieceTable,
    named: BTreeMap<String, String>,
    /// Where a text gets a space in front unless it begins with one of these.
    unspaced: Option<Vec<String>>,
    token_bytes_max: Option<usize>,
    looks_ahead: bool,
}

impl Tokenizer {
    /// Reads tokenizer.json and, for special tokens that only it names, tokenizer_config.json.
    pub fn from_bytes(json: &[u8], config: Option<&Value>) -> Result<Self, TokenizerError> {
        let config = config.unwrap_or(&Value::Null);
        let mut inner = parse(json)?;
        added::add_missing_tokens(&mut inner, config)?;
        let named = added::named_tokens(config);
        added::mark_special(&mut inner, named.values());
        Self::new(inner, named, None)
    }

    /// Reads the vocabulary file of a checkpoint without tokenizer.json, by the rules of the one of
    /// its family's dialects that has such files. `name` is for errors.
    pub fn from_vocabulary(
        name: &str,
        bytes: &[u8],
        dialects: &[&Dialect],
        config: Option<&Value>,
    ) -> Result<Self, TokenizerError> {
        let refuse = |reason: String| TokenizerError::Vocabulary { file: name.into(), reason };
        let config = config.unwrap_or(&Value::Null);
        let translated = vocabulary::translate(bytes, dialects, config).map_err(refuse)?;
        let (vocabulary::Translation { file, added, mut named, adds_bos, first_space }, dialect) =
            translated;
        let json = serde_json::to_vec(&file).map_err(|error| refuse(error.to_string()))?;
        drop(file);
        let mut inner = parse(&json).map_err(|error| refuse(error.to_string()))?;
        drop(json);
        // Tokens are looked for as they are written here, also where a text was normalized before.
        let normalizer = inner.get_normalizer().cloned();
        inner.with_normalizer(None::<tokenizers::NormalizerWrapper>);
        added::add_with_flags(&mut inner, added, config);
        added::add_missing_tokens(&mut inner, config)?;
        named.extend(added::named_tokens(config));
        let more = added::additional_special_tokens(config);
        let marks = dialect.map_or(&[][..], |dialect| dialect.marks);
        let marks = marks.iter().copied().map(str::to_owned);
        let special: Vec<String> = named.values().cloned().chain(more).chain(marks).collect();
        added::mark_special(&mut inner, special.iter());
        let begin = dialect.map_or(&[][..], |dialect| dialect.vocabulary.begin);
        added::frame_prompts(&mut inner, begin, &named, adds_bos, config);
        inner.with_normalizer(normalizer);
        let unspaced = first_space.then(|| added::texts(&inner));
        Self::new(inner, named, unspaced)
    }

    fn new(
        mut inner: tokenizers::Tokenizer,
        named: BTreeMap<String, String>,
        unspaced: Option<Vec<String>>,
    ) -> Result<Self, TokenizerError> {
        // Settings of training: a server neither cuts nor pads a prompt, and leaves out no merges.
        inner
            .with_truncation(None)
            .map_err(|error| TokenizerError::Damaged(error.to_string()))?
            .with_padding(None);
        if let tokenizers::ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            inner.with_model(bpe);
        }
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
        let looks_ahead = length::looks_ahead(&inner)?;
        Ok(Self { inner, pieces, named, unspaced, token_bytes_max, looks_ahead })
    }

    /// Ids of `text`. With `add_special` the model's own beginning (and end) tokens are added; a
    /// rendered chat template has them already.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        if self.looks_ahead && length::has_endless_space(text) {
            let most = length::SPACES_MAX;
            let what = format!("it has more than {most} white-space characters in a row");
            return Err(TokenizerError::Encode(what));
        }
        let spaced = self.unspaced.as_ref().is_some_and(|unspaced| {
            !text.is_empty() && !unspaced.iter().any(|token| text.starts_with(token.as_str()))
        });
        let text = if spaced { format!(" {text}").into() } else { Cow::Borrowed(text) };
        self.inner
            .encode_fast(text.as_ref(), add_special)
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
    bounds::check(json)?;
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

#[cfg(test)]
mod tests;
