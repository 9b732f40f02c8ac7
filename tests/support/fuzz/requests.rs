//! Requests through sockets: bodies that are framed well, and whole connections that need not be.
//!
//! Every request gets an answer that the API defines: JSON with one error or one result, or events
//! that end. 500 is never one, nor is silence. Afterwards nothing runs in the engine.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::server::running;
use super::{Target, parts, seeds, shape};

/// A line with method and path, then a body.
pub(super) const REQUESTS: Target = Target {
    name: "requests",
    run: requests,
    seeds: seeds::requests,
    words: &[
        "messages",
        "role",
        "content",
        "assistant",
        "system",
        "prompt",
        "tokens",
        "stream",
        "stream_options",
        "include_usage",
        "max_tokens",
        "max_completion_tokens",
        "min_tokens",
        "n",
        "stop",
        "stop_token_ids",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "prompt_logprobs",
        "echo",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "chat_template_kwargs",
        "continue_final_message",
        "add_generation_prompt",
        "truncate_prompt_tokens",
        "allowed_token_ids",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "response_format",
        "tools",
        "cache_salt",
        "priority",
        "type",
        "text",
        "ignore_eos",
        "\\ud83d",
        "\\u0000",
        "<|im_end|>",
    ],
};

/// Bytes of a connection.
pub(super) const CONNECTIONS: Target = Target {
    name: "connections",
    run: connections,
    seeds: seeds::connections,
    words: &[
        "GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\n",
        "\r\n\r\n",
        "\r\n",
        "content-length: ",
        "transfer-encoding: chunked\r\n",
        "content-type: application/json\r\n",
        "connection: close\r\n",
        "expect: 100-continue\r\n",
        "upgrade: h2c\r\n",
        "0\r\n\r\n",
        "ffffffffffffffff\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\u{0}\u{0}\u{0}\u{4}\u{0}\u{0}\u{0}\u{0}\u{0}",
        "\u{0}\u{0}\u{8}\u{6}\u{0}\u{0}\u{0}\u{0}\u{0}",
        "authorization: Bearer ",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
        "x-request-id: ",
        "origin: http://a.example\r\n",
        "HEAD ",
        "OPTIONS ",
        "/v1/models/%2e%2e",
    ],
};

/// Statuses that the API has for what clients send.
const STATUSES: [u16; 11] = [200, 204, 400, 403, 404, 405, 408, 413, 415, 431, 503];

/// No answer takes as long: longer is silence.
const ANSWER_MAX: Duration = Duration::from_secs(15);

fn requests(input: &[u8]) -> String {
    let [line, body] = parts(input);
    let Some((method, path)) = framed(line) else { return "no request".into() };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut socket = TcpStream::connect(running().address).expect("the server listens");
    socket.set_read_timeout(Some(ANSWER_MAX)).expect("a time");
    // A server that has refused a head need not read on.
    let _ = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(body));
    let mut bytes = Vec::new();
    if let Err(error) = socket.read_to_end(&mut bytes) {
        let reset = error.kind() == ErrorKind::ConnectionReset;
        assert!(reset && !bytes.is_empty(), "no whole answer: {error}");
        return "reset".into();
    }
    let answer = Answer::read(&bytes, method == "HEAD");
    let told = answer.check();
    idle();
    format!("{} {path:.30} {told}", answer.status)
}

/// Method and path, if they can stand in a request at all.
fn framed(line: &[u8]) -> Option<(&str, &str)> {
    let (method, path) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let is_method = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_alphabetic());
    let is_path = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
    // hyper takes the head of CONNECT for a tunnel, and fragments for none of its business.
    let is_plain = method != "CONNECT" && !path.contains('#') && path.len() < 2000;
    (is_method && is_path && is_plain && method.len() < 20).then_some((method, path))
}

/// Waits until the engine has seen that everybody left.
fn idle() {
    for _ in 0..5000 {
        let stats = running().engine.stats();
        if stats.running == 0 && stats.waiting == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("requests are left in the engine: {:?}", running().engine.stats());
}

struct Answer {
    status: u16,
    kind: String,
    body: Vec<u8>,
    is_head: bool,
}

impl Answer {
    fn read(bytes: &[u8], is_head: bool) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.expect("an answer has a head");
        let head = std::str::from_utf8(&bytes[..end]).expect("a head is text").to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        let value = |name: &str| {
            let mut lines = head.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
        };
        let body = &bytes[end + 4..];
        let body = match value("transfer-encoding").as_deref() {
            Some("chunked") if !is_head => unchunked(body),
            _ => body.to_vec(),
        };
        if let (Some(length), false) = (value("content-length"), is_head) {
            assert_eq!(length, body.len().to_string(), "{head}");
        }
        let kind = value("content-type").unwrap_or_default();
        Answer { status: status.expect("a status"), kind, body, is_head }
    }

    /// What was answered, in few words.
    fn check(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        assert!(STATUSES.contains(&self.status), "{}: {text:.300}", self.status);
        if self.is_head {
            assert!(self.body.is_empty(), "{text:.300}");
            return String::new();
        }
        if self.kind.starts_with("text/event-stream") {
            return events(&text);
        }
        if self.status == 200 && !self.kind.starts_with("application/json") {
            return self.kind.clone();
        }
        if self.body.is_empty() {
            assert!([204, 400, 431].contains(&self.status), "{} says nothing", self.status);
            return String::new();
        }
        let value: Value = serde_json::from_slice(&self.body).expect("an answer is JSON");
        if self.status == 200 || value.get("error").is_none() {
            assert!([200, 503].contains(&self.status), "{}: {text:.300}", self.status);
            return keys(&value);
        }
        error(&value)
    }
}

/// An error of the API; never without words.
fn error(value: &Value) -> String {
    let error = &value["error"];
    let message = error["message"].as_str().expect("an error has a message");
    assert!(!message.is_empty() && error["type"].is_string(), "{value}");
    format!("{} {}", error["code"], shape(message))
}

/// Names in an object: equal for answers of one kind.
fn keys(value: &Value) -> String {
    let names: Vec<&String> = value.as_object().into_iter().flat_map(|map| map.keys()).collect();
    format!("{names:?}")
}

/// A stream ends with its mark, or with an error before it.
fn events(text: &str) -> String {
    let frames: Vec<&str> =
        text.split_terminator("\n\n").filter(|frame| !frame.starts_with(':')).collect();
    let mut told = String::new();
    for (index, frame) in frames.iter().enumerate() {
        let data = frame.strip_prefix("data: ").expect("a frame has data");
        if data == "[DONE]" {
            assert_eq!(index + 1, frames.len(), "frames behind the end");
            return format!("stream {told}");
        }
        let value: Value = serde_json::from_str(data).expect("a frame is JSON");
        told = if value.get("error").is_some() { error(&value) } else { keys(&value) };
    }
    panic!("a stream without an end: {text:.300}");
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let at = rest.windows(2).position(|window| window == b"\r\n").expect("a chunk has a size");
        let size = std::str::from_utf8(&rest[..at]).ok();
        let size = size.and_then(|size| usize::from_str_radix(size, 16).ok()).expect("a size");
        rest = &rest[at + 2..];
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

/// How long a client waits before it leaves.
const PATIENCE: Duration = Duration::from_millis(10);

fn connections(input: &[u8]) -> String {
    let mut socket = TcpStream::connect(running().address).expect("the server listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time");
    let _ = socket.write_all(input);
    let mut bytes = Vec::new();
    let waits = read_some(&mut socket, &mut bytes);
    if waits {
        // The server waits for more: it must end once there is nobody to wait for.
        let _ = socket.shutdown(Shutdown::Write);
        socket.set_read_timeout(Some(ANSWER_MAX)).expect("a time");
        assert!(!read_some(&mut socket, &mut bytes), "the connection is not closed");
    }
    drop(socket);
    idle();
    let text = String::from_utf8_lossy(&bytes);
    let bad = text.split("HTTP/1.1 ").skip(1).filter_map(|answer| answer.get(..3)).find(|status| {
        let number = status.parse::<u16>().unwrap_or(0);
        number != 100 && !STATUSES.contains(&number)
    });
    assert_eq!(bad, None, "{text:.500}");
    // How much was answered before we left is a matter of time, and inputs must not depend on it.
    String::new()
}

/// Reads to the end; whether the time was over before.
fn read_some(socket: &mut TcpStream, bytes: &mut Vec<u8>) -> bool {
    match socket.read_to_end(bytes) {
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        Ok(_) => false,
    }
}
