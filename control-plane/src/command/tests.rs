//! Commands as they are typed, against real databases.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::*;
use crate::test_database::TestDatabase;

fn run(arguments: &[&str]) -> Result<String, CommandError> {
    let arguments = std::iter::once("pagoda-control").chain(arguments.iter().copied());
    CommandLine::try_parse_from(arguments).unwrap().run()
}

fn within(database: &TestDatabase, arguments: &[&str]) -> Result<String, CommandError> {
    let address = database.address_text();
    let place = ["--database-url", &address, "--secret-file", "/etc/pagoda/secret"];
    run(&[arguments, &place].concat())
}

fn revision(database: &TestDatabase) -> i64 {
    let sql = "select revision from control_revision";
    database.blocking(|client| Ok(client.query_one(sql, &[])?.get(0))).unwrap()
}

#[test]
fn migrate_says_what_is_missing_and_mends_it() {
    let database = TestDatabase::empty().unwrap();
    let error = within(&database, &["migrate", "--check"]).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("0001_control"), "{error}");
    assert!(within(&database, &["migrate"]).unwrap().starts_with("applied 0001_control"));
    assert_eq!(within(&database, &["migrate"]).unwrap(), "the schema is up to date");
    assert!(within(&database, &["migrate", "--check"]).is_ok());
}

#[test]
fn a_backup_is_restored_into_an_empty_database_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it's a back-up");
    let file = path.to_str().unwrap();
    let database = TestDatabase::new().unwrap();
    database
        .blocking(|client| Ok(client.execute("update control_revision set revision = 7", &[])?))
        .unwrap();
    let told = within(&database, &["backup", file]).unwrap();
    assert!(told.contains("/etc/pagoda/secret"), "{told}");
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);

    let empty = TestDatabase::empty().unwrap();
    let told = within(&empty, &["restore", file]).unwrap();
    assert!(told.contains("/etc/pagoda/secret"), "{told}");
    assert_eq!(revision(&empty), 7);
    assert!(within(&empty, &["migrate", "--check"]).is_ok());
    assert!(matches!(within(&empty, &["restore", file]), Err(CommandError::NotEmpty)));
    assert!(matches!(within(&database, &["restore", file]), Err(CommandError::NotEmpty)));

    // A second one takes the place of the first, and nothing else stays.
    within(&empty, &["backup", file]).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_damaged_backup_leaves_nothing_in_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backup");
    let database = TestDatabase::new().unwrap();
    within(&database, &["backup", path.to_str().unwrap()]).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let empty = TestDatabase::empty().unwrap();
    for end in [0, 3, whole.len() / 2, whole.len() - 100] {
        std::fs::write(&path, &whole[..end]).unwrap();
        let restored = within(&empty, &["restore", path.to_str().unwrap()]);
        assert!(matches!(restored, Err(CommandError::Program { .. })), "{end} bytes: {restored:?}");
    }
    std::fs::write(&path, &whole).unwrap();
    within(&empty, &["restore", path.to_str().unwrap()]).unwrap();
}

#[test]
fn a_backup_that_cannot_be_written_leaves_the_former_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backup");
    std::fs::write(&path, "the former one").unwrap();
    let nowhere = ["backup", path.to_str().unwrap(), "--database-url", "host=/proc user=nobody"];
    assert!(matches!(run(&nowhere), Err(CommandError::Database(_))));
    let nowhere = folder.path().join("none/backup");
    let database = TestDatabase::empty().unwrap();
    let failed = within(&database, &["backup", nowhere.to_str().unwrap()]);
    assert!(matches!(failed, Err(CommandError::File { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "the former one");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// With no database named, a private one below the data folder is used, and joined where it runs.
#[test]
fn without_a_database_commands_share_a_private_one() {
    let folder = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let data = folder.path().to_str().unwrap();
    let private = |arguments: &[&str]| {
        run(&[arguments, &["--data-dir", data, "--database-url", ""]].concat())
    };
    assert!(private(&["migrate"]).unwrap().starts_with("applied"));
    let secret = private(&["secret", "show-path"]).unwrap();
    assert_eq!(Path::new(&secret), folder.path().join("secret"));
    let settings = crate::cluster::ClusterSettings {
        folder: folder.path().join("postgres"),
        ..Default::default()
    };
    let owner = crate::cluster::Cluster::start(&settings).unwrap();
    assert!(private(&["migrate", "--check"]).is_ok());
    assert!(owner.process().is_some());
}

#[test]
fn no_message_holds_the_address_of_the_database() {
    let url = "postgresql://someone:secret-word@localhost:no-port/pagoda";
    let line = ["pagoda-control", "migrate", "--database-url", url];
    let line = CommandLine::try_parse_from(line).unwrap();
    assert!(!format!("{line:?}").contains("secret-word"));
    let error = line.run().unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(!format!("{error} {error:?}").contains("secret-word"));
}

#[test]
fn the_first_administrator_is_made_once_and_told_the_password_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let database = TestDatabase::new().unwrap();
    let (address, secret) = (database.address_text(), path("secret"));
    let admin = |arguments: &[&str]| -> Result<Vec<serde_json::Value>, CommandError> {
        let place = ["--database-url", &address, "--secret-file", &secret];
        let told = run(&[&["admin"], arguments, &place].concat())?;
        Ok(told.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    };
    let first = admin(&["first"]).unwrap().remove(0);
    assert_eq!((&first["username"], &first["role"]), (&"admin".into(), &"admin".into()));
    assert!(first["password"].as_str().unwrap().len() >= 20);
    assert!(admin(&["first"]).unwrap()[0].get("password").is_none());

    std::fs::write(path("password"), "correct horse battery\nnot this\n").unwrap();
    let file = path("password");
    let create = ["create-user", "--username", "ann", "--email", "Ann@example.org"];
    let create = [&create[..], &["--rate-class", "enterprise", "--password-file", &file]].concat();
    let ann = admin(&create).unwrap().remove(0);
    assert!(ann.get("password").is_none());
    assert!(matches!(admin(&create), Err(CommandError::Fault(Fault::Conflict(_)))));
    let listed = admin(&["list-users"]).unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0], ann);

    let key = ["create-key", "--user", "ann@EXAMPLE.org", "--name", "laptop", "--scope"];
    let key = [&key[..], &["inference", "--network", "10.1.0.0/16"]].concat();
    let key = admin(&key).unwrap().remove(0);
    assert!(key["key"].as_str().unwrap().starts_with("sk-"), "{key}");
    let keys = admin(&["list-keys", "--user", "ann"]).unwrap();
    assert_eq!((keys.len(), &keys[0]["id"], keys[0].get("key")), (1, &key["id"], None));
    assert!(admin(&["list-keys", "--user", "admin"]).unwrap().is_empty());
    assert_eq!(admin(&["disable-user", "ann"]).unwrap()[0]["enabled"], false);
    assert_eq!(admin(&["enable-user", ann["id"].as_str().unwrap()]).unwrap()[0]["enabled"], true);
    assert!(admin(&["set-password", "ann"]).unwrap()[0]["password"].is_string());
    admin(&["delete-key", key["id"].as_str().unwrap()]).unwrap();
    assert!(admin(&["list-keys"]).unwrap().is_empty());
    assert!(matches!(admin(&["disable-user", "nobody"]), Err(CommandError::Fault(_))));

    let wrong = ["create-user", "--username", "a b", "--email", "a@b"];
    assert_eq!(admin(&wrong).unwrap_err().exit_code(), 2);
    // The audit knows who did it, and no secret.
    let audit = "select actor_kind, coalesce(after::text, '') from audit_log";
    let rows = database.blocking(|client| Ok(client.query(audit, &[])?)).unwrap();
    assert!(rows.len() >= 7);
    for row in rows {
        assert_eq!(row.get::<_, &str>(0), "operator");
        assert!(!row.get::<_, &str>(1).contains("horse"));
    }
}
