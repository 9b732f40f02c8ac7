//! The command line: what an operator does where the control plane is installed.
//!
//! Whoever has the database and the secret file may do everything, so nothing here asks for a
//! credential; the audit calls it the operator. No secret is ever taken from an argument, which
//! others on the machine can read, and none is told but those made for whoever asked.

mod admin;
mod backup;
mod place;
mod serve;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::cluster::ClusterError;
use crate::database::AddressError;
use crate::database::migrate::{MigrateError, migrate, missing};
use crate::fault::Fault;
use crate::secrets::{Secrets, SecretsError};
use crate::serve::ServeError;

use place::Place;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "pagoda-control",
    version,
    about = "Pagoda's control plane: users, keys, models, agents, sessions and usage",
    after_help = "Without --database-url it runs a private Postgres in its data folder, from what \
                  is installed (15 or newer)."
)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    place: Place,
}

/// Commands of the binary.
#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until told to stop
    Serve(serve::Flags),
    /// Bring the schema of the database up to date, as `serve` does when it starts
    Migrate {
        /// Change nothing; end with 1 if something is missing
        #[arg(long)]
        check: bool,
    },
    /// Write all that the database holds to a file, while it serves
    Backup {
        /// The file; one that is there is replaced when the new one is whole
        file: PathBuf,
    },
    /// Fill an empty database from a file of `backup`
    Restore {
        /// The file
        file: PathBuf,
    },
    /// Users and keys by hand; answers are JSON, an object a line
    #[command(subcommand)]
    Admin(Box<admin::Admin>),
    /// About the file whose secret opens what the database holds sealed
    #[command(subcommand)]
    Secret(Secret),
}

/// Commands about the secret file.
#[derive(Debug, Subcommand)]
enum Secret {
    /// Say where it is
    ShowPath,
    /// Print the secret that all planes share: for the file that `pagoda serve` gets
    Planes,
}

/// A command that was not done.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Nobody said where.
    #[error("there is no home folder for data: give --data-dir")]
    NoHome,
    /// The address of the database.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The private Postgres.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The root secret.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// The database does not serve.
    #[error("cannot use the database: {0}")]
    Database(#[from] postgres::Error),
    /// The schema.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// The schema is not what this program needs.
    #[error("the database lacks {}: run `pagoda-control migrate`", .0.join(", "))]
    Behind(Vec<&'static str>),
    /// A restore would mix two installations.
    #[error("the database is not empty: restore into a new one")]
    NotEmpty,
    /// A file.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program of Postgres failed.
    #[error("{program} failed: {said}")]
    Program {
        /// Which.
        program: &'static str,
        /// The end of what it said.
        said: String,
    },
    /// An operation.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The server.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl CommandError {
    /// The exit code that tells it to a supervisor: 2 settings, 3 the port, 1 anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            CommandError::NoHome | CommandError::Address(_) | CommandError::Secrets(_) => 2,
            CommandError::Fault(Fault::Invalid { .. }) => 2,
            CommandError::Cluster(
                ClusterError::NotInstalled { .. }
                | ClusterError::OtherVersion { .. }
                | ClusterError::Account { .. }
                | ClusterError::Closed { .. }
                | ClusterError::Foreign(_),
            ) => 2,
            CommandError::Serve(error) => error.exit_code(),
            _ => 1,
        }
    }
}

impl CommandLine {
    /// Does it; answers what to tell whoever asked.
    pub fn run(self) -> Result<String, CommandError> {
        let place = self.place;
        match self.command {
            Command::Serve(flags) => flags.serve(&place).map(|()| String::new()),
            Command::Migrate { check } => migrate_or_check(&place, check),
            Command::Backup { file } => backup::backup(&place, &file),
            Command::Restore { file } => backup::restore(&place, &file),
            Command::Admin(admin) => admin.run(&place),
            Command::Secret(Secret::ShowPath) => Ok(place.secret_file()?.display().to_string()),
            Command::Secret(Secret::Planes) => {
                Ok(Secrets::open_or_make(&place.secret_file()?)?.planes().to_text())
            }
        }
    }
}

fn migrate_or_check(place: &Place, check: bool) -> Result<String, CommandError> {
    let database = place.database()?;
    let mut client = database.connect()?;
    if check {
        let missing = missing(&mut client)?;
        return match missing.is_empty() {
            true => Ok("the schema is up to date".into()),
            false => Err(CommandError::Behind(missing)),
        };
    }
    let applied = migrate(&mut client, place::MIGRATION_PATIENCE)?;
    Ok(match applied.is_empty() {
        true => "the schema is up to date".into(),
        false => format!("applied {}", applied.join(", ")),
    })
}

#[cfg(test)]
mod tests;
