//! Ids to text deltas that end at a stop string: the way out in one type.
//!
//! One per choice, on the connection's task. Whoever owns it drops the event stream when a stop
//! string is found: that is how the engine hears of it.

use std::sync::Arc;

use super::detokenizer::{Detokenizer, Start};
use super::stop::StopMatcher;
use super::tokenizer::Tokenizer;

/// How a choice's ids become text.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// `Text` for a chat answer, `Continuation` for a completion.
    pub start: Start,
    /// Leave special tokens out of the text.
    pub skip_special: bool,
    /// Strings that end the text.
    pub stop: Vec<String>,
    /// Keep the stop string that was found.
    pub include_stop: bool,
    /// Stop strings count only if they end in text of later tokens than these.
    pub min_tokens: u32,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self {
            start: Start::Text,
            skip_special: true,
            stop: Vec::new(),
            include_stop: false,
            min_tokens: 0,
        }
    }
}

/// A choice's text as it comes to be.
#[derive(Clone, Debug)]
pub struct TextStream {
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    /// Text of the token at hand, before stop strings are looked for; kept to spare allocations.
    decoded: String,
    num_tokens: u32,
    min_tokens: u32,
    stopped: Option<usize>,
}

impl TextStream {
    /// An empty text.
    pub fn new(tokenizer: Arc<Tokenizer>, options: &TextOptions) -> Self {
        Self {
            detokenizer: Detokenizer::new(tokenizer, options.start, options.skip_special),
            matcher: StopMatcher::new(&options.stop, options.include_stop),
            decoded: String::new(),
            num_tokens: 0,
            min_tokens: options.min_tokens,
            stopped: None,
        }
    }

    /// Appends to `out` the text that token `id` adds: whole characters, no part of a stop string.
    /// Returns the index (in `TextOptions::stop`) of a stop string that is now complete; from then
    /// on tokens add nothing.
    pub fn push(&mut self, id: u32, out: &mut String) -> Option<usize> {
        if self.stopped.is_some() {
            return self.stopped;
        }
        self.num_tokens = self.num_tokens.saturating_add(1);
        self.decoded.clear();
        self.detokenizer.push(id, &mut self.decoded);
        self.search(out)
    }

    /// Appends what was held back: no token follows. May complete a stop string.
    pub fn finish(&mut self, out: &mut String) -> Option<usize> {
        if self.stopped.is_some() {
            return self.stopped;
        }
        self.decoded.clear();
        self.detokenizer.finish(&mut self.decoded);
        let stopped = self.search(out);
        if stopped.is_none() {
            self.matcher.finish(out);
        }
        stopped
    }

    fn search(&mut self, out: &mut String) -> Option<usize> {
        if self.num_tokens <= self.min_tokens {
            self.matcher.pass(&self.decoded, out);
            return None;
        }
        self.stopped = self.matcher.push(&self.decoded, out);
        self.stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::byte_level::byte_level;

    fn stream(options: &TextOptions) -> TextStream {
        TextStream::new(Arc::new(byte_level(300).unwrap()), options)
    }

    fn push_all(stream: &mut TextStream, text: &str) -> (String, Option<usize>) {
        let mut out = String::new();
        for byte in text.bytes() {
            if let Some(index) = stream.push(byte.into(), &mut out) {
                return (out, Some(index));
            }
        }
        let stopped = stream.finish(&mut out);
        (out, stopped)
    }

    #[test]
    fn a_stop_string_of_split_characters_is_found() {
        let options = TextOptions { stop: vec!["好。".into()], ..TextOptions::default() };
        assert_eq!(push_all(&mut stream(&options), "你好。再见"), ("你".into(), Some(0)));
        assert_eq!(push_all(&mut stream(&options), "你好!"), ("你好!".into(), None));
    }

    #[test]
    fn min_tokens_lets_early_stop_strings_pass() {
        let stop = vec!["ab".into()];
        let options = TextOptions { stop, min_tokens: 3, ..TextOptions::default() };
        assert_eq!(push_all(&mut stream(&options), "xabyabz"), ("xaby".into(), Some(0)));
        assert_eq!(push_all(&mut stream(&options), "xyabz"), ("xy".into(), Some(0)));
        assert_eq!(push_all(&mut stream(&options), "xab"), ("xab".into(), None));
        assert_eq!(push_all(&mut stream(&options), "xya"), ("xya".into(), None));
    }

    #[test]
    fn nothing_follows_a_stop_string() {
        let options = TextOptions { stop: vec!["b".into()], ..TextOptions::default() };
        let mut stream = stream(&options);
        let mut out = String::new();
        assert_eq!(stream.push(b'a'.into(), &mut out), None);
        assert_eq!(stream.push(b'b'.into(), &mut out), Some(0));
        assert_eq!(stream.push(b'c'.into(), &mut out), Some(0));
        assert_eq!(stream.finish(&mut out), Some(0));
        assert_eq!(out, "a");
    }

    #[test]
    fn an_unfinished_character_ends_as_a_replacement() {
        let mut stream = stream(&TextOptions::default());
        let mut out = String::new();
        stream.push(0xE4, &mut out);
        assert_eq!(out, "");
        stream.finish(&mut out);
        assert_eq!(out, "\u{FFFD}");
    }
}
