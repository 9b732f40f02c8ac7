//! Follows the feed of the control plane: one connection, a sealed frame a line.
//!
//! A line that comes late, breaks its seal or leaves a gap ends the connection, and the next one
//! asks anew from what is known. Whatever is applied is reported, each second and at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::handshake;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use pagoda_wire::known::{Gap, Known};
use pagoda_wire::seal::Seal;
use pagoda_wire::secret::Secret;
use pagoda_wire::snapshot::{Frame, Revision};
use pagoda_wire::vault::Vault;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

use super::saved::{Saved, State};
use super::{Plane, now_s};

/// Where the control plane is and who asks it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port`.
    pub address: String,
    /// What all planes of the installation share.
    pub secret: Secret,
    /// Who signs tokens, and for whom.
    pub issuer: String,
    /// What people call this data plane.
    pub name: String,
}

/// Follows until dropped.
pub struct Follower {
    plane: Arc<Plane>,
    settings: Settings,
    state: State,
    id: Uuid,
    vault: Arc<Vault>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("nothing came in time")]
    Silent,
    #[error("it answered {0}")]
    Refused(StatusCode),
    #[error("{0}")]
    Seal(#[from] pagoda_wire::seal::SealError),
    #[error("{0}")]
    Gap(#[from] Gap),
    #[error("a line is longer than {LINE_BYTES_MAX} bytes")]
    Long,
    #[error("the stream ended")]
    End,
}

impl Follower {
    /// Knows what was saved, if it still counts.
    pub fn new(
        plane: Arc<Plane>,
        settings: Settings,
        state: State,
    ) -> Result<Self, std::io::Error> {
        let vault = Vault::new(&settings.secret).map_err(std::io::Error::other)?;
        let follower = Follower { plane, id: state.id()?, settings, state, vault: Arc::new(vault) };
        if let Some(Saved { heard_at, snapshot }) = follower.state.load() {
            let revision = snapshot.revision;
            match Known::from_snapshot(snapshot, &follower.settings.issuer, follower.vault.clone())
            {
                Ok(known) => {
                    tracing::info!(
                        revision,
                        "serving by the saved snapshot until the control plane is heard"
                    );
                    follower.plane.learn(known, heard_at);
                }
                Err(error) => tracing::warn!(%error, "the saved snapshot is not used"),
            }
        }
        Ok(follower)
    }

    /// Follows, again and again.
    pub async fn run(self) {
        let (mut told, mut asks_for_all) = (false, false);
        loop {
            let known = self.plane.known().map(|known| known.revision());
            let since = known.filter(|_| !asks_for_all);
            let Err(ended) = self.follow(since, &mut told).await;
            // What is known does not fit what is told.
            asks_for_all = matches!(ended, Ended::Gap(Gap::Missed { .. }));
            if !std::mem::replace(&mut told, true) {
                let address = &self.settings.address;
                tracing::warn!(%address, %ended, "the control plane is not heard");
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    async fn follow(
        &self,
        since: Option<Revision>,
        told: &mut bool,
    ) -> Result<std::convert::Infallible, Ended> {
        let path = match since {
            Some(since) => format!("/internal/v1/feed?since={since}"),
            None => "/internal/v1/feed".into(),
        };
        let request = self.request("GET", &path).body(Empty::<Bytes>::new());
        let answer = self.ask(request.map_err(std::io::Error::other)?).await?;
        let seal = Seal::new(&self.settings.secret, "feed");
        let mut lines = Lines { body: answer.into_body(), rest: BytesMut::new(), looked_at: 0 };
        loop {
            let line = timeout(SILENCE_MAX, lines.next()).await.map_err(|_| Ended::Silent)??;
            let line = std::str::from_utf8(&line).map_err(std::io::Error::other)?;
            let is_new = self.apply(seal.open(line)?)?;
            if std::mem::replace(told, false) {
                tracing::info!("the control plane is heard again");
            }
            self.report().await?;
            if is_new {
                self.save();
            }
        }
    }

    /// Whether something is known now that was not.
    fn apply(&self, frame: Frame) -> Result<bool, Ended> {
        let next = match (self.plane.known(), frame) {
            (Some(known), frame) => known.after(frame)?,
            (None, Frame::Full(snapshot)) => {
                Some(Known::from_snapshot(snapshot, &self.settings.issuer, self.vault.clone())?)
            }
            (None, _) => return Err(Gap::Missed { known: 0, got: 0 }.into()),
        };
        let now = now_s();
        let is_new = next.is_some();
        match next {
            Some(known) => self.plane.learn(known, now),
            None => self.plane.heard(now),
        }
        if let Some(shorter) = self.plane.known().and_then(|known| known.without_old(now)) {
            self.plane.learn(shorter, now);
        }
        Ok(is_new)
    }

    /// Tells the control plane what is applied.
    async fn report(&self) -> Result<(), Ended> {
        let applied = self.plane.known().map_or(0, |known| known.revision());
        let (name, version) = (&self.settings.name, env!("CARGO_PKG_VERSION"));
        let body =
            json!({ "plane": self.id, "name": name, "version": version, "applied": applied });
        let request = self.request("POST", "/internal/v1/applied");
        let request = request.header(CONTENT_TYPE, "application/json");
        let request = request.body(Full::new(Bytes::from(body.to_string())));
        self.ask(request.map_err(std::io::Error::other)?).await?;
        Ok(())
    }

    fn save(&self) {
        let Some(known) = self.plane.known() else { return };
        let saved = Saved { heard_at: now_s(), snapshot: known.to_snapshot() };
        if let Err(error) = self.state.save(&saved) {
            tracing::warn!(%error, "what the control plane told is not saved");
        }
    }

    fn request(&self, method: &str, path: &str) -> hyper::http::request::Builder {
        let bearer = format!("Bearer {}", self.settings.secret.to_text());
        Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.settings.address)
            .header(AUTHORIZATION, bearer)
    }

    /// One request on a connection of its own.
    async fn ask<B>(&self, request: Request<B>) -> Result<Response<Incoming>, Ended>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let asked = async {
            let socket = TcpStream::connect(&self.settings.address).await?;
            socket.set_nodelay(true)?;
            let (mut sender, connection) = handshake(TokioIo::new(socket)).await?;
            tokio::spawn(connection);
            Ok::<_, Ended>(sender.send_request(request).await?)
        };
        let answer = timeout(SILENCE_MAX, asked).await.map_err(|_| Ended::Silent)??;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            other => Err(Ended::Refused(other)),
        }
    }
}

struct Lines {
    body: Incoming,
    rest: BytesMut,
    /// Bytes of `rest` that hold no end of a line.
    looked_at: usize,
}

impl Lines {
    async fn next(&mut self) -> Result<Bytes, Ended> {
        loop {
            let new = &self.rest[self.looked_at..];
            if let Some(end) = new.iter().position(|byte| *byte == b'\n') {
                let end = self.looked_at + end;
                self.looked_at = 0;
                let mut line = self.rest.split_to(end + 1);
                line.truncate(end);
                return Ok(line.freeze());
            }
            self.looked_at = self.rest.len();
            if self.looked_at > LINE_BYTES_MAX {
                return Err(Ended::Long);
            }
            let frame = self.body.frame().await.ok_or(Ended::End)??;
            if let Ok(data) = frame.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }
}

/// A snapshot of a million keys is some hundreds of megabytes.
const LINE_BYTES_MAX: usize = 1 << 30;

/// The control plane says something each second.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// Between two connections.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
