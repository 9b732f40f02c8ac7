//! Everything that can go wrong with a request, in one enum that knows no profile.
//!
//! Each variant answers whose fault it is (client, capacity, us) through [`ApiError::fault`] and
//! with which status it is told through [`ApiError::status`]; a profile only chooses the words'
//! shape. Must never carry a prompt or a key, nor a path of this machine but to its operator.

use hyper::StatusCode;

use crate::api::options::Options;
use crate::request::{StepError, SubmitError};

/// A request that got no answer, or lost it midway.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The body is not the JSON that it claims to be.
    #[error("{0}")]
    BadJson(String),
    /// A field has a wrong type or value, is missing, or asks for what we lack.
    #[error("{message}")]
    Invalid {
        /// The field, as a path into the body.
        param: String,
        /// Machine-readable reason, one of OpenAI's.
        code: &'static str,
        /// What is wrong and what was expected.
        message: String,
    },
    /// Prompt and wanted output exceed the context.
    #[error(
        "This model's maximum context length is {max_model_len} tokens. However, you requested \
         {} tokens ({prompt_tokens} in the prompt, {max_tokens} for the completion). Please reduce \
         the length of the prompt or the completion.",
        u64::from(*prompt_tokens) + u64::from(*max_tokens)
    )]
    ContextLength {
        /// Tokens of one sequence.
        max_model_len: u32,
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Tokens asked for.
        max_tokens: u32,
        /// The field that holds the prompt.
        param: &'static str,
    },
    /// The chat template refused the conversation, or the model has none.
    #[error("{0}")]
    Template(String),
    /// No model of this name is served.
    #[error("The model `{0}` does not exist or you do not have access to it.")]
    ModelNotFound(String),
    /// A model is to be loaded under a name that is taken.
    #[error("The model `{0}` is served already: replace it, or unload it first.")]
    ModelExists(String),
    /// Somebody else is changing what this name means.
    #[error("The model `{name}` is {change} just now.")]
    ModelChanging {
        /// The name.
        name: String,
        /// What is happening to it.
        change: &'static str,
    },
    /// A model may not come from there.
    #[error("{0}")]
    PathNotAllowed(String),
    /// A model cannot be loaded. Told to operators only, so it may name files.
    #[error("The model was not loaded: {0}")]
    LoadFailed(String),
    /// A model does not fit beside the others.
    #[error("The model was not loaded: {0}")]
    NoMemory(String),
    /// No route has this path.
    #[error("Invalid URL ({method} {path})")]
    UnknownRoute {
        /// Method of the request.
        method: String,
        /// Path of the request, cut to a bounded length.
        path: String,
    },
    /// The path exists with other methods.
    #[error("Not allowed to {method} on {path}. Allowed: {allow}")]
    WrongMethod {
        /// Method of the request.
        method: String,
        /// Path of the request.
        path: String,
        /// Value of the `Allow` header.
        allow: String,
    },
    /// The body has a type that we do not read.
    #[error("Unsupported content type; send application/json")]
    WrongMediaType,
    /// The body is compressed.
    #[error("Unsupported content encoding; send the body as it is")]
    WrongEncoding,
    /// The body has more values than we read.
    #[error("The request body has more than the limit of {limit} values")]
    TooManyValues {
        /// Most values in a body of its length.
        limit: u64,
    },
    /// The body is larger than we read.
    #[error("The request body is larger than the limit of {limit} bytes")]
    TooLarge {
        /// Largest body in bytes.
        limit: u64,
    },
    /// The body did not arrive in time, or broke off.
    #[error("The request body did not arrive within {seconds} s")]
    BodyTimeout {
        /// Time that a body may take.
        seconds: u64,
    },
    /// A key is needed and none came.
    #[error(
        "You didn't provide an API key. Provide it in an Authorization header using Bearer auth \
         (i.e. Authorization: Bearer YOUR_KEY)."
    )]
    MissingKey,
    /// A key came and is none of ours.
    #[error("Incorrect API key provided.")]
    WrongKey,
    /// A credential came that was worth something once.
    #[error("The credential has expired.")]
    ExpiredKey,
    /// A credential came that is not for this.
    #[error("You may not do this {0}.")]
    NotPermitted(&'static str),
    /// The control plane has not told who may call, or not for too long.
    #[error("The server does not know yet who may call, please try again later")]
    NobodyKnown,
    /// The waiting queue, or the memory for bodies or answers, is full.
    #[error("The engine is currently overloaded, please try again later")]
    Busy {
        /// Suggested wait.
        retry_after_s: u32,
    },
    /// The request names a host that nobody should know us by.
    #[error(
        "This server is for its own machine and answers to no name that others may have chosen; \
         allow the page's origin with --allowed-origins, or set a key."
    )]
    ForeignHost,
    /// The model is still loading.
    #[error("The model is still loading, please try again later")]
    NotReady,
    /// The process is going away; another replica may serve the request.
    #[error("The server is shutting down")]
    ShuttingDown,
    /// The engine or its device failed.
    #[error("The engine failed")]
    Engine,
    /// A defect of ours, caught at the border of one request.
    #[error("The server had an error while processing your request")]
    Internal,
}

/// Code of an answer that takes more memory than one request may.
const ANSWER_TOO_LARGE: &str = "answer_too_large";

/// Who has to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The client: the same request fails again.
    Client,
    /// Nobody: retry later or elsewhere.
    Capacity,
    /// The server.
    Us,
}

impl ApiError {
    /// A field with a wrong value.
    pub fn invalid(param: impl Into<String>, code: &'static str, message: String) -> Self {
        ApiError::Invalid { param: param.into(), code, message }
    }

    /// The same error, told about the field that holds the prompt in this operation.
    pub fn of_prompt(mut self, field: &'static str) -> Self {
        match &mut self {
            ApiError::ContextLength { param, .. } => *param = field,
            ApiError::Invalid { param, .. } if param == "prompt" => *param = field.to_string(),
            _ => {}
        }
        self
    }

    /// The same error, told about another field than `n` where only one choice was asked for.
    pub fn of_one_choice(mut self, options: &Options) -> Self {
        if let ApiError::Invalid { param, code: ANSWER_TOO_LARGE, .. } = &mut self
            && options.n == 1
        {
            let has_logprobs = options.logprobs.is_some();
            let field = if has_logprobs { options.logprobs_field } else { "max_tokens" };
            *param = field.to_string();
        }
        self
    }

    /// The status that tells it.
    pub fn status(&self) -> StatusCode {
        match self {
            ApiError::BadJson(_)
            | ApiError::Invalid { .. }
            | ApiError::ContextLength { .. }
            | ApiError::Template(_) => StatusCode::BAD_REQUEST,
            ApiError::MissingKey | ApiError::WrongKey | ApiError::ExpiredKey => {
                StatusCode::UNAUTHORIZED
            }
            ApiError::ForeignHost | ApiError::NotPermitted(_) => StatusCode::FORBIDDEN,
            ApiError::ModelNotFound(_) | ApiError::UnknownRoute { .. } => StatusCode::NOT_FOUND,
            ApiError::ModelExists(_) | ApiError::ModelChanging { .. } => StatusCode::CONFLICT,
            ApiError::PathNotAllowed(_) => StatusCode::FORBIDDEN,
            ApiError::LoadFailed(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ApiError::NoMemory(_) => StatusCode::INSUFFICIENT_STORAGE,
            ApiError::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            ApiError::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            ApiError::TooLarge { .. } | ApiError::TooManyValues { .. } => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            ApiError::WrongMediaType | ApiError::WrongEncoding => {
                StatusCode::UNSUPPORTED_MEDIA_TYPE
            }
            ApiError::Busy { .. }
            | ApiError::NobodyKnown
            | ApiError::NotReady
            | ApiError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            ApiError::Engine | ApiError::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Who has to act.
    pub fn fault(&self) -> Fault {
        match self.status().as_u16() {
            503 | 507 => Fault::Capacity,
            500.. => Fault::Us,
            _ => Fault::Client,
        }
    }

    /// Seconds for `Retry-After`, where waiting helps.
    pub fn retry_after_s(&self) -> Option<u32> {
        match self {
            ApiError::Busy { retry_after_s } => Some((*retry_after_s).max(1)),
            ApiError::NotReady => Some(5),
            ApiError::NobodyKnown | ApiError::ShuttingDown | ApiError::ModelChanging { .. } => {
                Some(1)
            }
            _ => None,
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::ContextLength { max_model_len, prompt_tokens, max_tokens } => {
                ApiError::ContextLength {
                    max_model_len,
                    prompt_tokens,
                    max_tokens,
                    param: "prompt",
                }
            }
            SubmitError::NeverFits { .. } => {
                ApiError::invalid("max_tokens", "context_length_exceeded", error.to_string())
            }
            SubmitError::AnswerTooLarge { .. } => {
                ApiError::invalid("n", ANSWER_TOO_LARGE, sentence(&error.to_string()))
            }
            SubmitError::Invalid(message) => ApiError::invalid("prompt", "invalid_value", message),
            SubmitError::Busy { retry_after_s, .. } => ApiError::Busy { retry_after_s },
            SubmitError::Draining => ApiError::ShuttingDown,
            SubmitError::Stopped => ApiError::Engine,
        }
    }
}

/// `text` as a sentence of its own.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(chars).chain(['.']).collect()
}

impl From<StepError> for ApiError {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Device(_) | StepError::Ended => ApiError::Engine,
            StepError::ShuttingDown => ApiError::ShuttingDown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_follow_the_status() {
        assert_eq!(ApiError::WrongKey.fault(), Fault::Client);
        assert_eq!(ApiError::Busy { retry_after_s: 0 }.fault(), Fault::Capacity);
        assert_eq!(ApiError::Busy { retry_after_s: 0 }.retry_after_s(), Some(1));
        let changing = ApiError::ModelChanging { name: "a".into(), change: "loading" };
        assert_eq!((changing.fault(), changing.retry_after_s()), (Fault::Client, Some(1)));
        assert_eq!(ApiError::ModelExists("a".into()).retry_after_s(), None);
        assert_eq!(ApiError::from(StepError::Device("x".into())).fault(), Fault::Us);
        assert_eq!(ApiError::from(StepError::Ended).fault(), Fault::Us);
        assert_eq!(ApiError::from(SubmitError::Stopped).fault(), Fault::Us);
        assert_eq!(ApiError::from(SubmitError::Draining).fault(), Fault::Capacity);
    }

    #[test]
    fn a_context_that_is_too_long_names_the_sum() {
        let error = ApiError::ContextLength {
            max_model_len: 10,
            prompt_tokens: u32::MAX,
            max_tokens: u32::MAX,
            param: "prompt",
        };
        assert!(error.to_string().contains("8589934590 tokens"));
    }
}
