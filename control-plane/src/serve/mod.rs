//! The life of the server: listen, migrate, serve, drain.
//!
//! The port is taken first, so that a second start fails at once and `/ready` answers while the
//! schema is brought up to date. Any number of servers may run over one database.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use pagoda_http::limits::Limits;
use pagoda_http::server::{Server, Settings};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::database::migrate::{MigrateError, migrate};
use crate::database::{AddressError, Database};
use crate::fault::Fault;
use crate::feed::news;
use crate::http::service::Service;
use crate::metrics::Metrics;
use crate::operations::logins::{self, Policy};
use crate::operations::passwords::Passwords;
use crate::operations::upkeep::{self, Keep};
use crate::operations::{Operations, api_keys, signing_keys, throttle};
use crate::profiles::{FACES, OWN};
use crate::secrets::{Secrets, SecretsError};

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its database.
    pub database: tokio_postgres::Config,
    /// Connections to it at most.
    pub connections: usize,
    /// The file of the installation's secret.
    pub secret_file: PathBuf,
    /// Who signs tokens, and for whom.
    pub issuer: String,
    /// Passwords that are hashed at a time, each in 19 MiB.
    pub hashes: usize,
    /// Lives of tokens, and who may come.
    pub policy: Policy,
    /// Bounds of sockets, heads and bodies.
    pub limits: Limits,
    /// Time that requests have to end once it shall stop.
    pub shutdown_timeout: Duration,
}

/// Why the server does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The root secret.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// The address of the database.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The schema.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// The runtime, signals or metrics cannot be set up.
    #[error("cannot start: {0}")]
    Setup(String),
}

impl ServeError {
    /// The exit code that tells it to a supervisor.
    pub fn exit_code(&self) -> u8 {
        match self {
            ServeError::Listen { .. } => 3,
            ServeError::Secrets(_) | ServeError::Address(_) | ServeError::Setup(_) => 2,
            ServeError::Migrate(_) => 1,
        }
    }
}

/// Serves until told to stop. `started` is called with the address once requests are served.
pub fn serve(config: Config, started: impl FnOnce(SocketAddr)) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(setup)?;
    let ended = runtime.block_on(serve_until_stopped(config, started));
    runtime.shutdown_timeout(FLUSH_TIME);
    ended
}

async fn serve_until_stopped(
    config: Config,
    started: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let mut stop = signal(SignalKind::terminate()).map_err(setup)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(setup)?;
    let address = config.listen;
    let listen = TcpListener::bind(address).await;
    let listen = listen.map_err(|source| ServeError::Listen { address, source })?;
    let address = listen.local_addr().unwrap_or(address);

    let operations = operations(&config)?;
    let has_started = Arc::new(AtomicBool::new(false));
    let settings = Settings {
        limits: config.limits.clone(),
        connections: operations.metrics.connections(),
        ..Settings::default()
    };
    let service = Service {
        own: OWN,
        faces: FACES,
        limits: config.limits,
        operations: operations.clone(),
        started: has_started.clone(),
    };
    let (drain, draining) = watch::channel(false);
    let serving = tokio::spawn(Server::new(Arc::new(service), settings, draining).run(listen));

    let migrated = tokio::select! {
        migrated = bring_up(config.database.clone()) => migrated,
        _ = stop.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    migrated?;
    begin(&operations).await?;
    has_started.store(true, Relaxed);
    let tending = tokio::spawn(tend(operations.clone(), config.database));
    started(address);
    tokio::select! {
        _ = stop.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(seconds = config.shutdown_timeout.as_secs(), "stopping: finishing what runs");
    let _ = drain.send(true);
    operations.database.news().end();
    if tokio::time::timeout(config.shutdown_timeout, serving).await.is_err() {
        tracing::warn!("the time to finish is over; what runs is dropped");
    }
    tending.abort();
    Ok(())
}

fn operations(config: &Config) -> Result<Arc<Operations>, ServeError> {
    Ok(Arc::new(Operations {
        database: Database::new(config.database.clone(), config.connections)?,
        secrets: Secrets::open_or_make(&config.secret_file)?,
        metrics: Arc::new(Metrics::new().map_err(setup)?),
        issuer: config.issuer.clone(),
        passwords: Passwords::new(config.hashes, HASHES_WAITING).map_err(setup)?,
        policy: config.policy.clone(),
    }))
}

/// Makes what a first start needs: a key to sign with.
async fn begin(operations: &Operations) -> Result<(), ServeError> {
    signing_keys::tend(operations).await.map(drop).map_err(setup)
}

/// What is to be done from time to time, by whichever server comes first.
async fn tend(operations: Arc<Operations>, database: tokio_postgres::Config) {
    let following = news::follow(operations.clone(), database);
    let tending = async {
        loop {
            tokio::time::sleep(TEND_EVERY).await;
            if let Err(fault) = look_after(&operations).await {
                tracing::warn!(%fault, "keys and logins are not looked after");
            }
            if let Err(fault) = upkeep::tend(&operations.database, None, &Keep::default()).await {
                tracing::warn!(%fault, "what is kept for a time is not looked after");
            }
        }
    };
    tokio::join!(following, tending);
}

/// Keys that are due, and what is over and may be forgotten.
async fn look_after(operations: &Operations) -> Result<(), Fault> {
    signing_keys::tend(operations).await?;
    api_keys::sweep(operations).await?;
    let client = operations.database.client().await?;
    throttle::sweep(&client).await?;
    logins::sweep(&client).await?;
    Ok(())
}

/// How often keys and logins are looked after.
const TEND_EVERY: Duration = Duration::from_secs(60);

/// Logins that wait for their password's turn; further ones are told to come again.
const HASHES_WAITING: usize = 256;

/// Brings the schema up to date, as soon as there is a database.
async fn bring_up(database: tokio_postgres::Config) -> Result<(), ServeError> {
    let migrating = tokio::task::spawn_blocking(move || {
        let mut client = postgres::Config::from(database).connect(postgres::NoTls)?;
        migrate(&mut client, MIGRATION_PATIENCE)
    });
    let applied = migrating.await.map_err(setup)??;
    if !applied.is_empty() {
        tracing::info!(steps = applied.join(", "), "migrated the database");
    }
    Ok(())
}

fn setup(error: impl ToString) -> ServeError {
    ServeError::Setup(error.to_string())
}

/// Another instance may migrate for so long.
const MIGRATION_PATIENCE: Duration = Duration::from_secs(300);

/// How long what was given up on may hold the process.
const FLUSH_TIME: Duration = Duration::from_millis(100);
