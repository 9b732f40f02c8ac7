//! Real servers, started, killed with and without their owners, and started again.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::*;

/// A folder that the server's account may enter, gone afterwards.
fn place() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).unwrap();
    folder
}

fn settings(folder: &Path) -> ClusterSettings {
    let options = vec![("fsync", "off".into()), ("log_checkpoints", "off".into())];
    ClusterSettings { folder: folder.into(), options, ..ClusterSettings::default() }
}

fn connect(cluster: &Cluster) -> Result<postgres::Client, postgres::Error> {
    postgres::Config::from(cluster.address()).connect(postgres::NoTls)
}

/// Adds a row and answers how many there are.
fn count(cluster: &Cluster) -> i64 {
    let mut client = connect(cluster).unwrap();
    client.batch_execute("create table if not exists kept (at timestamptz default now())").unwrap();
    client.batch_execute("insert into kept default values").unwrap();
    client.query_one("select count(*) from kept", &[]).unwrap().get(0)
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn nothing_runs(folder: &Path) -> Option<()> {
    leftover::processes(&folder.canonicalize().unwrap().join("data")).is_empty().then_some(())
}

fn kill(process: u32) {
    let process = Pid::from_raw(process.cast_signed()).unwrap();
    kill_process(process, Signal::KILL).unwrap();
}

#[test]
fn data_outlive_stops_a_panic_and_a_killed_server() {
    let place = place();
    let settings = settings(&place.path().join("postgres"));
    let cluster = Cluster::start(&settings).unwrap();
    assert_eq!(count(&cluster), 1);
    // One owner at a time.
    assert!(matches!(Cluster::start(&settings), Err(ClusterError::Owned(_))));
    let process = cluster.process().unwrap();
    kill(process);
    until("the server is not started again", || cluster.process().filter(|now| *now != process));
    until("the new server does not serve", || connect(&cluster).ok());
    assert_eq!(count(&cluster), 2);
    drop(cluster);
    assert!(nothing_runs(&settings.folder).is_some());

    let panics = std::thread::spawn({
        let settings = settings.clone();
        move || {
            let cluster = Cluster::start(&settings).unwrap();
            assert_eq!(count(&cluster), 0, "as intended");
        }
    });
    assert!(panics.join().is_err());
    assert!(nothing_runs(&settings.folder).is_some());
    let cluster = Cluster::start(&settings).unwrap();
    assert_eq!(count(&cluster), 4);
}

#[test]
fn kill_9_of_an_owner_ends_its_server_and_loses_nothing() {
    const ROLE: &str = "PAGODA_TEST_CLUSTER_OWNER";
    if let Some(folder) = std::env::var_os(ROLE) {
        // The owner: this test, run by itself.
        let cluster = Cluster::start(&settings(Path::new(&folder))).unwrap();
        let rows = count(&cluster);
        fs::write(Path::new(&folder).join("rows"), rows.to_string()).unwrap();
        std::thread::sleep(Duration::from_secs(600));
        return;
    }
    let place = place();
    let settings = settings(&place.path().join("postgres"));
    let name = "cluster::tests::kill_9_of_an_owner_ends_its_server_and_loses_nothing";
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(ROLE, &settings.folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let rows = settings.folder.join("rows");
    let read = || fs::read_to_string(&rows).ok().filter(|rows| !rows.is_empty());
    assert_eq!(until("the owner does not start", read), "1");
    assert!(matches!(Cluster::start(&settings), Err(ClusterError::Owned(_))));
    owner.kill().unwrap();
    owner.wait().unwrap();
    let bound = Account::choose(None).unwrap().binder.is_some();
    if bound {
        until("the server outlives its owner", || nothing_runs(&settings.folder));
    }
    assert_eq!(count(&Cluster::start(&settings).unwrap()), 2);
}

#[test]
fn a_start_ends_a_server_without_owner_and_minds_no_number_of_another_process() {
    let place = place();
    let settings = settings(&place.path().join("postgres"));
    drop(Cluster::start(&settings).unwrap());
    let mut unbound = Prepared::alone(&settings).unwrap();
    unbound.account.binder = None;
    let mut orphan = unbound.server().stderr(Stdio::null()).spawn().unwrap();
    until("the orphan does not serve", || unbound.is_ready().then_some(()));
    let cluster = Cluster::start(&settings).unwrap();
    assert!(orphan.wait().unwrap().success(), "it was not ended in order");
    assert_eq!(count(&cluster), 1);
    drop(cluster);

    // What a machine that lost its power leaves: a number, by now somebody else's.
    let mut other = Command::new("sleep");
    other.arg("600").uid(unbound.account.uid);
    let mut other = other.spawn().unwrap();
    let file = settings.folder.join("data").join(leftover::PROCESS_FILE);
    let data = settings.folder.join("data");
    fs::write(file, format!("{}\n{}\n1\n5432\n", other.id(), data.display())).unwrap();
    assert_eq!(count(&Cluster::start(&settings).unwrap()), 2);
    assert!(other.try_wait().unwrap().is_none());
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn what_cannot_be_used_is_one_error_that_names_it() {
    let place = place();
    let data = place.path().join("postgres/data");
    fs::create_dir_all(&data).unwrap();
    let settings = settings(&place.path().join("postgres"));
    fs::write(data.join("PG_VERSION"), "9\n").unwrap();
    let error = Cluster::start(&settings).unwrap_err();
    assert!(matches!(&error, ClusterError::OtherVersion { major, .. } if major == "9"), "{error}");
    fs::write(data.join("PG_VERSION"), "none\n").unwrap();
    assert!(matches!(Cluster::start(&settings), Err(ClusterError::Folder { path, .. })
        if path.ends_with("PG_VERSION")));
    fs::remove_dir_all(&data).unwrap();

    let none = ClusterSettings { binaries: Some(place.path().into()), ..settings.clone() };
    let error = Cluster::start(&none).unwrap_err();
    assert!(matches!(error, ClusterError::NotInstalled { .. }), "{error}");
    assert!(error.to_string().contains(place.path().to_str().unwrap()), "{error}");

    let closed = ClusterSettings { folder: "/proc/nowhere".into(), ..settings.clone() };
    let error = Cluster::start(&closed).unwrap_err();
    assert!(matches!(error, ClusterError::Folder { .. }), "{error}");
    let nobody = ClusterSettings { account: Some("no-such-account".into()), ..settings.clone() };
    let error = Cluster::start(&nobody).unwrap_err();
    assert!(matches!(error, ClusterError::Account { .. }), "{error}");
    if geteuid().is_root() {
        fs::set_permissions(place.path(), Permissions::from_mode(0o700)).unwrap();
        let error = Cluster::start(&settings).unwrap_err();
        assert!(
            matches!(&error, ClusterError::Closed { path, .. } if path == place.path()),
            "{error}"
        );
    }
}

#[test]
fn a_long_path_serves_and_a_read_only_one_says_so() {
    let place = place();
    let long = place.path().join("a".repeat(120));
    let settings = settings(&long);
    let cluster = Cluster::start(&settings).unwrap();
    assert_eq!(count(&cluster), 1);
    let socket = cluster.prepared.folder.socket().to_owned();
    assert!(!socket.starts_with(&long));
    drop(cluster);

    // Somebody else's folder in the place of the socket's is not used.
    fs::set_permissions(&socket, Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(Cluster::start(&settings), Err(ClusterError::Foreign(_))));
    fs::remove_dir_all(&socket).unwrap();

    let data = long.join("data");
    fs::set_permissions(&data, Permissions::from_mode(0o500)).unwrap();
    let error = Cluster::start(&settings).unwrap_err();
    assert!(
        matches!(&error, ClusterError::NotStarted { end, .. } if end.contains("denied")),
        "{error}"
    );
    fs::set_permissions(&data, Permissions::from_mode(0o700)).unwrap();
    assert_eq!(count(&Cluster::start(&settings).unwrap()), 2);
    fs::remove_dir_all(&socket).unwrap();
}
