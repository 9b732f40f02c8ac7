//! A server on a socket of its own, for tests of faces.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use pagoda_http::limits::Limits;
use pagoda_http::server::{Server, Settings};
use pagoda_wire::token::Role;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::http::service::Service;
use crate::operations::tests::Home;
use crate::profiles::{FACES, OWN};

/// A server of its own, and one profile of it.
pub(super) struct Site {
    /// What it serves.
    pub(super) home: Home,
    profile: &'static str,
    address: std::net::SocketAddr,
    _running: watch::Sender<bool>,
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    /// In lower case.
    pub(super) head: String,
    pub(super) body: Value,
}

impl Site {
    pub(super) async fn new(profile: &'static str) -> Self {
        let home = Home::new().await;
        let operations = home.operations.clone();
        let service = Service {
            own: OWN,
            faces: FACES,
            limits: Limits::default(),
            operations,
            started: Arc::new(AtomicBool::new(true)),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (running, draining) = watch::channel(false);
        let server = Server::new(Arc::new(service), Settings::default(), draining);
        tokio::spawn(server.run(listener));
        Site { home, profile, address, _running: running }
    }

    /// An administrator's token.
    pub(super) async fn root(&self) -> String {
        self.home.user("root", Role::Admin).await;
        self.home.login("root").await.access_token
    }

    /// Calls a route of the profile; no bearer is no credential.
    pub(super) async fn call(&self, method: &str, path: &str, bearer: &str, body: Value) -> Answer {
        self.ask(method, &format!("/profiles/{}{path}", self.profile), bearer, body).await
    }

    /// Calls any route.
    pub(super) async fn ask(&self, method: &str, path: &str, bearer: &str, body: Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let shown = if bearer.is_empty() {
            String::new()
        } else {
            format!("Authorization: Bearer {bearer}\r\n")
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{shown}\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        Answer {
            status: head[9..12].parse().unwrap(),
            head: head.to_ascii_lowercase(),
            body: serde_json::from_str(body).unwrap_or(Value::Null),
        }
    }
}
