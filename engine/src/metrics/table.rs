//! The table of metrics: one line each.
//!
//! Buckets are vLLM's with 0.2, 0.45, 2, 3 and 6 s added where service levels are set, so that
//! dashboards for it fit and a share under 2 s can be read off.

/// What a metric is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// A current value.
    Gauge,
    /// Counts by upper bound.
    Histogram(&'static [f64]),
}

impl Kind {
    /// In Prometheus' words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

/// A metric of ours.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Our name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// One line for people.
    pub help: &'static str,
    /// The metric of vLLM that has the same type, unit and meaning, if one has.
    pub vllm: Option<&'static str>,
}

const fn row(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    vllm: Option<&'static str>,
) -> Metric {
    Metric { name, kind, help, vllm }
}

use Kind::{Counter, Gauge, Histogram};

/// All of them.
pub const TABLE: &[Metric] = &[
    row("pagoda_build_info", Gauge, "1; the label tells the version.", None),
    row("pagoda_http_connections", Gauge, "Open connections.", None),
    row("pagoda_http_requests_in_flight", Gauge, "Requests without a complete answer.", None),
    row("pagoda_http_requests_total", Counter, "Requests by route, method and status.", None),
    row("pagoda_http_request_seconds", Histogram(E2E), "Request to last byte.", None),
    row("pagoda_control_plane_revision", Gauge, "Last write that is known; 0: none.", None),
    row("pagoda_control_plane_age_seconds", Gauge, "Since the last word of it.", None),
    row("pagoda_trace_spans_exported_total", Counter, "Spans that the collector took.", None),
    row("pagoda_trace_spans_dropped_total", Counter, "Spans lost: queue or collector.", None),
    row("pagoda_ignored_fields_total", Counter, "Unknown fields that requests named.", None),
    row(
        "pagoda_requests_running",
        Gauge,
        "Sequences that take part in steps.",
        Some("vllm:num_requests_running"),
    ),
    row(
        "pagoda_requests_waiting",
        Gauge,
        "Sequences that wait for blocks or a slot.",
        Some("vllm:num_requests_waiting"),
    ),
    row(
        "pagoda_kv_cache_usage_ratio",
        Gauge,
        "Share of KV blocks in use, 0 to 1.",
        Some("vllm:kv_cache_usage_perc"),
    ),
    row(
        "pagoda_cache_config_info",
        Gauge,
        "1; the labels tell block size and number of blocks.",
        Some("vllm:cache_config_info"),
    ),
    row(
        "pagoda_prefix_cache_queries_total",
        Counter,
        "Prompt tokens looked up in the prefix cache.",
        Some("vllm:prefix_cache_queries_total"),
    ),
    row(
        "pagoda_prefix_cache_hits_total",
        Counter,
        "Prompt tokens found in the prefix cache.",
        Some("vllm:prefix_cache_hits_total"),
    ),
    row(
        "pagoda_preemptions_total",
        Counter,
        "Sequences that gave their blocks back to be computed again.",
        Some("vllm:num_preemptions_total"),
    ),
    row("pagoda_steps_total", Counter, "Steps of the engine.", None),
    row("pagoda_step_time_seconds", Histogram(E2E), "Launch to finish of a step.", None),
    row(
        "pagoda_prompt_tokens_total",
        Counter,
        "Tokens of prompts, found in the cache or computed.",
        Some("vllm:prompt_tokens_total"),
    ),
    row(
        "pagoda_generation_tokens_total",
        Counter,
        "Tokens generated for clients.",
        Some("vllm:generation_tokens_total"),
    ),
    row(
        "pagoda_request_success_total",
        Counter,
        "Choices that ended, by reason.",
        Some("vllm:request_success_total"),
    ),
    row("pagoda_requests_refused_total", Counter, "Requests not admitted, by reason.", None),
    row(
        "pagoda_time_to_first_token_seconds",
        Histogram(TTFT),
        "Request parsed to first token.",
        Some("vllm:time_to_first_token_seconds"),
    ),
    row(
        "pagoda_inter_token_latency_seconds",
        Histogram(ITL),
        "Between two tokens of a choice.",
        Some("vllm:inter_token_latency_seconds"),
    ),
    row(
        "pagoda_request_time_per_output_token_seconds",
        Histogram(ITL),
        "Mean time of a choice's tokens after the first.",
        Some("vllm:request_time_per_output_token_seconds"),
    ),
    row(
        "pagoda_e2e_request_latency_seconds",
        Histogram(E2E),
        "Request parsed to last token.",
        Some("vllm:e2e_request_latency_seconds"),
    ),
    row(
        "pagoda_request_queue_time_seconds",
        Histogram(E2E),
        "Submitted to first scheduled.",
        Some("vllm:request_queue_time_seconds"),
    ),
    row(
        "pagoda_request_prompt_tokens",
        Histogram(LENGTHS),
        "Tokens of a prompt.",
        Some("vllm:request_prompt_tokens"),
    ),
    row(
        "pagoda_request_generation_tokens",
        Histogram(LENGTHS),
        "Tokens generated for a choice.",
        Some("vllm:request_generation_tokens"),
    ),
    row(
        "pagoda_request_params_n",
        Histogram(COUNTS),
        "Choices that requests ask for.",
        Some("vllm:request_params_n"),
    ),
    row(
        "pagoda_request_params_max_tokens",
        Histogram(LENGTHS),
        "Tokens that requests allow a choice.",
        Some("vllm:request_params_max_tokens"),
    ),
];

const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.25, 0.45, 0.5, 0.75, 1.0, 2.0, 2.5,
    3.0, 5.0, 6.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];

const ITL: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];

const E2E: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];

const LENGTHS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0,
    50000.0, 100000.0, 200000.0, 500000.0, 1000000.0,
];

const COUNTS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_counters_end_in_total() {
        let names: BTreeSet<&str> = TABLE.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), TABLE.len());
        let vllm: Vec<&str> = TABLE.iter().filter_map(|metric| metric.vllm).collect();
        assert_eq!(vllm.iter().collect::<BTreeSet<_>>().len(), vllm.len());
        for metric in TABLE {
            let counter = matches!(metric.kind, Counter);
            assert_eq!(counter, metric.name.ends_with("_total"), "{}", metric.name);
            if let Some(vllm) = metric.vllm {
                assert_eq!(counter, vllm.ends_with("_total"), "{vllm}");
            }
        }
    }

    #[test]
    fn buckets_ascend() {
        for buckets in [TTFT, ITL, E2E, LENGTHS, COUNTS] {
            assert!(buckets.is_sorted_by(|a, b| a < b));
        }
    }
}
