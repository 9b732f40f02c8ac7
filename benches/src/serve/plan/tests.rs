//! Command lines as people write them for `vllm bench serve`, and those that make no sense.

use clap::Parser;

use super::*;
use crate::serve::arguments::{Command, CommandLine};

fn plan(line: &str) -> Result<Plan> {
    let words = ["pagoda-bench", "serve"].into_iter().chain(line.split_whitespace());
    let Command::Serve(arguments) = CommandLine::try_parse_from(words)?.command;
    Plan::new(*arguments, Some("key".into()))
}

fn fault(line: &str) -> String {
    format!("{:#}", plan(line).unwrap_err())
}

#[test]
fn defaults_are_those_of_the_original() {
    let plan = plan("").unwrap();
    assert_eq!(plan.server.endpoint, "http://127.0.0.1:8000/v1/completions");
    assert_eq!(plan.server.headers["authorization"], "Bearer key");
    assert!(plan.server.request_id_prefix.starts_with("bench-"));
    assert_eq!(plan.server.request_id_prefix.len(), "bench-12345678-".len());
    let arrivals = Arrivals { rate: f64::INFINITY, burstiness: 1.0, ramp_up: None };
    let load = Load { num_prompts: 1000, arrivals, max_concurrency: None, seed: 0 };
    assert_eq!(plan.loads, [load]);
    let Dataset::Random(random) = plan.dataset else { panic!() };
    assert_eq!((random.input_len, random.output_len, random.prefix_len), (1024, 128, 0));
    assert_eq!(plan.report.metrics, [Metric::Ttft, Metric::Tpot, Metric::Itl]);
    assert_eq!(plan.report.percentiles, [99.0]);
    assert_eq!(Value::from(plan.fields), json!({ "repetition_penalty": 1.0, "ignore_eos": true }));
}

#[test]
fn a_whole_command_line_is_understood() {
    let plan = plan(
        "--backend openai-chat --base-url http://host:9/ --model m --served-model-name n \
         --header x-a=1 authorization=other --dataset-name prefix_repetition --output-len 9 \
         --prefix-repetition-num-prefixes 2 --num-prompts 30 --request-rate 2.5 --burstiness 0.5 \
         --max-concurrency 4 --ignore-eos --temperature 0 --top-k -1 --frequency-penalty -1 \
         --extra-body {\"top_k\":3,\"n\":1} \
         --percentile-metrics ttft,e2el --metric-percentiles 50,99.9 --goodput ttft:200 e2el:5000 \
         --save-result --metadata version=1=2 tp=1 --label us --seed 5 --disable-tqdm",
    )
    .unwrap();
    assert_eq!(plan.server.endpoint, "http://host:9/v1/chat/completions");
    assert_eq!(plan.server.headers["authorization"], "other");
    assert_eq!(plan.server.headers["x-a"], "1");
    assert_eq!(
        Value::from(plan.fields),
        json!({ "ignore_eos": true, "temperature": 0.0, "frequency_penalty": -1.0, "top_k": 3,
            "n": 1 })
    );
    let Dataset::PrefixRepetition(dataset) = plan.dataset else { panic!() };
    assert_eq!((dataset.output_len, dataset.num_prefixes), (9, 2));
    let objectives = Objectives { ttft: Some(0.2), tpot: None, e2el: Some(5.0) };
    assert_eq!(plan.report.objectives, objectives);
    assert_eq!(plan.report.percentiles, [50.0, 99.9]);
    let metadata = [("version", "1=2"), ("tp", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(plan.report.metadata, metadata);
    assert!(plan.report.save && !plan.report.append && !plan.report.progress);
}

#[test]
fn sweeps_are_loads_with_prompts_of_their_own() {
    let loads = |line: &str| -> Vec<(Option<usize>, f64, usize, u64)> {
        let loads = plan(line).unwrap().loads;
        let load =
            |load: Load| (load.max_concurrency, load.arrivals.rate, load.num_prompts, load.seed);
        loads.into_iter().map(load).collect()
    };
    let inf = f64::INFINITY;
    assert_eq!(
        loads("--sweep-max-concurrency 1,8 --num-prompts 5 --seed 7"),
        [(Some(1), inf, 5, 7), (Some(8), inf, 5, 8)]
    );
    assert_eq!(
        loads("--sweep-max-concurrency 1,8 --sweep-num-prompts-factor 10"),
        [(Some(1), inf, 10, 0), (Some(8), inf, 80, 1)]
    );
    assert_eq!(
        loads("--sweep-request-rate 0.5,inf --sweep-num-prompts-factor 3 --max-concurrency 2"),
        [(Some(2), 0.5, 2, 0), (Some(2), inf, 1000, 1)]
    );
    let pairs = loads("--sweep-request-rate 1,2 --sweep-max-concurrency 3,4");
    assert_eq!(pairs.iter().map(|load| load.3).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!((pairs[2].0, pairs[2].1), (Some(4), 1.0));
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (line, what) in [
        ("--num-prompts 0", "--num-prompts"),
        ("--max-concurrency 0", "--max-concurrency"),
        ("--request-rate 0", "--request-rate"),
        ("--sweep-request-rate 1,-1", "--request-rate"),
        ("--sweep-max-concurrency 2 --sweep-num-prompts-factor 0", "--sweep-num-prompts-factor"),
        ("--request-rate NaN", "--request-rate"),
        ("--burstiness 0", "--burstiness"),
        ("--ramp-up-strategy linear", "--ramp-up-start-rps"),
        ("--ramp-up-strategy linear --request-rate 3", "--request-rate"),
        ("--ramp-up-strategy linear --ramp-up-start-rps 3 --ramp-up-end-rps 2", "above the end"),
        ("--endpoint /v1/chat/completions", "end with completions"),
        ("--backend openai-chat --endpoint /v1/completions", "chat/completions"),
        ("--backend tgi", "tgi"),
        ("--base-url https://host", "http://"),
        ("--base-url host:1", "http://"),
        ("--header a", "KEY=VALUE"),
        ("--metadata a", "KEY=VALUE"),
        ("--goodput ttft", "NAME:MS"),
        ("--goodput itl:3", "itl"),
        ("--goodput ttft:-1", "below 0"),
        ("--percentile-metrics ttft,rtf", "rtf"),
        ("--metric-percentiles 101", "101"),
        ("--extra-body [1]", "--extra-body"),
        ("--dataset-path x", "--dataset-path"),
        ("--dataset-name sharegpt", "--dataset-path"),
        ("--backend openai-chat --prompt-token-ids", "--prompt-token-ids"),
    ] {
        let fault = fault(line);
        assert!(fault.contains(what), "{line}: {fault}");
    }
}
