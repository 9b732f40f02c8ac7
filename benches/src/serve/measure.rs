//! What a run came to: figures from the records of its requests.
//!
//! Definitions are those of `vllm bench serve`; where that program's choice surprises, a comment
//! says so. Pure arithmetic on times that were taken elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::serve::answer::{Answer, Failure};
use crate::serve::statistics::Distribution;

/// One request, when it has ended.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it was sent, from the beginning of the run.
    pub start: Duration,
    /// How long it had waited here for a place among --max-concurrency.
    pub queued: Duration,
    /// Prompt tokens, as far as this side knows.
    pub prompt_tokens: u32,
    /// What came back.
    pub outcome: Result<Answer, Failure>,
}

/// How a run's output tokens were counted, in requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountedBy {
    /// By the server's usage.
    pub usage: usize,
    /// By our tokenizer, over the text.
    pub tokenizer: usize,
    /// One a request, having neither.
    pub nothing: usize,
}

/// Bounds that a good request keeps, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Objectives {
    /// On the time to the first token.
    pub ttft: Option<f64>,
    /// On the time of each further one.
    pub tpot: Option<f64>,
    /// On the time of the whole answer.
    pub e2el: Option<f64>,
}

impl Objectives {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        *self != Objectives::default()
    }

    fn are_kept(&self, ttft: f64, tpot: f64, e2el: f64) -> bool {
        let kept = |bound: Option<f64>, value: f64| bound.is_none_or(|bound| value <= bound);
        kept(self.ttft, ttft) && kept(self.tpot, tpot) && kept(self.e2el, e2el)
    }
}

/// The figures of one run. Times in seconds, rates a second.
#[derive(Clone, Debug)]
pub struct Figures {
    /// From the first request's turn to the last one's end.
    pub duration: f64,
    /// Requests that were answered.
    pub completed: usize,
    /// Requests that were not.
    pub failed: usize,
    /// Of completed requests.
    pub total_input: u64,
    /// Of completed requests.
    pub total_output: u64,
    /// Output tokens of each request, in order; 0 if it failed.
    pub output_lens: Vec<u32>,
    /// Prompt tokens of each request, in order.
    pub input_lens: Vec<u32>,
    /// Requests that kept every objective.
    pub good: usize,
    /// Most events of tokens within one of the run's seconds.
    pub max_output_tokens_per_s: f64,
    /// Most requests in flight.
    pub max_concurrent_requests: usize,
    /// Time to first token.
    pub ttft: Distribution,
    /// Time per output token after the first, of requests with more than one.
    pub tpot: Distribution,
    /// Time between events of tokens, of all requests together.
    pub itl: Distribution,
    /// Time to the last token.
    pub e2el: Distribution,
    /// Time that requests waited here.
    pub client_queue_time: Distribution,
    /// That and e2el.
    pub e2el_including_client_queue: Distribution,
    /// How output tokens were counted.
    pub counted_by: CountedBy,
    /// Answers whose first event of tokens had no text.
    pub first_events_without_text: usize,
    /// Failed requests by kind.
    pub failures: BTreeMap<String, usize>,
}

impl Figures {
    /// Requests a second.
    pub fn request_throughput(&self) -> f64 {
        self.completed as f64 / self.duration
    }

    /// Good requests a second.
    pub fn request_goodput(&self) -> f64 {
        self.good as f64 / self.duration
    }

    /// Output tokens a second.
    pub fn output_throughput(&self) -> f64 {
        self.total_output as f64 / self.duration
    }

    /// Input and output tokens a second.
    pub fn total_token_throughput(&self) -> f64 {
        (self.total_input + self.total_output) as f64 / self.duration
    }

    /// Of the records of a run that took `duration`. `count` is the tokenizer, for answers without
    /// usage.
    pub fn new(
        records: &[Record],
        duration: Duration,
        objectives: &Objectives,
        count: Option<&dyn Fn(&str) -> u32>,
    ) -> Self {
        let mut tally = Tally::default();
        for record in records {
            tally.add(record, objectives, count);
        }
        let (max_output_tokens_per_s, max_concurrent_requests) = peaks(records);
        Figures {
            duration: duration.as_secs_f64(),
            completed: tally.e2el.len(),
            failed: tally.failures.values().sum(),
            total_input: tally.total_input,
            total_output: tally.output_lens.iter().map(|&len| u64::from(len)).sum(),
            output_lens: tally.output_lens,
            input_lens: tally.input_lens,
            good: tally.good,
            max_output_tokens_per_s,
            max_concurrent_requests,
            ttft: Distribution::new(tally.ttft),
            tpot: Distribution::new(tally.tpot),
            itl: Distribution::new(tally.itl),
            e2el: Distribution::new(tally.e2el),
            client_queue_time: Distribution::new(tally.queued),
            e2el_including_client_queue: Distribution::new(tally.whole),
            counted_by: tally.counted_by,
            first_events_without_text: tally.first_events_without_text,
            failures: tally.failures,
        }
    }
}

#[derive(Default)]
struct Tally {
    total_input: u64,
    input_lens: Vec<u32>,
    output_lens: Vec<u32>,
    good: usize,
    ttft: Vec<f64>,
    tpot: Vec<f64>,
    itl: Vec<f64>,
    e2el: Vec<f64>,
    queued: Vec<f64>,
    whole: Vec<f64>,
    counted_by: CountedBy,
    first_events_without_text: usize,
    failures: BTreeMap<String, usize>,
}

impl Tally {
    fn add(
        &mut self,
        record: &Record,
        objectives: &Objectives,
        count: Option<&dyn Fn(&str) -> u32>,
    ) {
        let answer = match &record.outcome {
            Ok(answer) => answer,
            Err(failure) => {
                *self.failures.entry(failure.kind()).or_default() += 1;
                self.input_lens.push(record.prompt_tokens);
                self.output_lens.push(0);
                return;
            }
        };
        let input = answer.prompt_tokens.unwrap_or(record.prompt_tokens);
        self.total_input += u64::from(input);
        self.input_lens.push(input);
        let output = self.output_tokens(answer, count);
        self.output_lens.push(output);
        let (ttft, e2el) = (answer.ttft.as_secs_f64(), answer.latency.as_secs_f64());
        let tpot = (output > 1).then(|| (e2el - ttft) / f64::from(output - 1));
        self.tpot.extend(tpot);
        self.ttft.push(ttft);
        self.e2el.push(e2el);
        self.itl.extend(answer.itl.iter().map(Duration::as_secs_f64));
        self.queued.push(record.queued.as_secs_f64());
        self.whole.push(e2el + record.queued.as_secs_f64());
        // An answer of one token keeps any bound on further ones.
        self.good += usize::from(objectives.are_kept(ttft, tpot.unwrap_or(0.0), e2el));
        self.first_events_without_text += usize::from(!answer.first_has_text);
    }

    fn output_tokens(&mut self, answer: &Answer, count: Option<&dyn Fn(&str) -> u32>) -> u32 {
        match (answer.completion_tokens.filter(|&tokens| tokens > 0), count) {
            (Some(tokens), _) => {
                self.counted_by.usage += 1;
                tokens
            }
            (None, Some(count)) => {
                self.counted_by.tokenizer += 1;
                count(&answer.text)
            }
            (None, None) => {
                self.counted_by.nothing += 1;
                1
            }
        }
    }
}

/// Most events of tokens in a second of the run, and most completed requests in flight at once.
///
/// Seconds are counted from the first completed request's start. Events stand for tokens here,
/// though one may bring several.
fn peaks(records: &[Record]) -> (f64, usize) {
    let answered = || {
        records.iter().filter_map(|record| record.outcome.as_ref().ok().map(|a| (record.start, a)))
    };
    let Some(first) = answered().map(|(start, _)| start).min() else { return (0.0, 0) };
    let mut buckets: BTreeMap<u64, u64> = BTreeMap::new();
    let mut turns: Vec<(Duration, i32)> = Vec::new();
    for (start, answer) in answered() {
        let mut at = start + answer.ttft;
        *buckets.entry((at - first).as_secs()).or_default() += 1;
        for gap in &answer.itl {
            at += *gap;
            *buckets.entry((at - first).as_secs()).or_default() += 1;
        }
        turns.extend([(start, 1), (start + answer.latency, -1)]);
    }
    // Whoever ends as another begins is not counted beside it.
    turns.sort_unstable();
    let mut present = 0;
    let most = turns.iter().map(|(_, change)| {
        present += change;
        present
    });
    let most = most.max().unwrap_or(0);
    (buckets.into_values().max().unwrap_or(0) as f64, usize::try_from(most).unwrap_or(0))
}

#[cfg(test)]
mod tests;
