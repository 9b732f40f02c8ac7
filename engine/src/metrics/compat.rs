//! vLLM's names: the same samples a second time, so that its dashboards and autoscalers work.
//!
//! A rewrite of our own text, so that the two can never disagree.

use std::fmt::Write;

use crate::metrics::table::TABLE;

/// `own`, followed by every metric that vLLM has too, under its name.
pub(super) fn with_vllm_names(own: &str) -> String {
    let mut text = own.to_string();
    for (ours, theirs) in TABLE.iter().filter_map(|metric| Some((metric.name, metric.vllm?))) {
        for line in own.lines() {
            if let Some(line) = renamed(line, ours, theirs) {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{line}");
            }
        }
    }
    text
}

/// `line` under the other name, if it is a sample or a comment of the metric `ours`.
fn renamed(line: &str, ours: &str, theirs: &str) -> Option<String> {
    for comment in ["# HELP ", "# TYPE "] {
        if let Some(rest) = line.strip_prefix(comment) {
            let (name, rest) = rest.split_once(' ')?;
            return (name == ours).then(|| format!("{comment}{theirs} {rest}"));
        }
    }
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let suffix = name.strip_prefix(ours)?;
    matches!(suffix, "" | "_bucket" | "_sum" | "_count").then(|| format!("{theirs}{suffix}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_and_comments_come_again_and_nothing_else() {
        let own = "# TYPE pagoda_requests_running gauge\n\
                   pagoda_requests_running{model_name=\"m\"} 3\n\
                   pagoda_request_prompt_tokens_bucket{le=\"1\"} 2\n\
                   pagoda_request_prompt_tokens_sum 9\n\
                   pagoda_build_info 1\n";
        let text = with_vllm_names(own);
        assert!(text.starts_with(own));
        let mut added: Vec<&str> = text[own.len()..].lines().collect();
        added.sort_unstable();
        assert_eq!(
            added,
            [
                "# TYPE vllm:num_requests_running gauge",
                "vllm:num_requests_running{model_name=\"m\"} 3",
                "vllm:request_prompt_tokens_bucket{le=\"1\"} 2",
                "vllm:request_prompt_tokens_sum 9",
            ]
        );
    }
}
