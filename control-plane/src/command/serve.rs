//! `pagoda-control serve`: flags to the server's settings.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use pagoda_http::limits::Limits;

use super::CommandError;
use super::place::Place;
use crate::operations::logins::Policy;
use crate::serve::{Config, serve};

/// Settings of `serve`.
#[derive(Clone, Debug, Args)]
pub(super) struct Flags {
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// Connections to the database at most
    #[arg(long, value_name = "N", default_value_t = 16)]
    connections: usize,
    /// Who tokens say that signed them, and whom they are for
    #[arg(long, value_name = "NAME", default_value = "pagoda")]
    issuer: String,
    /// Let anybody make an account, without any rights beyond a user's
    #[arg(long)]
    open_registration: bool,
    /// Seconds that requests have to end once it shall stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    shutdown_timeout: u64,
}

impl Flags {
    /// Serves until told to stop.
    pub(super) fn serve(self, place: &Place) -> Result<(), CommandError> {
        let secret_file = place.secret_file()?;
        let database = place.own_database()?;
        let config = Config {
            listen: self.listen,
            database: database.address.clone(),
            connections: self.connections,
            secret_file,
            issuer: self.issuer,
            // A password takes a core for a while; more at once would only take more memory.
            hashes: std::thread::available_parallelism().map_or(1, Into::into),
            policy: Policy { registration_open: self.open_registration, ..Policy::default() },
            limits: Limits::default(),
            shutdown_timeout: Duration::from_secs(self.shutdown_timeout),
        };
        serve(config, |address| tracing::info!(%address, "serving"))?;
        Ok(())
    }
}
