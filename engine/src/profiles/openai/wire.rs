//! A body after the field table: typed values, and what they must satisfy together.

use serde_json::{Map, Value};

use crate::api::error::ApiError;
use crate::api::options::Options;
use crate::profiles::openai::prompts::Prompt;
use crate::profiles::openai::values::{Read, missing, unsupported};
use crate::text::Message;

/// What a body of either operation says.
#[derive(Clone, Debug)]
pub struct Wire {
    /// Name of the model.
    pub model: Option<String>,
    /// Answer as a stream.
    pub stream: bool,
    /// `stream_options` was there.
    pub has_stream_options: bool,
    /// A last chunk with the usage.
    pub include_usage: bool,
    /// The usage so far in every chunk.
    pub continuous_usage: bool,
    /// The wishes.
    pub options: Options,
    /// Tokens of an answer.
    pub max_tokens: Option<u32>,
    /// The same under its newer name, which wins.
    pub max_completion_tokens: Option<u32>,
    /// The conversation.
    pub messages: Option<Vec<Message>>,
    /// Chat: log-probabilities wanted.
    pub chat_logprobs: bool,
    /// Chat: so many alternatives.
    pub top_logprobs: Option<u32>,
    /// The prompts.
    pub prompts: Option<Vec<Prompt>>,
    /// Log-probabilities of the prompt in vLLM's shape, with so many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// Repeat the prompt before the completion.
    pub echo: bool,
    /// Generate this many and return the best `n`.
    pub best_of: Option<u32>,
    /// Keep the last tokens of the prompt: `Some(None)` so many as fit.
    pub truncate: Option<Option<u32>>,
    /// Token ids beside the text.
    pub return_token_ids: bool,
    /// Tokens of log-probabilities as `token_id:N`.
    pub tokens_as_ids: bool,
    /// Add the tokenizer's own tokens; `None` is the operation's default.
    pub add_special: Option<bool>,
    /// End the prompt with the beginning of an answer; `None` unless a message is continued.
    pub add_generation_prompt: Option<bool>,
    /// Continue the last message.
    pub continue_final_message: bool,
    /// Variables for the template.
    pub template_kwargs: Map<String, Value>,
    /// Names that nobody reads.
    pub ignored: Vec<String>,
}

impl Default for Wire {
    fn default() -> Self {
        Wire {
            model: None,
            stream: false,
            has_stream_options: false,
            include_usage: false,
            continuous_usage: false,
            options: Options::default(),
            max_tokens: None,
            max_completion_tokens: None,
            messages: None,
            chat_logprobs: false,
            top_logprobs: None,
            prompts: None,
            prompt_logprobs: None,
            echo: false,
            best_of: None,
            truncate: None,
            return_token_ids: false,
            tokens_as_ids: false,
            add_special: None,
            add_generation_prompt: None,
            continue_final_message: false,
            template_kwargs: Map::new(),
            ignored: Vec::new(),
        }
    }
}

impl Wire {
    /// Checks what fields of a chat must satisfy together and completes the options.
    pub fn finish_chat(&mut self) -> Read<Vec<Message>> {
        self.finish_both()?;
        self.options.max_tokens = self.max_completion_tokens.or(self.max_tokens);
        if self.options.max_tokens == Some(0) {
            let name = if self.max_completion_tokens.is_some() {
                "max_completion_tokens"
            } else {
                "max_tokens"
            };
            return Err(at_least_one(name));
        }
        if self.top_logprobs.is_some() && !self.chat_logprobs {
            let message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is true.";
            return Err(ApiError::invalid("top_logprobs", "invalid_value", message.into()));
        }
        if self.chat_logprobs {
            self.options.logprobs = Some(self.top_logprobs.unwrap_or(0));
            self.options.logprobs_field = "top_logprobs";
        }
        if self.continue_final_message && self.add_generation_prompt == Some(true) {
            let why = "it excludes add_generation_prompt";
            return Err(unsupported("continue_final_message", why));
        }
        self.messages.take().ok_or_else(|| missing("messages"))
    }

    /// Checks what fields of a completion must satisfy together and completes the options.
    pub fn finish_completions(&mut self, choices_max: u32) -> Read<Vec<Prompt>> {
        self.finish_both()?;
        self.options.max_tokens = self.max_tokens;
        self.options.max_tokens_default = Some(COMPLETION_TOKENS_DEFAULT);
        let scores = self.echo || self.prompt_logprobs.is_some();
        if self.options.max_tokens == Some(0) && !scores {
            return Err(at_least_one("max_tokens"));
        }
        if self.best_of.is_some_and(|best_of| best_of != self.options.n) {
            return Err(unsupported("best_of", "it must equal n; all choices are returned"));
        }
        if self.echo && self.options.logprobs.is_some() {
            self.options.prompt_logprobs = self.prompt_logprobs.max(self.options.logprobs);
        }
        let prompts = self.take_prompts()?;
        let choices = prompts.len() as u64 * u64::from(self.options.n);
        if choices > u64::from(choices_max) {
            let message = format!(
                "Invalid 'n': {} prompts with {} choices each are more than {choices_max} choices.",
                prompts.len(),
                self.options.n
            );
            return Err(ApiError::invalid("n", "integer_above_max_value", message));
        }
        Ok(prompts)
    }

    /// Whether the template ends with the beginning of an answer.
    pub fn generation_prompt(&self) -> bool {
        self.add_generation_prompt.unwrap_or(!self.continue_final_message)
    }

    /// Whether the answer shows tokens and not only their text.
    pub fn shows_tokens(&self) -> bool {
        self.options.logprobs.is_some() || self.return_token_ids
    }

    fn finish_both(&mut self) -> Read<()> {
        self.options.prompt_logprobs = self.prompt_logprobs;
        if self.has_stream_options && !self.stream {
            let message =
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
            return Err(ApiError::invalid("stream_options", "invalid_value", message.into()));
        }
        if self.stream && self.prompt_logprobs.is_some() {
            return Err(unsupported("prompt_logprobs", "it cannot be streamed"));
        }
        Ok(())
    }
}

/// Tokens of a completion that says nothing, as in the public API.
const COMPLETION_TOKENS_DEFAULT: u32 = 16;

fn at_least_one(name: &str) -> ApiError {
    let message = format!(
        "Invalid '{name}': integer below minimum value. Expected a value >= 1, but got 0 instead."
    );
    ApiError::invalid(name, "integer_below_min_value", message)
}
