//! What of a prompt an answer tells: written once, as it comes, however many choices repeat it.

use std::sync::Arc;

use pagoda_http::json_text::{JsonText, List, SharedText};

use crate::api::error::ApiError;
use crate::api::generation::AnswerBytes;
use crate::api::instance::Instance;
use crate::api::room::Room;
use crate::profiles::openai::logprobs::{self, TextColumns, TokenNames, WrittenColumns};
use crate::profiles::openai::wire::Wire;
use crate::request::TokenOut;

/// The part that is being written.
pub struct PromptPart {
    wire: Arc<Wire>,
    instance: Arc<Instance>,
    text: JsonText,
    ids: Option<List>,
    columns: Option<TextColumns>,
    logprobs: Option<List>,
}

/// The part, complete. Clones share it.
#[derive(Clone, Default)]
pub struct WrittenPart {
    /// With `echo`: its text, as between quotes.
    pub text: SharedText,
    /// With `return_token_ids`: its ids, as between brackets.
    pub ids: Option<SharedText>,
    /// With `logprobs`: those of the prompt if it is echoed, else nothing.
    pub columns: Option<WrittenColumns>,
    /// With `prompt_logprobs`: those, as between brackets.
    pub logprobs: Option<SharedText>,
}

impl PromptPart {
    /// The part of a prompt of these ids; its text takes up `room` while it is made.
    pub async fn new(
        wire: &Arc<Wire>,
        instance: &Arc<Instance>,
        ids: &[u32],
        room: &Room,
    ) -> Result<Self, ApiError> {
        let mut text = JsonText::default();
        if wire.echo {
            text.inner(&instance.detokenize(ids.to_vec(), room.clone()).await?);
        }
        let list = || {
            let mut list = List::default();
            ids.iter().for_each(|id| list.push(id));
            list
        };
        let first = ids.first().filter(|_| wire.echo);
        let columns = || {
            let mut columns = TextColumns::default();
            if let Some(first) = first {
                columns.push_first(*first, whole_names(wire, instance));
            }
            columns
        };
        let logprobs = || {
            let mut list = List::default();
            list.push(&());
            list
        };
        Ok(PromptPart {
            text,
            ids: wire.return_token_ids.then(list),
            columns: wire.options.logprobs.map(|_| columns()),
            logprobs: wire.prompt_logprobs.map(|_| logprobs()),
            wire: wire.clone(),
            instance: instance.clone(),
        })
    }

    /// Adds the next token with its log-probabilities, from the second one on.
    pub fn push(&mut self, token: &TokenOut) {
        if let (Some(columns), true) = (&mut self.columns, self.wire.echo) {
            let num_top = self.wire.options.logprobs.unwrap_or(0);
            columns.push(token, num_top, whole_names(&self.wire, &self.instance));
        }
        if let Some(logprobs) = &mut self.logprobs {
            let names = TokenNames::of(&self.wire, &self.instance);
            logprobs.push(&logprobs::prompt_entry(token, names));
        }
    }

    /// The part, complete.
    pub fn finish(self) -> WrittenPart {
        let shared = |list: List| list.into_text().into_shared();
        WrittenPart {
            text: self.text.into_shared(),
            ids: self.ids.map(shared),
            columns: self.columns.map(TextColumns::finish),
            logprobs: self.logprobs.map(shared),
        }
    }
}

/// The prompt is shown whole.
fn whole_names<'a>(wire: &Wire, instance: &'a Instance) -> TokenNames<'a> {
    TokenNames { skip_special: false, ..TokenNames::of(wire, instance) }
}

/// What an answer takes in memory beside its events.
pub fn answer_bytes(wire: &Wire) -> AnswerBytes {
    let entries = |top: Option<u32>| top.map_or(0, |top| u64::from(top) + 1);
    let echoed = if wire.echo { wire.options.logprobs } else { None };
    let mut of_prompt = entries(echoed) * NAMED_BYTES + entries(wire.prompt_logprobs) * SCORE_BYTES;
    of_prompt += if wire.echo { TEXT_BYTES + NAMED_BYTES } else { 0 };
    of_prompt += if wire.return_token_ids { ID_BYTES } else { 0 };
    let mut of_token = 0;
    if !wire.stream {
        of_token += TEXT_BYTES;
        if wire.shows_tokens() {
            of_token += TOKEN_BYTES + u64::from(wire.options.logprobs.unwrap_or(0)) * TOP_BYTES;
        }
    }
    AnswerBytes { of_prompt_token: of_prompt, of_token }
}

/// Text of a token, in a string that grew by doubling.
const TEXT_BYTES: u64 = 16;

/// A token in a list that grew by doubling, and what its own list of alternatives takes at least.
const TOKEN_BYTES: u64 = 112;

/// An alternative in a list that grew by doubling.
const TOP_BYTES: u64 = 16;

/// A written token id.
const ID_BYTES: u64 = 8;

/// A written token or alternative with its log-probability.
const NAMED_BYTES: u64 = 48;

/// The same in the shape of `prompt_logprobs`.
const SCORE_BYTES: u64 = 96;
