//! API keys: whose they are, what may stand on them, and that rotating and ending them holds.

use jiff::{SignedDuration, Timestamp};
use pagoda_wire::snapshot::{Budget, Item, Kind, Scope, Window};
use uuid::Uuid;

use super::*;
use crate::operations::api_keys::issue::{GRACE_MAX_S, IssuedKey, create as create_key, rotate};
use crate::operations::api_keys::rows::{KeyFilter, find, list};
use crate::operations::api_keys::{Hand, Key, KeyUpdate, Settings, delete, sweep, update};
use crate::operations::authenticate::Shown;
use crate::operations::fields::{Search, parse_networks};
use crate::operations::peppers;
use crate::operations::rbac::Reach;
use crate::operations::window;

struct Owner {
    actor: Actor,
    reach: Reach,
    role: Role,
}

impl Owner {
    fn admin() -> Self {
        Owner { actor: Actor::operator(), reach: Reach::Everyone, role: Role::Admin }
    }

    fn of(user: &User) -> Self {
        Owner { actor: guest(HERE), reach: Reach::Only(user.id), role: user.role }
    }

    fn hand(&self) -> Hand<'_> {
        Hand { actor: &self.actor, reach: self.reach, role: self.role }
    }
}

fn settings(name: &str) -> Settings {
    Settings::named(Label::required("name", name).unwrap())
}

impl Home {
    async fn key(&self, user: &User, settings: Settings) -> IssuedKey {
        let by = Owner::admin();
        create_key(&self.operations, by.hand(), user.id, settings).await.unwrap().value
    }

    async fn change_key(&self, by: &Owner, id: Uuid, what: KeyUpdate) -> Result<Key, Fault> {
        update(&self.operations, by.hand(), id, what).await.map(|written| written.value)
    }

    async fn rotate(&self, key: &IssuedKey, grace_s: u32) -> Result<IssuedKey, Fault> {
        let by = Owner::admin();
        let rotated = rotate(&self.operations, by.hand(), key.key.id, grace_s).await;
        rotated.map(|written| written.value)
    }
}

#[tokio::test]
async fn a_key_is_shown_once_and_says_whose_it_is() {
    let home = Home::new().await;
    let user = home.user("alice", Role::User).await;
    let issued = home.key(&user, settings("first")).await;
    let caller = home.caller(&issued.secret).await.unwrap();
    assert_eq!(caller.user, user.id);
    let scopes = vec![Scope::Inference, Scope::Sessions];
    assert_eq!(caller.shown, Shown::Key { id: issued.key.id, scopes });
    let secret = &issued.secret[16..];
    assert!(!format!("{issued:?}").contains(secret));
    let client = home.operations.database.client().await.unwrap();
    for table in ["api_key", "audit_log", "change_log", "pepper"] {
        for row in client.query(&format!("select t::text from {table} t"), &[]).await.unwrap() {
            assert!(!row.get::<_, String>(0).contains(secret), "{table}");
        }
    }
    let found = find(&home.operations, Reach::Everyone, issued.key.id).await.unwrap();
    assert_eq!(found, issued.key);
}

#[tokio::test]
async fn attack_16_no_pepper_is_written_in_plain_text() {
    let home = Home::new().await;
    let user = home.user("alice", Role::User).await;
    home.key(&user, settings("first")).await;
    let client = home.operations.database.client().await.unwrap();
    let row = client.query_one("select id, sealed from pepper", &[]).await.unwrap();
    let pepper = home.operations.pepper(row.get(0), row.get(1)).unwrap();
    for table in ["change_log", "audit_log"] {
        for row in client.query(&format!("select t::text from {table} t"), &[]).await.unwrap() {
            assert!(!row.get::<_, String>(0).contains(&pepper.to_text()), "{table}");
        }
    }
    let vault = pagoda_wire::vault::Vault::new(home.operations.secrets.planes()).unwrap();
    let told = home.told_since(0).await;
    let opened = told.iter().find_map(|change| match change {
        Published::Put(item) => match &**item {
            Item::Pepper(record) => Some(record.open(&vault).unwrap()),
            _ => None,
        },
        Published::Remove(..) => None,
    });
    assert_eq!(opened, Some(pepper));
}

#[tokio::test]
async fn attack_11_another_s_key_is_not_there() {
    let home = Home::new().await;
    let (alice, bob) = (home.user("alice", Role::User).await, home.user("bob", Role::User).await);
    let issued = home.key(&alice, settings("first")).await;
    let (id, by) = (issued.key.id, Owner::of(&bob));
    let missing = Fault::NotFound("key");
    assert_eq!(find(&home.operations, by.reach, id).await.unwrap_err(), missing);
    assert_eq!(home.change_key(&by, id, KeyUpdate::default()).await.unwrap_err(), missing);
    assert_eq!(rotate(&home.operations, by.hand(), id, 0).await.unwrap_err(), missing);
    assert_eq!(delete(&home.operations, by.hand(), id).await.unwrap_err(), missing);
    let for_alice = create_key(&home.operations, by.hand(), alice.id, settings("x")).await;
    assert_eq!(for_alice.unwrap_err(), Fault::NotFound("user"));
    let all = window::Window::first(10).unwrap();
    let filter = KeyFilter { owner: Some(alice.id), ..KeyFilter::default() };
    let listed = list(&home.operations, by.reach, &filter, all).await.unwrap();
    assert_eq!((listed.items.len(), listed.total), (0, 0));
    home.caller(&issued.secret).await.unwrap();
    let own = Owner::of(&alice);
    assert_eq!(find(&home.operations, own.reach, id).await.unwrap(), issued.key);
    delete(&home.operations, own.hand(), id).await.unwrap().unwrap();
    assert_eq!(home.caller(&issued.secret).await.unwrap_err(), WRONG);
}

#[tokio::test]
async fn nobody_grants_more_than_is_his() {
    let home = Home::new().await;
    let (user, admin) =
        (home.user("alice", Role::User).await, home.user("root", Role::Admin).await);
    let with = |scopes: &[Scope]| Settings { scopes: scopes.to_vec(), ..settings("k") };
    let own = Owner::of(&user);
    for scope in [Scope::Admin, Scope::ModelsWrite] {
        let refused = create_key(&home.operations, own.hand(), user.id, with(&[scope])).await;
        assert_eq!(refused.unwrap_err(), Fault::Forbidden);
    }
    let by = Owner::admin();
    let refused = create_key(&home.operations, by.hand(), user.id, with(&[Scope::Admin])).await;
    assert!(matches!(refused, Err(Fault::Invalid { .. })));
    let refused = create_key(&home.operations, by.hand(), user.id, with(&[])).await;
    assert!(matches!(refused, Err(Fault::Invalid { .. })));
    home.key(&admin, with(&[Scope::Admin])).await;
    // What an administrator put there stays there when its owner changes the rest.
    let granted = home.key(&user, with(&[Scope::ModelsWrite])).await;
    let rename = Label::required("name", "mine").unwrap();
    let rename = KeyUpdate { name: Some(rename), ..KeyUpdate::default() };
    let key = home.change_key(&own, granted.key.id, rename).await.unwrap();
    assert_eq!(key.settings.scopes, [Scope::ModelsWrite]);
    let more = vec![Scope::ModelsWrite, Scope::Admin];
    let more = KeyUpdate { scopes: Some(more), ..KeyUpdate::default() };
    assert_eq!(home.change_key(&own, granted.key.id, more).await.unwrap_err(), Fault::Forbidden);
}

#[tokio::test]
async fn attack_03_a_key_that_is_disabled_expired_or_banned_with_its_owner_opens_nothing() {
    let home = Home::new().await;
    let user = home.user("alice", Role::User).await;
    let (issued, by) = (home.key(&user, settings("k")).await, Owner::admin());
    let elsewhere = parse_networks("networks", &[THERE.into()]).unwrap();
    let (past, future) = (Timestamp::now(), Timestamp::now() + SignedDuration::from_hours(1));
    let steps = [
        (KeyUpdate { enabled: Some(false), ..KeyUpdate::default() }, Some(WRONG)),
        (KeyUpdate { enabled: Some(true), ..KeyUpdate::default() }, None),
        (KeyUpdate { expires_at: Some(Some(past)), ..KeyUpdate::default() }, Some(WRONG)),
        (KeyUpdate { expires_at: Some(Some(future)), ..KeyUpdate::default() }, None),
        (KeyUpdate { expires_at: Some(None), ..KeyUpdate::default() }, None),
        (KeyUpdate { networks: Some(elsewhere), ..KeyUpdate::default() }, Some(Fault::Forbidden)),
        (KeyUpdate { networks: Some(Vec::new()), ..KeyUpdate::default() }, None),
    ];
    for (what, refused) in steps {
        let (shown, revision) = (format!("{what:?}"), home.revision().await);
        home.change_key(&by, issued.key.id, what).await.unwrap();
        assert_eq!(home.caller(&issued.secret).await.err(), refused, "{shown}");
        assert_eq!(home.told_since(revision).await.len(), 1, "{shown}");
    }
    let ban = crate::operations::users::UserUpdate { enabled: Some(false), ..Default::default() };
    crate::operations::users::update(&home.operations, &by.actor, user.id, ban).await.unwrap();
    assert_eq!(home.caller(&issued.secret).await.unwrap_err(), WRONG);
}

#[tokio::test]
async fn bounds_come_and_go_one_by_one() {
    let home = Home::new().await;
    let user = home.user("alice", Role::User).await;
    let budget = Budget { nano: 5_000_000_000, window: Window::Month };
    let mut whole = settings("k");
    whole.models = Some(vec!["small".into()]);
    whole.requests_per_minute = Some(60);
    whole.tokens_per_minute = Some(1_000_000);
    whole.budget = Some(budget);
    let issued = home.key(&user, whole.clone()).await;
    assert_eq!(issued.key.settings, whole);
    let by = Owner::admin();
    let less = KeyUpdate { models: Some(None), budget: Some(None), ..KeyUpdate::default() };
    let key = home.change_key(&by, issued.key.id, less).await.unwrap();
    assert_eq!(key.settings, Settings { models: None, budget: None, ..whole });
    for wrong in [
        KeyUpdate { requests_per_minute: Some(Some(0)), ..KeyUpdate::default() },
        KeyUpdate { requests_per_minute: Some(Some(u32::MAX)), ..KeyUpdate::default() },
        KeyUpdate { tokens_per_minute: Some(Some(u64::MAX)), ..KeyUpdate::default() },
        KeyUpdate {
            budget: Some(Some(Budget { nano: u64::MAX, ..budget })),
            ..KeyUpdate::default()
        },
    ] {
        let refused = home.change_key(&by, issued.key.id, wrong).await;
        assert!(matches!(refused, Err(Fault::Invalid { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_rotated_key_keeps_its_id_and_its_former_secret_until_the_grace_ends() {
    let home = Home::new().await;
    let user = home.user("alice", Role::User).await;
    let first = home.key(&user, settings("k")).await;
    let revision = home.revision().await;
    let second = home.rotate(&first, 3600).await.unwrap();
    assert_eq!(
        (second.key.id, second.key.settings.clone()),
        (first.key.id, first.key.settings.clone())
    );
    assert_ne!(second.key.public_id, first.key.public_id);
    for key in [&first, &second] {
        home.caller(&key.secret).await.unwrap();
    }
    let limits: Vec<Uuid> = home
        .told_since(revision)
        .await
        .iter()
        .filter_map(|change| match change {
            Published::Put(item) => match &**item {
                Item::Key(key) => Some(key.limits),
                _ => None,
            },
            Published::Remove(..) => None,
        })
        .collect();
    assert_eq!(limits, [first.key.id; 2], "both use up the limits of the one key");
    let listed = list(
        &home.operations,
        Reach::Everyone,
        &KeyFilter::default(),
        window::Window::first(10).unwrap(),
    )
    .await;
    assert_eq!(listed.unwrap().total, 1);
    assert_eq!(sweep(&home.operations).await, Ok(0));
    home.sql("update api_key set expires_at = now() where former_of is not null").await;
    assert_eq!(home.caller(&first.secret).await.unwrap_err(), WRONG);
    home.caller(&second.secret).await.unwrap();
    let revision = home.revision().await;
    assert_eq!(sweep(&home.operations).await, Ok(1));
    assert!(matches!(home.told_since(revision).await[..], [Published::Remove(Kind::Key, _)]));
}

#[tokio::test]
async fn attack_03_what_ends_a_key_ends_its_former_secrets() {
    let home = Home::new().await;
    let (user, by) = (home.user("alice", Role::User).await, Owner::admin());
    let first = home.key(&user, settings("k")).await;
    let second = home.rotate(&first, GRACE_MAX_S).await.unwrap();
    let id = first.key.id;
    for enabled in [false, true] {
        let what = KeyUpdate { enabled: Some(enabled), ..KeyUpdate::default() };
        home.change_key(&by, id, what).await.unwrap();
        for key in [&first, &second] {
            assert_eq!(home.caller(&key.secret).await.is_ok(), enabled);
        }
    }
    // An end of the key is one of its former secrets; a later one gives them no longer grace.
    let soon = Timestamp::now() + SignedDuration::from_secs(60);
    for end in [Some(soon), None] {
        let what = KeyUpdate { expires_at: Some(end), ..KeyUpdate::default() };
        home.change_key(&by, id, what).await.unwrap();
        let longer = "select count(*) from api_key
                      where former_of is not null and expires_at > now() + interval '60 s'";
        assert_eq!(home.number(longer).await, 0);
    }
    let third = home.rotate(&second, 0).await.unwrap();
    for key in [&first, &second] {
        assert_eq!(home.caller(&key.secret).await.unwrap_err(), WRONG);
    }
    let fourth = home.rotate(&third, 60).await.unwrap();
    let revision = home.revision().await;
    delete(&home.operations, by.hand(), id).await.unwrap().unwrap();
    assert_eq!(home.told_since(revision).await.len(), 2);
    for key in [&third, &fourth] {
        assert_eq!(home.caller(&key.secret).await.unwrap_err(), WRONG);
    }
    assert_eq!(home.number("select count(*) from api_key").await, 0);
}

#[tokio::test]
async fn former_secrets_are_not_gathered_without_end() {
    let home = Home::new().await;
    let user = home.user("alice", Role::User).await;
    let key = home.key(&user, settings("k")).await;
    for _ in 0..10 {
        home.rotate(&key, 60).await.unwrap();
    }
    assert!(matches!(home.rotate(&key, 60).await, Err(Fault::Conflict(_))));
    assert!(matches!(home.rotate(&key, GRACE_MAX_S + 1).await, Err(Fault::Invalid { .. })));
    home.caller(&key.secret).await.unwrap();
    home.rotate(&key, 0).await.unwrap();
    assert_eq!(home.caller(&key.secret).await.unwrap_err(), WRONG);
}

#[tokio::test]
async fn a_new_pepper_leaves_older_keys_alone_and_goes_when_no_key_has_it() {
    let home = Home::new().await;
    let user = home.user("alice", Role::User).await;
    let old = home.key(&user, settings("old")).await;
    peppers::rotate(&home.operations, &Actor::operator()).await.unwrap().unwrap();
    let new = home.key(&user, settings("new")).await;
    for key in [&old, &new] {
        home.caller(&key.secret).await.unwrap();
    }
    assert_eq!(home.number("select count(*) from pepper").await, 2);
    home.rotate(&old, 0).await.unwrap();
    let revision = home.revision().await;
    peppers::rotate(&home.operations, &Actor::operator()).await.unwrap().unwrap();
    assert_eq!(home.number("select count(*) from pepper").await, 2);
    let told = home.told_since(revision).await;
    assert!(
        matches!(told[..], [Published::Put(_), Published::Remove(Kind::Pepper, _)]),
        "{told:?}"
    );
    home.caller(&new.secret).await.unwrap();
}

#[tokio::test]
async fn first_keys_at_once_share_one_pepper() {
    let home = Home::new().await;
    let user = home.user("alice", Role::User).await;
    let made = (0..6).map(|_| home.key(&user, settings("k")));
    for issued in futures_util::future::join_all(made).await {
        home.caller(&issued.secret).await.unwrap();
    }
    assert_eq!(home.number("select count(*) from pepper").await, 1);
}

#[tokio::test]
async fn lists_are_filtered_by_owner_state_and_plain_text() {
    let home = Home::new().await;
    let (alice, bob) = (home.user("alice", Role::User).await, home.user("bob", Role::User).await);
    for (user, name) in [(&alice, "100%"), (&alice, "Build"), (&bob, "build_2")] {
        home.key(user, settings(name)).await;
    }
    home.sql("update api_key set enabled = false where name = 'Build'").await;
    let names = async |filter: KeyFilter, reach: Reach| {
        let page = window::Window::first(10).unwrap();
        let listed = list(&home.operations, reach, &filter, page).await.unwrap();
        assert_eq!(listed.total, listed.items.len() as u64);
        listed.items.iter().map(|key| key.settings.name.as_str().to_string()).collect::<Vec<_>>()
    };
    let search = |text: &str| KeyFilter {
        search: Some(Search::parse("search", text).unwrap()),
        ..KeyFilter::default()
    };
    let everyone = Reach::Everyone;
    assert_eq!(names(search("BUILD"), everyone).await, ["build_2", "Build"]);
    assert_eq!(names(search("%"), everyone).await, ["100%"]);
    assert_eq!(names(search("_"), everyone).await, ["build_2"]);
    assert_eq!(names(KeyFilter::default(), Reach::Only(alice.id)).await, ["Build", "100%"]);
    let of_bob = KeyFilter { owner: Some(bob.id), ..KeyFilter::default() };
    assert_eq!(names(of_bob, everyone).await, ["build_2"]);
    let off = KeyFilter { enabled: Some(false), ..KeyFilter::default() };
    assert_eq!(names(off, everyone).await, ["Build"]);
}
