//! One connection: TLS if the listener speaks it, then HTTP/1.1 or HTTP/2, until either side has enough.
//!
//! Watches the socket beside whoever reads it, so that a client that left is seen at once: dropping
//! the connection drops what its requests hold. Never looks into a request.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::io::TimedIo;
use crate::limits::Limits;
use crate::peer::Peer;
use crate::server::{Answer, Settings, until_true};
use crate::uses::Uses;

/// What all connections of a listener share.
pub(crate) struct Connections<A> {
    /// Answers requests.
    pub(crate) answer: Arc<A>,
    /// What the listener is set up with.
    pub(crate) settings: Settings,
}

/// What HTTP is spoken on.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

impl<A: Answer> Connections<A> {
    /// Serves a connection until it ends. Once `draining` is true it ends with its last answer.
    pub(crate) async fn serve(
        &self,
        socket: TcpStream,
        from: IpAddr,
        mut draining: watch::Receiver<bool>,
    ) {
        // Tokens are small writes that must not wait for each other.
        let _ = socket.set_nodelay(true);
        let Ok(watched) = second_name(&socket) else { return };
        let mut left = pin!(until_left(watched));
        let socket: Box<dyn Socket> = tokio::select! {
            biased;
            socket = self.shake_hands(socket) => match socket {
                Some(socket) => socket,
                None => return,
            },
            // Whoever has asked for nothing is promised nothing.
            () = left.as_mut() => return,
            () = until_true(&mut draining) => return,
        };
        self.speak(socket, from, left, draining).await;
    }

    /// The socket, or TLS on it; nothing if the handshake fails or takes too long.
    async fn shake_hands(&self, socket: TcpStream) -> Option<Box<dyn Socket>> {
        let Some(tls) = &self.settings.tls else { return Some(Box::new(socket)) };
        let time = self.settings.limits.handshake_timeout;
        match tokio::time::timeout(time, tls.accept(socket)).await {
            Ok(Ok(socket)) => return Some(Box::new(socket)),
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
        None
    }

    /// Answers the requests of a connection.
    async fn speak(
        &self,
        socket: Box<dyn Socket>,
        from: IpAddr,
        mut left: Pin<&mut impl Future<Output = ()>>,
        mut draining: watch::Receiver<bool>,
    ) {
        let Settings { limits, tls, trusted_proxies, .. } = &self.settings;
        let peer = Peer::new(from, tls.is_some());
        let io = TokioIo::new(TimedIo::new(socket, limits.head_timeout, limits.write_timeout));
        let uses = Arc::new(Uses::default());
        let untaken_max = limits.write_timeout;
        let answer = service_fn(|request: Request<Incoming>| {
            let (program, in_use) = (self.answer.clone(), uses.begin());
            let peer = trusted_proxies.sender(peer, request.headers());
            async move {
                let reply = program.answer(request, peer).await;
                Ok::<_, Infallible>(reply.map(|body| body.guarded(in_use, untaken_max)))
            }
        });
        let builder = builder(limits);
        let mut connection = pin!(builder.serve_connection(io, answer));
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
