//! Text on both sides of the engine: messages to prompt ids, generated ids to text deltas.
//!
//! A request meets [`template`] and [`tokenizer`] (inside [`pool`]) on its way in; its tokens
//! meet [`detokenizer`] and [`stop`], joined in [`stream`], on their way out. Nothing here knows
//! sockets, sequences or devices, and nothing here trusts a client's text or a model's folder.

/// What a model's folder says about text: which files, read with limits, made into one value.
pub mod files;

/// Chat messages to prompt text, by the model's own template in a sandbox.
pub mod template;

/// Dates in UTC, as `strftime` writes them.
pub mod strftime;

/// `tojson` of chat templates, spelled as Python spells it.
mod tojson;

/// Prompt text to ids, and ids to tokens.
pub mod tokenizer;

/// The bytes of every token, worked out once from the tokenizer's decoder.
pub mod pieces;

/// A tokenizer made up for a model that has none.
pub mod byte_level;

/// Few threads and a bounded queue for tokenizing and rendering.
pub mod pool;

/// Ids to text, a token at a time, never splitting a character.
pub mod detokenizer;

/// Stop strings across deltas.
pub mod stop;

/// Ids to text deltas that end at a stop string: the way out in one type.
pub mod stream;

pub use detokenizer::{Detokenizer, Start};
pub use files::TextModel;
pub use pool::{PoolError, TextPool};
pub use stream::{TextOptions, TextStream};
pub use template::{Chat, ChatTemplate, Content, Message, Rendering, TemplateError};
pub use tokenizer::{Tokenizer, TokenizerError};
