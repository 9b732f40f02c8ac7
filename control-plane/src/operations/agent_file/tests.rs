//! Reloads of the agents' file against a real Postgres.

use super::*;
use crate::operations::agents::{AgentChange, AgentFilter, find, list, update};
use crate::operations::window::Window;
use crate::test_database::TestDatabase;

fn entry(key: &str, name: &str, more: &str) -> String {
    format!(
        "[[agent]]\nkey = {key:?}\nname = {name:?}\nprovider = \"local\"\nmodel = \"default\"\n{more}\n"
    )
}

fn toml(entries: &[String]) -> AgentFile {
    AgentFile::parse(&entries.concat(), false).unwrap()
}

async fn names(database: &Database) -> Vec<(String, bool)> {
    let page = Window::page(1, 100).unwrap();
    let mut agents = list(database, &AgentFilter::default(), page).await.unwrap().items;
    agents.sort_by(|one, two| one.name.cmp(&two.name));
    agents.into_iter().map(|agent| (agent.name, agent.is_active)).collect()
}

#[tokio::test]
async fn a_change_outlives_the_reload_of_an_unchanged_entry_alone() {
    let test = TestDatabase::new().unwrap();
    let (database, actor) = (test.database(), Actor::operator());
    let (one, two) = (entry("1", "one", "category = \"a\""), entry("2", "two", ""));
    let first = reload(database, &actor, &toml(&[one.clone(), two.clone()])).await.unwrap();
    assert_eq!(first.value, Reloaded { added: 2, ..Reloaded::default() });
    let page = Window::page(1, 9).unwrap();
    let agents = list(database, &AgentFilter::default(), page).await.unwrap().items;
    let id = |name: &str| agents.iter().find(|agent| agent.name == name).unwrap().id;

    let category = Some(field("category", "mine").unwrap());
    let put = AgentChange { category, ..AgentChange::default() };
    update(database, &actor, id("one"), put).await.unwrap();
    let again = reload(database, &actor, &toml(&[two.clone(), one.clone()])).await.unwrap();
    assert_eq!(again.value, Reloaded { unchanged: 2, ..Reloaded::default() });
    assert_eq!(again.revision, None);
    assert_eq!(find(database, id("one"), true).await.unwrap().category, "mine");

    // Another category in the file: the file's counts. The second is gone.
    let changed = entry("1", "one", "category = \"b\"");
    let third = reload(database, &actor, &toml(&[changed])).await.unwrap();
    assert_eq!(third.value, Reloaded { changed: 1, removed: 1, ..Reloaded::default() });
    assert_eq!(find(database, id("one"), true).await.unwrap().category, "b");
    assert_eq!(names(database).await, [("one".into(), true), ("two".into(), false)]);
    // What is gone stays as an administrator makes it, until it is back.
    let on = AgentChange { is_active: Some(true), ..AgentChange::default() };
    update(database, &actor, id("two"), on).await.unwrap();
    let fourth = reload(database, &actor, &toml(std::slice::from_ref(&one))).await.unwrap();
    assert_eq!(fourth.value.removed, 0);
    let back = reload(database, &actor, &toml(&[one, two])).await.unwrap();
    assert_eq!(back.value, Reloaded { added: 1, unchanged: 1, ..Reloaded::default() });
    assert_eq!(find(database, id("two"), true).await.unwrap().name, "two");
}

#[tokio::test]
async fn a_reload_is_done_whole_or_not_at_all() {
    let test = TestDatabase::new().unwrap();
    let (database, actor) = (test.database(), Actor::operator());
    let both = [entry("1", "one", ""), entry("2", "two", "")];
    reload(database, &actor, &toml(&both)).await.unwrap();
    let swapped = [entry("1", "two", ""), entry("2", "one", "")];
    let swapped = reload(database, &actor, &toml(&swapped)).await.unwrap();
    assert_eq!(swapped.value.changed, 2);
    let same = [entry("1", "x", ""), entry("2", "x", "")];
    let fault = reload(database, &actor, &toml(&same)).await.unwrap_err();
    assert!(matches!(fault, Fault::Conflict(_)), "{fault:?}");
    assert_eq!(names(database).await, [("one".into(), true), ("two".into(), true)]);
    // Two control planes at once.
    let (one, two) = (toml(&both), toml(&[entry("3", "three", "")]));
    let (a, b) = tokio::join!(reload(database, &actor, &one), reload(database, &actor, &two));
    assert!(a.is_ok() && b.is_ok());
    let active: Vec<_> = names(database).await.into_iter().filter(|(_, on)| *on).collect();
    assert!([1, 2].contains(&active.len()), "{active:?}");
}

#[test]
fn a_file_is_read_whole_or_not_at_all() {
    let json = r#"{"agent": [{"key": "1", "name": "one", "provider": "local", "model": "m",
        "parameters": {"top_p": 1, "temperature": 0.5}}]}"#;
    let same = entry("1", "one", "parameters = { temperature = 0.5, top_p = 1 }");
    let same = same.replace("\"default\"", "\"m\"");
    assert_eq!(AgentFile::parse(json, true).unwrap(), AgentFile::parse(&same, false).unwrap());
    assert!(AgentFile::parse("", false).unwrap().entries.is_empty());
    let twice = [entry("1", "a", ""), entry("1", "b", "")].concat();
    for (wrong, says) in [
        ("[[agent]]\nname = 1", "not understood"),
        ("[[agents]]\n", "not understood"),
        (&entry("1", "a", "role = \"admin\""), "not understood"),
        (&entry("1", "a", "parameters = { api_base = \"x\" }"), "api_base"),
        (&entry("1", "", ""), "name"),
        (&entry("", "a", ""), "key"),
        (&twice, "two agents"),
    ] {
        let error = AgentFile::parse(wrong, false).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let many: String = (0..1001).map(|n| entry(&n.to_string(), "a", "")).collect();
    assert!(matches!(AgentFile::parse(&many, false), Err(AgentFileError::TooLarge(_))));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agents.json");
    std::fs::write(&path, json).unwrap();
    assert_eq!(AgentFile::read(&path).unwrap().entries.len(), 1);
    std::fs::write(&path, "x".repeat((4 << 20) + 1)).unwrap();
    assert!(matches!(AgentFile::read(&path), Err(AgentFileError::TooLarge(_))));
}
