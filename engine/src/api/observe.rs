//! Metrics of all instances at this moment: the engine's own numbers are read when asked for.

use std::fmt::Write;

use crate::api::Api;
use crate::handle::{EngineStats, TIME_BUCKETS, TimeReading};
use crate::metrics::{EngineHistogram, InstanceMetrics};

/// All metrics as Prometheus text.
pub fn render(api: &Api) -> String {
    let mut histograms = Vec::new();
    for instance in api.instances().iter() {
        let stats = instance.engine.stats();
        observe(&instance.metrics, &stats);
        let name = instance.name();
        let mut add = |metric, reading: &TimeReading| {
            histograms.push(EngineHistogram { metric, samples: samples(metric, name, reading) });
        };
        add("pagoda_request_queue_time_seconds", &stats.queue_time);
        add("pagoda_step_time_seconds", &stats.step_time);
    }
    api.metrics.render(&histograms)
}

fn observe(metrics: &InstanceMetrics, stats: &EngineStats) {
    metrics.running.set(stats.running as f64);
    metrics.waiting.set(stats.waiting as f64);
    let share = stats.blocks_used as f64 / stats.blocks_total.max(1) as f64;
    metrics.kv_usage.set(share);
    metrics.set_present();
    metrics.prefix_queries.follow(stats.prefix_query_tokens);
    metrics.prefix_hits.follow(stats.prefix_hit_tokens);
    metrics.preemptions.follow(stats.preemptions);
    metrics.steps.follow(stats.steps);
}

/// The engine counts into buckets of its own; here they become cumulative lines of text.
fn samples(metric: &str, model_name: &str, reading: &TimeReading) -> String {
    let name: String =
        model_name.chars().map(|c| if matches!(c, '"' | '\\' | '\n') { '_' } else { c }).collect();
    let labels = format!("model_name=\"{name}\",engine=\"0\"");
    let (mut text, mut total) = (String::new(), 0_u64);
    for (bucket, count) in reading.counts.iter().enumerate() {
        total += count;
        let bound = TIME_BUCKETS.get(bucket).map_or_else(|| "+Inf".into(), f64::to_string);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{metric}_bucket{{{labels},le=\"{bound}\"}} {total}");
    }
    let _ = writeln!(text, "{metric}_sum{{{labels}}} {}", reading.sum_s);
    let _ = writeln!(text, "{metric}_count{{{labels}}} {total}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_end_at_the_count() {
        let mut reading = TimeReading { sum_s: 2.5, ..TimeReading::default() };
        reading.counts[0] = 2;
        reading.counts[TIME_BUCKETS.len()] = 1;
        let text = samples("x_seconds", "a\"b", &reading);
        let labels = "model_name=\"a_b\",engine=\"0\"";
        assert!(text.starts_with(&format!("x_seconds_bucket{{{labels},le=\"0.001\"}} 2\n")));
        assert!(text.contains(&format!("x_seconds_bucket{{{labels},le=\"120\"}} 2\n")));
        assert!(text.contains(&format!("x_seconds_bucket{{{labels},le=\"+Inf\"}} 3\n")));
        assert!(text.contains(&format!("x_seconds_sum{{{labels}}} 2.5\n")));
        assert!(text.ends_with(&format!("x_seconds_count{{{labels}}} 3\n")));
    }
}
