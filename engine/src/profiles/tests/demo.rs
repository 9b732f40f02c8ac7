//! The demo model behind real sockets: answers repeat, prefixes are found again, and whoever
//! leaves gives everything back.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Parser;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::client::{post, request};
use super::scripted::{Setup, listen, until};
use crate::api::Api;
use crate::api::instance::Instance;
use crate::config::flags::CommandLine;
use crate::http::body::BodyBudget;
use crate::memory::Beside;
use crate::metrics::Metrics;
use crate::serve::load::{Opened, Shared};
use crate::text::Rendering;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

struct Demo {
    address: SocketAddr,
    instance: Arc<Instance>,
    _drain: tokio::sync::watch::Sender<bool>,
}

async fn demo() -> Demo {
    let flags = [
        "pagoda",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--max-num-seqs",
        "4",
        "--max-num-batched-tokens",
        "64",
        "--kv-cache-memory-bytes",
        "64MiB",
    ];
    let config = CommandLine::parse_from(flags).written.resolve().unwrap();
    let metrics = Metrics::new(false).unwrap();
    let api = Api::new(metrics.clone());
    let shared = Shared::new(metrics.clone()).unwrap();
    let opened = Opened::open(&config.models[0], &shared, &Rendering::Here).unwrap();
    let instance = opened.load(&config.models[0], &shared, Beside::default()).unwrap().instance;
    api.serve(std::slice::from_ref(&instance)).unwrap();
    let setup = Setup::default();
    let bodies = BodyBudget::new(&setup.limits);
    let (address, drain) = listen(setup, bodies, api, metrics).await;
    Demo { address, instance, _drain: drain }
}

fn body(text: &str, more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": text}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_repeat_and_prefixes_are_found_again() {
    let demo = demo().await;
    let long = "one two three four five six seven eight nine ten ".repeat(8);
    let greedy = body(&long, json!({"temperature": 0, "max_tokens": 12, "ignore_eos": true}));
    let first = post(demo.address, CHAT, &greedy).await.json();
    let second = post(demo.address, CHAT, &greedy).await.json();
    assert_eq!(first["choices"], second["choices"]);
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert!(second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0);
    assert_eq!(second["usage"]["completion_tokens"], 12);

    let more = json!({"seed": 7, "temperature": 1, "n": 3, "max_tokens": 10, "ignore_eos": true});
    let seeded = body("count", more);
    let first = post(demo.address, CHAT, &seeded).await.json();
    let second = post(demo.address, CHAT, &seeded).await.json();
    assert_eq!(first["choices"], second["choices"]);
    assert_eq!(first["choices"].as_array().unwrap().len(), 3);
    let salted = body(&long, json!({"max_tokens": 1, "cache_salt": "another"}));
    let other = post(demo.address, CHAT, &salted).await.json();
    assert_eq!(other["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cached_tokens_are_counted_one_by_one() {
    let demo = demo().await;
    let size = demo.instance.engine.info().block_size;
    assert_eq!(size, 32);
    // Prompts are token ids, of which each shares `shared` with one before.
    let ask = async |salt: &str, shared: u32, len: u32| {
        let prompt: Vec<u32> =
            (0..len).map(|i| if i < shared { 300 + i } else { 500 + i + 7 * len }).collect();
        let body = json!({"prompt": prompt, "max_tokens": 1, "temperature": 0, "cache_salt": salt});
        let usage = post(demo.address, COMPLETIONS, &body).await.json()["usage"].take();
        assert_eq!(usage["prompt_tokens"], len);
        usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(ask("a", 60, 60).await, 0);
    assert_eq!(ask("a", 60, 60).await, 59, "all but the last, which is computed");
    assert_eq!(ask("a", 45, 70).await, 45);
    assert_eq!(ask("a", 39, 80).await, 32, "seven tokens are not worth a copy");
    assert_eq!(ask("a", 19, 50).await, 19, "of a block that is full");
    assert_eq!(ask("b", 60, 60).await, 0, "another salt shares nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_says_what_the_whole_answer_says() {
    let demo = demo().await;
    for more in [json!({}), json!({"n": 2}), json!({"stop": ["e", "一"]})] {
        let mut body = body("你好, say it back", more);
        let fixed = json!({"temperature": 0.8, "seed": 3, "max_tokens": 40});
        body.as_object_mut().unwrap().extend(fixed.as_object().unwrap().clone());
        let whole = post(demo.address, CHAT, &body).await.json();
        body["stream"] = json!(true);
        let (events, done) = post(demo.address, CHAT, &body).await.events();
        assert!(done);
        for choice in whole["choices"].as_array().unwrap() {
            let of_choice = events
                .iter()
                .flat_map(|event| event["choices"].as_array().unwrap())
                .filter(|delta| delta["index"] == choice["index"]);
            let (mut text, mut reason) = (String::new(), Value::Null);
            for delta in of_choice {
                text.push_str(delta["delta"]["content"].as_str().unwrap_or_default());
                if !delta["finish_reason"].is_null() {
                    reason = delta["finish_reason"].clone();
                }
            }
            assert_eq!(choice["message"]["content"], text);
            assert_eq!(choice["finish_reason"], reason);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_leaves_gives_seats_blocks_and_places_back() {
    let demo = demo().await;
    let mut sockets = Vec::new();
    for index in 0..12 {
        let more = json!({
            "max_tokens": 1500, "ignore_eos": true, "temperature": 1, "stream": index % 2 == 0,
        });
        let body = body(&format!("{index}: {}", "a long prompt ".repeat(20)), more).to_string();
        let mut socket = TcpStream::connect(demo.address).await.unwrap();
        socket.write_all(request("POST", CHAT, "", &body).as_bytes()).await.unwrap();
        sockets.push(socket);
    }
    let stats = || demo.instance.engine.stats();
    // Four seats: the others wait, so both kinds leave.
    until(|| stats().running == 4 && stats().waiting > 0 && stats().generation_tokens > 8).await;
    let blocks_used = stats().blocks_used;
    drop(sockets);
    until(|| stats().running == 0 && stats().waiting == 0 && stats().blocks_used == 0).await;
    assert!(blocks_used > 0);
    assert_eq!((stats().waiting_tokens, stats().cancelled), (0, 12));
    let answer = post(demo.address, CHAT, &body("again", json!({"max_tokens": 2}))).await;
    assert_eq!(answer.status, 200);
}
