//! Accepts connections, hands each to a task of its own, and drains them.
//!
//! The first step of the flow. Connections are capped by not accepting more; a connection's end,
//! for whatever reason, drops all that its requests hold.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use metrics::Gauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::connection::Connections;
use crate::limits::Limits;
use crate::peer::Peer;
use crate::proxies::TrustedProxies;
use crate::reply::Reply;
use crate::tls::Tls;

/// What a program answers. Dropping the future, which happens when the client leaves, must drop all that
/// the request holds.
pub trait Answer: Send + Sync + 'static {
    /// Answers one request; never fails.
    fn answer(&self, request: Request<Incoming>, peer: Peer) -> impl Future<Output = Reply> + Send;
}

/// What a listener is set up with.
#[derive(Clone)]
pub struct Settings {
    /// Bounds.
    pub limits: Limits,
    /// Shows how many connections are open.
    pub connections: Gauge,
    /// What TLS needs; without it none is spoken.
    pub tls: Option<Arc<Tls>>,
    /// Proxies that may say for whom they speak.
    pub trusted_proxies: TrustedProxies,
}

impl Default for Settings {
    /// Default bounds; counts nothing, speaks no TLS and trusts nobody.
    fn default() -> Self {
        Settings {
            limits: Limits::default(),
            connections: Gauge::noop(),
            tls: None,
            trusted_proxies: TrustedProxies::default(),
        }
    }
}

/// A listener's accept loop.
pub struct Server<A> {
    connections: Arc<Connections<A>>,
    connections_max: u32,
    open: Gauge,
    places: Arc<Semaphore>,
    draining: watch::Receiver<bool>,
}

impl<A: Answer> Server<A> {
    /// A server that stops accepting once `draining` turns true.
    pub fn new(answer: Arc<A>, settings: Settings, draining: watch::Receiver<bool>) -> Self {
        let connections_max = settings.limits.connections_max;
        let places = Arc::new(Semaphore::new(connections_max as usize));
        let open = settings.connections.clone();
        let connections = Arc::new(Connections { answer, settings });
        Server { connections, connections_max, open, places, draining }
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
                Ok((socket, from)) => self.spawn(socket, from.ip(), place),
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
        let _all = self.places.acquire_many(self.connections_max).await;
    }

    fn spawn(&self, socket: TcpStream, from: IpAddr, place: OwnedSemaphorePermit) {
        let connections = self.connections.clone();
        let draining = self.draining.clone();
        let open = OpenConnection::count(self.open.clone());
        tokio::spawn(async move {
            let _open = open;
            connections.serve(socket, from, draining).await;
            drop(place);
        });
    }
}

/// Counts a connection for as long as it is open, also if a panic ends it.
struct OpenConnection(Gauge);

impl OpenConnection {
    fn count(open: Gauge) -> Self {
        open.increment(1.0);
        OpenConnection(open)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Returns once the flag is true.
pub(crate) async fn until_true(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|on| *on).await.is_err() {
        // Nobody is left who could ask for it.
        std::future::pending::<()>().await;
    }
}

/// A log is not the place to count failed accepts.
const ACCEPT_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
