//! A tokenizer made up for a model that has none (`--load-format dummy`).
//!
//! Ids 0 to 255 are the bytes, so that any text can be encoded and decoded; the rest of the
//! model's vocabulary are words that encoding never uses but random weights do sample, so that a
//! benchmark's stream shows a token for a token. The last two ids are the marks of ChatML.

use serde_json::{Map, Value, json};

use super::pieces::char_of_byte;
use super::tokenizer::{Tokenizer, TokenizerError};

/// A turn's beginning and end.
const MARKS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// Smallest vocabulary that this tokenizer can fill: the bytes and the two marks.
pub const VOCAB_MIN: u32 = 256 + MARKS.len() as u32;

/// The chat template that goes with it.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}\
    {{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A tokenizer for a vocabulary of `vocab_size` ids, at least [`VOCAB_MIN`].
pub fn byte_level(vocab_size: u32) -> Result<Tokenizer, TokenizerError> {
    if vocab_size < VOCAB_MIN {
        let what = format!("a made-up tokenizer needs {VOCAB_MIN} ids, the model has {vocab_size}");
        return Err(TokenizerError::Damaged(what));
    }
    let first_mark = vocab_size - MARKS.len() as u32;
    let mut vocab = Map::new();
    for byte in 0..=255u8 {
        vocab.insert(char_of_byte(byte).to_string(), byte.into());
    }
    for id in 256..first_mark {
        vocab.insert(format!("Ġw{id}"), id.into());
    }
    let mut marks = Vec::new();
    for (mark, id) in MARKS.into_iter().zip(first_mark..) {
        vocab.insert(mark.into(), id.into());
        marks.push(json!({
            "id": id, "content": mark, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        }));
    }
    let pre = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    });
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": marks,
        "pre_tokenizer": pre,
        "decoder": pre,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    Tokenizer::from_bytes(tokenizer.to_string().as_bytes(), Some(&config()))
}

fn config() -> Value {
    json!({ "eos_token": MARKS[1] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_comes_back_and_any_id_is_visible() {
        let tokenizer = byte_level(300).unwrap();
        let text = "a\0é你🙂 \r\n<0x41>▁";
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(tokenizer.decode(&ids, true), text);
        assert_eq!(tokenizer.vocab_size(), 300);
        assert_eq!(tokenizer.decode(&[256, 297, 298], true), " w256 w297");
        assert_eq!(tokenizer.decode(&[256, 297, 298], false), " w256 w297<|im_start|>");
        assert_eq!(tokenizer.encode("<|im_end|>", false).unwrap(), [299]);
    }

    #[test]
    fn a_vocabulary_without_room_for_the_bytes_is_refused() {
        assert!(byte_level(VOCAB_MIN - 1).is_err());
        assert_eq!(byte_level(VOCAB_MIN).unwrap().vocab_size(), VOCAB_MIN);
    }
}
