//! A model that serves: its engine, its text, its names. Turns prompts into ids and ids into text.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::api::error::ApiError;
use crate::api::generation::{AnswerBytes, Generation, Start};
use crate::api::options::Options;
use crate::api::room::Room;
use crate::handle::EngineHandle;
use crate::metrics::{InstanceMetrics, Metrics};
use crate::request::{Request, SamplerParams, Segment, SubmitError, Tenant};
use crate::text::tokenizer::length::ENCODING_BYTES;
use crate::text::{
    Chat, Content, Message, PoolError, TemplateError, TextModel, TextPool, Tokenizer,
};
use crate::trace::Trace;
use crate::trace::record::{Asked, Recorder};

/// A model that serves.
pub struct Instance {
    /// Names that clients may use, the first one in answers. Never empty.
    pub names: Vec<String>,
    /// Its engine.
    pub engine: EngineHandle,
    /// When it was loaded, Unix seconds.
    pub created: u64,
    /// What it counts.
    pub metrics: InstanceMetrics,
    text: TextModel,
    pool: Arc<TextPool>,
}

/// A conversation to be made into a prompt.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// Oldest first.
    pub messages: Vec<Message>,
    /// End with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// Continue the last message.
    pub continue_final_message: bool,
    /// Further variables of the template.
    pub template_kwargs: serde_json::Map<String, serde_json::Value>,
}

impl Conversation {
    /// Bytes of what was said.
    fn text_bytes(&self) -> usize {
        let content = |message: &Message| match &message.content {
            Content::None => 0,
            Content::Text(text) => text.len(),
            Content::Parts(parts) => parts.iter().map(String::len).sum(),
        };
        let fields = |message: &Message| -> usize {
            message.fields.values().filter_map(|value| value.as_str()).map(str::len).sum()
        };
        self.messages.iter().map(|message| content(message) + fields(message)).sum()
    }
}

/// What became of a text.
enum Encoded {
    Ids(Vec<u32>),
    TooManyTokens,
    TooManyBytes { bytes: usize },
}

/// Bytes of the longest text that is tokenized for `most` tokens: what tokenizing takes in memory
/// is bounded by it. Only runs of one character have so few tokens that a longer text might fit.
fn text_bytes_max(most: usize) -> usize {
    most.saturating_mul(TOKEN_BYTES).max(TOKENIZING_BYTES / ENCODING_BYTES)
}

/// Bytes of text that may come for every token of the context. Prose has four or five.
const TOKEN_BYTES: usize = 8;

/// Memory that one long text may take in any case while it is tokenized.
const TOKENIZING_BYTES: usize = 256 << 20;

/// Bytes of text that are expected of a token.
const DECODED_BYTES: usize = 4;

/// Tokens of a text that is tokenized for its own sake, or to be truncated.
pub const TOKENIZED_MAX: usize = 1 << 17;

/// How a text becomes ids.
#[derive(Clone, Debug)]
pub struct Intake {
    /// Add the tokenizer's own tokens around it.
    pub add_special: bool,
    /// Refuse a text that is longer than the context before it is tokenized. Otherwise one of more
    /// than [`TOKENIZED_MAX`] tokens is, if the context is not longer.
    pub must_fit: bool,
    /// What the text takes up in memory.
    pub room: Room,
}

/// A prompt with what belongs to it.
#[derive(Clone, Debug)]
pub struct Work {
    /// For logs.
    pub id: Arc<str>,
    /// Who asks.
    pub tenant: Arc<str>,
    /// The prompt.
    pub prompt: Vec<u32>,
    /// How to go on.
    pub options: Options,
    /// Whether the answer is a text of its own or goes on with the prompt's.
    pub start: Start,
    /// What the answer takes in memory.
    pub answer: AnswerBytes,
    /// The trace that it belongs to.
    pub trace: Trace,
}

impl Work {
    /// What is written down of it, with what its options came to.
    fn asked(&self, to: (&str, u32), sampler: &SamplerParams, max_tokens: u32) -> Asked {
        let (model, prompt_idx) = to;
        Asked {
            prompt_idx,
            operation: match self.start {
                Start::Text => "chat",
                Start::Continuation => "text_completion",
            },
            model: model.to_string(),
            n: self.options.n,
            max_tokens,
            temperature: sampler.temperature,
            top_p: sampler.top_p,
            seed: self.options.seed.map(u64::cast_signed),
        }
    }
}

impl Instance {
    /// An instance of `names[0]`. `pool` runs what takes time in proportion to a prompt.
    pub fn new(
        names: Vec<String>,
        engine: EngineHandle,
        text: TextModel,
        pool: Arc<TextPool>,
        metrics: &Metrics,
    ) -> Self {
        let name = names.first().map_or("model", String::as_str);
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        Instance {
            metrics: InstanceMetrics::new(metrics, name),
            names,
            engine,
            created,
            text,
            pool,
        }
    }

    /// Whether clients may call it so.
    pub fn has_name(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    /// The name in answers.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Whether it has a chat template.
    pub fn can_chat(&self) -> bool {
        self.text.template.is_some()
    }

    /// Its tokenizer, for single tokens.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.text.tokenizer
    }

    /// Ids of a text.
    pub async fn tokenize(&self, text: String, intake: Intake) -> Result<Vec<u32>, ApiError> {
        let most = self.most_tokens(&intake);
        if self.text.tokenizer.surely_exceeds(&text, most) {
            return Err(self.too_long(&intake));
        }
        let part_len = text.floor_char_boundary(text_bytes_max(most));
        let (tokenizer, add_special) = (self.text.tokenizer.clone(), intake.add_special);
        let encode = move || {
            if tokenizer.exceeds(&text[..part_len], most)? {
                return Ok(Encoded::TooManyTokens);
            }
            if part_len < text.len() {
                return Ok(Encoded::TooManyBytes { bytes: text.len() });
            }
            tokenizer.encode(&text, add_special).map(Encoded::Ids)
        };
        match self.pool.run(part_len, intake.room.clone(), encode).await.map_err(busy)? {
            Ok(Encoded::Ids(ids)) => Ok(ids),
            Ok(Encoded::TooManyTokens) => Err(self.too_long(&intake)),
            Ok(Encoded::TooManyBytes { bytes }) => {
                self.metrics.refused_too_long.increment(1);
                let message = format!(
                    "The longest text that can be tokenized for {most} tokens has {part_len} \
                     bytes. However, yours has {bytes}. Please reduce its length."
                );
                Err(ApiError::invalid("prompt", "string_above_max_length", message))
            }
            Err(error) => {
                let message = format!("The text cannot be used: {error}");
                Err(ApiError::invalid("prompt", "invalid_value", message))
            }
        }
    }

    /// Tokens of the longest text that is taken.
    fn most_tokens(&self, intake: &Intake) -> usize {
        let max_model_len = self.engine.info().max_model_len as usize;
        if intake.must_fit { max_model_len } else { max_model_len.max(TOKENIZED_MAX) }
    }

    /// A text has too many tokens.
    fn too_long(&self, intake: &Intake) -> ApiError {
        self.metrics.refused_too_long.increment(1);
        let (code, limit) = if intake.must_fit {
            ("context_length_exceeded", "This model's maximum context length is")
        } else {
            ("string_above_max_length", "The longest text that can be tokenized has")
        };
        let most = self.most_tokens(intake);
        let message = format!(
            "{limit} {most} tokens. However, yours has more than that. Please reduce its length."
        );
        ApiError::invalid("prompt", code, message)
    }

    /// Text of ids, which take up `room`. Ids beyond the vocabulary are refused.
    pub async fn detokenize(&self, ids: Vec<u32>, room: Room) -> Result<String, ApiError> {
        let vocab = self.engine.info().vocab;
        if let Some(id) = ids.iter().find(|id| **id >= vocab) {
            let message = format!("Token {id} is not in the vocabulary of {vocab} tokens.");
            return Err(ApiError::invalid("tokens", "invalid_value", message));
        }
        let tokenizer = self.text.tokenizer.clone();
        let text_bytes = ids.len().saturating_mul(DECODED_BYTES);
        self.pool.run(text_bytes, room, move || tokenizer.decode(&ids, false)).await.map_err(busy)
    }

    /// Ids of a conversation, after the model's template.
    pub async fn render(
        &self,
        conversation: Conversation,
        intake: Intake,
    ) -> Result<Vec<u32>, ApiError> {
        let Some(template) = self.text.template.clone() else {
            let message = "This model has no chat template; use /v1/completions.";
            return Err(ApiError::Template(message.into()));
        };
        let text_bytes = conversation.text_bytes();
        let work = move || {
            let chat = Chat {
                messages: &conversation.messages,
                add_generation_prompt: conversation.add_generation_prompt,
                continue_final_message: conversation.continue_final_message,
                tools: None,
                kwargs: &conversation.template_kwargs,
                now: SystemTime::now(),
            };
            template.render(&chat).map_err(refused)
        };
        let text = self.pool.run(text_bytes, intake.room.clone(), work).await.map_err(busy)??;
        self.tokenize(text, intake).await.map_err(|error| error.of_prompt("messages"))
    }

    /// Submits a prompt. Dropping the generation cancels it.
    pub fn generate(self: &Arc<Self>, work: Work) -> Result<Generation, ApiError> {
        self.generate_all(vec![work])?.pop().ok_or(ApiError::Internal)
    }

    /// Submits several prompts of one request, all or none.
    pub fn generate_all(self: &Arc<Self>, works: Vec<Work>) -> Result<Vec<Generation>, ApiError> {
        let (mut requests, mut begun) = (Vec::new(), Vec::new());
        for (prompt_idx, work) in (0..).zip(works) {
            let prompt_tokens = u32::try_from(work.prompt.len()).unwrap_or(u32::MAX);
            let (sampler, stop) = work.options.resolve(self.engine.info(), prompt_tokens)?;
            let max_tokens = stop.max_tokens;
            let asked = || work.asked((self.name(), prompt_idx), &sampler, max_tokens);
            let recorder = Recorder::begin(&work.trace, asked);
            let answer_bytes = work.answer.of(prompt_tokens, work.options.n, max_tokens);
            let salt = format!("{}\0{}", work.tenant, work.options.cache_salt);
            let request = Request {
                id: work.id,
                input: vec![Segment::Tokens(work.prompt)],
                sampler,
                stop,
                n: work.options.n,
                prompt_logprobs: work.options.prompt_logprobs,
                tenant: Tenant { id: work.tenant, cache_salt: salt.into() },
                priority: work.options.priority,
            };
            requests.push((request, answer_bytes));
            begun.push((prompt_tokens, max_tokens, work.options, (work.start, recorder)));
        }
        let admitted = self.engine.submit_all(requests).map_err(|error| {
            self.count_refused(&error);
            let error = ApiError::from(error);
            match begun.first() {
                Some((_, _, options, _)) => error.of_one_choice(options),
                None => error,
            }
        })?;
        let generation = |(admitted, (prompt_tokens, max_tokens, options, (start, recorder)))| {
            let options: Options = options;
            self.metrics.admitted(prompt_tokens, max_tokens, options.n);
            Generation::new(self.clone(), admitted, &options, start, recorder)
        };
        Ok(admitted.into_iter().zip(begun).map(generation).collect())
    }

    fn count_refused(&self, error: &SubmitError) {
        match error {
            SubmitError::Busy { .. } => self.metrics.refused_busy.increment(1),
            SubmitError::ContextLength { .. }
            | SubmitError::NeverFits { .. }
            | SubmitError::AnswerTooLarge { .. } => {
                self.metrics.refused_too_long.increment(1);
            }
            SubmitError::Invalid(_) | SubmitError::Draining | SubmitError::Stopped => {}
        }
    }
}

fn busy(error: PoolError) -> ApiError {
    match error {
        PoolError::Busy { .. } => ApiError::Busy { retry_after_s: 1 },
        PoolError::Panicked => ApiError::Internal,
        PoolError::Stopped => ApiError::ShuttingDown,
    }
}

fn refused(error: TemplateError) -> ApiError {
    match &error {
        TemplateError::ReservedKwarg(_) => {
            ApiError::invalid("chat_template_kwargs", "invalid_value", error.to_string())
        }
        TemplateError::TwoEndings | TemplateError::NothingToContinue => {
            ApiError::invalid("continue_final_message", "invalid_value", error.to_string())
        }
        TemplateError::Damaged(_) | TemplateError::Process(_) => {
            tracing::error!(%error, "a chat cannot be rendered");
            ApiError::Internal
        }
        TemplateError::Raised(_) | TemplateError::Unfit(_) | TemplateError::TooMuch(_) => {
            ApiError::Template(error.to_string())
        }
    }
}
