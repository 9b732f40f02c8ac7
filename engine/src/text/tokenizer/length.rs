//! How long a text is in tokens, before it is encoded.
//!
//! Encoding takes memory and time in proportion to a text, so one that is too long is refused
//! first: by its bytes alone where the tokenizer allows that, or by counting the tokens of its
//! parts up to the one that is too much. What is said here is certain; silence says nothing.

use serde_json::Value;

use super::{Tokenizer, TokenizerError};
use crate::text::pieces::PieceTable;

/// Bytes of memory that encoding takes at most for one byte of text. `tests/text_room.rs` measures
/// it.
pub const ENCODING_BYTES: usize = 448;

impl Tokenizer {
    /// Whether `text` has more than `most` tokens, as far as that can be told without encoding it
    /// whole. `false` says nothing.
    pub fn exceeds(&self, text: &str, most: usize) -> Result<bool, TokenizerError> {
        if self.surely_exceeds(text, most) {
            return Ok(true);
        }
        if text.len() <= most.saturating_mul(PLAUSIBLE_TOKEN_BYTES) {
            return Ok(false);
        }
        let mut fewest = 0;
        for part in parts(text, PART_BYTES) {
            fewest += self.encode(part, false)?.len().saturating_sub(CUT_TOKENS);
            if fewest > most {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether `text` has too many bytes for `most` tokens. Takes no time.
    pub fn surely_exceeds(&self, text: &str, most: usize) -> bool {
        let token_bytes = self.token_bytes_max;
        token_bytes.is_some_and(|bytes| text.len() > most.saturating_mul(bytes))
    }

    /// Bytes of text that a token stands for at most, if the tokenizer has such a bound: it drops
    /// no text, and knows a token for every byte.
    pub fn token_bytes_max(&self) -> Option<usize> {
        self.token_bytes_max
    }
}

/// Texts of fewer bytes a token are likely to fit and are not looked at twice.
const PLAUSIBLE_TOKEN_BYTES: usize = 4;

/// Bytes of a part of a text that is looked at in parts.
const PART_BYTES: usize = 64 << 10;

/// Tokens that a cut may add to a text. It changes those around it, which are a few.
pub(super) const CUT_TOKENS: usize = 64;

/// The text in parts of at most `part_bytes`, cut before white space where there is some.
pub(super) fn parts(text: &str, part_bytes: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = rest.floor_char_boundary(part_bytes);
        let space = rest[..end].rfind(char::is_whitespace).filter(|at| *at > end / 2);
        let cut = if end == rest.len() { end } else { space.unwrap_or(end) };
        let part;
        (part, rest) = rest.split_at(cut);
        (!part.is_empty()).then_some(part)
    })
}

/// White space in a row that is taken where [`looks_ahead`]. From a million characters on the regular
/// expressions give up, without a word, and the rest of the text would be cut into other tokens.
pub(super) const SPACES_MAX: usize = 999_000;

/// Whether a text has more white space in a row than [`SPACES_MAX`] characters.
pub(super) fn has_endless_space(text: &str) -> bool {
    let is_endless = |run: &str| run.len() > SPACES_MAX && run.chars().count() > SPACES_MAX;
    text.len() > SPACES_MAX && text.split(|c: char| !c.is_whitespace()).any(is_endless)
}

/// Whether a text is cut by regular expressions that look behind white space for what follows it.
pub(super) fn looks_ahead(inner: &tokenizers::Tokenizer) -> Result<bool, TokenizerError> {
    let pre = serde_json::to_value(inner.get_pre_tokenizer());
    let pre = pre.map_err(|error| TokenizerError::Damaged(error.to_string()))?;
    Ok(has_look_ahead(&pre))
}

fn has_look_ahead(pre: &Value) -> bool {
    let pattern = pre["pattern"]["Regex"].as_str().unwrap_or_default();
    pattern.contains("(?!")
        || pattern.contains("(?=")
        || (pre["type"] == "ByteLevel" && pre["use_regex"] != false)
        || members(pre).any(has_look_ahead)
}

/// The bound of [`Tokenizer::token_bytes_max`], worked out at load.
pub(super) fn token_bytes_max(
    inner: &tokenizers::Tokenizer,
    pieces: &PieceTable,
) -> Result<Option<usize>, TokenizerError> {
    let damaged = |error: serde_json::Error| TokenizerError::Damaged(error.to_string());
    let normalizer = serde_json::to_value(inner.get_normalizer()).map_err(damaged)?;
    let pre = serde_json::to_value(inner.get_pre_tokenizer()).map_err(damaged)?;
    let tokenizers::ModelWrapper::BPE(bpe) = inner.get_model() else { return Ok(None) };
    // An unknown character would be dropped, or many would be one token.
    let is_known = bpe.byte_fallback || has_byte_level(&pre);
    if !is_known || !has_every_byte(pieces) || !keeps_text(&pre) {
        return Ok(None);
    }
    // Such a token takes the white space around it, however much.
    let added = inner.get_added_tokens_decoder();
    if added.values().any(|token| token.lstrip || token.rstrip) {
        return Ok(None);
    }
    let longest = inner.get_vocab(true).keys().map(String::len).max();
    Ok(longest.zip(shrinking(&normalizer)).map(|(bytes, times)| bytes * times))
}

fn has_every_byte(pieces: &PieceTable) -> bool {
    let mut has = [false; 256];
    for id in 0..pieces.num_ids() {
        if let [byte] = pieces.piece(id) {
            has[usize::from(*byte)] = true;
        }
    }
    has.iter().all(|has| *has)
}

/// How many times longer a text may be than its normal form; none if there is no bound.
fn shrinking(normalizer: &Value) -> Option<usize> {
    match normalizer["type"].as_str() {
        None if normalizer.is_null() => Some(1),
        Some("Prepend") => Some(1),
        // 3.5 times at most: U+1FBE U+0308 U+0301 is U+0390.
        Some("NFC") => Some(4),
        Some("Replace") => {
            let pattern = normalizer["pattern"]["String"].as_str()?;
            (normalizer["content"].as_str()?.len() >= pattern.len()).then_some(1)
        }
        Some("Sequence") => normalizer["normalizers"].as_array()?.iter().map(shrinking).product(),
        _ => None,
    }
}

/// Whether all of a text is in the parts that a pre-tokenizer makes of it.
fn keeps_text(pre: &Value) -> bool {
    match pre["type"].as_str() {
        None => pre.is_null(),
        Some("ByteLevel" | "Metaspace" | "Digits") => true,
        Some("Split" | "Punctuation") => pre["behavior"].as_str().is_some_and(|b| b != "Removed"),
        Some("Sequence") => members(pre).all(keeps_text),
        Some(_) => false,
    }
}

fn has_byte_level(pre: &Value) -> bool {
    pre["type"] == "ByteLevel" || members(pre).any(has_byte_level)
}

fn members(pre: &Value) -> impl Iterator<Item = &Value> {
    pre["pretokenizers"].as_array().into_iter().flatten()
}
