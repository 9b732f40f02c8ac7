//! Whole answers, written while they are sent.
//!
//! A choice is written when its turn comes and its tokens a few at a time, so that neither an
//! answer's text is in memory nor a thread of the network busy with it for long. Only a short
//! answer is written at once, with its length in the head.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use hyper::StatusCode;
use pagoda_http::json_text::{JsonText, List, SharedText};
use pagoda_http::reply::{Reply, json_blocks, with_type};

use crate::api::instance::Instance;
use crate::handle::AnswerRoom;
use crate::profiles::openai::answer::{CollectedChoice, Head};
use crate::profiles::openai::logprobs::{Column, TokenNames};
use crate::profiles::openai::wire::Wire;
use crate::request::TokenOut;

/// The shape of an operation's answers. Joined, the texts are one JSON object.
pub trait Shape: Send + 'static {
    /// The fields before the choices.
    fn head(&self) -> &Head;

    /// A choice, without the comma before it.
    fn choice(&self, index: usize, choice: &CollectedChoice) -> Sections;

    /// What comes after the choices.
    fn close(&self) -> JsonText;
}

/// A choice that is to be written: text, with lists of its tokens in between.
#[derive(Default)]
pub struct Sections {
    done: VecDeque<Section>,
    text: JsonText,
    offset: usize,
}

enum Section {
    Text(SharedText),
    Rows { column: Column, has_items: bool },
}

impl Sections {
    /// Says how many characters come before the first token.
    pub fn begin_at(&mut self, offset: usize) {
        self.offset = offset;
    }

    /// Where text is added.
    pub fn text(&mut self) -> &mut JsonText {
        &mut self.text
    }

    /// Adds the choice's tokens as `column` shows them to a list that may have items already.
    pub fn rows(&mut self, column: Column, has_items: bool) {
        let text = std::mem::take(&mut self.text).into_shared();
        self.done.extend([Section::Text(text), Section::Rows { column, has_items }]);
    }

    /// The text, of a choice without lists.
    pub fn into_text(self) -> JsonText {
        self.text
    }

    fn writing(mut self, tokens: Vec<TokenOut>) -> Writing {
        self.done.push_back(Section::Text(self.text.into_shared()));
        Writing { sections: self.done, tokens, num_rows: 0, offset: self.offset }
    }
}

/// An answer on its way: an iterator over its text.
pub struct WholeAnswer<S> {
    shape: S,
    wire: Arc<Wire>,
    instance: Arc<Instance>,
    choices: std::vec::IntoIter<CollectedChoice>,
    num_begun: usize,
    /// The choice that is being written.
    current: Option<Writing>,
    ready: VecDeque<Bytes>,
    closed: bool,
    _rooms: Vec<AnswerRoom>,
}

struct Writing {
    sections: VecDeque<Section>,
    tokens: Vec<TokenOut>,
    /// Tokens that the list in front has.
    num_rows: usize,
    /// Characters before the next token.
    offset: usize,
}

impl<S: Shape> WholeAnswer<S> {
    /// The answer of `instance` in this shape; `rooms` are held until it is gone.
    pub fn new(
        shape: S,
        wire: &Arc<Wire>,
        instance: &Arc<Instance>,
        choices: Vec<CollectedChoice>,
        rooms: Vec<AnswerRoom>,
    ) -> Self {
        let mut text = JsonText::default();
        shape.head().open(&mut text);
        WholeAnswer {
            ready: text.take().into(),
            shape,
            wire: wire.clone(),
            instance: instance.clone(),
            choices: choices.into_iter(),
            num_begun: 0,
            current: None,
            closed: false,
            _rooms: rooms,
        }
    }

    /// The answer, at once if it is short.
    pub fn reply(mut self) -> Reply {
        let (mut begun, mut num_bytes) = (Vec::new(), 0);
        while num_bytes <= SHORT_BYTES_MAX {
            let Some(block) = self.next() else {
                return with_type(StatusCode::OK, "application/json", begun.concat());
            };
            num_bytes += block.len();
            begun.push(block);
        }
        json_blocks(StatusCode::OK, begun.into_iter().chain(self))
    }

    /// Writes some more; false once all is written.
    fn write(&mut self) -> bool {
        if let Some(writing) = &mut self.current {
            let names = TokenNames::of(&self.wire, &self.instance);
            let num_top = self.wire.options.logprobs.unwrap_or(0);
            match writing.write(num_top, names) {
                Some(blocks) => self.ready.extend(blocks),
                None => self.current = None,
            }
        } else if let Some(choice) = self.choices.next() {
            let sections = self.shape.choice(self.num_begun, &choice);
            if self.num_begun > 0 {
                self.ready.push_back(Bytes::from_static(b","));
            }
            self.num_begun += 1;
            self.current = Some(sections.writing(choice.tokens));
        } else if !std::mem::replace(&mut self.closed, true) {
            self.ready.extend(self.shape.close().take());
        } else {
            return false;
        }
        true
    }
}

impl<S: Shape> Iterator for WholeAnswer<S> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        while self.ready.is_empty() {
            if !self.write() {
                return None;
            }
        }
        self.ready.pop_front()
    }
}

impl Writing {
    /// The next blocks; `None` once the choice is written.
    fn write(&mut self, num_top: u32, names: TokenNames<'_>) -> Option<Vec<Bytes>> {
        let (column, has_items) = match self.sections.front()? {
            Section::Text(text) => {
                let blocks = text.to_vec();
                self.sections.pop_front();
                return Some(blocks);
            }
            Section::Rows { column, has_items } => (*column, *has_items),
        };
        let mut list = List::continued(has_items || self.num_rows > 0);
        let rows = ENTRIES_AT_ONCE / (num_top as usize + 1) + 1;
        for token in self.tokens.iter().skip(self.num_rows).take(rows) {
            column.write(token, num_top, names, &mut self.offset, &mut list);
        }
        self.num_rows += rows;
        if self.num_rows >= self.tokens.len() {
            self.num_rows = 0;
            self.sections.pop_front();
        }
        Some(list.into_text().take())
    }
}

/// Tokens and alternatives that are written at once: well below a millisecond.
const ENTRIES_AT_ONCE: usize = 1024;

/// An answer of at most so many bytes is written at once.
const SHORT_BYTES_MAX: usize = 256 << 10;
