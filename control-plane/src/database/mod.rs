//! Connections to Postgres, its migrations, and the one way to write what must be known.
//!
//! SQL stands in `operations` beside what it is for; here is what all of it shares.

/// One administrative write.
pub mod change;

/// The schema, step by step.
pub mod migrate;

use std::time::Duration;

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime,
};
use tokio_postgres::NoTls;

use crate::fault::Fault;

/// The one tenant that there is for now.
pub const TENANT: uuid::Uuid = uuid::Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0001);

/// Connections of the server.
#[derive(Clone)]
pub struct Database {
    pool: Pool,
}

/// A connection, back in its place when dropped.
pub type Client = deadpool_postgres::Client;

/// The address of the database is none.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It cannot be read; the address itself may hold a password.
    #[error("the database URL is not understood: {0}")]
    Unreadable(String),
    /// The pool cannot be made.
    #[error("cannot make a pool of connections: {0}")]
    Pool(String),
}

/// Reads the address of a database; the text is never part of an error.
pub fn parse_address(url: &str) -> Result<tokio_postgres::Config, AddressError> {
    let mut config: tokio_postgres::Config =
        url.parse().map_err(|error: tokio_postgres::Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            AddressError::Unreadable(cause.unwrap_or_else(|| "it has no known form".into()))
        })?;
    config.application_name("pagoda-control").connect_timeout(CONNECT_TIMEOUT);
    Ok(config)
}

impl Database {
    /// A pool of at most `connections` to a database that need not be there yet.
    pub fn new(address: tokio_postgres::Config, connections: usize) -> Result<Self, AddressError> {
        // A connection that is broken is found by its use; asking each time costs a round trip.
        let manager = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(address, NoTls, manager);
        let settle = Hook::async_fn(|client, _| {
            Box::pin(async move { client.batch_execute(SETTLE).await.map_err(HookError::Backend) })
        });
        let pool = Pool::builder(manager)
            .max_size(connections)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(WAIT_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .post_create(settle)
            .build()
            .map_err(|error| AddressError::Pool(error.to_string()))?;
        Ok(Database { pool })
    }

    /// A connection, within two seconds.
    pub async fn client(&self) -> Result<Client, Fault> {
        self.pool.get().await.map_err(|error: PoolError| error.into())
    }

    /// Connections that there are, and those of them that are free.
    pub fn connections(&self) -> (usize, usize) {
        let status = self.pool.status();
        (status.size, status.available)
    }
}

/// A caller waits this long for a connection,
const WAIT_TIMEOUT: Duration = Duration::from_secs(2);

/// and a connection is made within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// No statement, lock or forgotten transaction holds others up for long.
const SETTLE: &str = "set statement_timeout = '10s'; set lock_timeout = '3s'; \
    set idle_in_transaction_session_timeout = '15s'; set timezone = 'UTC'";
