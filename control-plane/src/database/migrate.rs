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
    migrate_by(client, STEPS, patience)
}

fn migrate_by(
    client: &mut Client,
    steps: &[Step],
    patience: Duration,
) -> Result<Vec<&'static str>, MigrateError> {
    lock(client, patience)?;
    let applied = apply(client, steps);
    // The lock ends with the connection at the latest.
    let _ = client.execute("select pg_advisory_unlock($1)", &[&LOCK]);
    applied
}

/// Which steps are missing, without applying any.
pub fn missing(client: &mut Client) -> Result<Vec<&'static str>, MigrateError> {
    let found = client.query_one("select to_regclass('schema_migration') is not null", &[])?;
    let applied = if found.get(0) { known(client)? } else { Vec::new() };
    check(&applied, STEPS)?;
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

fn apply(client: &mut Client, steps: &[Step]) -> Result<Vec<&'static str>, MigrateError> {
    client.batch_execute(
        "create table if not exists schema_migration (
             version bigint primary key, name text not null, checksum bytea not null,
             applied_at timestamptz not null default now())",
    )?;
    let applied = known(client)?;
    check(&applied, steps)?;
    let mut done = Vec::new();
    for step in &steps[applied.len()..] {
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
fn check(applied: &[Applied], steps: &[Step]) -> Result<(), MigrateError> {
    for (at, (version, checksum_then)) in applied.iter().enumerate() {
        let Some(step) = steps.get(at).filter(|step| step.version == *version) else {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_database::TestDatabase;

    const SOON: Duration = Duration::from_secs(30);

    fn step(version: i64, name: &'static str, sql: &'static str) -> Step {
        Step { version, name, sql }
    }

    #[test]
    fn a_fresh_database_gets_every_step_once() {
        let database = TestDatabase::empty().unwrap();
        database
            .blocking(|client| {
                let all: Vec<_> = STEPS.iter().map(|step| step.name).collect();
                assert_eq!(missing(client)?, all);
                assert_eq!(migrate(client, SOON)?, all);
                assert!(migrate(client, SOON)?.is_empty());
                assert!(missing(client)?.is_empty());
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn attack_22_of_starts_at_once_one_migrates() {
        let database = TestDatabase::empty().unwrap();
        let starts: Vec<_> = std::thread::scope(|scope| {
            let starts: [_; 4] = std::array::from_fn(|_| {
                scope.spawn(|| database.blocking(|client| Ok(migrate(client, SOON)?.len())))
            });
            starts.map(|start| start.join().unwrap().unwrap()).into()
        });
        assert_eq!(starts.iter().sum::<usize>(), STEPS.len(), "{starts:?}");
        assert_eq!(starts.iter().filter(|applied| **applied > 0).count(), 1, "{starts:?}");
    }

    #[test]
    fn a_failing_step_leaves_those_before_it_and_nothing_of_itself() {
        let database = TestDatabase::empty().unwrap();
        let failing = [
            step(1, "one", "create table one (id int)"),
            step(2, "two", "create table two (id int); select 1 / 0"),
        ];
        let mended = [
            step(1, "one", "create table one (id int)"),
            step(2, "two", "create table two (id int)"),
        ];
        database
            .blocking(|client| {
                let error = migrate_by(client, &failing, SOON).unwrap_err();
                assert!(matches!(error, MigrateError::Step { name: "two", .. }), "{error}");
                let row = client.query_one("select to_regclass('one') is not null", &[])?;
                assert!(row.get::<_, bool>(0));
                assert_eq!(migrate_by(client, &mended, SOON)?, ["two"]);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn a_changed_step_and_a_newer_database_are_refused() {
        let database = TestDatabase::empty().unwrap();
        let (one, two) = (step(1, "one", "select 1"), step(2, "two", "select 2"));
        let changed = [step(1, "one", "select 3"), step(2, "two", "select 2")];
        database
            .blocking(|client| {
                migrate_by(client, &[one, two], SOON)?;
                let error = migrate_by(client, &changed, SOON).unwrap_err();
                assert!(matches!(error, MigrateError::Changed { name: "one" }), "{error}");
                let older = [step(1, "one", "select 1")];
                let error = migrate_by(client, &older, SOON).unwrap_err();
                assert!(matches!(error, MigrateError::Newer(2)), "{error}");
                // A refusal holds no lock.
                let row = client.query_one("select count(*) from pg_locks where locktype = 'advisory'
                    and database = (select oid from pg_database where datname = current_database())", &[])?;
                assert_eq!(row.get::<_, i64>(0), 0);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn a_start_waits_for_whoever_migrates_and_not_for_ever() {
        let database = TestDatabase::empty().unwrap();
        database
            .blocking(|other| {
                other.execute("select pg_advisory_lock($1)", &[&LOCK])?;
                let waited = database.blocking(|client| Ok(migrate(client, Duration::ZERO)));
                assert!(matches!(waited?, Err(MigrateError::Locked(_))));
                other.execute("select pg_advisory_unlock($1)", &[&LOCK])?;
                assert_eq!(
                    database.blocking(|client| Ok(migrate(client, SOON)?.len()))?,
                    STEPS.len()
                );
                Ok(())
            })
            .unwrap();
    }
}
