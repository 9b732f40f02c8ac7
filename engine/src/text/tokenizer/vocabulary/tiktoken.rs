//! A file of tiktoken (a line for each token: its bytes in base64, its rank) as a tokenizer.json.
//!
//! The rank is both the token's id and its turn to be merged. How a text is cut before that, and
//! which special tokens there are, stands in the code that came with the file.

use base64::Engine;
use serde_json::{Value, json};

use super::{
    Algorithm, Bpe, PIECE_BYTES_MAX, PIECES_MAX, TokenizerFile, Translation, merges, tokens_by_text,
};
use crate::model::families::{Digits, Vocabulary};
use crate::text::pieces::char_of_byte;

/// Whether a file is of this kind, judged by its first line.
pub(super) fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty());
    line.is_some_and(|line| line_of(line).is_ok())
}

/// Reads a file and says the same in other words.
pub(super) fn translate(bytes: &[u8], rules: Option<&Vocabulary>) -> Result<Translation, String> {
    let tokens = read(bytes)?;
    let first = tokens.iter().map(|(rank, _)| rank + 1).max().unwrap_or_default();
    let mut vocab = tokens_by_text(tokens.iter().map(|(rank, text)| (text.as_str(), *rank)))?;
    let texts: Vec<String> = tokens.into_iter().map(|(_, text)| text).collect();
    let merges = merges(&texts, |part| vocab.contains_key(part))?;
    let appended = super::appended(rules);
    vocab.extend(appended.iter().cloned().zip(first..));
    let algorithm = Algorithm::Bpe(Bpe {
        unk_token: None,
        fuse_unk: false,
        byte_fallback: false,
        // A part that is a token as a whole is not looked into, even if no merges lead there.
        ignore_merges: true,
        vocab,
        merges,
    });
    let composed = rules.is_some_and(|rules| rules.composed);
    let digits = rules.map_or(Digits::Three, |rules| rules.digits);
    let file = TokenizerFile {
        version: "1.0",
        normalizer: if composed { json!({ "type": "NFC" }) } else { Value::Null },
        pre_tokenizer: pre_tokenizer(digits),
        decoder: byte_level(),
        model: algorithm,
    };
    Ok(Translation {
        added: super::special_tokens(appended).collect(),
        named: std::collections::BTreeMap::new(),
        adds_bos: false,
        first_space: false,
        file,
    })
}

/// Ranks and tokens in the letters of byte-level BPE, ascending.
fn read(bytes: &[u8]) -> Result<Vec<(u32, String)>, String> {
    let letters: Vec<char> = (0..=255).map(char_of_byte).collect();
    let mut tokens = Vec::new();
    let mut has = [false; 256];
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let refuse = |what: String| format!("line {}: {what}", index + 1);
        let (token, rank) = line_of(line).map_err(refuse)?;
        if let [byte] = token[..] {
            has[usize::from(byte)] = true;
        }
        tokens.push((rank, token.iter().map(|byte| letters[usize::from(*byte)]).collect()));
    }
    if let Some(byte) = has.iter().position(|has| !has) {
        return Err(format!("has no token for the byte {byte}"));
    }
    tokens.sort();
    match tokens.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(format!("the rank {} is there twice", pair[0].0)),
        None => Ok(tokens),
    }
}

/// A line's token and rank.
fn line_of(line: &[u8]) -> Result<(Vec<u8>, u32), String> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (Some(token), Some(rank), None) = (words.next(), words.next(), words.next()) else {
        return Err("is not a token and its rank".into());
    };
    if token.len() > 2 * PIECE_BYTES_MAX {
        return Err(format!("the token has more than {PIECE_BYTES_MAX} bytes"));
    }
    let token = base64::engine::general_purpose::STANDARD.decode(token);
    let token = token.map_err(|error| format!("the token is not base64: {error}"))?;
    let rank = std::str::from_utf8(rank).ok().and_then(|rank| rank.parse::<u32>().ok());
    let rank = rank.filter(|rank| *rank < PIECES_MAX);
    let rank = rank.ok_or_else(|| format!("the rank is not a number below {PIECES_MAX}"))?;
    if token.is_empty() {
        return Err("the token is empty".into());
    }
    Ok((token, rank))
}

/// How a text is cut into parts that no token crosses.
fn pre_tokenizer(digits: Digits) -> Value {
    let numbers = match digits {
        Digits::One => r"\p{N}",
        Digits::Three => r"\p{N}{1,3}",
    };
    let pattern = [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        numbers,
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ];
    let split = json!({
        "type": "Split", "pattern": { "Regex": pattern.join("|") },
        "behavior": "Isolated", "invert": false,
    });
    json!({ "type": "Sequence", "pretokenizers": [split, byte_level()] })
}

fn byte_level() -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    })
}
