//! Back-up and restore by Postgres' own programs, whole or not at all.
//!
//! A back-up holds no root secret: beside it, a restore needs a copy of the secret file, and says so.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::CommandError;
use super::place::{MIGRATION_PATIENCE, Place, Reached};
use crate::cluster::client_program;
use crate::database::address_text;
use crate::database::migrate::{migrate, missing};

/// Writes the database to `path`.
pub(super) fn backup(place: &Place, path: &Path) -> Result<String, CommandError> {
    let fail = |source| CommandError::File { path: path.into(), source };
    let database = place.database()?;
    let unfinished = unfinished(path);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        // It holds hashes of passwords and what people said.
        .mode(0o600)
        .open(&unfinished)
        .map_err(fail)?;
    let written = file.try_clone().map_err(fail).and_then(|output| {
        let mut dump = program(place, &database, "pg_dump")?;
        run("pg_dump", dump.args(["--format=custom"]).stdout(output))
    });
    let written = written.and_then(|()| {
        file.sync_all().and_then(|()| std::fs::rename(&unfinished, path)).map_err(fail)
    });
    if let Err(error) = written {
        let _ = std::fs::remove_file(&unfinished);
        return Err(error);
    }
    Ok(format!(
        "wrote {}; a restore needs it and a copy of {}",
        path.display(),
        place.secret_file()?.display()
    ))
}

/// Fills the database, which holds nothing yet, from `path`.
pub(super) fn restore(place: &Place, path: &Path) -> Result<String, CommandError> {
    let file = File::open(path);
    let file = file.map_err(|source| CommandError::File { path: path.into(), source })?;
    let database = place.database()?;
    let mut client = database.connect()?;
    let tables = "select count(*) from pg_class
                  where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')";
    if client.query_one(tables, &[])?.get::<_, i64>(0) != 0 {
        return Err(CommandError::NotEmpty);
    }
    let mut restore = program(place, &database, "pg_restore")?;
    restore.args(["--exit-on-error", "--single-transaction"]).stdin(file);
    run("pg_restore", &mut restore)?;
    // Refuses what no version of ours wrote, too.
    let behind = missing(&mut client)?;
    migrate(&mut client, MIGRATION_PATIENCE)?;
    let then = match behind.is_empty() {
        true => String::new(),
        false => format!(", then applied {}", behind.join(", ")),
    };
    let secret = place.secret_file()?;
    Ok(format!(
        "restored {}{then}; put the secret file that belongs to it at {}",
        path.display(),
        secret.display()
    ))
}

/// A program of Postgres that will use the database. Its password is not among the arguments.
fn program(place: &Place, database: &Reached, name: &'static str) -> Result<Command, CommandError> {
    let version = database.connect()?.query_one("show server_version_num", &[])?;
    let version: u32 = version.get::<_, String>(0).parse().unwrap_or_default();
    let program = client_program(place.postgres_bin.as_deref(), version / 10_000, name)?;
    let mut command = Command::new(program);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("PG") {
            command.env_remove(variable);
        }
    }
    let mut address = database.address.clone();
    if let Some(password) = address.get_password().map(<[u8]>::to_vec) {
        command.env("PGPASSWORD", String::from_utf8_lossy(&password).as_ref());
        // libpq takes an empty one for none, and then the variable's.
        address.password("");
    }
    command.args(["--no-password", "--no-owner", "--no-privileges"]);
    command.arg("--dbname").arg(address_text(&address));
    Ok(command)
}

fn run(name: &'static str, command: &mut Command) -> Result<(), CommandError> {
    let failed = |said: String| CommandError::Program { program: name, said };
    let child = command.stderr(Stdio::piped()).spawn();
    let ended = child.and_then(std::process::Child::wait_with_output);
    let ended = ended.map_err(|error: io::Error| failed(error.to_string()))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    let said: Vec<_> = said.trim().lines().rev().take(5).collect();
    Err(failed(said.into_iter().rev().collect::<Vec<_>>().join("; ")))
}

/// Beside the file, so that it takes its place in one step.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.unfinished", uuid::Uuid::now_v7().simple()));
    path.with_file_name(name)
}
