//! Clients that leave, stall, or send too much: nothing of them may stay.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use pagoda_http::limits::Limits as HttpLimits;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{get, post, read_to_end, request};
use super::scripted::{Scripted, Setup, until};
use crate::config::Limits;
use crate::http::body::room_bytes;

const CHAT: &str = "/v1/chat/completions";

fn chat(text: &str, stream: bool) -> String {
    let body = json!({"messages": [{"role": "user", "content": text}], "stream": stream});
    request("POST", CHAT, "", &body.to_string())
}

async fn connect(server: &Scripted) -> TcpStream {
    TcpStream::connect(server.address).await.unwrap()
}

#[tokio::test]
async fn whoever_leaves_is_cancelled_streaming_or_not_queued_or_running() {
    let server = Scripted::open().await;
    let mut left = 0;
    for text in ["wait in the queue", "hang midway"] {
        for stream in [false, true] {
            let mut socket = connect(&server).await;
            socket.write_all(chat(text, stream).as_bytes()).await.unwrap();
            left += 1;
            server.has_taken(left).await;
            if stream && text == "hang midway" {
                let mut some = [0; 64];
                assert!(socket.read(&mut some).await.unwrap() > 0);
            }
            drop(socket);
            server.saw_cancelled(left).await;
        }
    }
    // One that closes only its own side has left as well, also if it sent more than one request.
    for more in ["", "\r\n", "GET /health HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let mut socket = connect(&server).await;
        let bytes = chat("hang midway", true) + more;
        socket.write_all(bytes.as_bytes()).await.unwrap();
        left += 1;
        server.has_taken(left).await;
        socket.shutdown().await.unwrap();
        server.saw_cancelled(left).await;
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header as a literal that is not indexed, without Huffman coding.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0, name.len() as u8];
    bytes.extend(name.bytes());
    bytes.push(value.len() as u8);
    bytes.extend(value.bytes());
    bytes
}

/// Head and body of a chat over HTTP/2.
fn chat_frames(stream_id: u32, text: &str, stream: bool) -> Vec<u8> {
    let (data, headers_kind) = (0, 1);
    let headers: Vec<u8> = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", CHAT),
        (":authority", "x"),
        ("content-type", "application/json"),
    ]
    .iter()
    .flat_map(|(name, value)| literal(name, value))
    .collect();
    let body = json!({"messages": [{"role": "user", "content": text}], "stream": stream});
    let mut bytes = frame(headers_kind, 0x4, stream_id, &headers);
    bytes.extend(frame(data, 0x1, stream_id, body.to_string().as_bytes()));
    bytes
}

#[tokio::test]
async fn an_answer_of_http2_that_nobody_takes_is_dropped_and_its_request_cancelled() {
    let write_timeout = Duration::from_millis(50);
    let server =
        Scripted::with(bounded(HttpLimits { write_timeout, ..HttpLimits::default() })).await;
    let mut socket = connect(&server).await;
    let (settings, initial_window_size) = (4, [0, 4, 0, 0, 0, 0]);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(settings, 0, 0, &initial_window_size));
    bytes.extend(chat_frames(1, "hang midway", true));
    socket.write_all(&bytes).await.unwrap();
    server.saw_cancelled(1).await;
    // The connection lives: with a window its next request is answered.
    let mut bytes = frame(settings, 0, 0, &[0, 4, 0, 1, 0, 0]);
    bytes.extend(chat_frames(3, "x", false));
    socket.write_all(&bytes).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(16).any(|window| window == b"chat.completion\"") {
        let mut some = [0; 1024];
        let count = socket.read(&mut some).await.unwrap();
        assert!(count > 0);
        seen.extend_from_slice(&some[..count]);
    }
}

#[tokio::test]
async fn a_reset_stream_of_http2_is_cancelled_and_its_connection_goes_on() {
    let (settings, rst_stream) = (4, 3);
    let server = Scripted::open().await;
    let mut socket = connect(&server).await;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(settings, 0, 0, &[]));
    let mut taken = 0;
    for (stream_id, text, stream) in [(1, "hang midway", true), (3, "wait in the queue", false)] {
        bytes.extend(chat_frames(stream_id, text, stream));
        socket.write_all(&bytes).await.unwrap();
        taken += 1;
        server.has_taken(taken).await;
        bytes = frame(rst_stream, 0, stream_id, &8_u32.to_be_bytes());
        socket.write_all(&bytes).await.unwrap();
        server.saw_cancelled(taken).await;
        bytes.clear();
    }
    // The connection lives: one more request on it is answered.
    bytes.extend(chat_frames(5, "x", false));
    socket.write_all(&bytes).await.unwrap();
    server.has_taken(taken + 1).await;
    let mut seen = Vec::new();
    while !seen.windows(15).any(|window| window == b"chat.completion") {
        let mut some = [0; 1024];
        let count = socket.read(&mut some).await.unwrap();
        assert!(count > 0);
        seen.extend_from_slice(&some[..count]);
    }
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let server = Scripted::open().await;
    let mut socket = connect(&server).await;
    for _ in 0..3 {
        socket.write_all(request("GET", "/version", "", "").as_bytes()).await.unwrap();
        let mut seen = String::new();
        while !seen.ends_with('}') {
            let mut some = [0; 1024];
            let count = socket.read(&mut some).await.unwrap();
            assert!(count > 0, "{seen}");
            seen.push_str(std::str::from_utf8(&some[..count]).unwrap());
        }
        assert!(seen.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn a_connection_of_http2_without_requests_ends_whatever_it_answers_to_pings() {
    let head_timeout = Duration::from_millis(50);
    let server =
        Scripted::with(bounded(HttpLimits { head_timeout, ..HttpLimits::default() })).await;
    let mut socket = connect(&server).await;
    let (settings, ping, ack) = (4, 6, 1);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(settings, 0, 0, &[]));
    socket.write_all(&bytes).await.unwrap();
    let mut head = [0; 9];
    while socket.read_exact(&mut head).await.is_ok() {
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; len];
        socket.read_exact(&mut payload).await.unwrap();
        if (head[3], head[4]) == (ping, 0) {
            // The server may have closed by now.
            let _ = socket.write_all(&frame(ping, ack, 0, &payload)).await;
        }
    }
}

fn small() -> Setup {
    bounded(HttpLimits {
        body_bytes_max: 2048,
        body_timeout: Duration::from_millis(200),
        head_timeout: Duration::from_millis(300),
        ..HttpLimits::default()
    })
}

/// A server with these bounds.
fn bounded(http: HttpLimits) -> Setup {
    Setup { limits: Limits { http, ..Limits::default() }, ..Setup::default() }
}

/// Bounds of a megabyte for a body, and of what all of them take.
fn megabyte(body_bytes_total: u64) -> Setup {
    let http = HttpLimits { body_bytes_max: 1 << 20, ..HttpLimits::default() };
    let limits = Limits { http, body_bytes_total, ..Limits::default() };
    Setup { limits, ..Setup::default() }
}

#[tokio::test]
async fn bodies_that_are_only_announced_take_no_room_from_others() {
    let server = Scripted::with(megabyte(1 << 20)).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        let mut socket = connect(&server).await;
        let head =
            format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{{", 1 << 20);
        socket.write_all(head.as_bytes()).await.unwrap();
        silent.push(socket);
    }
    let body = json!({"messages": [{"role": "user", "content": "hello"}]});
    for _ in 0..4 {
        assert_eq!(post(server.address, CHAT, &body).await.status, 200);
    }
    let long = json!({"messages": [{"role": "user", "content": "x".repeat(1 << 19)}]});
    let answer = post(server.address, CHAT, &long).await;
    assert_eq!(answer.error(), "400 messages context_length_exceeded", "half of the room is free");
    drop(silent);
}

#[tokio::test]
async fn small_bodies_find_room_beside_large_ones() {
    let body_timeout = Duration::from_secs(2);
    let server =
        Scripted::with(bounded(HttpLimits { body_timeout, ..HttpLimits::default() })).await;
    let large = json!({"prompt": vec![1; 60_000]});
    let large_error = async || post(server.address, "/v1/completions", &large).await.error();
    let held = server.bodies.take_large();
    let body = json!({"messages": [{"role": "user", "content": "hello"}]});
    assert_eq!(post(server.address, CHAT, &body).await.status, 200);
    assert_eq!(large_error().await, "503 - engine_overloaded");
    drop(held);
    assert_eq!(large_error().await, "400 prompt context_length_exceeded");
}

#[tokio::test]
async fn one_body_takes_a_quarter_of_the_room_at_most() {
    let server = Scripted::open().await;
    for (num_ids, told) in
        [(190_000, "400 prompt context_length_exceeded"), (220_000, "413 - request_too_large")]
    {
        let body = json!({"prompt": vec![1; num_ids]});
        assert_eq!(post(server.address, "/v1/completions", &body).await.error(), told);
    }
}

#[tokio::test]
async fn a_prompt_that_waits_keeps_its_room_also_when_its_client_has_left() {
    let server = Scripted::open().await;
    let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
    let pool = server.pool.clone();
    tokio::spawn(async move { pool.run(1, (), move || released.recv()).await });
    let free_kib = server.bodies.left_kib();
    // Short enough to be parsed where it is read: once it has come, it is in the pool's queue.
    let body = json!({"prompt": "x".repeat(60_000), "truncate_prompt_tokens": 1}).to_string();
    let text_kib = room_bytes(body.len() as u64, 0).div_ceil(1024) as usize;
    let mut socket = connect(&server).await;
    let bytes = request("POST", "/v1/completions", "", &body);
    socket.write_all(bytes.as_bytes()).await.unwrap();
    until(|| server.bodies.left_kib() == free_kib - text_kib).await;
    assert_eq!(get(server.address, "/health").await.status, 200);
    drop(socket);
    // The request for the metrics is the one that is left.
    while !get(server.address, "/metrics").await.body.contains("requests_in_flight 1\n") {}
    assert_eq!(server.bodies.left_kib(), free_kib - text_kib, "the text waits in the pool's queue");
    release.send(()).unwrap();
    until(|| server.bodies.left_kib() == free_kib).await;
}

#[tokio::test]
async fn bodies_are_bounded_by_the_values_in_them() {
    let server = Scripted::with(megabyte(0)).await;
    for (num_ids, told) in
        [(60_000, "400 prompt context_length_exceeded"), (80_000, "413 - request_too_large")]
    {
        let body = json!({"prompt": vec![1; num_ids]});
        assert_eq!(post(server.address, "/v1/completions", &body).await.error(), told);
    }
    // Commas in a text are none.
    let body = json!({"prompt": "a,[".repeat(100_000)});
    let answer = post(server.address, "/v1/completions", &body).await;
    assert_eq!(answer.error(), "400 prompt context_length_exceeded");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_told_so_even_while_it_is_sent() {
    let server = Scripted::with(small()).await;
    let large = "x".repeat(3 << 20);
    // Length told before.
    let mut socket = connect(&server).await;
    let bytes = request("POST", CHAT, "connection: close\r\n", &large);
    socket.write_all(bytes.as_bytes()).await.unwrap();
    assert_eq!(read_to_end(&mut socket).await.error(), "413 - request_too_large");
    // Length found out.
    let mut socket = connect(&server).await;
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         transfer-encoding: chunked\r\n\r\n{:x}\r\n",
        large.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(large.as_bytes()).await.unwrap();
    socket.write_all(b"\r\n0\r\n\r\n").await.unwrap();
    assert_eq!(read_to_end(&mut socket).await.error(), "413 - request_too_large");
    // Asked before sending: refused without being invited to send.
    let mut socket = connect(&server).await;
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nexpect: 100-continue\r\n\
         content-length: {}\r\n\r\n",
        large.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let answer = read_to_end(&mut socket).await;
    assert_eq!(answer.error(), "413 - request_too_large");
    assert_eq!(server.taken.load(SeqCst), 0);
    // A path that is not there, asked with a body that nobody reads.
    let mut socket = connect(&server).await;
    let bytes = request("POST", "/nowhere", "connection: close\r\n", &large);
    socket.write_all(bytes.as_bytes()).await.unwrap();
    assert_eq!(read_to_end(&mut socket).await.error(), "404 - unknown_url");
}

#[tokio::test]
async fn stalling_clients_are_let_go() {
    let server = Scripted::with(small()).await;
    // A body that does not come.
    let mut socket = connect(&server).await;
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{");
    socket.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(read_to_end(&mut socket).await.error(), "408 - request_timeout");
    // A head that does not come, a head that does not end, and nothing at all.
    for opening in ["GET / HT", "GET /health HTTP/1.1\r\nhost: x\r\n", "PRI * HTTP/2.0\r\n", ""] {
        let mut socket = connect(&server).await;
        socket.write_all(opening.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut bytes));
        assert!(ended.await.is_ok(), "{opening:?} still holds its connection");
    }
    assert_eq!(get(server.address, "/health").await.status, 200);
}

#[tokio::test]
async fn heads_are_bounded() {
    let server = Scripted::open().await;
    let many: String = (0..200).map(|index| format!("x-{index}: y\r\n")).collect();
    for headers in [format!("x: {}\r\n", "y".repeat(100 << 10)), many] {
        let mut socket = connect(&server).await;
        let bytes = request("GET", "/health", &headers, "");
        // The server may close before it has read all.
        let _ = socket.write_all(bytes.as_bytes()).await;
        let mut bytes = Vec::new();
        let _ = socket.read_to_end(&mut bytes).await;
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
    }
    assert_eq!(get(server.address, "/health").await.status, 200);
}

#[tokio::test]
async fn a_drain_lets_what_runs_end_and_closes_the_rest() {
    let server = Scripted::open().await;
    let mut idle = connect(&server).await;
    idle.write_all(request("GET", "/version", "", "").as_bytes()).await.unwrap();
    let mut some = [0; 1024];
    assert!(idle.read(&mut some).await.unwrap() > 0);
    let mut running = connect(&server).await;
    running.write_all(chat("hang midway", true).as_bytes()).await.unwrap();
    server.has_taken(1).await;
    assert!(running.read(&mut some).await.unwrap() > 0);
    server.drain();
    assert_eq!(idle.read(&mut some).await.unwrap(), 0);
    assert_eq!(server.cancelled.load(SeqCst), 0);
    let refused = TcpStream::connect(server.address).await;
    drop(running);
    server.saw_cancelled(1).await;
    // The listener is closed once the loop has seen the drain.
    if let Ok(mut socket) = refused {
        let mut bytes = Vec::new();
        let _ = socket.read_to_end(&mut bytes).await;
        assert!(bytes.is_empty());
    }
}

#[tokio::test]
async fn a_slow_reader_loses_nothing() {
    let server = Scripted::open().await;
    let text = "slow ".repeat(30);
    let mut socket = connect(&server).await;
    let body = json!({"messages": [{"role": "user", "content": text}], "stream": true});
    let bytes = request("POST", CHAT, "connection: close\r\n", &body.to_string());
    socket.write_all(bytes.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (events, done) = read_to_end(&mut socket).await.events();
    let read: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert!(done);
    assert_eq!(read, text);
    assert_eq!(post(server.address, CHAT, &body).await.status, 200);
}
