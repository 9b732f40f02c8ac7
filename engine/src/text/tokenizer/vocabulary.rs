//! Vocabularies without tokenizer.json: what older checkpoints have, in the words of a newer file.
//!
//! At load only. A model of sentencepiece or a file of tiktoken becomes the text of a tokenizer.json
//! and the few things that such a file has no word for; from there on there is one way to tokenize.
//! Files are a stranger's: whatever is wrong with one is a line for a person.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use tokenizers::AddedToken;

use crate::model::families::{Appended, Dialect, Vocabulary, VocabularyKind};

mod proto;
mod sentencepiece;
mod tiktoken;

/// Most tokens of a vocabulary, by far.
const PIECES_MAX: u32 = super::IDS_MAX;

/// Longest token. What a token may be split into is looked at in all places.
const PIECE_BYTES_MAX: usize = 1 << 10;

/// Bytes of all merges: a token of a thousand letters has a thousand. The largest vocabulary that is
/// known has a tenth of this.
const MERGE_BYTES_MAX: usize = 64 << 20;

/// What a vocabulary file says.
pub(super) struct Translation {
    /// A tokenizer.json, but for the tokens below.
    pub(super) file: TokenizerFile,
    /// Tokens that stand for themselves in a text. Those that the model lacks get the next ids.
    pub(super) added: Vec<AddedToken>,
    /// By the names of tokenizer_config.json, which may name others.
    pub(super) named: BTreeMap<String, String>,
    /// Whether a prompt begins with the begin token unless tokenizer_config.json says otherwise.
    pub(super) adds_bos: bool,
    /// Whether a text gets a space in front where no special token stands.
    pub(super) first_space: bool,
}

/// The dialect whose rules a file follows, and what the file says.
pub(super) fn translate<'a>(
    bytes: &[u8],
    dialects: &'a [&'a Dialect],
    config: &Value,
) -> Result<(Translation, Option<&'a Dialect>), String> {
    let is_tiktoken = tiktoken::is_tiktoken(bytes);
    let kind = if is_tiktoken { VocabularyKind::Tiktoken } else { VocabularyKind::SentencePiece };
    let dialect = dialects.iter().copied().find(|dialect| dialect.vocabulary.kind == kind);
    let rules = dialect.map(|dialect| &dialect.vocabulary);
    let translation = if is_tiktoken {
        tiktoken::translate(bytes, rules)?
    } else {
        sentencepiece::translate(bytes, rules, config)?
    };
    Ok((translation, dialect))
}

/// The parts of a tokenizer.json.
#[derive(Serialize)]
pub(super) struct TokenizerFile {
    version: &'static str,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Algorithm,
}

/// The model of a tokenizer.json.
#[derive(Serialize)]
#[serde(tag = "type")]
enum Algorithm {
    #[serde(rename = "BPE")]
    Bpe(Bpe),
    Unigram(Unigram),
}

#[derive(Serialize)]
struct Bpe {
    unk_token: Option<String>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: BTreeMap<String, u32>,
    merges: Vec<(String, String)>,
}

#[derive(Serialize)]
struct Unigram {
    unk_id: u32,
    byte_fallback: bool,
    /// Tokens and scores by id.
    vocab: Vec<(String, f64)>,
}

/// Ids by text. No two tokens have the same.
fn tokens_by_text<'a>(
    tokens: impl Iterator<Item = (&'a str, u32)>,
) -> Result<BTreeMap<String, u32>, String> {
    let mut ids = BTreeMap::new();
    for (text, id) in tokens {
        if ids.insert(text.to_owned(), id).is_some() {
            return Err(format!("the token {text:?} is there twice"));
        }
    }
    Ok(ids)
}

/// Every way to make each of `tokens`, which come in the order in which they are merged, of two
/// others.
fn merges(
    tokens: &[String],
    is_part: impl Fn(&str) -> bool,
) -> Result<Vec<(String, String)>, String> {
    let mut merges = Vec::new();
    let mut merge_bytes = 0;
    for token in tokens {
        for (at, _) in token.char_indices().skip(1).collect::<Vec<_>>().into_iter().rev() {
            let (left, right) = token.split_at(at);
            if is_part(left) && is_part(right) {
                merge_bytes += token.len();
                if merge_bytes > MERGE_BYTES_MAX {
                    return Err("has too many ways to merge its tokens".into());
                }
                merges.push((left.to_owned(), right.to_owned()));
            }
        }
    }
    Ok(merges)
}

/// The tokens behind those of the file.
fn appended(rules: Option<&Vocabulary>) -> Vec<String> {
    let mut tokens = Vec::new();
    for appended in rules.map_or(&[][..], |rules| rules.appended) {
        match *appended {
            Appended::Token(text) => tokens.push(text.to_owned()),
            Appended::Numbered(before, count, behind) => {
                tokens.extend((0..count).map(|number| format!("{before}{number}{behind}")));
            }
        }
    }
    tokens
}

/// Such a token has no rival in a text but where it looks like a word: then it must be one.
fn special_tokens(tokens: Vec<String>) -> impl Iterator<Item = AddedToken> {
    tokens.into_iter().map(|text| {
        let is_word = text.chars().all(char::is_alphanumeric);
        AddedToken::from(text, true).normalized(false).single_word(is_word)
    })
}

#[cfg(test)]
mod tests;
