//! `pagoda-bench serve` as a person runs it, against servers that do what real ones do: answer, wait,
//! refuse, break off, write nonsense.
//!
//! The server here takes a prompt as its orders. tests/clients/test_bench.py does the same with
//! `pagoda serve`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// What the server saw.
#[derive(Default)]
struct Seen {
    connections: usize,
    present: usize,
    present_max: usize,
    /// Heads, in small letters, and bodies.
    requests: Vec<(String, Value)>,
}

struct Server {
    url: String,
    seen: Arc<Mutex<Seen>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&shared);
                seen.lock().unwrap().connections += 1;
                thread::spawn(move || while answer(&stream, &seen).is_some() {});
            }
        });
        Server { url, seen }
    }
}

/// Reads one request and does what its prompt says; `None` if the connection has ended.
fn answer(stream: &TcpStream, seen: &Mutex<Seen>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let head = head.to_lowercase();
    let length = head
        .split("content-length: ")
        .nth(1)
        .map_or(0, |rest| rest.lines().next().unwrap().trim().parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let prompt = body["prompt"].as_str().or_else(|| body["messages"][0]["content"].as_str());
    let orders = prompt.unwrap_or_default().to_owned();
    let is_list = head.starts_with("get /v1/models ");
    {
        let mut seen = seen.lock().unwrap();
        seen.requests.push((head, body));
        seen.present += 1;
        seen.present_max = seen.present_max.max(seen.present);
    }
    let kept = if is_list {
        let list = json!({ "object": "list", "data": [{ "id": "org/listed" }] }).to_string();
        plain(stream, "200 OK", "", &list)
    } else {
        obey(stream, &orders)
    };
    seen.lock().unwrap().present -= 1;
    kept.ok().filter(|kept| *kept).map(|_| ())
}

/// Whether the connection goes on.
fn obey(mut stream: &TcpStream, orders: &str) -> std::io::Result<bool> {
    match orders {
        "429" => {
            let error = json!({ "error": { "message": "too many", "code": "rate_limit" } });
            return plain(
                stream,
                "429 Too Many Requests",
                "Retry-After: 7\r\n",
                &error.to_string(),
            );
        }
        "503" => return plain(stream, "503 Service Unavailable", "", "<html>busy</html>"),
        "silence" => {
            thread::sleep(Duration::from_secs(30));
            return Ok(false);
        }
        "slam" => return Ok(false),
        "json" => return plain(stream, "200 OK", "", "{\"choices\":[{\"text\":\"a\"}]}"),
        _ => {}
    }
    let framing =
        if orders == "close" { "Connection: close" } else { "Transfer-Encoding: chunked" };
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n\r\n")?;
    for (wait_ms, piece) in script(orders) {
        thread::sleep(Duration::from_millis(wait_ms));
        if orders == "close" {
            stream.write_all(&piece)?;
        } else {
            write!(stream, "{:x}\r\n", piece.len())?;
            stream.write_all(&piece)?;
            stream.write_all(b"\r\n")?;
        }
    }
    if matches!(orders, "cut" | "close") {
        stream.shutdown(std::net::Shutdown::Both)?;
        return Ok(false);
    }
    stream.write_all(b"0\r\n\r\n")?;
    // Some servers keep a connection for a while, and close it without a word.
    Ok(orders != "leave")
}

fn plain(mut stream: &TcpStream, status: &str, headers: &str, body: &str) -> std::io::Result<bool> {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n{body}")?;
    Ok(true)
}

/// Pieces of a stream, and how long to wait before each.
fn script(orders: &str) -> Vec<(u64, Vec<u8>)> {
    let token = |text: &str| format!("data: {}\n\n", json!({ "choices": [{ "text": text }] }));
    let usage = |tokens: u32| {
        let usage = json!({ "prompt_tokens": 11, "completion_tokens": tokens });
        format!("data: {}\n\n", json!({ "choices": [], "usage": usage }))
    };
    let done = "data: [DONE]\n\n".to_owned();
    let pieces = match orders {
        "slow" => {
            vec![(120, token("a")), (60, token("b")), (90, token("c")), (0, usage(5) + &done)]
        }
        "cut" => vec![(0, token("a")), (0, "data: {\"choi".into())],
        "ends" => vec![(0, token("a"))],
        "malformed" => vec![(0, token("a")), (0, "data: {]\n\n".into())],
        "told" => {
            vec![(0, token("a")), (0, "data: {\"error\":{\"message\":\"lost it\"}}\n\n".into())]
        }
        "empty" => vec![(0, usage(0) + &done)],
        "no usage" => vec![(0, token("1 2")), (0, token(" 3")), (0, done)],
        "announced" => vec![(0, token("")), (40, token("a")), (0, usage(1) + &done)],
        "odd" => {
            // Comments, CRLF, and a character in two pieces.
            let text = format!(": ping\r\n\r\n{}", token("é").replace('\n', "\r\n"));
            let cut = text.find('é').unwrap() + 1;
            let (before, after) = text.as_bytes().split_at(cut);
            return vec![
                (0, before.to_vec()),
                (20, after.to_vec()),
                (0, (usage(1) + &done).into()),
            ];
        }
        _ => vec![(0, token("a")), (5, token("b")), (0, usage(2) + &done)],
    };
    pieces.into_iter().map(|(wait, piece)| (wait, piece.into_bytes())).collect()
}

/// A folder for results, and the program in it.
struct Bench {
    folder: tempfile::TempDir,
    server: Server,
}

impl Bench {
    fn new() -> Self {
        Bench { folder: tempfile::tempdir().unwrap(), server: Server::start() }
    }

    fn run(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pagoda-bench"));
        command.args(["serve", "--base-url", &self.server.url]).args(arguments.split_whitespace());
        command.env("OPENAI_API_KEY", "secret").current_dir(self.folder.path());
        command.output().unwrap()
    }

    /// Sends these prompts, in this order, and gives output and result.
    fn prompts(&self, prompts: &[&str], arguments: &str) -> (Output, Value) {
        let lines = prompts.iter().map(|prompt| json!({ "prompt": prompt }).to_string() + "\n");
        std::fs::write(self.folder.path().join("prompts"), lines.collect::<String>()).unwrap();
        let count = prompts.len();
        let output = self.run(&format!(
            "--dataset-name custom --dataset-path prompts --disable-shuffle --num-prompts {count} \
             --save-result --save-detailed --result-filename result.json {arguments}"
        ));
        let result = std::fs::read(self.folder.path().join("result.json"));
        let result = result.unwrap_or_else(|_| panic!("{output:?}"));
        (output, serde_json::from_slice(&result).unwrap())
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn floats(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

#[test]
fn each_way_to_fail_is_counted_and_spoils_nothing_else() {
    let bench = Bench::new();
    let prompts = [
        "fine",
        "cut",
        "429",
        "503",
        "malformed",
        "told",
        "ends",
        "empty",
        "slam",
        "json",
        "silence",
        "fine",
    ];
    let (output, result) = bench.prompts(&prompts, "--model m --request-timeout-sec 2");
    assert!(output.status.success(), "{output:?}");
    assert_eq!((&result["completed"], &result["failed"]), (&json!(2), &json!(10)));
    assert_eq!(
        result["failures"],
        json!({ "cut": 3, "empty": 2, "error event": 1, "http 429": 1, "http 503": 1,
            "malformed": 1, "timeout": 1 })
    );
    let said = [
        "",
        "cut off",
        "HTTP 429 (retry after 7 s): too many",
        "HTTP 503: <html>busy</html>",
        "malformed",
        "lost it",
        "finish_reason",
        "never received",
        "cut off",
        "never received",
        "within 2s",
        "",
    ];
    for (index, said) in said.into_iter().enumerate() {
        let error = result["errors"][index].as_str().unwrap();
        assert!(error.contains(said) && error.is_empty() == said.is_empty(), "{index}: {error}");
    }
    assert_eq!(result["output_lens"], json!([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]));
    assert_eq!(
        (&result["total_input_tokens"], &result["total_output_tokens"]),
        (&json!(22), &json!(4))
    );
    let text = stdout(&output);
    assert!(text.contains("Error 9: no answer within 2s"), "{text}");
    assert!(text.contains("Successful requests:                     2"), "{text}");
}

#[test]
fn figures_are_those_of_the_times_that_were_seen() {
    let bench = Bench::new();
    let (output, result) = bench.prompts(
        &["slow", "fine", "announced", "odd", "close"],
        "--model m --metric-percentiles 50,99.5 --percentile-metrics ttft,tpot,itl,e2el \
         --goodput ttft:100 --metadata run=7",
    );
    assert!(output.status.success(), "{output:?}");
    assert_eq!(result["completed"], 5, "{}", result["errors"]);
    let (ttfts, latencies) = (floats(&result["ttfts"]), floats(&result["latencies"]));
    let itls: Vec<Vec<f64>> = result["itls"].as_array().unwrap().iter().map(floats).collect();
    // A sleep is never shorter than it was asked to be.
    assert!(ttfts[0] >= 0.12 && latencies[0] >= 0.27, "{ttfts:?} {latencies:?}");
    assert_eq!(itls.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1, 0, 1]);
    for index in 0..5 {
        let sum = ttfts[index] + itls[index].iter().sum::<f64>();
        assert!((sum - latencies[index]).abs() < 1e-9, "{index}");
    }
    assert_eq!(result["output_lens"], json!([5, 2, 1, 1, 2]));
    // Usage says five tokens in three events.
    let tpots = [(latencies[0] - ttfts[0]) / 4.0, latencies[1] - ttfts[1], latencies[4] - ttfts[4]];
    let near = |name: &str, wanted: f64| {
        let found = result[name].as_f64().unwrap();
        assert!((found / wanted - 1.0).abs() < 1e-9, "{name}: {found}, not {wanted}");
    };
    near("mean_tpot_ms", tpots.iter().sum::<f64>() / 3.0 * 1e3);
    near("mean_ttft_ms", ttfts.iter().sum::<f64>() / 5.0 * 1e3);
    near("mean_e2el_ms", latencies.iter().sum::<f64>() / 5.0 * 1e3);
    let mut sorted = ttfts.clone();
    sorted.sort_by(f64::total_cmp);
    near("p50_ttft_ms", sorted[2] * 1e3);
    near("median_ttft_ms", sorted[2] * 1e3);
    near("p99.5_ttft_ms", (sorted[3] + (sorted[4] - sorted[3]) * 0.98) * 1e3);
    let duration = result["duration"].as_f64().unwrap();
    near("output_throughput", 11.0 / duration);
    near("total_token_throughput", 66.0 / duration);
    let good = ttfts.iter().filter(|&&ttft| ttft <= 0.1).count();
    near("request_goodput", good as f64 / duration);
    assert_eq!((&result["run"], &result["request_rate"]), (&json!("7"), &json!("inf")));
    assert_eq!(result["generated_texts"], json!(["abc", "ab", "a", "é", "ab"]));
    assert_eq!(result["first_events_without_text"], 1);
    assert!(stdout(&output).contains("1 answers began with an event without text"));
}

#[test]
fn without_usage_the_tokenizer_counts() {
    let bench = Bench::new();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/demo/model");
    let tokenizer = format!("--model m --skip-chat-template --tokenizer {}", demo.display());
    let (_, result) = bench.prompts(&["no usage", "fine"], &tokenizer);
    assert_eq!(
        result["output_tokens_counted_by"],
        json!({ "usage": 1, "tokenizer": 1, "nothing": 0 })
    );
    // "1 2 3": three digits and two spaces, at the demo's word borders.
    let counted = result["output_lens"][0].as_u64().unwrap();
    assert!((3..=5).contains(&counted), "{counted}");
    // The server's count of prompt tokens wins over ours.
    assert_eq!(result["input_lens"][1], 11);
    assert_ne!(result["input_lens"][0], 11);
    let (output, result) = bench.prompts(&["no usage"], "--model m");
    assert_eq!(result["output_lens"], json!([1]));
    assert!(stdout(&output).contains("the server sent no usage"));
}

#[test]
fn requests_are_those_of_the_api_and_connections_are_kept() {
    let bench = Bench::new();
    let (output, result) = bench.prompts(
        &["fine"; 4],
        "--max-concurrency 1 --request-id-prefix x- --header x-a=b --ignore-eos --temperature 0 \
         --output-len 9 --num-warmups 2",
    );
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        (&result["model_id"], &result["max_concurrent_requests"]),
        (&json!("org/listed"), &json!(1))
    );
    let seen = bench.server.seen.lock().unwrap();
    let posts: Vec<&(String, Value)> = seen
        .requests
        .iter()
        .filter(|(head, _)| head.starts_with("post /v1/completions "))
        .collect();
    assert_eq!((posts.len(), seen.present_max), (6, 1));
    // A connection may be opened while the one before is on its way back.
    assert!(seen.connections <= 3, "{}", seen.connections);
    for (index, (head, body)) in posts.into_iter().enumerate() {
        let id = match index {
            0 | 1 => format!("x-request-id: x-warmup-{index}\r\n"),
            _ => format!("x-request-id: x-{}\r\n", index - 2),
        };
        for line in ["authorization: bearer secret\r\n", "x-a: b\r\n", &id] {
            assert!(head.contains(line), "{head}");
        }
        assert_eq!(
            *body,
            json!({ "model": "org/listed", "prompt": "fine", "max_tokens": 9, "stream": true,
                "stream_options": { "include_usage": true }, "repetition_penalty": 1.0,
                "ignore_eos": true, "temperature": 0.0 })
        );
    }
}

#[test]
fn what_is_not_measured_has_prompts_of_its_own() {
    let bench = Bench::new();
    let output = bench.run(
        "--model m --skip-tokenizer-init --random-input-len 9 --num-prompts 2 --num-warmups 3 \
         --ready-check-timeout-sec 9 --max-concurrency 1",
    );
    assert!(output.status.success(), "{output:?}");
    let seen = bench.server.seen.lock().unwrap();
    let prompts: Vec<&Value> = seen.requests.iter().map(|(_, body)| &body["prompt"]).collect();
    // The check, three warm-ups of which the third is the first again, and what is measured.
    assert_eq!(prompts.len(), 6);
    assert_eq!((prompts[0], prompts[1]), (prompts[1], prompts[3]));
    assert!(!prompts[..4].contains(&prompts[4]) && !prompts[..4].contains(&prompts[5]));
}

#[test]
fn a_server_that_takes_requests_and_says_nothing_is_not_ready() {
    let bench = Bench::new();
    let lines = json!({ "prompt": "silence" }).to_string();
    std::fs::write(bench.folder.path().join("prompts"), lines).unwrap();
    let output = bench.run(
        "--model m --dataset-name custom --dataset-path prompts --num-prompts 1 \
         --ready-check-timeout-sec 1",
    );
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("no answer within 1s"), "{told}");
}

#[test]
fn a_kept_connection_that_the_server_closed_costs_no_request() {
    let bench = Bench::new();
    let prompts = ["leave", "fine", "leave", "leave", "fine", "fine", "leave", "fine"];
    let (_, result) = bench.prompts(&prompts.repeat(5), "--model m --max-concurrency 3");
    assert_eq!(result["completed"], 40, "{}", result["errors"]);
    // What is lost on a connection of its own is the server's failure, and is not sent again.
    let bench = Bench::new();
    let (_, result) = bench.prompts(&["slam"; 3], "--model m --max-concurrency 1");
    assert_eq!(result["failures"], json!({ "cut": 3 }));
    assert_eq!(bench.server.seen.lock().unwrap().requests.len(), 3);
}

#[test]
fn a_bound_on_concurrency_is_kept_and_waiting_is_in_no_latency() {
    let bench = Bench::new();
    let (_, result) = bench.prompts(
        &["slow"; 9],
        "--model m --max-concurrency 3 --percentile-metrics ttft,client_queue_time",
    );
    assert_eq!(bench.server.seen.lock().unwrap().present_max, 3);
    assert_eq!(result["max_concurrent_requests"], 3);
    let (queued, starts) = (floats(&result["queue_times"]), floats(&result["start_times"]));
    // The last three waited for two answers of 270 ms.
    assert!(starts[6..].iter().all(|&start| start >= 0.54), "{starts:?}");
    assert!(queued[6..].iter().all(|&wait| wait >= 0.3), "{queued:?}");
    assert!(queued.iter().zip(&starts).all(|(wait, start)| wait <= start));
    let ttfts = floats(&result["ttfts"]);
    assert!(ttfts[6..].iter().zip(&queued[6..]).all(|(ttft, wait)| ttft < wait), "{ttfts:?}");
    assert!(result["p99_client_queue_time_ms"].as_f64().unwrap() >= 300.0);
    assert!(result.get("mean_e2el_ms").is_none());
}

#[test]
fn a_rate_spreads_requests_over_time() {
    let bench = Bench::new();
    let (output, result) =
        bench.prompts(&["fine"; 20], "--model m --request-rate 40 --burstiness 0.5");
    let starts = floats(&result["start_times"]);
    assert!(starts[19] >= 0.5, "{starts:?}");
    assert_eq!((&result["request_rate"], &result["burstiness"]), (&json!(40.0), &json!(0.5)));
    assert!(stdout(&output).contains("Request rate configured (RPS):           40.00"));
}

#[test]
fn a_sweep_is_a_result_a_line_a_table_and_a_drawing() {
    let bench = Bench::new();
    let output = bench.run(
        "--skip-tokenizer-init --random-input-len 6 --random-output-len 2 --label engine \
         --sweep-max-concurrency 1,2,4 --sweep-num-prompts-factor 3 --save-result \
         --result-dir results --result-filename sweep.jsonl --plot load.svg --goodput e2el:1000",
    );
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| std::fs::read_to_string(bench.folder.path().join(name)).unwrap();
    let lines: Vec<Value> = read("results/sweep.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |name: &str| lines.iter().map(|line| line[name].clone()).collect::<Vec<_>>();
    assert_eq!(of("max_concurrency"), [1, 2, 4]);
    assert_eq!(of("completed"), [3, 6, 12]);
    assert_eq!(lines[0]["dataset"]["input_len"], json!([6, 6]));
    assert!(lines[0].get("ttfts").is_none() && lines[0]["request_goodput"].as_f64().unwrap() > 0.0);
    // No two loads send the same prompt.
    let seen = bench.server.seen.lock().unwrap();
    let mut prompts: Vec<&Value> = seen.requests.iter().map(|(_, body)| &body["prompt"]).collect();
    prompts.sort_by_key(|prompt| prompt.to_string());
    prompts.dedup();
    // One of them is the list of models, which has none.
    assert_eq!(prompts.len(), 3 + 6 + 12 + 1);
    let svg = read("load.svg");
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && svg.contains("engine"));
    assert!(stdout(&output).lines().any(|line| line.trim_start().starts_with("4      inf")));
}

#[test]
fn without_a_name_a_result_is_named_by_its_load() {
    let bench = Bench::new();
    let output = bench.run(
        "--skip-tokenizer-init --random-input-len 6 --num-prompts 2 --save-result \
         --sweep-request-rate 20,inf --max-concurrency 2 --result-dir results",
    );
    assert!(output.status.success(), "{output:?}");
    let folder = std::fs::read_dir(bench.folder.path().join("results")).unwrap();
    let mut names: Vec<String> =
        folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names.len(), 2);
    assert!(names[0].starts_with("openai-20.0qps-concurrency2-listed-20"), "{names:?}");
    assert!(names[1].starts_with("openai-infqps-concurrency2-listed-20"), "{names:?}");
}

#[test]
fn nobody_at_home_is_an_error_and_so_is_a_plan_without_sense() {
    let bench = Bench::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let run = |arguments: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pagoda-bench"));
        command.arg("serve").args(arguments.split_whitespace()).current_dir(bench.folder.path());
        command.output().unwrap()
    };
    let output = run(&format!("--base-url http://{free} --num-prompts 3"));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/v1/models"), "{output:?}");
    let output =
        run(&format!("--base-url http://{free} --num-prompts 3 --model m --skip-tokenizer-init"));
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("Error 2: no connection"), "{output:?}");
    let ready = "--num-prompts 3 --model m --skip-tokenizer-init --ready-check-timeout-sec 1";
    let output = run(&format!("--base-url http://{free} {ready}"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not answered"), "{output:?}");
    assert_eq!(run("--num-prompts 0").status.code(), Some(2));
    assert_eq!(run("--dataset-name nonsense").status.code(), Some(2));
}
