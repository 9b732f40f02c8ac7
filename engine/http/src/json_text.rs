//! JSON as text in blocks of bounded size.
//!
//! What is long is written, sent and freed block by block, and text that several places repeat is
//! in memory once. Whoever writes sees to commas and brackets; [`List`] sees to those of a list.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::Serialize;

/// Text that grows at its end.
#[derive(Debug, Default)]
pub struct JsonText {
    done: Vec<Bytes>,
    /// Less than a block.
    open: BytesMut,
}

/// Text that is complete. Clones share it.
pub type SharedText = Arc<[Bytes]>;

impl JsonText {
    /// Adds text as it is.
    pub fn raw(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// Adds text that is UTF-8 already.
    pub fn bytes(&mut self, text: &[u8]) -> &mut Self {
        self.push_bytes(text);
        self
    }

    /// Adds a value of our own, which can always be written.
    pub fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> &mut Self {
        let written = serde_json::to_writer(&mut *self, value);
        debug_assert!(written.is_ok(), "{written:?}");
        self
    }

    /// Adds what stands between the quotes of a string.
    pub fn inner(&mut self, text: &str) -> &mut Self {
        let quoted = serde_json::to_string(text).unwrap_or_default();
        self.raw(quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default())
    }

    /// Adds text without a copy of it, unless it is short.
    pub fn share(&mut self, text: &SharedText) -> &mut Self {
        match &**text {
            [] => {}
            [short] if short.len() <= COPIED_BYTES_MAX => self.push_bytes(short),
            blocks => {
                self.close_block();
                self.done.extend_from_slice(blocks);
            }
        }
        self
    }

    /// All text since the last call, in blocks that are not empty.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.close_block();
        std::mem::take(&mut self.done)
    }

    /// The text, complete.
    pub fn into_shared(mut self) -> SharedText {
        self.take().into()
    }

    fn push_bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.open.len()));
            self.open.extend_from_slice(now);
            if self.open.len() == BLOCK_BYTES {
                self.close_block();
            }
            bytes = later;
        }
    }

    fn close_block(&mut self) {
        if !self.open.is_empty() {
            self.done.push(self.open.split().freeze());
        }
    }
}

impl io::Write for JsonText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push_bytes(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What stands between the brackets of a list.
#[derive(Debug, Default)]
pub struct List {
    text: JsonText,
    has_items: bool,
}

impl List {
    /// The rest of a list that has items already.
    pub fn continued(has_items: bool) -> Self {
        List { text: JsonText::default(), has_items }
    }

    /// Adds an item.
    pub fn push<T: Serialize + ?Sized>(&mut self, item: &T) {
        if std::mem::replace(&mut self.has_items, true) {
            self.text.raw(",");
        }
        self.text.value(item);
    }

    /// Its text.
    pub fn into_text(self) -> JsonText {
        self.text
    }
}

/// Bytes of a block: what a connection that takes nothing holds of an answer.
const BLOCK_BYTES: usize = 64 << 10;

/// Shared text of at most so many bytes is copied, so that it needs no write of its own.
const COPIED_BYTES_MAX: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_into_blocks_and_stays_the_same() {
        let long = "é\"\n".repeat(60_000);
        let mut text = JsonText::default();
        text.raw("[").value(&long).raw(",\"").inner(&long).raw("\"]");
        let blocks = text.take();
        assert!(blocks.len() > 10 && blocks.iter().all(|block| block.len() <= BLOCK_BYTES));
        let read: Vec<String> = serde_json::from_slice(&blocks.concat()).unwrap();
        assert_eq!(read, [long.clone(), long]);
        assert!(text.take().is_empty());
    }

    #[test]
    fn long_text_is_shared_and_short_text_copied() {
        let shared = |bytes: usize| {
            let mut text = JsonText::default();
            text.raw(&"x".repeat(bytes));
            text.into_shared()
        };
        let (long, short) = (shared(2 * BLOCK_BYTES), shared(10));
        let mut text = JsonText::default();
        text.raw("a").share(&long).raw("b").share(&short).share(&shared(0)).raw("c");
        let blocks = text.take();
        assert_eq!(blocks.len(), 4);
        assert_eq!(blocks[1].as_ptr(), long[0].as_ptr());
        assert_eq!(blocks[3], "bxxxxxxxxxxc");
    }

    #[test]
    fn a_list_has_commas_between_its_items() {
        let written = |has_items, num_items: u32| {
            let mut list = List::continued(has_items);
            (0..num_items).for_each(|item| list.push(&item));
            String::from_utf8(list.into_text().take().concat()).unwrap()
        };
        assert_eq!([written(false, 0), written(false, 2), written(true, 2)], ["", "0,1", ",0,1"]);
    }
}
