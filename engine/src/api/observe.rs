//! Metrics of all instances at this moment: the engine's own numbers are read when asked for.

use std::fmt::Write;

use crate::api::Api;
use crate::api::instance::Instance;
use crate::handle::{EngineStats, TIME_BUCKETS, TimeReading};
use crate::metrics::InstanceSamples;
use crate::model::info::InstanceInfo;

/// All metrics as Prometheus text.
pub fn render(api: &Api) -> String {
    let mut of_instances = Vec::new();
    for instance in api.instances().iter() {
        let stats = note(instance);
        let name = escaped(instance.name());
        let mut add = |metric, samples| of_instances.push(InstanceSamples { metric, samples });
        let mut add_times = |metric, reading| add(metric, times(metric, &name, reading));
        add_times("pagoda_request_queue_time_seconds", &stats.queue_time);
        add_times("pagoda_step_time_seconds", &stats.step_time);
        add(CACHE_CONFIG, cache_config(&name, instance.engine.info()));
    }
    if let Some(standing) = api.plane() {
        let set = |name, value: u64| api.metrics.gauge(name, Vec::new()).set(value as f64);
        set("pagoda_control_plane_revision", standing.revision.unwrap_or(0));
        set("pagoda_control_plane_age_seconds", standing.age_s);
    }
    api.metrics.render(&of_instances)
}

/// Takes what an instance's engine has counted so far into its metrics.
pub(crate) fn note(instance: &Instance) -> EngineStats {
    let (metrics, stats) = (&instance.metrics, instance.engine.stats());
    metrics.running.set(stats.running as f64);
    metrics.waiting.set(stats.waiting as f64);
    let share = stats.blocks_used as f64 / stats.blocks_total.max(1) as f64;
    metrics.kv_usage.set(share);
    metrics.prefix_queries.follow(stats.prefix_query_tokens);
    metrics.prefix_hits.follow(stats.prefix_hit_tokens);
    metrics.preemptions.follow(stats.preemptions);
    metrics.steps.follow(stats.steps);
    stats
}

const CACHE_CONFIG: &str = "pagoda_cache_config_info";

/// Block size and number of blocks as labels: of the instances that serve now, since a registry would
/// keep a series for every number that a reload ever came to.
fn cache_config(model_name: &str, info: &InstanceInfo) -> String {
    let num_blocks = info.groups.iter().map(|group| group.num_blocks).max().unwrap_or(0);
    let block_size = info.block_size;
    format!(
        "{CACHE_CONFIG}{{model_name=\"{model_name}\",engine=\"0\",block_size=\"{block_size}\",\
         num_gpu_blocks=\"{num_blocks}\"}} 1\n"
    )
}

/// A label's value as Prometheus reads it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The engine counts into buckets of its own; here they become cumulative lines of text.
fn times(metric: &str, model_name: &str, reading: &TimeReading) -> String {
    let labels = format!("model_name=\"{model_name}\",engine=\"0\"");
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
    use std::sync::Arc;

    use super::*;
    use crate::api::models::Change;
    use crate::api::test_support::info;
    use crate::handle::border;
    use crate::metrics::Metrics;
    use crate::model::info::KvGroupInfo;
    use crate::text::{TextModel, TextPool};

    #[test]
    fn buckets_are_cumulative_and_end_at_the_count() {
        let mut reading = TimeReading { sum_s: 2.5, ..TimeReading::default() };
        reading.counts[0] = 2;
        reading.counts[TIME_BUCKETS.len()] = 1;
        let text = times("x_seconds", &escaped("a\"b"), &reading);
        let labels = "model_name=\"a\\\"b\",engine=\"0\"";
        assert!(text.starts_with(&format!("x_seconds_bucket{{{labels},le=\"0.001\"}} 2\n")));
        assert!(text.contains(&format!("x_seconds_bucket{{{labels},le=\"120\"}} 2\n")));
        assert!(text.contains(&format!("x_seconds_bucket{{{labels},le=\"+Inf\"}} 3\n")));
        assert!(text.contains(&format!("x_seconds_sum{{{labels}}} 2.5\n")));
        assert!(text.ends_with(&format!("x_seconds_count{{{labels}}} 3\n")));
    }

    /// Models come and go under one name, each with another number of blocks.
    #[test]
    fn series_are_those_of_names_however_often_a_model_is_loaded_anew() {
        let api = Api::new(Metrics::new(false).unwrap());
        let load = |num_blocks| {
            let group = KvGroupInfo { num_blocks, ..info().groups[0].clone() };
            let (engine, _) =
                border(InstanceInfo { groups: vec![group], ..info() }, Default::default());
            let texts = Arc::new(TextPool::new(1, 1).unwrap());
            let text = TextModel::dummy(300).unwrap();
            let instance =
                Instance::new(vec!["odd \"m\"".into()], engine, text, texts, &api.metrics);
            let instance = Arc::new(instance);
            api.models.claim_new(instance.names.clone()).unwrap().serve(&instance);
            let rendered = render(&api);
            let claim = api.models.claim_served(instance.name(), Change::Unload).unwrap();
            claim.withdraw().unwrap().metrics.retire();
            rendered
        };
        let first = load(1);
        let config = "block_size=\"16\",num_gpu_blocks=\"1\"} 1\n";
        assert!(first.contains(config), "{first}");
        for name in ["pagoda_requests_running", "pagoda_step_time_seconds_count", CACHE_CONFIG] {
            let of_name = format!("{name}{{model_name=\"odd \\\"m\\\"\",engine=\"0\"");
            assert!(first.contains(&of_name), "{of_name}\n{first}");
        }
        let last = (2..40).fold(String::new(), |_, num_blocks| load(num_blocks));
        assert!(last.contains("num_gpu_blocks=\"39\"} 1\n") && !last.contains(config));
        assert_eq!(last.lines().count(), first.lines().count());
    }
}
