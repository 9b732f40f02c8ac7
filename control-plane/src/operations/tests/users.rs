//! Users: names that one alone has, what ends tokens, and who stays an administrator.

use pagoda_wire::snapshot::Item;
use pagoda_wire::token::Role;
use uuid::Uuid;

use super::*;
use crate::operations::fields::{Search, parse_networks};
use crate::operations::users::{
    Registration, UserFilter, UserUpdate, find, first_admin, list, register, update,
};
use crate::operations::window::Window;

async fn change(home: &Home, user: &User, what: UserUpdate) -> Result<User, Fault> {
    update(&home.operations, &Actor::operator(), user.id, what).await.map(|written| written.value)
}

#[tokio::test]
async fn a_name_and_an_address_are_somebody_s_in_any_case() {
    let home = Home::new().await;
    let first = home.user("Alice", Role::User).await;
    for (username, email) in [("aLICE", "b@c"), ("bob", "aLICE@EXAMPLE.org")] {
        let mut new = new_user("bob", Role::User);
        new.username = Username::parse(username).unwrap();
        new.email = Email::parse(email).unwrap();
        let refused = create(&home.operations, &Actor::operator(), new).await;
        assert!(matches!(refused, Err(Fault::Conflict(_))), "{username} {email}");
    }
    let second = home.user("bob", Role::User).await;
    let taken =
        UserUpdate { username: Some(Username::parse("ALICE").unwrap()), ..Default::default() };
    assert!(matches!(change(&home, &second, taken).await, Err(Fault::Conflict(_))));
    assert_eq!(find(&home.operations, first.id).await.unwrap(), first);
    assert_eq!(find(&home.operations, Uuid::now_v7()).await, Err(Fault::NotFound("user")));
}

#[tokio::test]
async fn another_tenant_s_user_is_not_there() {
    let home = Home::new().await;
    let user = home.user("alice", Role::User).await;
    let other = Uuid::now_v7();
    home.sql(&format!("insert into tenant (id, name) values ('{other}', 'other')")).await;
    home.sql(&format!("update app_user set tenant_id = '{other}'")).await;
    assert_eq!(find(&home.operations, user.id).await, Err(Fault::NotFound("user")));
    let ban = UserUpdate { enabled: Some(false), ..Default::default() };
    assert_eq!(change(&home, &user, ban).await, Err(Fault::NotFound("user")));
    let page = Window::first(10).unwrap();
    let listed = list(&home.operations, &UserFilter::default(), page).await.unwrap();
    assert_eq!((listed.items.len(), listed.total), (0, 0));
    assert_eq!(home.try_login("alice", PASSWORD, HERE).await.unwrap_err(), WRONG);
}

#[tokio::test]
async fn attack_08_no_text_of_a_search_is_a_pattern_or_a_statement() {
    let home = Home::new().await;
    home.user("a_c", Role::User).await;
    home.user("abc", Role::Admin).await;
    let found = async |text: &str| {
        let search = Some(Search::parse("search", text).unwrap());
        let filter = UserFilter { search, ..UserFilter::default() };
        let page = Window::first(10).unwrap();
        let listed = list(&home.operations, &filter, page).await.unwrap();
        listed.items.into_iter().map(|user| user.username).collect::<Vec<_>>()
    };
    assert_eq!(found("A_C").await, ["a_c"]);
    assert_eq!(found("@EXAMPLE").await, ["abc", "a_c"]);
    for text in ["%", "%_%_%", "'; drop table app_user; --", "\\", "$1", "a.c"] {
        assert!(found(text).await.is_empty(), "{text}");
    }
    assert!(Search::parse("search", "a\0b").is_err());
    assert!(Search::parse("search", &"x".repeat(1 << 20)).is_err());
    assert!(Window::<Uuid>::page(1_000_000, 100).is_err());
}

#[tokio::test]
async fn a_list_goes_on_where_it_ended() {
    let home = Home::new().await;
    for number in 0..5 {
        home.user(&format!("user{number}"), Role::User).await;
    }
    home.user("root", Role::Admin).await;
    let filter = UserFilter { role: Some(Role::User), ..UserFilter::default() };
    let (mut names, mut after) = (Vec::new(), None);
    loop {
        let mut page = Window::first(2).unwrap();
        page.after = after;
        let part = list(&home.operations, &filter, page).await.unwrap();
        assert_eq!(part.total, 5);
        names.extend(part.items.into_iter().map(|user| user.username));
        after = part.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(names, ["user4", "user3", "user2", "user1", "user0"]);
    let page = Window::page(3, 2).unwrap();
    let last = list(&home.operations, &filter, page).await.unwrap();
    assert_eq!((last.items[0].username.as_str(), last.next), ("user0", None));
}

#[tokio::test]
async fn attack_03_what_takes_rights_ends_every_token_at_once() {
    let home = Home::new().await;
    home.user("root", Role::Admin).await;
    let user = home.user("alice", Role::Admin).await;
    let networks = parse_networks("networks", &["198.51.100.0/24".into()]).unwrap();
    let changes = [
        (UserUpdate { role: Some(Role::User), ..Default::default() }, true, false),
        (UserUpdate { networks: Some(networks), ..Default::default() }, true, false),
        (UserUpdate { password: Some(password(PASSWORD)), ..Default::default() }, true, true),
        (
            UserUpdate { rate_class: Some(RateClass::Enterprise), ..Default::default() },
            false,
            false,
        ),
        (
            UserUpdate { name: Some(Label::parse("name", "A").unwrap()), ..Default::default() },
            false,
            false,
        ),
        (UserUpdate { enabled: Some(true), ..Default::default() }, false, false),
        (UserUpdate { enabled: Some(false), ..Default::default() }, true, true),
    ];
    for (what, ends_tokens, ends_logins) in changes {
        let shown = format!("{what:?}");
        let login = home.login("alice").await;
        home.caller(&login.access_token).await.unwrap();
        let (revision, before) =
            (home.revision().await, find(&home.operations, user.id).await.unwrap());
        let is_published = what.name.is_none() && what.enabled != Some(true);
        let after = change(&home, &user, what).await.unwrap();
        assert_eq!(after.epoch - before.epoch, i64::from(ends_tokens), "{shown}");
        assert_eq!(home.caller(&login.access_token).await.is_err(), ends_tokens, "{shown}");
        let alive = home.number("select count(*) from login where ended_at is null").await;
        assert_eq!(alive == 0, ends_logins, "{shown}");
        let told = home.told_since(revision).await;
        assert_eq!(!told.is_empty(), is_published, "{shown}");
        if is_published {
            let [Published::Put(item)] = &told[..] else { panic!("{told:?}") };
            let Item::User(record) = &**item else { panic!("{item:?}") };
            assert_eq!((record.epoch, record.enabled), (after.epoch, after.enabled));
        }
    }
    assert_eq!(home.try_login("alice", PASSWORD, HERE).await.unwrap_err(), WRONG);
}

#[tokio::test]
async fn the_last_administrator_stays_one() {
    let home = Home::new().await;
    let (first, second) = (home.user("a", Role::Admin).await, home.user("b", Role::Admin).await);
    let demote = || UserUpdate { role: Some(Role::User), ..Default::default() };
    let ban = || UserUpdate { enabled: Some(false), ..Default::default() };
    // Each takes the other's rights, at the same time.
    let (one, other) = tokio::join!(change(&home, &first, demote()), change(&home, &second, ban()));
    assert_eq!(u8::from(one.is_ok()) + u8::from(other.is_ok()), 1);
    let left = if one.is_ok() { &second } else { &first };
    for what in [demote(), ban()] {
        assert!(matches!(change(&home, left, what).await, Err(Fault::Conflict(_))));
    }
    let name = UserUpdate { name: Some(Label::parse("name", "N").unwrap()), ..Default::default() };
    change(&home, left, name).await.unwrap();
    let again = first_admin(&home.operations, &Actor::operator(), new_user("c", Role::User)).await;
    assert!(again.unwrap().is_none());
}

#[tokio::test]
async fn who_comes_alone_gets_no_rights_and_a_name() {
    let mut home = Home::new().await;
    let registration = |email: &str| Registration {
        username: None,
        email: Email::parse(email).unwrap(),
        name: Label::parse("name", "").unwrap(),
        password: password(PASSWORD),
    };
    let first =
        register(&home.operations, &guest(HERE), registration("bob@a")).await.unwrap().value;
    let second =
        register(&home.operations, &guest(HERE), registration("bob@b")).await.unwrap().value;
    assert_eq!((first.username.as_str(), first.role), ("bob", Role::User));
    assert!(second.username.starts_with("bob-"), "{}", second.username);
    home.try_login("BOB@b", PASSWORD, HERE).await.unwrap();
    Arc::get_mut(&mut home.operations).unwrap().policy.registration_open = false;
    let closed = register(&home.operations, &guest(HERE), registration("eve@a")).await;
    assert_eq!(closed.unwrap_err(), Fault::Forbidden);
}
