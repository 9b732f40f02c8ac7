//! Answers that are large: what many choices repeat is in memory once, what is long is sent in
//! blocks, and what could take too much is refused before it is begun.

use std::sync::Arc;

use bytes::Bytes;
use pagoda_http::json_text::SharedText;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::client::{post, request};
use super::scripted::{Scripted, Setup};
use crate::api::room::Room;
use crate::profiles::openai::prompt_part::{PromptPart, WrittenPart, answer_bytes};
use crate::profiles::openai::wire::Wire;
use crate::request::TokenOut;
use crate::scheduler::settings::SchedulerSettings;

const COMPLETIONS: &str = "/v1/completions";

/// The part of a prompt of 2000 tokens of one byte each, most of them no UTF-8 of their own.
async fn written_part(wire: &Arc<Wire>) -> WrittenPart {
    let server = Scripted::open().await;
    let instance = server.api.instance(None).unwrap();
    let ids: Vec<u32> = (0..2000).map(|index| 100 + index % 150).collect();
    let room = Room::from(Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap());
    let mut part = PromptPart::new(wire, &instance, &ids, &room).await.unwrap();
    for id in &ids[1..] {
        let top = (0..20).map(|rank| (255 - rank, -1.234_567_8e-5)).collect();
        part.push(&TokenOut { id: *id, logprob: -123.456_78, rank: 123_456, top });
    }
    part.finish()
}

#[tokio::test]
async fn a_prompt_is_written_within_what_was_reserved_for_it() {
    let mut wire = Wire { echo: true, prompt_logprobs: Some(20), ..Wire::default() };
    (wire.options.logprobs, wire.return_token_ids, wire.stream) = (Some(20), true, true);
    let wire = Arc::new(wire);
    let written = written_part(&wire).await;
    let size = |text: &SharedText| text.iter().map(Bytes::len).sum::<usize>();
    let columns: usize = written.columns.iter().flat_map(|all| &all.texts).map(size).sum();
    let scores = written.logprobs.as_ref().map_or(0, size);
    let all = size(&written.text) + columns + scores + written.ids.as_ref().map_or(0, size);
    let reserved = answer_bytes(&wire).of(2000, 1, 0) as usize;
    assert!(all <= reserved, "{all} bytes for which {reserved} were reserved");
    assert!(columns > reserved / 8 && scores > reserved / 4, "{columns} {scores} {reserved}");
}

/// A prompt of 400 tokens, scored and repeated by 20 choices.
fn repeated(stream: bool) -> Value {
    json!({
        "prompt": "x".repeat(400), "echo": true, "logprobs": 20, "max_tokens": 2, "n": 20,
        "return_token_ids": true, "stream": stream,
    })
}

#[tokio::test]
async fn a_large_answer_is_sent_in_blocks_and_is_what_a_small_one_is() {
    let server = Scripted::open().await;
    let large = post(server.address, COMPLETIONS, &repeated(false)).await;
    assert_eq!(large.header("transfer-encoding"), Some("chunked"));
    assert_eq!(large.header("content-type"), Some("application/json"));
    assert!(large.body.len() > 1 << 20);
    let mut one = repeated(false);
    one["n"] = json!(1);
    let small = post(server.address, COMPLETIONS, &one).await;
    assert!(small.header("content-length").is_some());
    let (large, small) = (large.json(), small.json());
    let choices = large["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 20);
    for (index, choice) in choices.iter().enumerate() {
        let mut expected = small["choices"][0].clone();
        expected["index"] = json!(index);
        assert_eq!(*choice, expected);
    }
    assert_eq!(choices[0]["logprobs"]["tokens"].as_array().unwrap().len(), 402);
    assert_eq!(choices[0]["logprobs"]["text_offset"][401], 401);
    assert_eq!(choices[0]["prompt_token_ids"].as_array().unwrap().len(), 400);
    assert_eq!(choices[0]["token_ids"], json!([120, 120]));
    assert_eq!(large["usage"]["completion_tokens"], 40);
}

#[tokio::test]
async fn a_streamed_prompt_is_told_one_choice_a_frame() {
    let server = Scripted::open().await;
    let (events, done) = post(server.address, COMPLETIONS, &repeated(true)).await.events();
    assert!(done && events.len() > 40);
    for (index, event) in events.iter().take(20).enumerate() {
        let [choice] = &event["choices"].as_array().unwrap()[..] else { panic!("{event}") };
        assert_eq!(choice["index"], index);
        assert_eq!(choice["text"].as_str().unwrap().len(), 400);
        assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), 400);
        assert_eq!(choice["prompt_token_ids"].as_array().unwrap().len(), 400);
        assert!(choice["finish_reason"].is_null());
    }
    let next = &events[20]["choices"][0]["logprobs"]["text_offset"];
    assert_eq!(*next, json!([400]), "what follows is counted from the prompt's end");
}

/// A budget of a MiB, of which one request takes at most a quarter.
fn small_room() -> Setup {
    let scheduling = SchedulerSettings { max_answer_items: 1 << 16, ..Default::default() };
    Setup { scheduling, ..Setup::default() }
}

#[tokio::test]
async fn an_answer_that_could_take_too_much_memory_is_refused_before_it_is_begun() {
    let server = Scripted::with(small_room()).await;
    let ask = |n: u32, max_tokens: u32, stream: bool| {
        let body = json!({
            "prompt": "ab", "n": n, "max_tokens": max_tokens, "logprobs": 20, "stream": stream,
        });
        async move { post(server.address, COMPLETIONS, &body).await }
    };
    assert_eq!(ask(6, 100, true).await.status, 200, "a stream holds its events alone");
    assert_eq!(ask(6, 100, false).await.error(), "400 n answer_too_large");
    assert_eq!(ask(1, 400, false).await.error(), "400 logprobs answer_too_large");
    assert_eq!(ask(2, 100, false).await.status, 200);
    let mut prompt = json!({"prompt": "x".repeat(400), "echo": true, "prompt_logprobs": 20});
    assert_eq!(
        post(server.address, COMPLETIONS, &prompt).await.error(),
        "400 max_tokens answer_too_large"
    );
    prompt["prompt_logprobs"] = json!(2);
    assert_eq!(post(server.address, COMPLETIONS, &prompt).await.status, 200);
    assert_eq!(server.taken.load(std::sync::atomic::Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_answer_for_which_there_is_no_room_now_is_told_to_come_again() {
    let server = Scripted::with(small_room()).await;
    let ask = |n: u32| {
        json!({"prompt": "wait in the queue", "n": n, "max_tokens": 100, "logprobs": 20})
            .to_string()
    };
    let mut sockets = Vec::new();
    for taken in 1..=5 {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(request("POST", COMPLETIONS, "", &ask(2)).as_bytes()).await.unwrap();
        server.has_taken(taken).await;
        sockets.push(socket);
    }
    let body = serde_json::from_str(&ask(2)).unwrap();
    let busy = post(server.address, COMPLETIONS, &body).await;
    assert_eq!(busy.error(), "503 - engine_overloaded");
    assert!(busy.header("retry-after").is_some());
    let small = json!({"prompt": "ab", "max_tokens": 4});
    assert_eq!(post(server.address, COMPLETIONS, &small).await.status, 200);
    drop(sockets);
    server.saw_cancelled(5).await;
    let large = json!({"prompt": "ab", "n": 2, "max_tokens": 100, "logprobs": 20});
    assert_eq!(post(server.address, COMPLETIONS, &large).await.status, 200);
}
