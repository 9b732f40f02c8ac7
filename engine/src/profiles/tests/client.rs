//! A client that writes bytes and reads answers, so that it can misbehave where a library cannot.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (known, value) = line.split_once(": ")?;
            known.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// Events of a stream, without the end mark, and whether the end mark came.
    pub(super) fn events(&self) -> (Vec<Value>, bool) {
        let frames: Vec<&str> = self
            .body
            .split_terminator("\n\n")
            .map(|frame| frame.strip_prefix("data: ").unwrap())
            .collect();
        let done = frames.last() == Some(&"[DONE]");
        let events = frames.iter().filter(|frame| **frame != "[DONE]");
        (events.map(|frame| serde_json::from_str(frame).unwrap()).collect(), done)
    }

    /// `param code` of an error.
    pub(super) fn error(&self) -> String {
        let error = &self.json()["error"];
        let word = |name: &str| error[name].as_str().unwrap_or("-").to_string();
        format!("{} {} {}", self.status, word("param"), word("code"))
    }
}

/// Bytes of a request.
pub(super) fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// Sends a request on a connection of its own and reads the whole answer.
pub(super) async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Answer {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let headers = format!("connection: close\r\n{headers}");
    socket.write_all(request(method, path, &headers, body).as_bytes()).await.unwrap();
    read_to_end(&mut socket).await
}

/// Posts JSON.
pub(super) async fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    let headers = "content-type: application/json\r\n";
    send(address, "POST", path, headers, &body.to_string()).await
}

/// Gets.
pub(super) async fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, "GET", path, "", "").await
}

/// Reads until the server closes.
pub(super) async fn read_to_end(socket: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunked(body) } else { body.to_string() };
    Answer { status, head: head.to_string(), body }
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    body
}
