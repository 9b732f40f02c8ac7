//! Where an installation is: its database, its folder and its secret.
//!
//! The address of a database may hold a password, so it is never part of a message.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use postgres::NoTls;

use super::CommandError;
use crate::cluster::{Cluster, ClusterSettings};
use crate::database::parse_address;

/// Settings that all commands share.
#[derive(Clone, Debug, Args)]
pub(super) struct Place {
    /// The database, as `postgresql://…` or `host=… user=…`; with a password better in the variable
    /// [default: a private Postgres below the data folder]
    #[arg(
        long,
        value_name = "URL",
        env = "PAGODA_DATABASE_URL",
        hide_env_values = true,
        global = true
    )]
    database_url: Option<DatabaseUrl>,
    /// Folder of what the installation keeps
    /// [default: /var/lib/pagoda for root, else $XDG_DATA_HOME/pagoda]
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// File of the installation's secret, made by the first start [default: `secret` in the data
    /// folder]
    #[arg(long, value_name = "FILE", global = true)]
    secret_file: Option<PathBuf>,
    /// Account that runs the private Postgres where root starts it [default: postgres or nobody]
    #[arg(long, value_name = "NAME", global = true)]
    postgres_account: Option<String>,
    /// Folder of Postgres' programs [default: the newest on the search path or where distributions
    /// have it]
    #[arg(long, value_name = "DIR", global = true)]
    pub(super) postgres_bin: Option<PathBuf>,
}

/// An address that is never shown.
#[derive(Clone)]
struct DatabaseUrl(String);

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        DatabaseUrl(url)
    }
}

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DatabaseUrl(***)")
    }
}

/// A database within reach, and the private Postgres that runs for it, if we started it.
pub(super) struct Reached {
    pub(super) address: tokio_postgres::Config,
    _cluster: Option<Cluster>,
}

impl Place {
    /// The named database, or the private one: that of a server that runs, else started here.
    pub(super) fn database(&self) -> Result<Reached, CommandError> {
        self.reach(Cluster::visit)
    }

    /// As [`Place::database`], but owns the private one.
    pub(super) fn own_database(&self) -> Result<Reached, CommandError> {
        self.reach(|settings| {
            let cluster = Cluster::start(settings)?;
            Ok((cluster.address(), Some(cluster)))
        })
    }

    /// The file of the installation's secret.
    pub(super) fn secret_file(&self) -> Result<PathBuf, CommandError> {
        match &self.secret_file {
            Some(file) => Ok(file.clone()),
            None => Ok(self.data_dir()?.join("secret")),
        }
    }

    fn reach(
        &self,
        private: impl FnOnce(&ClusterSettings) -> Result<Visited, crate::cluster::ClusterError>,
    ) -> Result<Reached, CommandError> {
        // An empty variable is as good as none.
        if let Some(DatabaseUrl(url)) = self.database_url.as_ref().filter(|url| !url.0.is_empty()) {
            return Ok(Reached { address: parse_address(url)?, _cluster: None });
        }
        let settings = ClusterSettings {
            folder: self.data_dir()?.join("postgres"),
            account: self.postgres_account.clone(),
            binaries: self.postgres_bin.clone(),
            options: Vec::new(),
        };
        let (address, cluster) = private(&settings)?;
        Ok(Reached { address, _cluster: cluster })
    }

    fn data_dir(&self) -> Result<PathBuf, CommandError> {
        if let Some(folder) = &self.data_dir {
            return std::path::absolute(folder)
                .map_err(|source| CommandError::File { path: folder.clone(), source });
        }
        if rustix::process::geteuid().is_root() {
            return Ok("/var/lib/pagoda".into());
        }
        let of = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data = of("XDG_DATA_HOME").or_else(|| Some(of("HOME")?.join(".local/share")));
        Ok(data.ok_or(CommandError::NoHome)?.join("pagoda"))
    }
}

type Visited = (tokio_postgres::Config, Option<Cluster>);

impl Reached {
    /// A connection. Not for a thread that runs tasks.
    pub(super) fn connect(&self) -> Result<postgres::Client, CommandError> {
        Ok(postgres::Config::from(self.address.clone()).connect(NoTls)?)
    }
}

/// Another instance may migrate for so long.
pub(super) const MIGRATION_PATIENCE: Duration = Duration::from_secs(300);
