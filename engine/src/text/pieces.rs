//! The bytes of every token, worked out once from the tokenizer's decoder.
//!
//! A decoder of the `tokenizers` crate maps a list of tokens to text; asked again for every new
//! token it costs the square of the answer's length. All decoders of decoder-only models give each
//! token fixed bytes, but for the first token of a text. So the decoder is compiled here into one
//! table, and decoding is concatenation. What does not compile is refused by name, never guessed.

use serde_json::Value;

use super::tokenizer::TokenizerError;

/// Bytes of each token id, and what is special at the beginning and in broken UTF-8.
#[derive(Debug)]
pub struct PieceTable {
    bytes: Vec<u8>,
    /// `[num_ids + 1]`; piece `id` is `bytes[starts[id]..starts[id + 1]]`.
    starts: Vec<u32>,
    special: Vec<bool>,
    decoder: Decoder,
}

impl PieceTable {
    /// Compiles `decoder` (the `decoder` object of tokenizer.json, or null) over `num_ids` ids.
    /// `token` gives an id's token and whether it is special; ids without a token have no bytes.
    pub fn new(
        decoder: &Value,
        num_ids: u32,
        token: impl Fn(u32) -> Option<(String, bool)>,
    ) -> Result<Self, TokenizerError> {
        let decoder = Decoder::compile(decoder)?;
        let mut table = Self { bytes: Vec::new(), starts: vec![0], special: Vec::new(), decoder };
        for id in 0..num_ids {
            let (text, special) = token(id).unwrap_or_default();
            let fits = table.decoder.append_piece(&text, false, &mut table.bytes);
            if !fits || table.bytes.len() > TABLE_BYTES_MAX {
                let most =
                    format!("{PIECE_BYTES_MAX} bytes of a token, or {TABLE_BYTES_MAX} of all");
                return Err(TokenizerError::TooLarge(most));
            }
            table.starts.push(table.bytes.len() as u32);
            table.special.push(special);
        }
        Ok(table)
    }

    /// Bytes of token `id` inside a text; empty for an id that the vocabulary lacks.
    pub fn piece(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match (self.starts.get(id), self.starts.get(id + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }

    /// Bytes of `token` where a text begins with it.
    pub fn first_piece(&self, token: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.decoder.append_piece(token, true, &mut bytes);
        bytes
    }

    /// Whether `skip_special_tokens` leaves `id` out.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// One more than the largest id.
    pub fn num_ids(&self) -> u32 {
        self.special.len() as u32
    }

    /// Whether the first token of a text has other bytes than inside one.
    pub fn first_differs(&self) -> bool {
        self.decoder.join || self.decoder.drop_first.is_some()
    }

    /// Whether each byte of a broken sequence becomes U+FFFD, as byte fallback has it, or each
    /// broken sequence, as byte-level BPE has it.
    pub fn replaces_each_byte(&self) -> bool {
        self.decoder.byte_fallback
    }

    /// Up to so many of this character are left out where a text begins.
    pub fn strip_start(&self) -> Option<(char, usize)> {
        self.decoder.strip_start
    }
}

/// A compiled decoder: what happens to each token alone, and what happens to the whole text.
#[derive(Debug, Default)]
struct Decoder {
    stages: Vec<Stage>,
    byte_fallback: bool,
    /// Metaspace leaves its mark out of the first token.
    drop_first: Option<char>,
    /// No decoder at all: tokens are joined by spaces.
    join: bool,
    strip_start: Option<(char, usize)>,
    fused: bool,
}

#[derive(Debug)]
enum Stage {
    ByteLevel,
    ByteFallback,
    Replace(String, String),
    Strip(char, usize, usize),
}

impl Decoder {
    fn compile(json: &Value) -> Result<Self, TokenizerError> {
        let mut decoder = Self::default();
        if json.is_null() {
            decoder.join = true;
        } else {
            decoder.add(json, 0)?;
        }
        Ok(decoder)
    }

    fn add(&mut self, json: &Value, depth: usize) -> Result<(), TokenizerError> {
        let kind = json["type"].as_str().unwrap_or_default();
        let refuse = || TokenizerError::UnsupportedDecoder(json.to_string());
        if self.stages.len() == STAGES_MAX {
            return Err(refuse());
        }
        let count = |key: &str| json[key].as_u64().and_then(|n| usize::try_from(n).ok());
        match kind {
            "Sequence" if depth < 4 => {
                for stage in json["decoders"].as_array().ok_or_else(refuse)? {
                    self.add(stage, depth + 1)?;
                }
            }
            "ByteLevel" if self.stages.is_empty() => {
                self.stages.push(Stage::ByteLevel);
                self.fused = true;
            }
            "ByteFallback" if !self.fused => {
                self.stages.push(Stage::ByteFallback);
                self.byte_fallback = true;
            }
            "Fuse" => self.fused = true,
            "Replace" => {
                let from = json["pattern"]["String"].as_str().ok_or_else(refuse)?;
                let to = json["content"].as_str().ok_or_else(refuse)?;
                // Over fused text a longer pattern could lie across two tokens.
                if from.is_empty() || (self.fused && from.chars().count() > 1) {
                    return Err(refuse());
                }
                self.stages.push(Stage::Replace(from.into(), to.into()));
            }
            "Strip" => {
                let content = json["content"].as_str().and_then(|s| s.chars().next());
                let (Some(content), Some(start), Some(stop)) =
                    (content, count("start"), count("stop"))
                else {
                    return Err(refuse());
                };
                match (self.fused, self.strip_start, stop) {
                    (false, _, _) => self.stages.push(Stage::Strip(content, start, stop)),
                    (true, None, 0) => self.strip_start = Some((content, start)),
                    _ => return Err(refuse()),
                }
            }
            "Metaspace" if !self.fused => {
                let mark = json["replacement"].as_str().and_then(|s| s.chars().next());
                let mark = mark.ok_or_else(refuse)?;
                let never = json["prepend_scheme"] == "never" || json["add_prefix_space"] == false;
                self.drop_first = (!never).then_some(mark);
                self.stages.push(Stage::Replace(mark.into(), " ".into()));
            }
            _ => return Err(refuse()),
        }
        Ok(())
    }

    /// Appends the bytes of `token`; `first` where a text begins with it. False, and nothing is, where
    /// replacements make too many of them.
    fn append_piece(&self, token: &str, first: bool, out: &mut Vec<u8>) -> bool {
        if self.join && !first && !token.is_empty() {
            out.push(b' ');
        }
        let mut text = token.to_string();
        if let (true, Some(mark)) = (first, self.drop_first) {
            text.retain(|c| c != mark);
        }
        for stage in &self.stages {
            match stage {
                Stage::ByteLevel => {
                    out.extend(byte_level_bytes(&text));
                    return true;
                }
                Stage::ByteFallback => {
                    if let Some(byte) = fallback_byte(&text) {
                        out.push(byte);
                        return true;
                    }
                }
                Stage::Replace(from, to) => {
                    let added = text.matches(from.as_str()).count().saturating_mul(to.len());
                    if to.len() > from.len() && added > PIECE_BYTES_MAX {
                        return false;
                    }
                    text = text.replace(from, to);
                }
                Stage::Strip(content, start, stop) => {
                    text = strip(&text, *content, *start, *stop).to_string();
                }
            }
        }
        out.extend_from_slice(text.as_bytes());
        true
    }
}

/// Bytes that replacements may put into one token: they follow each other, so a few could fill any
/// memory.
const PIECE_BYTES_MAX: usize = 64 << 10;
/// Bytes of all tokens.
const TABLE_BYTES_MAX: usize = 512 << 20;
/// Stages of a decoder.
const STAGES_MAX: usize = 32;

/// The byte that a token such as `<0xE4>` stands for.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}

/// At most so many of a character from either end; the counts are a file's.
fn strip(text: &str, content: char, start: usize, stop: usize) -> &str {
    let is_content = |c: &char| *c == content;
    let leading = text.chars().take(start).take_while(is_content).count();
    let text = &text[leading * content.len_utf8()..];
    let trailing = text.chars().rev().take(stop).take_while(is_content).count();
    &text[..text.len() - trailing * content.len_utf8()]
}

/// Bytes of a byte-level token; a token with a character outside the alphabet (an added token)
/// stands for itself.
fn byte_level_bytes(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others, in ascending order,
/// for the characters from U+0100 on.
pub(crate) fn char_of_byte(byte: u8) -> char {
    if is_printable(byte) {
        return byte as char;
    }
    let rank = (0..byte).filter(|&b| !is_printable(b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or('\u{FFFD}')
}

fn byte_of_char(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ 0..=0xFF => u8::try_from(code).ok().filter(|&byte| is_printable(byte)),
        code @ 0x100..=0x143 => {
            (0..=255u8).filter(|&b| !is_printable(b)).nth((code - 0x100) as usize)
        }
        _ => None,
    }
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_alphabet_is_a_bijection() {
        let chars: std::collections::BTreeSet<char> = (0..=255).map(char_of_byte).collect();
        assert_eq!(chars.len(), 256);
        for byte in 0..=255 {
            assert_eq!(byte_of_char(char_of_byte(byte)), Some(byte));
        }
        assert_eq!((char_of_byte(b' '), char_of_byte(b'\n')), ('Ġ', 'Ċ'));
        assert_eq!(byte_of_char('你'), None);
    }

    #[test]
    fn fallback_tokens_are_exactly_six_characters() {
        assert_eq!(fallback_byte("<0xE4>"), Some(0xE4));
        for other in ["<0xE>", "<0xE44>", "<0x+4>", "<0xZZ>", "0xE4", "<0x"] {
            assert_eq!(fallback_byte(other), None, "{other}");
        }
    }

    #[test]
    fn a_file_may_strip_any_number_of_characters() {
        for (start, stop, stripped) in
            [(usize::MAX, usize::MAX, "a"), (1, 0, " a  "), (0, 1, "  a "), (9, 0, "a  ")]
        {
            assert_eq!(strip("  a  ", ' ', start, stop), stripped);
        }
        assert_eq!(strip("▁▁", '▁', 1, usize::MAX), "");
    }

    #[test]
    fn a_decoder_that_grows_tokens_over_and_over_is_refused() {
        let table = |times: usize, by: &str| {
            let replace = json!({"type": "Replace", "pattern": {"String": "a"}, "content": by});
            let decoder = json!({"type": "Sequence", "decoders": vec![replace; times]});
            PieceTable::new(&decoder, 2, |id| Some((["a", "b"][id as usize].into(), false)))
        };
        let sound = table(8, "aaaa").unwrap();
        assert_eq!((sound.piece(0).len(), sound.piece(1)), (1 << 16, &b"b"[..]));
        assert!(table(9, "aaaa").unwrap_err().to_string().contains("65536 bytes of a token"));
        assert!(table(30, "aaaa").is_err());
        assert!(table(33, "b").unwrap_err().to_string().contains("not supported"));
    }

    #[test]
    fn what_cannot_be_decoded_piece_by_piece_is_refused_by_name() {
        for (json, name) in [
            (json!({"type": "WordPiece", "prefix": "##", "cleanup": true}), "WordPiece"),
            (json!({"type": "CTC"}), "CTC"),
            (json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}), "Regex"),
            (
                json!({"type": "Sequence", "decoders": [{"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 0, "stop": 1}]}),
                "Strip",
            ),
        ] {
            let error = Decoder::compile(&json).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
