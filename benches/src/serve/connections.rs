//! Connections to one server, kept from request to request.
//!
//! A server may close a kept connection at any moment and need not say so. A request that meets such
//! a one, before a byte of its answer came, is sent again over another; its clock goes on. Over a
//! connection of its own nothing is sent twice: what fails there is the server's failure.

use std::sync::Mutex;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::serve::answer::Failure;

/// One connection that has answered all that was sent over it.
pub type Connection = SendRequest<Full<Bytes>>;

/// Connections to one server.
#[derive(Debug)]
pub struct Connections {
    host: String,
    port: u16,
    authority: HeaderValue,
    kept: Mutex<Vec<Connection>>,
}

impl Connections {
    /// To the server of `address`, which has a host; opens nothing yet.
    pub fn new(address: &Uri) -> Self {
        let host = address.host().unwrap_or_default();
        let authority = address.authority().map_or("", |authority| authority.as_str());
        // Who is in the address is for proxies.
        let authority = authority.rsplit('@').next().unwrap_or_default();
        Connections {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: address.port_u16().unwrap_or(80),
            authority: HeaderValue::from_str(authority)
                .unwrap_or_else(|_| HeaderValue::from_static("")),
            kept: Mutex::default(),
        }
    }

    /// Sends `request`, whose address is a path alone. Gives the answer's head, and the connection to
    /// [`Self::keep`] when its body was read.
    pub async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Connection), Failure> {
        request.headers_mut().insert(HOST, self.authority.clone());
        while let Some(mut kept) = self.take() {
            if kept.ready().await.is_err() {
                continue;
            }
            match kept.send_request(request.clone()).await {
                Ok(response) => return Ok((response, kept)),
                Err(error) if error.is_parse() => return Err(Failure::Malformed(chain(&error))),
                Err(_) => {}
            }
        }
        let mut fresh = self.open().await?;
        match fresh.send_request(request).await {
            Ok(response) => Ok((response, fresh)),
            Err(error) if error.is_parse() => Err(Failure::Malformed(chain(&error))),
            Err(error) => Err(Failure::Cut(chain(&error))),
        }
    }

    /// Takes a connection back for the next request.
    pub fn keep(&self, connection: Connection) {
        if !connection.is_closed() {
            self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(connection);
        }
    }

    /// The one that was used last: the others may have been closed meanwhile.
    fn take(&self) -> Option<Connection> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop()
    }

    async fn open(&self) -> Result<Connection, Failure> {
        let unreachable = |error: std::io::Error| Failure::Connect(error.to_string());
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let opened = handshake(TokioIo::new(stream)).await;
        let (sender, connection) = opened.map_err(|error| Failure::Connect(chain(&error)))?;
        // Whatever ends it is told to the request that uses it.
        tokio::spawn(async move { connection.await.ok() });
        Ok(sender)
    }
}

/// An error and its causes in a line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        line.push_str(": ");
        line.push_str(&inner.to_string());
        cause = inner.source();
    }
    line
}
