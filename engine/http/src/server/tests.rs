//! A program of a few lines behind real sockets.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use futures_util::{FutureExt, StreamExt, stream};
use hyper::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::body::open;
use crate::reply::{Record, ReplyBody, with_type};

/// Says who asked and what for; at `/endless` for ever.
struct Echo {
    limits: Limits,
    records: Arc<Records>,
}

/// How many answers are over, and how many of them were whole.
#[derive(Default)]
struct Records {
    over: AtomicU32,
    complete: AtomicU32,
}

struct OneRecord(Arc<Records>);

impl Record for OneRecord {
    fn complete(&mut self) {
        self.0.complete.fetch_add(1, SeqCst);
    }
}

impl Drop for OneRecord {
    fn drop(&mut self) {
        self.0.over.fetch_add(1, SeqCst);
    }
}

impl Answer for Echo {
    async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Reply {
        let record = Box::new(OneRecord(self.records.clone()));
        let (head, body) = request.into_parts();
        if head.uri.path() == "/endless" {
            let frames = stream::once(async { "begin".into() }).chain(stream::pending());
            return Reply::new(ReplyBody::frames(frames.boxed()).recorded(record));
        }
        let read = async { open(&self.limits, &head.headers, body)?.whole().await };
        let reply = match read.await {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                let text = format!("{} {} {text}", peer.address, peer.is_tls);
                with_type(StatusCode::OK, "text/plain", text)
            }
            Err(error) => with_type(StatusCode::BAD_REQUEST, "text/plain", error.to_string()),
        };
        reply.map(|body| body.recorded(record))
    }
}

struct Running {
    address: SocketAddr,
    records: Arc<Records>,
    drain: watch::Sender<bool>,
    ended: tokio::task::JoinHandle<()>,
}

async fn run(limits: Limits) -> Running {
    let records = Arc::new(Records::default());
    let echo = Echo { limits: limits.clone(), records: records.clone() };
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (drain, draining) = watch::channel(false);
    let settings = Settings { limits, ..Settings::default() };
    let ended = tokio::spawn(Server::new(Arc::new(echo), settings, draining).run(listener));
    Running { address, records, drain, ended }
}

/// Sends bytes and reads until the server closes.
async fn said(address: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

fn post(length: usize, body: &str) -> String {
    format!(
        "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn a_body_comes_whole_or_the_reason_is_told() {
    let limits = Limits { body_bytes_max: 8, ..Limits::default() };
    let Running { address, records, .. } = run(limits).await;
    assert!(said(address, &post(5, "hello")).await.ends_with("\r\n\r\n::1 false hello"));
    let told = said(address, &post(1 << 20, &"x".repeat(1 << 20))).await;
    assert!(told.ends_with("larger than the limit of 8 bytes"), "{told}");
    let chunked = "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
                   6\r\n123456\r\n6\r\n123456\r\n0\r\n\r\n";
    let told = said(address, chunked).await;
    assert!(told.ends_with("larger than the limit of 8 bytes"), "{told}");
    let zipped = post(1, "x").replace("\r\nhost", "\r\ncontent-encoding: gzip\r\nhost");
    assert!(said(address, &zipped).await.ends_with("send the body as it is"));
    assert_eq!((records.over.load(SeqCst), records.complete.load(SeqCst)), (4, 4));
    let (body_timeout, head_timeout) = (Duration::from_millis(100), Duration::from_millis(200));
    let Running { address, .. } =
        run(Limits { body_timeout, head_timeout, ..Limits::default() }).await;
    let told = said(address, &post(5, "hell")).await;
    assert!(told.ends_with("did not arrive within 0 s"), "{told}");
}

#[tokio::test]
async fn a_record_ends_when_its_client_leaves_and_a_drain_waits_for_it() {
    let Running { address, records, drain, ended } = run(Limits::default()).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut some = [0; 1024];
    assert!(socket.read(&mut some).await.unwrap() > 0);
    drain.send(true).unwrap();
    tokio::task::yield_now().await;
    assert!(ended.now_or_never().is_none(), "an answer is being sent");
    assert_eq!(records.over.load(SeqCst), 0);
    drop(socket);
    while records.over.load(SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(records.complete.load(SeqCst), 0);
}
