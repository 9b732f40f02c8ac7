//! What clients of the OpenAI API see: shapes, streams, choices, log-probabilities, errors.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{get, post};
use super::scripted::{Scripted, Setup};
use crate::text::pieces::char_of_byte;
use crate::text::{TextModel, Tokenizer};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn user(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": text}]})
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_chat_answers_in_the_api_shape() {
    let server = Scripted::open().await;
    let answer = post(server.address, CHAT, &user("héllo")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "model-a");
    let choice = &body["choices"][0];
    assert_eq!(
        choice["message"],
        json!({"role": "assistant", "content": "héllo", "refusal": null})
    );
    assert_eq!(choice["finish_reason"], "stop");
    assert!(choice["logprobs"].is_null());
    let usage = &body["usage"];
    // Six bytes and the end-of-sequence token.
    assert_eq!(usage["completion_tokens"], 7);
    let sum = usage["prompt_tokens"].as_u64().unwrap() + 7;
    assert_eq!(usage["total_tokens"].as_u64(), Some(sum));
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 3);
    assert_eq!(answer.header("x-api-profile"), Some("openai"));
    assert!(answer.header("x-request-id").unwrap().starts_with("req_"));
}

#[tokio::test]
async fn a_stream_has_role_deltas_reason_usage_and_end() {
    let server = Scripted::open().await;
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = post(server.address, CHAT, &with(user("你好 é"), more)).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let (events, done) = answer.events();
    assert!(done);
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let text: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, "你好 é");
    let last = &events[events.len() - 1];
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 10);
    let ended = &events[events.len() - 2];
    assert_eq!(ended["choices"][0]["finish_reason"], "stop");
    assert_eq!(ended["choices"][0]["delta"], json!({}));
    assert!(events[..events.len() - 1].iter().all(|event| event["usage"].is_null()));
    let id = &events[0]["id"];
    assert!(events.iter().all(|event| &event["id"] == id));
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk"));

    let plain = post(server.address, CHAT, &with(user("x"), json!({"stream": true}))).await;
    let (events, done) = plain.events();
    assert!(done && events.iter().all(|event| event.get("usage").is_none()));
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let more = json!({"stream": true, "stream_options": options});
    let (events, _) = post(server.address, CHAT, &with(user("xy"), more)).await.events();
    assert_eq!(events[1]["usage"]["completion_tokens"], 1);
}

#[tokio::test]
async fn choices_limits_and_stops() {
    let server = Scripted::open().await;
    let body = with(user("abcdef"), json!({"n": 3, "max_tokens": 4}));
    let answer = post(server.address, CHAT, &body).await.json();
    for (index, choice) in answer["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"]["content"], "abcd");
        assert_eq!(choice["finish_reason"], "length");
    }
    assert_eq!(answer["usage"]["completion_tokens"], 12);

    let body = with(user("abcdef"), json!({"stop": ["zz", "de"]}));
    let answer = post(server.address, CHAT, &body).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "abc");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["choices"][0]["stop_reason"], "de");
    let body = with(user("abcdef"), json!({"stop": "de", "include_stop_str_in_output": true}));
    let answer = post(server.address, CHAT, &body).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "abcde");
    let body = with(user("abcdef"), json!({"stop_token_ids": [100]}));
    let answer = post(server.address, CHAT, &body).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "abc");
    assert_eq!(answer["choices"][0]["stop_reason"], 100);

    let more = json!({"n": 2, "stream": true, "stop": "d"});
    let (events, done) = post(server.address, CHAT, &with(user("abcdef"), more)).await.events();
    assert!(done);
    for index in 0..2 {
        let of_choice = || {
            events
                .iter()
                .flat_map(|event| event["choices"].as_array().unwrap())
                .filter(|choice| choice["index"] == index)
        };
        let text: String =
            of_choice().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(text, "abc");
        let reasons = of_choice().filter(|choice| !choice["finish_reason"].is_null()).count();
        assert_eq!(reasons, 1);
    }
}

#[tokio::test]
async fn log_probabilities_in_the_chat_shape() {
    let server = Scripted::open().await;
    let more = json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 3});
    let body = with(user("aé"), more);
    let answer = post(server.address, CHAT, &body).await.json();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 3);
    assert_eq!(content[0]["token"], "a");
    assert_eq!(content[1]["bytes"], json!([0xC3]));
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);

    let body = with(body, json!({"stream": true}));
    let (events, _) = post(server.address, CHAT, &body).await.events();
    let tokens: usize = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .map(Vec::len)
        .sum();
    assert_eq!(tokens, 3);
}

#[tokio::test]
async fn completions_take_all_forms_of_prompts() {
    let server = Scripted::open().await;
    let texts = async |body: Value| -> Vec<String> {
        let answer = post(server.address, COMPLETIONS, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let choices = answer.json()["choices"].as_array().unwrap().clone();
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(texts(json!({"prompt": "ab"})).await, ["ab"]);
    assert_eq!(texts(json!({"prompt": ["ab", "c"], "n": 2})).await, ["ab", "ab", "c", "c"]);
    assert_eq!(texts(json!({"prompt": [104, 105]})).await, ["hi"]);
    assert_eq!(texts(json!({"prompt": [[104], [105]]})).await, ["h", "i"]);
    assert_eq!(texts(json!({"prompt": "ab", "echo": true})).await, ["abab"]);
    let long = "x".repeat(40);
    assert_eq!(texts(json!({"prompt": long})).await, ["x".repeat(16)]);
    assert_eq!(texts(json!({"prompt": "abcd", "truncate_prompt_tokens": 2})).await, ["cd"]);

    let body = json!({"prompt": ["ab", "c"], "stream": true, "echo": true});
    let (events, done) = post(server.address, COMPLETIONS, &body).await.events();
    assert!(done);
    for (index, expected) in ["abab", "cc"].iter().enumerate() {
        let text: String = events
            .iter()
            .flat_map(|event| event["choices"].as_array().unwrap())
            .filter(|choice| choice["index"] == index)
            .filter_map(|choice| choice["text"].as_str())
            .collect();
        assert_eq!(&text, expected);
    }
    assert!(events.iter().all(|event| event["object"] == "text_completion"));
}

#[tokio::test]
async fn log_probabilities_in_the_completions_shape() {
    let server = Scripted::open().await;
    let body = json!({"prompt": "ab", "echo": true, "logprobs": 1, "max_tokens": 1});
    let answer = post(server.address, COMPLETIONS, &body).await.json();
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "b", "a"]));
    assert_eq!(logprobs["token_logprobs"], json!([null, -0.5, -0.5]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2]));
    assert_eq!(logprobs["top_logprobs"][1], json!({"\u{0}": -1.0, "b": -0.5}));
    let body = json!({"prompt": "ab", "prompt_logprobs": 0, "max_tokens": 0});
    let answer = post(server.address, COMPLETIONS, &body).await.json();
    assert_eq!(answer["choices"][0]["text"], "");
    let prompt = &answer["choices"][0]["prompt_logprobs"];
    assert!(prompt[0].is_null());
    assert_eq!(prompt[1]["98"], json!({"logprob": -0.5, "rank": 1, "decoded_token": "b"}));
    let body = json!({"prompt": "ab", "return_token_ids": true});
    let answer = post(server.address, COMPLETIONS, &body).await.json();
    assert_eq!(answer["choices"][0]["prompt_token_ids"], json!([97, 98]));
    assert_eq!(answer["choices"][0]["token_ids"], json!([97, 98, 299]));
}

#[tokio::test]
async fn models_are_found_by_every_name_and_tokens_counted() {
    let server = Scripted::open().await;
    let models = get(server.address, "/v1/models").await.json();
    let ids: Vec<&Value> =
        models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["model-a", "org/model-b"]);
    for path in ["/v1/models/org%2Fmodel-b", "/v1/models/org/model-b"] {
        assert_eq!(get(server.address, path).await.json()["id"], "org/model-b");
    }
    assert_eq!(get(server.address, "/v1/models/x").await.error(), "404 model model_not_found");
    for name in ["model-a", "org/model-b", "default", ""] {
        let body = with(user("x"), json!({"model": name}));
        assert_eq!(post(server.address, CHAT, &body).await.status, 200, "{name}");
    }
    let body = with(user("x"), json!({"model": "x"}));
    assert_eq!(post(server.address, CHAT, &body).await.error(), "404 model model_not_found");

    let answer = post(server.address, "/tokenize", &json!({"prompt": "hé"})).await.json();
    assert_eq!(answer["tokens"], json!([104, 195, 169]));
    assert_eq!((&answer["count"], &answer["max_model_len"]), (&json!(3), &json!(512)));
    let answer = post(server.address, "/tokenize", &user("x")).await.json();
    let tokens = answer["tokens"].clone();
    let back = post(server.address, "/detokenize", &json!({"tokens": tokens})).await.json();
    assert_eq!(back["prompt"], "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n");
    let answer = post(server.address, "/detokenize", &json!({"tokens": [300]})).await;
    assert_eq!(answer.error(), "400 tokens invalid_value");
    let both = with(user("x"), json!({"prompt": "x"}));
    assert_eq!(post(server.address, "/tokenize", &both).await.error(), "400 prompt invalid_value");
    let mut large = user("x");
    large["chat_template_kwargs"] = json!({"a": vec![1; 10_000]});
    let told = "400 chat_template_kwargs object_above_max_length";
    assert_eq!(post(server.address, "/tokenize", &large).await.error(), told);
}

#[tokio::test]
async fn a_text_that_cannot_fit_is_refused_before_it_is_tokenized() {
    let server = Scripted::open().await;
    let long = "x".repeat(100_000);
    for (path, body) in [(CHAT, user(&long)), (COMPLETIONS, json!({"prompt": long}))] {
        let answer = post(server.address, path, &body).await;
        assert_eq!(answer.status, 400);
        assert!(answer.body.contains("more than that"), "it was counted: {answer:?}");
        let kept = with(body, json!({"truncate_prompt_tokens": 4, "max_tokens": 1}));
        assert_eq!(post(server.address, path, &kept).await.status, 200);
    }
    let answer = post(server.address, "/tokenize", &json!({"prompt": long})).await.json();
    assert_eq!(answer["count"], 100_000);
    // Both kinds of text wait for their threads; this one needs none.
    let (release, released) = std::sync::mpsc::sync_channel::<()>(0);
    let released = Arc::new(std::sync::Mutex::new(released));
    for text_bytes in [1, 1 << 20] {
        let (pool, released) = (server.pool.clone(), released.clone());
        let wait = move || released.lock().unwrap().recv().is_ok();
        tokio::spawn(async move { pool.run(text_bytes, (), wait).await });
    }
    for path in ["/tokenize", COMPLETIONS] {
        let body = json!({"prompt": "x".repeat(2_000_000), "max_tokens": 1});
        let answer = post(server.address, path, &body).await;
        assert_eq!(answer.status, 400, "{answer:?}");
    }
    drop(release);
    let endless = "x".repeat(800_000);
    let truncated = json!({"prompt": endless, "truncate_prompt_tokens": 4});
    for (path, body) in [("/tokenize", json!({"prompt": endless})), (COMPLETIONS, truncated)] {
        let answer = post(server.address, path, &body).await;
        assert_eq!(answer.error(), "400 prompt string_above_max_length");
    }
}

#[tokio::test]
async fn a_long_text_holds_up_no_short_one() {
    let server = Scripted::open().await;
    let (release, released) = std::sync::mpsc::sync_channel::<()>(0);
    let pool = server.pool.clone();
    let long = tokio::spawn(async move { pool.run(1 << 20, (), move || released.recv()).await });
    for (path, body) in [(CHAT, user("hello")), (COMPLETIONS, json!({"prompt": "hello"}))] {
        assert_eq!(post(server.address, path, &body).await.status, 200);
    }
    let body = json!({"prompt": "x".repeat(100_000)});
    let mut next = Box::pin(post(server.address, "/tokenize", &body));
    let waits = tokio::time::timeout(Duration::from_millis(50), &mut next).await;
    assert!(waits.is_err() && !long.is_finished(), "one long text at a time");
    drop(release);
    assert_eq!(next.await.json()["count"], 100_000);
}

/// A text model with tokens for runs of up to 64 spaces: few tokens and many bytes.
fn wide_tokens() -> TextModel {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255_u8 {
        vocab.insert(char_of_byte(byte).to_string(), byte.into());
    }
    let (mut run, mut merges) = (char_of_byte(b' ').to_string(), Vec::new());
    for id in 256..262 {
        merges.push(json!([run, run]));
        run = run.repeat(2);
        vocab.insert(run.clone(), id.into());
    }
    let pre = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    });
    let model = json!({"type": "BPE", "vocab": vocab, "merges": merges});
    let json = json!({"version": "1.0", "pre_tokenizer": pre, "decoder": pre, "model": model});
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap();
    TextModel { tokenizer: Arc::new(tokenizer), template: None, ends: Vec::new() }
}

#[tokio::test]
async fn a_text_of_too_many_bytes_is_told_so() {
    let text = wide_tokens();
    let server = Scripted::with(Setup { text: Some(text), ..Setup::default() }).await;
    let body = json!({"prompt": " ".repeat(1 << 20), "truncate_prompt_tokens": 1});
    assert_eq!(post(server.address, COMPLETIONS, &body).await.status, 200);
    let body = json!({"prompt": " ".repeat(1 << 21)});
    let answer = post(server.address, "/tokenize", &body).await;
    assert_eq!(answer.error(), "400 prompt string_above_max_length");
    assert!(answer.body.contains("2097152"), "{answer:?}");
}

#[tokio::test]
async fn a_prompt_that_waits_holds_no_other_back_and_a_failure_cancels_all() {
    let server = Scripted::open().await;
    let prompts: Vec<String> = (0..40).map(|index| format!("hang midway {index}")).collect();
    let mut body = json!({"prompt": prompts, "max_tokens": 200});
    body["prompt"].as_array_mut().unwrap().push(json!("fail midway"));
    let answer = post(server.address, COMPLETIONS, &body);
    let answer = tokio::time::timeout(Duration::from_secs(30), answer).await.unwrap();
    assert_eq!(answer.error(), "500 - engine_failed");
    server.saw_cancelled(40).await;
}

#[tokio::test]
async fn a_choice_is_stopped_in_the_engine_once_its_stop_string_is_found() {
    let server = Scripted::open().await;
    for stream in [false, true] {
        let more = json!({"n": 2, "stop": "stopped", "stream": stream});
        let answer = post(server.address, CHAT, &with(user("go until stopped"), more)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(!answer.body.contains("engine_failed"), "{answer:?}");
    }
    server.saw_cancelled(2).await;
}

#[tokio::test]
async fn errors_are_told_in_shape_before_and_after_the_first_byte() {
    let server = Scripted::open().await;
    for (path, body, expected) in [
        (CHAT, json!({}), "400 messages missing_required_parameter"),
        (
            CHAT,
            with(user("x"), json!({"temperature": 3})),
            "400 temperature decimal_above_max_value",
        ),
        (CHAT, with(user("x"), json!({"tools": [{}]})), "400 tools unsupported_value"),
        (CHAT, user(&"x".repeat(600)), "400 messages context_length_exceeded"),
        (CHAT, with(user("x"), json!({"max_tokens": 600})), "400 messages context_length_exceeded"),
        (COMPLETIONS, json!({"prompt": ""}), "400 prompt invalid_value"),
        (COMPLETIONS, json!({"prompt": [300]}), "400 prompt invalid_value"),
        (
            COMPLETIONS,
            json!({"prompt": "x", "logprobs": 21}),
            "400 logprobs integer_above_max_value",
        ),
        (
            CHAT,
            with(user("x"), json!({"logprobs": true, "top_logprobs": 21})),
            "400 top_logprobs integer_above_max_value",
        ),
        (CHAT, user("fail at once"), "503 - shutting_down"),
        (CHAT, with(user("fail at once"), json!({"stream": true})), "503 - shutting_down"),
        (CHAT, user("fail midway"), "500 - engine_failed"),
        (CHAT, user("vanish"), "500 - engine_failed"),
    ] {
        let answer = post(server.address, path, &body).await;
        assert_eq!(answer.error(), expected, "{body}");
        assert!(!answer.body.contains("secret"));
    }
    let answer =
        post(server.address, CHAT, &with(user("fail midway"), json!({"stream": true}))).await;
    let (events, done) = answer.events();
    assert!(!done);
    assert_eq!(events[events.len() - 1]["error"]["code"], "engine_failed");
}

#[tokio::test]
async fn unknown_names_are_listed_and_counted() {
    let server = Scripted::open().await;
    let body = with(user("x"), json!({"frobnicate": 1, "bad name\n": 2}));
    let answer = post(server.address, CHAT, &body).await;
    assert_eq!(answer.header("x-pagoda-ignored"), Some("frobnicate, bad?name?"));
    let metrics = get(server.address, "/metrics").await.body;
    assert!(metrics.contains("pagoda_ignored_fields_total 2"), "{metrics}");
    for line in [
        "vllm:num_requests_running{model_name=\"model-a\",engine=\"0\"}",
        "pagoda_http_requests_total{route=\"/v1/chat/completions\",method=\"POST\",status=\"200\"} 1",
        "finished_reason=\"stop\"} 1",
        "vllm:request_queue_time_seconds_count",
        "vllm:cache_config_info{model_name=\"model-a\",engine=\"0\",block_size=\"16\"",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn a_loading_server_says_so() {
    let server = Scripted::with(Setup { is_loading: true, ..Setup::default() }).await;
    let answer = post(server.address, CHAT, &user("x")).await;
    assert_eq!(answer.error(), "503 - model_loading");
    assert_eq!(answer.header("retry-after"), Some("5"));
    assert_eq!(get(server.address, "/health").await.status, 200);
    assert_eq!(get(server.address, "/ready").await.status, 503);
}
