//! Requests over HTTP: one body out, a stream of events in, timed as the bytes arrive.
//!
//! The time to open a connection counts where a request has to open one. Every event of a piece of the
//! stream has the time at which that piece arrived.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode, Uri};
use serde_json::Value;

use crate::serve::answer::{Answer, Failure, Reading, beginning};
use crate::serve::connections::{Connections, chain};
use crate::serve::plan::Server;
use crate::serve::sse::EventReader;

/// The part of an error's body that is read.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// The part of a list of models that is read.
const MODELS_BYTES_MAX: usize = 16 << 20;

/// A client of one server.
#[derive(Debug)]
pub struct Client {
    connections: Connections,
    server: Server,
}

impl Client {
    /// A client of `server`; opens nothing yet.
    pub fn new(server: Server) -> Self {
        Client { connections: Connections::new(&server.endpoint), server }
    }

    /// The name of the server's first model.
    pub async fn first_model(&self) -> Result<String> {
        let url = format!("{}/v1/models", self.server.base_url);
        let request = self.request(&url.parse()?, Bytes::new());
        let sent = self.connections.send(request).await;
        let (response, connection) = sent.with_context(|| format!("no {url}"))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MODELS_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{url}: {error}"))?.to_bytes();
        self.connections.keep(connection);
        ensure!(status == StatusCode::OK, "{url}: HTTP {status}; name the model by --model");
        let list: Value =
            serde_json::from_slice(&body).with_context(|| format!("{url}: no JSON"))?;
        let name = list["data"][0]["id"].as_str();
        Ok(name.with_context(|| format!("{url} lists no model; name it by --model"))?.to_owned())
    }

    /// Sends one request and reads its answer to the end of the stream.
    pub async fn exchange(&self, body: Bytes, id: &str) -> Result<Answer, Failure> {
        let timeout = self.server.request_timeout;
        let answer = tokio::time::timeout(timeout, self.post(body, id));
        answer.await.unwrap_or(Err(Failure::Timeout(timeout)))
    }

    async fn post(&self, body: Bytes, id: &str) -> Result<Answer, Failure> {
        let began = Instant::now();
        let mut request = self.request(&self.server.endpoint, body);
        *request.method_mut() = Method::POST;
        let headers = request.headers_mut();
        let json = HeaderValue::from_static("application/json");
        headers.entry(CONTENT_TYPE).or_insert(json);
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("text/event-stream"));
        let id = HeaderValue::try_from(id).map_err(|_| format!("{id:?} is no request id"))?;
        headers.insert("x-request-id", id);
        let (mut response, connection) = self.connections.send(request).await?;
        if response.status() != StatusCode::OK {
            let (failure, is_whole) = refused(response).await;
            if is_whole {
                self.connections.keep(connection);
            }
            return Err(failure);
        }
        let (answer, is_whole) = read(began, response.body_mut()).await?;
        if is_whole {
            self.connections.keep(connection);
        }
        Ok(answer)
    }

    /// A request over one of our connections: its address is the path.
    fn request(&self, address: &Uri, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        let path = address.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().unwrap_or_default();
        request.headers_mut().extend(self.server.headers.clone());
        request
    }
}

/// The answer, and whether its body came to its end.
async fn read(began: Instant, body: &mut Incoming) -> Result<(Answer, bool), Failure> {
    let mut events = EventReader::default();
    let mut reading = Reading::default();
    let mut is_whole = true;
    while let Some(frame) = body.frame().await {
        let at = began.elapsed();
        match frame {
            Ok(frame) => {
                let Some(piece) = frame.data_ref() else { continue };
                events.push(piece, |data| reading.event(at, data))?;
            }
            // The answer was whole; how the connection ends is another matter.
            Err(_) if reading.is_finished() => {
                is_whole = false;
                break;
            }
            Err(error) => return Err(Failure::Cut(chain(&error))),
        }
    }
    let at: Duration = began.elapsed();
    events.finish(|data| reading.event(at, data))?;
    Ok((reading.end()?, is_whole))
}

/// The error of an answer that is none: the API's message, or how the body begins. And whether the
/// body came to its end.
async fn refused(response: Response<Incoming>) -> (Failure, bool) {
    let status = response.status().as_u16();
    let header = response.headers().get(RETRY_AFTER);
    let retry_after = header.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = Limited::new(response.into_body(), ERROR_BYTES_MAX).collect().await;
    let is_whole = body.is_ok();
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let message = serde_json::from_slice::<Value>(&body).ok().and_then(|value| {
        let message = value["error"]["message"].as_str().or_else(|| value["message"].as_str());
        message.map(str::to_owned)
    });
    let message = message.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
    (Failure::Status { status, retry_after, body: beginning(&message) }, is_whole)
}
