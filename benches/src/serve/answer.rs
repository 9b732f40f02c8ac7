//! What one streamed answer was: times, tokens and text, or why it failed.
//!
//! Definitions are those of `vllm bench serve`. An event with a non-empty `choices` is an event of
//! tokens, whatever its text: the first one ends TTFT, each later one adds the time since the one
//! before to ITL, and the last one ends the latency. An event without choices moves no time.
//! Stricter than that program: an error within a stream, and a stream that just stops, have failed.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No connection.
    #[error("no connection: {0}")]
    Connect(String),
    /// An answer with another status than 200.
    #[error("HTTP {status}{}: {body}", retry_after.as_ref().map(|after| format!(" (retry after {after} s)")).unwrap_or_default())]
    Status {
        /// The status.
        status: u16,
        /// The header of that name.
        retry_after: Option<String>,
        /// How the body begins.
        body: String,
    },
    /// The stream ended before the answer did.
    #[error("cut off: {0}")]
    Cut(String),
    /// Not what the API defines.
    #[error("malformed: {0}")]
    Malformed(String),
    /// The server ended the stream with an error.
    #[error("error in the stream: {0}")]
    Told(String),
    /// No event of tokens at all.
    #[error("never received a valid chunk to calculate TTFT")]
    Empty,
    /// Took longer than --request-timeout-sec.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

impl From<String> for Failure {
    fn from(what: String) -> Self {
        Failure::Malformed(what)
    }
}

impl Failure {
    /// One name for all failures of a kind.
    pub fn kind(&self) -> String {
        match self {
            Failure::Connect(_) => "connect".into(),
            Failure::Status { status, .. } => format!("http {status}"),
            Failure::Cut(_) => "cut".into(),
            Failure::Malformed(_) => "malformed".into(),
            Failure::Told(_) => "error event".into(),
            Failure::Empty => "empty".into(),
            Failure::Timeout(_) => "timeout".into(),
        }
    }
}

/// A complete answer. Times count from the moment before the request was sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// To the first event of tokens.
    pub ttft: Duration,
    /// To the last one.
    pub latency: Duration,
    /// Between each event of tokens and the one before.
    pub itl: Vec<Duration>,
    /// All text of the first choice.
    pub text: String,
    /// Prompt tokens, as the server counts them.
    pub prompt_tokens: Option<u32>,
    /// Output tokens, likewise.
    pub completion_tokens: Option<u32>,
    /// Whether the first event of tokens had text: a server may announce an answer before its
    /// first token, which makes TTFT something else.
    pub first_has_text: bool,
}

/// An answer that is being read.
#[derive(Debug, Default)]
pub struct Reading {
    answer: Answer,
    begun: bool,
    finished: bool,
}

impl Reading {
    /// The next event's data, and when it arrived.
    pub fn event(&mut self, at: Duration, data: &str) -> Result<(), Failure> {
        if data.trim() == "[DONE]" {
            self.finished = true;
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_str(data)
            .map_err(|error| Failure::Malformed(format!("{error} in {}", beginning(data))))?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            let message = error["message"].as_str().map(str::to_owned);
            return Err(Failure::Told(message.unwrap_or_else(|| beginning(&error.to_string()))));
        }
        if let Some(usage) = chunk.usage {
            let answer = &mut self.answer;
            answer.prompt_tokens = usage.prompt_tokens.or(answer.prompt_tokens);
            answer.completion_tokens = usage.completion_tokens.or(answer.completion_tokens);
        }
        if let Some(choice) = chunk.choices.and_then(|choices| choices.into_iter().next()) {
            self.tokens(at, choice);
        }
        Ok(())
    }

    fn tokens(&mut self, at: Duration, choice: Choice) {
        let delta = choice.delta.unwrap_or_default();
        let pieces = [choice.text, delta.reasoning_content, delta.content];
        let length_before = self.answer.text.len();
        for piece in pieces.into_iter().flatten() {
            self.answer.text.push_str(&piece);
        }
        if self.begun {
            self.answer.itl.push(at.saturating_sub(self.answer.latency));
        } else {
            self.begun = true;
            self.answer.ttft = at;
            self.answer.first_has_text = self.answer.text.len() > length_before;
        }
        self.answer.latency = at;
        self.finished |= choice.finish_reason.is_some_and(|reason| !reason.is_null());
    }

    /// Whether the server said that this was all.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The stream has ended.
    pub fn end(self) -> Result<Answer, Failure> {
        match (self.begun, self.finished) {
            (true, true) => Ok(self.answer),
            (true, false) => {
                Err(Failure::Cut("the stream ended without a finish_reason or [DONE]".into()))
            }
            (false, _) => Err(Failure::Empty),
        }
    }
}

/// The first 200 characters, for a message.
pub fn beginning(text: &str) -> String {
    text.trim().chars().take(200).collect()
}

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
    finish_reason: Option<Value>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn read(events: &[(u64, &str)]) -> Result<Answer, Failure> {
        let mut reading = Reading::default();
        for (at, data) in events {
            reading.event(ms(*at), data)?;
        }
        reading.end()
    }

    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":4}}"#;

    #[test]
    fn a_completion_is_timed_by_its_events_with_choices() {
        // Recorded from `pagoda serve`, with other times: the third event has two tokens.
        let answer = read(&[
            (120, r#"{"object":"text_completion","choices":[{"index":0,"text":"1","logprobs":null,"finish_reason":null}]}"#),
            (130, r#"{"choices":[{"index":0,"text":"7 ","finish_reason":null}]}"#),
            (155, r#"{"choices":[{"index":0,"text":"+ 2","finish_reason":"length"}],"usage":null}"#),
            (190, USAGE),
            (191, "[DONE]"),
        ])
        .unwrap();
        assert_eq!((answer.ttft, answer.latency), (ms(120), ms(155)));
        assert_eq!(answer.itl, [ms(10), ms(25)]);
        assert_eq!(answer.text, "17 + 2");
        assert_eq!((answer.prompt_tokens, answer.completion_tokens), (Some(7), Some(4)));
        assert!(answer.first_has_text);
    }

    #[test]
    fn a_chat_begins_with_its_role_even_without_text() {
        let answer = read(&[
            (5, r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#),
            (80, r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#),
            (90, r#"{"choices":[{"delta":{"content":"Hi"}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#),
            (95, r#"{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#),
        ])
        .unwrap();
        assert_eq!((answer.ttft, answer.latency), (ms(5), ms(95)));
        assert_eq!(answer.itl, [ms(75), ms(10), ms(5)]);
        assert!(!answer.first_has_text);
        // Usage counts wherever it stands, and the last one wins.
        assert_eq!(answer.completion_tokens, Some(2));
        assert_eq!(answer.text, "hmHi");
    }

    #[test]
    fn each_way_to_fail_has_its_kind() {
        let token = (9, r#"{"choices":[{"text":"a","finish_reason":null}]}"#);
        let told = r#"{"error":{"message":"out of blocks","type":"server_error"}}"#;
        let cases: [(&[(u64, &str)], &str); 6] = [
            (&[token, (10, "{\"choices\":[{")], "malformed"),
            (&[token, (10, r#"{"choices":7}"#)], "malformed"),
            (&[token, (10, told)], "error event"),
            (&[token, (10, USAGE)], "cut"),
            (&[(3, USAGE), (4, "[DONE]")], "empty"),
            (&[], "empty"),
        ];
        for (events, kind) in cases {
            assert_eq!(read(events).unwrap_err().kind(), kind, "{events:?}");
        }
        assert!(read(&[token, (10, told)]).unwrap_err().to_string().contains("out of blocks"));
        let status =
            Failure::Status { status: 429, retry_after: Some("2".into()), body: "later".into() };
        assert_eq!(status.kind(), "http 429");
        assert_eq!(status.to_string(), "HTTP 429 (retry after 2 s): later");
    }

    #[test]
    fn either_mark_of_the_end_is_enough() {
        let token = r#"{"choices":[{"text":"a"}]}"#;
        let last = r#"{"choices":[{"text":"a","finish_reason":"stop"}]}"#;
        assert!(read(&[(1, token), (2, "[DONE]")]).is_ok());
        assert!(read(&[(1, last)]).is_ok());
    }
}
