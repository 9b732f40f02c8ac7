//! A private Postgres: made, started, kept alive and stopped with us; its data stay.
//!
//! For an installation that names no database. The server listens on a socket in a folder that only
//! its account may enter, never on a network, and lets in that account and whoever started it.
//! Nothing here knows what the database holds.

mod account;
mod folder;
mod installation;
mod leftover;
mod server;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use account::Account;
use folder::Folder;
use installation::Installation;
use server::Server;

/// Where a private Postgres lives and how it runs.
#[derive(Clone, Debug, Default)]
pub struct ClusterSettings {
    /// Holds its data, its log and who owns it; made where it is missing.
    pub folder: PathBuf,
    /// The account of the server where root starts it: by default `postgres`, else `nobody`.
    pub account: Option<String>,
    /// Where `initdb` and `postgres` are, if not in a usual place.
    pub binaries: Option<PathBuf>,
    /// Further settings of Postgres, over ours.
    pub options: Vec<(&'static str, String)>,
}

/// A private Postgres that runs. Dropped, it is stopped.
pub struct Cluster {
    // Stopped before another owner may come.
    server: Server,
    prepared: Prepared,
    _owner: File,
}

/// A private Postgres that may be started.
pub(crate) struct Prepared {
    installation: Installation,
    account: Account,
    folder: Folder,
    options: Vec<(&'static str, String)>,
}

/// A private Postgres that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is none on this machine.
    #[error(
        "no Postgres was found (looked in {searched}): install one, version {} or newer (for \
         instance `apt-get install postgresql`), or name a database by --database-url",
        installation::OLDEST
    )]
    NotInstalled {
        /// Folders, with commas between them.
        searched: String,
    },
    /// What is there cannot open the data.
    #[error(
        "the data in {data} are of Postgres {major}, but this machine has {found}: install \
         Postgres {major}, or move the data by backup and restore"
    )]
    OtherVersion {
        /// The folder.
        data: PathBuf,
        /// What made it.
        major: String,
        /// What is there.
        found: String,
    },
    /// A folder cannot be used.
    #[error("cannot use {path}: {source}")]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server would not get to its data.
    #[error(
        "the account {account}, which runs Postgres because root must not, cannot enter {path}: \
         choose another --data-dir, or allow it (chmod o+x)"
    )]
    Closed {
        /// The folder that is in the way.
        path: PathBuf,
        /// Who may not.
        account: String,
    },
    /// The folder of the socket belongs to somebody else.
    #[error("{0} is not a folder of ours: remove it")]
    Foreign(PathBuf),
    /// Another process owns the folder.
    #[error("another process runs the Postgres in {0}")]
    Owned(PathBuf),
    /// There is no such account, or it is not ours to use.
    #[error("the account {name} cannot run Postgres: {reason}")]
    Account {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// A program of Postgres failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Which.
        program: String,
        /// The end of what it said.
        output: String,
    },
    /// The server ended before it answered.
    #[error("Postgres did not start; the end of {log}:\n{end}")]
    NotStarted {
        /// The file.
        log: PathBuf,
        /// What it says.
        end: String,
    },
    /// A server without an owner does not stop.
    #[error("a Postgres whose owner died still runs in {data} (process {process}): stop it")]
    Leftover {
        /// The folder.
        data: PathBuf,
        /// One of its processes.
        process: i32,
    },
    /// It runs and does not serve.
    #[error("Postgres runs and does not serve: {0}")]
    Refused(#[from] postgres::Error),
}

impl Cluster {
    /// Starts the Postgres of `settings`, makes it first where there is none. Blocks until it
    /// serves, which takes longer after a crash; not for a thread that runs tasks.
    pub fn start(settings: &ClusterSettings) -> Result<Cluster, ClusterError> {
        let account = Account::choose(settings.account.as_deref())?;
        let folder = Folder::open(&settings.folder, &account)?;
        let owner = folder.own()?;
        let prepared = Prepared::new(settings, account, folder)?;
        let server = Server::start(prepared.server(), &prepared.folder, START_PATIENCE)?;
        prepared.make_database()?;
        Ok(Cluster { server, prepared, _owner: owner })
    }

    /// The private Postgres of another process, or if none owns it one started here, to be kept as
    /// long as it is used.
    pub fn visit(
        settings: &ClusterSettings,
    ) -> Result<(tokio_postgres::Config, Option<Cluster>), ClusterError> {
        match Self::start(settings) {
            Ok(cluster) => Ok((cluster.address(), Some(cluster))),
            Err(ClusterError::Owned(_)) => {
                let account = Account::choose(settings.account.as_deref())?;
                let folder = Folder::open(&settings.folder, &account)?;
                server::wait_for_another(&folder, VISIT_PATIENCE)?;
                Ok((folder.address(DATABASE), None))
            }
            Err(error) => Err(error),
        }
    }

    /// Where clients of this process connect.
    pub fn address(&self) -> tokio_postgres::Config {
        self.prepared.folder.address(DATABASE)
    }

    /// The process id of the server, none while it is being started again.
    pub fn process(&self) -> Option<u32> {
        self.server.process()
    }
}

impl Prepared {
    /// Makes the data where there are none. The caller owns the folder.
    pub(crate) fn new(
        settings: &ClusterSettings,
        account: Account,
        folder: Folder,
    ) -> Result<Self, ClusterError> {
        let major = folder.major()?;
        let installation = Installation::find(settings.binaries.as_deref(), major, folder.data())?;
        folder.configure(&account)?;
        if major.is_none() {
            let lasting = !settings.options.contains(&("fsync", "off".into()));
            folder.make_data(&installation, &account, lasting)?;
        }
        let options = settings.options.clone();
        Ok(Prepared { installation, account, folder, options })
    }

    /// As [`Prepared::new`], in a folder that nobody else uses.
    pub(crate) fn alone(settings: &ClusterSettings) -> Result<Self, ClusterError> {
        let account = Account::choose(settings.account.as_deref())?;
        let folder = Folder::open(&settings.folder, &account)?;
        Self::new(settings, account, folder)
    }

    /// The server as a command that ends with the thread that spawned it.
    pub(crate) fn server(&self) -> Command {
        let mut command = self.account.command_of_a_child(&self.installation.program("postgres"));
        let folder = &self.folder;
        command.arg("-D").arg(folder.data());
        let own = [
            ("listen_addresses", String::new()),
            ("unix_socket_directories", folder.socket().display().to_string()),
            ("unix_socket_permissions", "0700".into()),
            ("hba_file", folder.access_file().display().to_string()),
            ("ident_file", folder.names_file().display().to_string()),
            ("log_line_prefix", "%m [%p] ".into()),
        ];
        for (name, value) in own.iter().chain(&self.options) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command
    }

    /// Whether a server answers.
    pub(crate) fn is_ready(&self) -> bool {
        self.folder.serving().is_some()
    }

    /// Where clients connect.
    pub(crate) fn address(&self, database: &str) -> tokio_postgres::Config {
        self.folder.address(database)
    }

    fn make_database(&self) -> Result<(), ClusterError> {
        let config = postgres::Config::from(self.address("postgres"));
        // A thread of its own: the blocking client must not meet a runtime.
        let made = std::thread::scope(|scope| {
            let make = scope.spawn(|| {
                let mut client = config.connect(postgres::NoTls)?;
                let found =
                    client.query_opt("select from pg_database where datname = $1", &[&DATABASE])?;
                match found {
                    Some(_) => Ok(()),
                    None => client.batch_execute(&format!("create database {DATABASE}")),
                }
            });
            make.join()
        });
        match made {
            Ok(made) => Ok(made?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("folder", &self.prepared.folder.path()).finish()
    }
}

/// The role that `initdb` makes, and ours: the socket's folder says who may be it.
const SUPERUSER: &str = "pagoda";

/// The database of an installation.
const DATABASE: &str = "pagoda";

/// A start after a crash reads the log of what was written: that may take minutes.
const START_PATIENCE: Duration = Duration::from_secs(600);

/// Whoever owns it may be starting it.
const VISIT_PATIENCE: Duration = Duration::from_secs(60);

/// A program of Postgres for a server of version `major`: of that version, else of the newest.
pub fn client_program(
    folder: Option<&std::path::Path>,
    major: u32,
    name: &str,
) -> Result<PathBuf, ClusterError> {
    let none = std::path::Path::new("");
    let found = Installation::find(folder, Some(major), none);
    Ok(found.or_else(|_| Installation::find(folder, None, none))?.program(name))
}

#[cfg(test)]
mod tests;
