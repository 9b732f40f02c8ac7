//! Ids to text, a token at a time, never splitting a character.
//!
//! Tokens are bytes; a character may lie across several. What cannot be text yet is held back (at
//! most three bytes) and comes out with the token that completes it, or as U+FFFD once it is
//! certain that none will. Whatever the split into deltas, their concatenation is the whole
//! decode, which is made by this very type. Each token costs its own length.

use std::sync::Arc;

use super::tokenizer::Tokenizer;

/// Where generated text stands: alone, or behind a prompt that it continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A text of its own, so the space that some vocabularies put before the first word is left
    /// out.
    Text,
    /// The continuation of a text, so a leading space belongs to it.
    Continuation,
}

/// Turns a stream of ids into a stream of text.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    decode: Decode,
}

impl Detokenizer {
    /// `skip_special` leaves special tokens out of the text.
    pub fn new(tokenizer: Arc<Tokenizer>, start: Start, skip_special: bool) -> Self {
        let decode = Decode::new(&tokenizer, start, skip_special);
        Self { tokenizer, decode }
    }

    /// Appends to `out` the text that token `id` completes, perhaps none.
    pub fn push(&mut self, id: u32, out: &mut String) {
        self.decode.push(&self.tokenizer, id, out);
    }

    /// Appends what was held back, as U+FFFD: no token follows.
    pub fn finish(&mut self, out: &mut String) {
        self.decode.finish(out);
    }
}

/// The state of a decode, without the tokenizer.
#[derive(Clone, Debug)]
pub(super) struct Decode {
    /// The beginning of a character, at most three bytes.
    held: Vec<u8>,
    /// No token has come yet and the first one is decoded in its own way.
    at_start: bool,
    /// So many leading characters of this kind are still to be left out.
    strip: Option<(char, usize)>,
    skip_special: bool,
    replace_each_byte: bool,
}

impl Decode {
    pub(super) fn new(tokenizer: &Tokenizer, start: Start, skip_special: bool) -> Self {
        let pieces = tokenizer.pieces();
        let alone = start == Start::Text;
        Self {
            held: Vec::with_capacity(64),
            at_start: alone && pieces.first_differs(),
            strip: pieces.strip_start().filter(|_| alone),
            skip_special,
            replace_each_byte: pieces.replaces_each_byte(),
        }
    }

    pub(super) fn push(&mut self, tokenizer: &Tokenizer, id: u32, out: &mut String) {
        let pieces = tokenizer.pieces();
        if self.skip_special && pieces.is_special(id) {
            return;
        }
        if self.at_start {
            let Some(token) = tokenizer.token(id) else { return };
            self.at_start = false;
            self.push_bytes(&pieces.first_piece(&token), out);
        } else {
            self.push_bytes(pieces.piece(id), out);
        }
    }

    pub(super) fn finish(&mut self, out: &mut String) {
        if !self.held.is_empty() {
            let broken = self.held.len();
            self.held.clear();
            self.emit_replacement(broken, out);
        }
    }

    fn push_bytes(&mut self, bytes: &[u8], out: &mut String) {
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        let mut rest = held.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.emit(text, out);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, broken) = rest.split_at(error.valid_up_to());
            self.emit(std::str::from_utf8(valid).unwrap_or_default(), out);
            rest = broken;
            let Some(len) = error.error_len() else { break };
            self.emit_replacement(len, out);
            rest = &rest[len..];
        }
        let done = held.len() - rest.len();
        held.drain(..done);
        self.held = held;
    }

    fn emit_replacement(&mut self, broken_bytes: usize, out: &mut String) {
        for _ in 0..if self.replace_each_byte { broken_bytes } else { 1 } {
            self.emit("\u{FFFD}", out);
        }
    }

    fn emit(&mut self, text: &str, out: &mut String) {
        let mut text = text;
        while let Some((content, left)) = self.strip
            && !text.is_empty()
        {
            match text.strip_prefix(content) {
                Some(rest) if left > 0 => {
                    text = rest;
                    self.strip = Some((content, left - 1));
                }
                _ => self.strip = None,
            }
        }
        out.push_str(text);
    }
}

#[cfg(test)]
mod tests;
