//! One load on the server: requests at their times, within their bound, to the last answer.
//!
//! Bodies are made before the clock starts. A request that is due waits for a place if the load is
//! bounded; that wait is measured on its own and in no latency.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::serve::answer::Failure;
use crate::serve::arguments::Backend;
use crate::serve::client::Client;
use crate::serve::dataset::{Prompt, Sample};
use crate::serve::measure::Record;

/// Between two tries of the check whether the server is ready.
const READY_RETRY: Duration = Duration::from_secs(1);

/// A request as it will be sent.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Its body.
    pub body: Bytes,
    /// Its `x-request-id`.
    pub id: String,
    /// Its prompt tokens, as far as this side knows.
    pub prompt_tokens: u32,
    /// When it is due, from the beginning.
    pub delay: Duration,
}

/// The body of a request for `sample`. Of two fields of a name the one in `fields` is sent.
pub fn body(
    sample: &Sample,
    model: &str,
    backend: Backend,
    fields: &Map<String, Value>,
) -> Result<Bytes> {
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    let prompt = match &sample.prompt {
        Prompt::Text(text) => json!(text),
        Prompt::Tokens(ids) => json!(ids),
        Prompt::Messages(messages) => messages.clone(),
    };
    if backend == Backend::OpenaiChat {
        let messages = match sample.prompt {
            Prompt::Messages(_) => prompt,
            Prompt::Text(_) => json!([{ "role": "user", "content": prompt }]),
            Prompt::Tokens(_) => bail!("a chat cannot begin with token ids"),
        };
        body.insert("messages".into(), messages);
        body.insert("max_completion_tokens".into(), sample.output_tokens.into());
    } else {
        body.insert("prompt".into(), prompt);
        body.insert("max_tokens".into(), sample.output_tokens.into());
    }
    body.insert("stream".into(), true.into());
    body.insert("stream_options".into(), json!({ "include_usage": true }));
    body.extend(fields.clone());
    Ok(serde_json::to_vec(&body)?.into())
}

/// Sends `request` until it is answered, for `timeout` at most.
pub async fn wait_until_ready(
    client: &Client,
    request: &Prepared,
    timeout: Duration,
) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        let answer = client.exchange(request.body.clone(), &request.id);
        match tokio::time::timeout(timeout.saturating_sub(began.elapsed()), answer).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(failure)) if began.elapsed() + READY_RETRY > timeout => return Err(failure),
            Ok(Err(_)) => tokio::time::sleep(READY_RETRY).await,
            Err(_) => return Err(Failure::Timeout(timeout)),
        }
    }
}

/// Sends all `requests`, `max_concurrency` of them at once; gives their records in order, and how
/// long that took.
pub async fn run(
    client: &Arc<Client>,
    requests: Vec<Prepared>,
    max_concurrency: Option<usize>,
    progress: &ProgressBar,
) -> Result<(Vec<Record>, Duration)> {
    let places = max_concurrency.map(|count| Arc::new(Semaphore::new(count)));
    let mut tasks = Vec::with_capacity(requests.len());
    let began = Instant::now();
    for request in requests {
        if !request.delay.is_zero() {
            tokio::time::sleep_until((began + request.delay).into()).await;
        }
        let due = Instant::now();
        let (client, places, progress) = (Arc::clone(client), places.clone(), progress.clone());
        tasks.push(tokio::spawn(async move {
            let _place = match places {
                Some(places) => places.acquire_owned().await.ok(),
                None => None,
            };
            let sent = Instant::now();
            let outcome = client.exchange(request.body, &request.id).await;
            progress.inc(1);
            Record {
                start: sent - began,
                queued: sent - due,
                prompt_tokens: request.prompt_tokens,
                outcome,
            }
        }));
    }
    let mut records = Vec::with_capacity(tasks.len());
    for task in tasks {
        records.push(task.await?);
    }
    let duration = began.elapsed();
    progress.finish_and_clear();
    Ok((records, duration))
}

/// A bar over `total` requests on the terminal; none where there is no terminal or nobody wants it.
pub fn progress(total: usize, wanted: bool) -> Result<ProgressBar> {
    if !wanted {
        return Ok(ProgressBar::hidden());
    }
    let style = "{percent:>3}% {bar:40} {pos}/{len} [{elapsed_precise} < {eta_precise}, {per_sec}]";
    let bar = ProgressBar::new(total as u64);
    bar.set_style(ProgressStyle::with_template(style)?);
    Ok(bar)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(prompt: Prompt, backend: Backend, fields: Value) -> Result<Value> {
        let sample = Sample { prompt, prompt_tokens: 3, output_tokens: 7 };
        let body = body(&sample, "m", backend, fields.as_object().unwrap())?;
        Ok(serde_json::from_slice(&body)?)
    }

    #[test]
    fn bodies_are_those_of_each_endpoint() {
        let options = json!({ "include_usage": true });
        assert_eq!(
            sent(Prompt::Text("a".into()), Backend::Openai, json!({ "seed": 1 })).unwrap(),
            json!({ "model": "m", "prompt": "a", "max_tokens": 7, "stream": true,
                "stream_options": options, "seed": 1 })
        );
        let ids = sent(Prompt::Tokens(vec![5, 6]), Backend::Vllm, json!({})).unwrap();
        assert_eq!(ids["prompt"], json!([5, 6]));
        let chat = [json!({ "role": "user", "content": "a" })];
        let wanted = json!({ "model": "m", "messages": chat, "max_completion_tokens": 3,
            "stream": true, "stream_options": options });
        let fields = json!({ "max_completion_tokens": 3 });
        for prompt in [Prompt::Text("a".into()), Prompt::Messages(json!(chat))] {
            assert_eq!(sent(prompt, Backend::OpenaiChat, fields.clone()).unwrap(), wanted);
        }
        assert!(sent(Prompt::Tokens(vec![5]), Backend::OpenaiChat, json!({})).is_err());
    }
}
