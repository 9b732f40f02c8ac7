//! What an instance counts: the requests it served and what its engine thread reports.
//!
//! Labelled by the served name, which the operator chose. The engine's own numbers are copied
//! when somebody asks, never pushed by the engine thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Label};

use crate::metrics::Metrics;

/// Counters, gauges and histograms of one instance.
pub struct InstanceMetrics {
    /// Sequences that take part in steps.
    pub running: Gauge,
    /// Sequences that wait.
    pub waiting: Gauge,
    /// Share of KV blocks in use, 0 to 1.
    pub kv_usage: Gauge,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: CopiedCounter,
    /// Prompt tokens found there.
    pub prefix_hits: CopiedCounter,
    /// Sequences that gave their blocks back.
    pub preemptions: CopiedCounter,
    /// Steps.
    pub steps: CopiedCounter,
    /// Tokens of prompts.
    pub prompt_tokens: Counter,
    /// Tokens generated for clients.
    pub generation_tokens: Counter,
    /// Requests refused because the queue was full.
    pub refused_busy: Counter,
    /// Requests refused because they can never fit.
    pub refused_too_long: Counter,
    /// Seconds from parsed to first token.
    pub time_to_first_token: Histogram,
    /// Seconds between two tokens of a choice.
    pub inter_token_latency: Histogram,
    time_per_output_token: Histogram,
    e2e_latency: Histogram,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    params_n: Histogram,
    params_max_tokens: Histogram,
    ended: [Counter; 4],
}

/// A counter that follows a number which an instance counts from 0: the next instance of the same
/// name counts on.
pub struct CopiedCounter {
    counter: Counter,
    seen: AtomicU64,
}

impl CopiedCounter {
    /// The number is `total` now; it never falls.
    pub fn follow(&self, total: u64) {
        let before = self.seen.fetch_max(total, Relaxed);
        self.counter.increment(total.saturating_sub(before));
    }
}

/// How a choice ended, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// End of sequence, stop token or stop string.
    Stop,
    /// `max_tokens` or the context.
    Length,
    /// The client left.
    Abort,
    /// The engine failed.
    Error,
}

impl InstanceMetrics {
    /// Registers the metrics of the instance that is served as `model_name`.
    pub fn new(metrics: &Metrics, model_name: &str) -> Self {
        let labels = || {
            vec![
                Label::new("model_name", model_name.to_string()),
                Label::from_static_parts("engine", "0"),
            ]
        };
        let with = |key: &'static str, value: &'static str| {
            let mut labels = labels();
            labels.push(Label::from_static_parts(key, value));
            labels
        };
        let counter = |name| metrics.counter(name, labels());
        let copied = |name| CopiedCounter { counter: counter(name), seen: AtomicU64::new(0) };
        let gauge = |name| metrics.gauge(name, labels());
        let histogram = |name| metrics.histogram(name, labels());
        let ended = |reason| {
            metrics.counter("pagoda_request_success_total", with("finished_reason", reason))
        };
        let refused =
            |reason| metrics.counter("pagoda_requests_refused_total", with("reason", reason));
        InstanceMetrics {
            running: gauge("pagoda_requests_running"),
            waiting: gauge("pagoda_requests_waiting"),
            kv_usage: gauge("pagoda_kv_cache_usage_ratio"),
            prefix_queries: copied("pagoda_prefix_cache_queries_total"),
            prefix_hits: copied("pagoda_prefix_cache_hits_total"),
            preemptions: copied("pagoda_preemptions_total"),
            steps: copied("pagoda_steps_total"),
            prompt_tokens: counter("pagoda_prompt_tokens_total"),
            generation_tokens: counter("pagoda_generation_tokens_total"),
            refused_busy: refused("busy"),
            refused_too_long: refused("too_long"),
            time_to_first_token: histogram("pagoda_time_to_first_token_seconds"),
            inter_token_latency: histogram("pagoda_inter_token_latency_seconds"),
            time_per_output_token: histogram("pagoda_request_time_per_output_token_seconds"),
            e2e_latency: histogram("pagoda_e2e_request_latency_seconds"),
            request_prompt_tokens: histogram("pagoda_request_prompt_tokens"),
            request_generation_tokens: histogram("pagoda_request_generation_tokens"),
            params_n: histogram("pagoda_request_params_n"),
            params_max_tokens: histogram("pagoda_request_params_max_tokens"),
            ended: [ended("stop"), ended("length"), ended("abort"), ended("error")],
        }
    }

    /// The instance is gone: nothing of it runs, waits or is cached. What it counted stays.
    pub fn retire(&self) {
        for gauge in [&self.running, &self.waiting, &self.kv_usage] {
            gauge.set(0.0);
        }
    }

    /// Counts a request that was admitted.
    pub fn admitted(&self, prompt_tokens: u32, max_tokens: u32, n: u32) {
        self.prompt_tokens.increment(prompt_tokens.into());
        self.request_prompt_tokens.record(prompt_tokens);
        self.params_max_tokens.record(max_tokens);
        self.params_n.record(n);
    }

    /// Counts a choice that is over.
    pub fn choice_ended(
        &self,
        outcome: Outcome,
        num_tokens: u32,
        total: Duration,
        after_first: Duration,
    ) {
        self.ended[outcome as usize].increment(1);
        self.request_generation_tokens.record(num_tokens);
        if matches!(outcome, Outcome::Abort | Outcome::Error) {
            return;
        }
        self.e2e_latency.record(total);
        if num_tokens > 1 {
            self.time_per_output_token.record(after_first / (num_tokens - 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_tell_the_same() {
        let metrics = Metrics::new(true).unwrap();
        let instance = InstanceMetrics::new(&metrics, "demo");
        instance.running.set(2.0);
        instance.admitted(7, 16, 1);
        instance.choice_ended(
            Outcome::Length,
            3,
            Duration::from_secs(1),
            Duration::from_millis(200),
        );
        let text = metrics.render(&[]);
        for line in [
            "pagoda_requests_running{model_name=\"demo\",engine=\"0\"} 2",
            "vllm:num_requests_running{model_name=\"demo\",engine=\"0\"} 2",
            "vllm:prompt_tokens_total{model_name=\"demo\",engine=\"0\"} 7",
            "finished_reason=\"length\"} 1",
            "vllm:request_time_per_output_token_seconds_bucket{model_name=\"demo\",engine=\"0\",\
             le=\"0.1\"} 1",
            "# TYPE vllm:time_to_first_token_seconds histogram",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn the_next_instance_of_a_name_counts_on_and_who_is_gone_runs_nothing() {
        let metrics = Metrics::new(false).unwrap();
        let labels = "{model_name=\"m\",engine=\"0\"}";
        let says = |name: &str, value: u32| {
            let line = format!("{name}{labels} {value}\n");
            assert!(metrics.render(&[]).contains(&line), "{line}");
        };
        let first = InstanceMetrics::new(&metrics, "m");
        first.steps.follow(5);
        first.steps.follow(5);
        first.steps.follow(7);
        first.running.set(3.0);
        first.retire();
        says("pagoda_requests_running", 0);
        let second = InstanceMetrics::new(&metrics, "m");
        second.steps.follow(2);
        says("pagoda_steps_total", 9);
        first.steps.follow(6);
        says("pagoda_steps_total", 9);
    }
}
