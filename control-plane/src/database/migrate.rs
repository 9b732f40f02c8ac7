//! The schema, step by step: each file of `migrations/` once, in order, under a lock.
//!
//! Any number of instances may start at once: one migrates, the others wait until it is done. What
//! was applied is kept with its checksum, so a file that was changed afterwards is refused, and so
//! is a database that a newer program has migrated.

use std::time::{Duration, Instant};

use postgres::Client;
use sha2::{Digest, Sha256};

/// A step and its SQL.
struct Step {
    version: i64,
    name: &'static str,
    sql: &'static str,
}

macro_rules! steps {
    ($($version:literal $name:literal),* $(,)?) => {
        &[$(Step {
            version: $version,
            name: $name,
            sql: include_str!(concat!("../../migrations/", $name, ".sql")),
        }),*]
    };
}

/// All steps, in order. A line that was released is never changed.
const STEPS: &[Step] = steps![
    1 "0001_control",
    2 "0002_accounts",
    3 "0003_keys",
    4 "0004_models",
    5 "0005_chats",
    6 "0006_usage",
];

/// Why the schema is not what this program needs.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database does not serve.
    #[error("cannot migrate the database: {0}")]
    Database(#[from] postgres::Error),
    /// A step failed; the steps before it stand, nothing of it does.
    #[error("migration {name} failed: {source}")]
    Step {
        /// The step.
        name: &'static str,
        /// Why.
        source: postgres::Error,
    },
    /// Somebody changed a step after it was applied.
    #[error("migration {name} was changed after this database had it")]
    Changed {
        /// The step.
        name: &'static str,
    },
    /// The database is ahead.
    #[error("the database has migration {0}, which this program does not know: use a newer one")]
    Newer(i64),
    /// Somebody migrates and does not end.
    #[error("another instance has been migrating for {} s", .0.as_secs())]
    Locked(Duration),
}

/// What all steps together are: equal in databases of equal schema.
pub fn fingerprint() -> String {
    let mut all = Sha256::new();
    STEPS.iter().for_each(|step| all.update(checksum(step)));
    all.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Applies what is missing; answers the names of the steps that it applied.
pub fn migrate(client: &mut Client, patience: Duration) -> Result<Vec<&'static str>, MigrateError> {
    lock(client, patience)?;
    let applied = apply(client);
    // The lock ends with the connection at the latest.
    let _ = client.execute("select pg_advisory_unlock($1)", &[&LOCK]);
    applied
}

/// Which steps are missing, without applying any.
pub fn missing(client: &mut Client) -> Result<Vec<&'static str>, MigrateError> {
    let found = client.query_one("select to_regclass('schema_migration') is not null", &[])?;
    let applied = if found.get(0) { known(client)? } else { Vec::new() };
    check(&applied)?;
    Ok(STEPS[applied.len()..].iter().map(|step| step.name).collect())
}

/// Waits by asking: whoever blocked in the lock would hold a transaction open meanwhile.
fn lock(client: &mut Client, patience: Duration) -> Result<(), MigrateError> {
    let since = Instant::now();
    loop {
        let row = client.query_one("select pg_try_advisory_lock($1)", &[&LOCK])?;
        if row.get(0) {
            return Ok(());
        }
        if since.elapsed() > patience {
            return Err(MigrateError::Locked(patience));
        }
        std::thread::sleep(ASK_AGAIN);
    }
}

fn apply(client: &mut Client) -> Result<Vec<&'static str>, MigrateError> {
    client.batch_execute(
        "create table if not exists schema_migration (
             version bigint primary key, name text not null, checksum bytea not null,
             applied_at timestamptz not null default now())",
    )?;
    let applied = known(client)?;
    check(&applied)?;
    let mut done = Vec::new();
    for step in &STEPS[applied.len()..] {
        apply_one(client, step).map_err(|source| MigrateError::Step { name: step.name, source })?;
        done.push(step.name);
    }
    Ok(done)
}

fn apply_one(client: &mut Client, step: &Step) -> Result<(), postgres::Error> {
    let mut transaction = client.transaction()?;
    transaction.batch_execute(step.sql)?;
    transaction.execute(
        "insert into schema_migration (version, name, checksum) values ($1, $2, $3)",
        &[&step.version, &step.name, &checksum(step)],
    )?;
    transaction.commit()
}

type Applied = (i64, Vec<u8>);

fn known(client: &mut Client) -> Result<Vec<Applied>, postgres::Error> {
    let rows =
        client.query("select version, checksum from schema_migration order by version", &[])?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What was applied must be how our steps begin.
fn check(applied: &[Applied]) -> Result<(), MigrateError> {
    for (at, (version, checksum_then)) in applied.iter().enumerate() {
        let Some(step) = STEPS.get(at).filter(|step| step.version == *version) else {
            return Err(MigrateError::Newer(*version));
        };
        if checksum(step) != *checksum_then {
            return Err(MigrateError::Changed { name: step.name });
        }
    }
    Ok(())
}

fn checksum(step: &Step) -> Vec<u8> {
    Sha256::digest(step.sql.as_bytes()).to_vec()
}

/// Nobody else's number, one hopes: the first letters of our name.
const LOCK: i64 = 0x7061_676f_6461_0001;

/// How often a waiting instance asks.
const ASK_AGAIN: Duration = Duration::from_millis(50);
