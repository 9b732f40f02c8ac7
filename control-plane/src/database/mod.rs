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
use tokio_postgres::config::Host;

use crate::fault::Fault;
use crate::feed::news::News;

/// The one tenant that there is for now.
pub const TENANT: uuid::Uuid = uuid::Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0001);

/// Connections of the server.
#[derive(Clone)]
pub struct Database {
    pool: Pool,
    news: News,
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

/// An address as text for other programs of Postgres and for ours. It may hold a password.
pub fn address_text(address: &tokio_postgres::Config) -> String {
    let mut words = Vec::new();
    let mut word = |name: &str, value: &[u8]| {
        let value = String::from_utf8_lossy(value).replace('\\', "\\\\").replace('\'', "\\'");
        words.push(format!("{name}='{value}'"));
    };
    let hosts = address.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(folder) => folder.display().to_string(),
    });
    word("host", hosts.collect::<Vec<_>>().join(",").as_bytes());
    let ports: Vec<_> = address.get_ports().iter().map(u16::to_string).collect();
    if !ports.is_empty() {
        word("port", ports.join(",").as_bytes());
    }
    let rest = [
        ("user", address.get_user().map(str::as_bytes)),
        ("password", address.get_password()),
        ("dbname", address.get_dbname().map(str::as_bytes)),
    ];
    for (name, value) in rest {
        if let Some(value) = value {
            word(name, value);
        }
    }
    words.join(" ")
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
        Ok(Database { pool, news: News::default() })
    }

    /// A connection, within two seconds.
    pub async fn client(&self) -> Result<Client, Fault> {
        self.pool.get().await.map_err(|error: PoolError| error.into())
    }

    /// Tells of new revisions.
    pub fn news(&self) -> &News {
        &self.news
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_same_after_it_was_text() {
        for url in [
            "host='/tmp/it''s' user=pagoda dbname=pagoda".replace("''", "\\'"),
            "postgresql://someone:pass%27word%5C%20@db1:5433,db2:5434/pagoda".into(),
            "postgresql:///pagoda?host=%2Ftmp%2Fa%20b".into(),
        ] {
            let address = parse_address(&url).unwrap();
            let again = parse_address(&address_text(&address)).unwrap();
            assert_eq!(address, again, "{url}");
        }
    }

    #[test]
    fn no_error_about_an_address_holds_it() {
        let error = parse_address("postgresql://someone:secret-word@db:no-port/x").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret-word"));
    }
}
