//! The few fields of sentencepiece's model file that matter here.
//!
//! The file is a protobuf message; this reads its wire format and nothing of its schema but the
//! fields below. Every length is held against the bytes that are there and every count against a
//! limit, and nothing is allocated by a number of the file.

use super::{PIECE_BYTES_MAX, PIECES_MAX};

/// A vocabulary and how a text is prepared for it.
#[derive(Debug, PartialEq)]
pub(super) struct Model {
    /// By id.
    pub(super) pieces: Vec<Piece>,
    /// 1 is unigram, 2 is BPE.
    pub(super) algorithm: u64,
    pub(super) byte_fallback: bool,
    pub(super) space_behind_words: bool,
    pub(super) unk: String,
    pub(super) bos: String,
    pub(super) eos: String,
    pub(super) pad: String,
    /// A trie of replacements and what they are replaced by; empty for none.
    pub(super) replacements: Vec<u8>,
    pub(super) adds_first_space: bool,
    pub(super) drops_extra_spaces: bool,
    pub(super) marks_spaces: bool,
}

/// One token.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: Kind,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Model {
    /// Reads a file; what it does not say is as sentencepiece has it.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self {
            pieces: Vec::new(),
            algorithm: 1,
            byte_fallback: false,
            space_behind_words: false,
            unk: "<unk>".into(),
            bos: "<s>".into(),
            eos: "</s>".into(),
            pad: "<pad>".into(),
            replacements: Vec::new(),
            adds_first_space: true,
            drops_extra_spaces: true,
            marks_spaces: true,
        };
        let mut message = Message(bytes);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (1, Value::Bytes(bytes)) => {
                    if model.pieces.len() == PIECES_MAX as usize {
                        return Err(format!("more than {PIECES_MAX} tokens"));
                    }
                    let id = model.pieces.len();
                    let piece = Piece::read(bytes).map_err(|what| format!("token {id}: {what}"))?;
                    model.pieces.push(piece);
                }
                (2, Value::Bytes(bytes)) => model.read_training(bytes)?,
                (3, Value::Bytes(bytes)) => model.read_normalizer(bytes)?,
                _ => {}
            }
        }
        Ok(model)
    }

    fn read_training(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut message = Message(bytes);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (3, Value::Number(number)) => self.algorithm = number,
                (24, Value::Number(number)) => self.space_behind_words = number != 0,
                (35, Value::Number(number)) => self.byte_fallback = number != 0,
                (45, Value::Bytes(bytes)) => self.unk = text(bytes)?,
                (46, Value::Bytes(bytes)) => self.bos = text(bytes)?,
                (47, Value::Bytes(bytes)) => self.eos = text(bytes)?,
                (48, Value::Bytes(bytes)) => self.pad = text(bytes)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut message = Message(bytes);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (2, Value::Bytes(bytes)) => self.replacements = bytes.to_vec(),
                (3, Value::Number(number)) => self.adds_first_space = number != 0,
                (4, Value::Number(number)) => self.drops_extra_spaces = number != 0,
                (5, Value::Number(number)) => self.marks_spaces = number != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Piece {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: Kind::Normal };
        let mut message = Message(bytes);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (1, Value::Bytes(bytes)) => piece.text = text(bytes)?,
                (2, Value::Four(bytes)) => piece.score = f32::from_le_bytes(bytes),
                (3, Value::Number(number)) => {
                    piece.kind = match number {
                        1 => Kind::Normal,
                        2 => Kind::Unknown,
                        3 => Kind::Control,
                        4 => Kind::UserDefined,
                        5 => Kind::Unused,
                        6 => Kind::Byte,
                        other => return Err(format!("has the unknown type {other}")),
                    };
                }
                _ => {}
            }
        }
        if piece.text.is_empty() {
            return Err("is empty".into());
        }
        if !piece.score.is_finite() {
            return Err("has a score that is no number".into());
        }
        Ok(piece)
    }
}

fn text(bytes: &[u8]) -> Result<String, String> {
    if bytes.len() > PIECE_BYTES_MAX {
        return Err(format!("has more than {PIECE_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes.to_vec()).map_err(|_| "is not UTF-8".into())
}

/// What is left of a message.
struct Message<'a>(&'a [u8]);

/// The value of a field.
enum Value<'a> {
    Number(u64),
    Four([u8; 4]),
    Eight,
    Bytes(&'a [u8]),
}

impl<'a> Message<'a> {
    /// The next field's number and value.
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.number()?;
        let value = match key & 7 {
            0 => Value::Number(self.number()?),
            1 => self.take(8).map(|_| Value::Eight)?,
            2 => {
                let len = usize::try_from(self.number()?).unwrap_or(usize::MAX);
                Value::Bytes(self.take(len)?)
            }
            5 => Value::Four(self.take(4)?.try_into().unwrap_or_default()),
            other => return Err(format!("not a sentencepiece model: wire type {other}")),
        };
        Ok(Some((key >> 3, value)))
    }

    /// A number in groups of seven bits, the lowest first.
    fn number(&mut self) -> Result<u64, String> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("not a sentencepiece model: a number is too long".into())
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or("ends early")?;
        self.0 = rest;
        Ok(taken)
    }
}
