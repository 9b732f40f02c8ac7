//! Accepts connections, speaks HTTP/1.1 and HTTP/2 on them, and drains them.
//!
//! The first step of the flow. Connections are capped by not accepting more; a connection's end,
//! for whatever reason, drops all that its requests hold.

use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::config::Limits;
use crate::http::io::TimedIo;
use crate::http::service::Service;
use crate::http::uses::Uses;
use crate::metrics::HttpMetrics;

/// A listener's accept loop.
pub struct Server {
    service: Arc<Service>,
    limits: Limits,
    places: Arc<Semaphore>,
    draining: watch::Receiver<bool>,
}

impl Server {
    /// A server that stops accepting once `draining` turns true.
    pub fn new(service: Arc<Service>, limits: Limits, draining: watch::Receiver<bool>) -> Self {
        let places = Arc::new(Semaphore::new(limits.connections_max as usize));
        Server { service, limits, places, draining }
    }

    /// Accepts until told to drain, then waits until the last connection is gone. The caller
    /// bounds that wait; what it gives up on ends with the runtime.
    pub async fn run(mut self, listener: TcpListener) {
        let mut told: Option<Instant> = None;
        loop {
            let place = tokio::select! {
                place = self.places.clone().acquire_owned() => place,
                () = until_true(&mut self.draining) => break,
            };
            // The semaphore is never closed.
            let Ok(place) = place else { break };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = until_true(&mut self.draining) => break,
            };
            match accepted {
                Ok((socket, _)) => self.spawn(socket, place),
                Err(error) => {
                    // Out of file descriptors, most likely: let some connection end first.
                    if told.is_none_or(|at| at.elapsed() > ACCEPT_TOLD_EVERY) {
                        tracing::warn!(%error, "cannot accept connections");
                        told = Some(Instant::now());
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let _all = self.places.acquire_many(self.limits.connections_max).await;
    }

    fn spawn(&self, socket: TcpStream, place: OwnedSemaphorePermit) {
        let (service, limits) = (self.service.clone(), self.limits.clone());
        let draining = self.draining.clone();
        tokio::spawn(async move {
            let _open = OpenConnection::count(service.metrics.clone());
            serve_connection(service, &limits, socket, draining).await;
            drop(place);
        });
    }
}

/// Counts a connection for as long as it is open, also if a panic ends it.
struct OpenConnection(Arc<HttpMetrics>);

impl OpenConnection {
    fn count(metrics: Arc<HttpMetrics>) -> Self {
        metrics.connections.increment(1.0);
        OpenConnection(metrics)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.decrement(1.0);
    }
}

/// A log is not the place to count failed accepts.
const ACCEPT_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

async fn until_true(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|on| *on).await.is_err() {
        // Nobody is left who could ask for it.
        std::future::pending::<()>().await;
    }
}

async fn serve_connection(
    service: Arc<Service>,
    limits: &Limits,
    socket: TcpStream,
    mut draining: watch::Receiver<bool>,
) {
    // Tokens are small writes that must not wait for each other.
    let _ = socket.set_nodelay(true);
    let Ok(watched) = second_name(&socket) else { return };
    let io = TokioIo::new(TimedIo::new(socket, limits.head_timeout, limits.write_timeout));
    let uses = Arc::new(Uses::default());
    let counted = uses.clone();
    let answer = service_fn(move |mut request| {
        let service = service.clone();
        request.extensions_mut().insert(counted.begin());
        async move { service.answer(request).await }
    });
    let builder = builder(limits);
    let mut connection = pin!(builder.serve_connection(io, answer));
    let mut left = pin!(until_left(watched));
    let mut last_request = pin!(async {
        tokio::select! {
            () = until_true(&mut draining) => {}
            () = uses.until_unused(limits.head_timeout) => {}
        }
    });
    let mut is_closing = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            // Dropping the connection drops what its requests hold.
            () = left.as_mut() => return,
            () = last_request.as_mut(), if !is_closing => {
                is_closing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        // Clients leave; that is no fault of ours.
        tracing::debug!(%error, "a connection ended early");
    }
}

/// The socket once more, to be watched beside whoever reads it.
fn second_name(socket: &TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(socket.as_fd().try_clone_to_owned()?.into())
}

/// Returns once the peer has closed its side. hyper sees that only where it reads, and while it
/// answers it does not read past bytes that it has not asked for.
async fn until_left(socket: TcpStream) {
    while let Ok(ready) = socket.ready(Interest::READABLE).await {
        if ready.is_read_closed() {
            return;
        }
        // Bytes came, which are not for us: only further news shall wake us.
        let not_for_us = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = socket.try_io(Interest::READABLE, not_for_us);
    }
}

fn builder(limits: &Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_headers(limits.headers_max)
        // hyper's least buffer is 8 KiB.
        .max_buf_size(limits.head_bytes_max.max(8 << 10))
        // A client that closes its side has left: only so is its request cancelled at once.
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams_max)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}

/// HTTP/2 peers are asked this often whether they are still there,
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// and must answer within this time.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
