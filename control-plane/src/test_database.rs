//! A migrated database of its own for each test, in a real Postgres that all tests share.
//!
//! The first test of a run starts a private cluster below the temporary folder; each process that
//! uses it holds a shared lock, and a watcher ends the cluster and removes it when nobody has held one
//! for some seconds, however they ended. `PAGODA_TEST_DATABASE_URL` names another server instead.
//! A test's database is a copy of a template that was migrated once. Never used outside of tests.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use postgres::NoTls;
use sha2::{Digest, Sha256};

use crate::cluster::{ClusterSettings, Prepared};
use crate::database::{Database, address_text, migrate, parse_address};

/// A database that is removed when dropped.
pub struct TestDatabase {
    name: String,
    server: tokio_postgres::Config,
    database: Database,
}

impl TestDatabase {
    /// One with the schema. Blocks for a tenth of a second, the first of a run for two.
    pub fn new() -> Result<Self> {
        Self::make(|client| {
            let template = template(client)?;
            Ok(format!("template {template}"))
        })
    }

    /// One without any.
    pub fn empty() -> Result<Self> {
        Self::make(|_| Ok("template template0".to_owned()))
    }

    fn make(source: impl FnOnce(&mut postgres::Client) -> Result<String> + Send) -> Result<Self> {
        let server = shared()?;
        let name = format!("test_{}", uuid::Uuid::now_v7().simple());
        apart(|| {
            let mut client = connect(&server, "postgres")?;
            let source = source(&mut client)?;
            Ok(client.batch_execute(&format!("create database {name} {source}"))?)
        })?;
        let mut address = server.clone();
        address.dbname(&name);
        let database = Database::new(address, CONNECTIONS)?;
        Ok(TestDatabase { name, server, database })
    }

    /// A pool of connections to it.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Where it is.
    pub fn address(&self) -> tokio_postgres::Config {
        let mut address = self.server.clone();
        address.dbname(&self.name);
        address
    }

    /// The same for a command line.
    pub fn address_text(&self) -> String {
        address_text(&self.address())
    }

    /// Runs `work` with a blocking client, beside any runtime.
    pub fn blocking<T: Send>(
        &self,
        work: impl FnOnce(&mut postgres::Client) -> Result<T> + Send,
    ) -> Result<T> {
        apart(|| work(&mut connect(&self.server, &self.name)?))
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let dropped = apart(|| {
            let mut client = connect(&self.server, "postgres")?;
            Ok(client.batch_execute(&format!("drop database {} with (force)", self.name))?)
        });
        if let Err(error) = dropped {
            tracing::warn!(%error, database = self.name, "a test's database stays");
        }
    }
}

fn connect(server: &tokio_postgres::Config, database: &str) -> Result<postgres::Client> {
    let mut config = postgres::Config::from(server.clone());
    Ok(config.dbname(database).connect(NoTls)?)
}

/// The blocking client must not meet a runtime.
fn apart<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The name of the migrated template, which exists when this answers.
fn template(client: &mut postgres::Client) -> Result<String> {
    let name = format!("pagoda_{}", migrate::fingerprint());
    let found = "select from pg_database where datname = $1";
    if client.query_opt(found, &[&name])?.is_some() {
        return Ok(name);
    }
    client.execute("select pg_advisory_lock($1)", &[&TEMPLATE_LOCK])?;
    if client.query_opt(found, &[&name])?.is_none() {
        let unfinished = format!("{name}_unfinished");
        client.batch_execute(&format!("drop database if exists {unfinished} with (force)"))?;
        client.batch_execute(&format!("create database {unfinished} template template0"))?;
        let mut inner = connect(&shared()?, &unfinished)?;
        migrate::migrate(&mut inner, Duration::from_secs(60))?;
        inner.close()?;
        // Whoever finds the name finds all of it.
        client.batch_execute(&format!("alter database {unfinished} rename to {name}"))?;
    }
    client.execute("select pg_advisory_unlock($1)", &[&TEMPLATE_LOCK])?;
    Ok(name)
}

/// The server, started by whoever needs it first.
fn shared() -> Result<tokio_postgres::Config> {
    static SERVER: Mutex<Option<(tokio_postgres::Config, Option<File>)>> = Mutex::new(None);
    let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((server, _)) = &*server {
        return Ok(server.clone());
    }
    let (found, user) = match std::env::var("PAGODA_TEST_DATABASE_URL") {
        Ok(url) => (parse_address(&url)?, None),
        Err(_) => {
            let (found, user) = join(&folder()?)?;
            (found, Some(user))
        }
    };
    // The lock is the process's until it ends.
    *server = Some((found.clone(), user));
    Ok(found)
}

/// Of this checkout and this account, so that others' tests are not disturbed.
fn folder() -> Result<PathBuf> {
    let us = rustix::process::geteuid().as_raw();
    let checkout = Sha256::digest(env!("CARGO_MANIFEST_DIR").as_bytes());
    let name: String = checkout[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    let folder = std::env::temp_dir().join(format!("pagoda-tests-{us}-{name}"));
    DirBuilder::new().recursive(true).mode(0o711).create(&folder)?;
    let owner = folder.symlink_metadata()?.uid();
    ensure!(owner == us, "{} belongs to somebody else", folder.display());
    Ok(folder)
}

/// Joins those who use the cluster, as its first user starts it. The lock is held as long as the file
/// is open.
fn join(folder: &Path) -> Result<(tokio_postgres::Config, File)> {
    let users = lock_file(&folder.join("users.lock"))?;
    users.lock_shared()?;
    let start = lock_file(&folder.join("start.lock"))?;
    start.lock()?;
    let address = folder.join("address");
    let running = || -> Result<tokio_postgres::Config> {
        let server = parse_address(&std::fs::read_to_string(&address)?)?;
        apart(|| connect(&server, "postgres").map(drop))?;
        Ok(server)
    };
    if let Ok(server) = running() {
        return Ok((server, users));
    }
    let cluster = folder.join("cluster");
    match std::fs::remove_dir_all(&cluster) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let prepared = Prepared::alone(&ClusterSettings {
        folder: cluster,
        options: OPTIONS.map(|(name, value)| (name, value.to_owned())).into(),
        ..ClusterSettings::default()
    })?;
    watch(folder, &prepared)?;
    let server = prepared.address("postgres");
    std::fs::write(&address, address_text(&server))?;
    Ok((server, users))
}

fn lock_file(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    file.with_context(|| format!("{}", path.display()))
}

/// Spawns the watcher, which spawns the server, and waits until that answers.
fn watch(folder: &Path, prepared: &Prepared) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let server = prepared.server();
    let log = folder.join("log");
    let log_file = File::create(&log)?;
    let mut watcher = Command::new("/bin/sh")
        .args(["-c", WATCH, "pagoda-test-cluster"])
        .arg(folder)
        .arg(server.get_program())
        .args(server.get_args())
        .current_dir("/")
        // Neither a terminal's Ctrl-C nor the end of a test means it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log_file.try_clone()?)
        .stderr(log_file)
        .spawn()?;
    let since = Instant::now();
    while !prepared.is_ready() {
        let ended = watcher.try_wait()?;
        if ended.is_some() || since.elapsed() > START_PATIENCE {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("the cluster of the tests does not start: {ended:?}\n{said}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Runs the server until nobody holds the lock, looked at once a second, twenty times in a row. Holds
/// the lock itself while it ends, so whoever comes then waits and starts another.
const WATCH: &str = r#"
folder=$1
shift
"$@" &
server=$!
unused=0
while kill -0 $server; do
    sleep 1
    exec 9>>"$folder/users.lock"
    if flock -xn 9; then unused=$((unused + 1)); else unused=0; fi
    if [ $unused -ge 20 ]; then
        kill -QUIT $server
        wait $server
        rm -rf "$folder/cluster" "$folder/address"
    else
        exec 9>&-
    fi
done
"#;

/// Nothing of a test's must outlive the machine.
const OPTIONS: [(&str, &str); 5] = [
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("max_connections", "400"),
    ("autovacuum_naptime", "1h"),
];

/// Of the pool of one test.
const CONNECTIONS: usize = 8;

/// Held by whoever makes the template.
const TEMPLATE_LOCK: i64 = 0x7061_676f_6461_0002;

const START_PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn databases_of_tests_are_migrated_apart_and_gone_after_them() {
        let (one, two) = (TestDatabase::new().unwrap(), TestDatabase::new().unwrap());
        let client = one.database().client().await.unwrap();
        client.execute("update control_revision set revision = 7", &[]).await.unwrap();
        let other = two.database().client().await.unwrap();
        let revision = other.query_one("select revision from control_revision", &[]).await.unwrap();
        assert_eq!(revision.get::<_, i64>(0), 0);
        let name = one.name.clone();
        drop(client);
        drop(one);
        let left = other.query("select from pg_database where datname = $1", &[&name]).await;
        assert!(left.unwrap().is_empty());
    }
}
