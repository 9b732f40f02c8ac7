//! Logins: one answer to whoever may not, a lock that locks nobody else out, and their end.

use futures_util::future::join_all;
use pagoda_wire::snapshot::Item;

use super::*;
use crate::operations::fields::parse_networks;
use crate::operations::logins::{change_password, log_out, log_out_everywhere, sweep};
use crate::operations::throttle;
use crate::operations::users::{UserUpdate, update};

#[tokio::test]
async fn a_user_name_or_an_address_gets_tokens_that_say_who() {
    let home = Home::new().await;
    let user = home.user("Alice", Role::Admin).await;
    for name in ["alice", "ALICE", "alice@EXAMPLE.org"] {
        let login = home.login(name).await;
        assert_eq!((login.user.id, login.expires_in_s), (user.id, 300));
        let caller = home.caller(&login.access_token).await.unwrap();
        assert_eq!((caller.user, caller.role), (user.id, Role::Admin));
        let shown = format!("{login:?}");
        assert!(!shown.contains(&login.access_token) && !shown.contains(&login.refresh_token));
    }
    let audited = home.audited("login.accept").await;
    assert_eq!(audited.len(), 3);
    assert_eq!(audited[0].0, user.id.to_string());
}

#[tokio::test]
async fn attack_14_every_refusal_is_the_same_and_costs_the_same() {
    let home = Home::new().await;
    let networks = parse_networks("networks", &[format!("{THERE}/32")]).unwrap();
    home.user("alice", Role::User).await;
    let mut banned = new_user("banned", Role::User);
    banned.enabled = false;
    let mut bound = new_user("bound", Role::User);
    bound.networks = networks;
    let mut none = new_user("none", Role::User);
    none.password = None;
    for new in [banned, bound, none] {
        create(&home.operations, &Actor::operator(), new).await.unwrap();
    }
    let cases = [
        ("nobody", PASSWORD, "unknown"),
        ("nobody@example.org", PASSWORD, "unknown"),
        ("a\0b", PASSWORD, "unknown"),
        ("' or 1=1 --", PASSWORD, "unknown"),
        ("%", PASSWORD, "unknown"),
        (&"x".repeat(100_000), PASSWORD, "unknown"),
        ("alice", "wrong password", "password"),
        ("alice", &PASSWORD[..19], "password"),
        ("banned", PASSWORD, "disabled"),
        ("bound", PASSWORD, "network"),
        ("none", PASSWORD, "password"),
    ];
    for (name, password, reason) in cases {
        let runs = home.operations.passwords.runs();
        let refused = home.try_login(name, password, HERE).await.unwrap_err();
        assert_eq!(refused, WRONG, "{reason}");
        assert_eq!(home.operations.passwords.runs() - runs, 1, "{reason}");
        let audited = home.audited("login.refuse").await;
        let (object, after) = audited.last().unwrap();
        assert_eq!(after.as_ref().unwrap()["reason"], reason);
        assert_eq!(object == "unknown", reason == "unknown");
    }
    assert_eq!(home.audited("login.refuse").await.len(), cases.len());
    home.try_login("bound", PASSWORD, THERE).await.unwrap();
}

#[tokio::test]
async fn attack_14_a_lock_keeps_out_who_failed_and_nobody_else() {
    let home = Home::new().await;
    home.user("alice", Role::User).await;
    for _ in 0..5 {
        assert_eq!(home.try_login("alice", "wrong password", THERE).await.unwrap_err(), WRONG);
    }
    let runs = home.operations.passwords.runs();
    for password in ["wrong password", PASSWORD] {
        let late = home.try_login("alice", password, THERE).await.unwrap_err();
        assert!(matches!(late, Fault::TooMany { retry_after_s: 1 }), "{late:?}");
    }
    assert_eq!(home.operations.passwords.runs(), runs, "no password is looked at meanwhile");
    home.login("alice").await;
    // A name that nobody has is locked just so.
    for _ in 0..5 {
        assert_eq!(home.try_login("nobody", "wrong password", THERE).await.unwrap_err(), WRONG);
    }
    let late = home.try_login("nobody", PASSWORD, THERE).await.unwrap_err();
    assert!(matches!(late, Fault::TooMany { .. }), "{late:?}");
    // Each further failure doubles the delay, up to a quarter of an hour.
    let mut delays = Vec::new();
    for _ in 0..12 {
        home.sql("update login_attempt set blocked_until = now()").await;
        assert_eq!(home.try_login("alice", "wrong password", THERE).await.unwrap_err(), WRONG);
        let late = home.try_login("alice", PASSWORD, THERE).await.unwrap_err();
        let Fault::TooMany { retry_after_s } = late else { panic!("{late:?}") };
        delays.push(retry_after_s);
    }
    assert_eq!(delays[..6], [2, 4, 8, 16, 32, 64]);
    assert_eq!(delays[10..], [900, 900]);
    home.sql("update login_attempt set blocked_until = now()").await;
    home.try_login("alice", PASSWORD, THERE).await.unwrap();
    assert_eq!(home.try_login("alice", "wrong password", THERE).await.unwrap_err(), WRONG);
    home.try_login("alice", PASSWORD, THERE).await.unwrap();
}

#[tokio::test]
async fn attack_15_many_at_once_are_no_more_than_many_in_a_row() {
    let home = Home::new().await;
    home.user("alice", Role::User).await;
    let runs = home.operations.passwords.runs();
    let tried = join_all((0..60).map(|_| home.try_login("alice", "wrong password", THERE))).await;
    let looked_at = home.operations.passwords.runs() - runs;
    assert_eq!(looked_at, 5);
    let refused = tried.iter().filter(|tried| matches!(tried, Err(Fault::TooMany { .. }))).count();
    assert_eq!(refused, 55);
    home.login("alice").await;
}

#[tokio::test]
async fn one_address_may_try_so_many_names_and_its_regulars_get_in() {
    let home = Home::new().await;
    home.user("alice", Role::User).await;
    home.user("bob", Role::User).await;
    home.login("alice").await;
    let mut refused = 0;
    for number in 0..52 {
        match home.try_login(&format!("user{number}"), "wrong password", HERE).await.unwrap_err() {
            Fault::TooMany { .. } => refused += 1,
            other => assert_eq!(other, WRONG),
        }
    }
    assert_eq!(refused, 2);
    let stranger = home.try_login("bob", PASSWORD, HERE).await;
    assert!(matches!(stranger, Err(Fault::TooMany { .. })));
    home.login("alice").await;
    home.try_login("bob", PASSWORD, THERE).await.unwrap();
    // Whoever has a whole network of version 6 has one address.
    for host in 0..5 {
        let from = format!("2001:db8::{host:x}");
        assert_eq!(home.try_login("bob", "wrong password", &from).await.unwrap_err(), WRONG);
    }
    let next = home.try_login("bob", PASSWORD, "2001:db8::ffff:1").await;
    assert!(matches!(next, Err(Fault::TooMany { .. })));
    home.try_login("bob", PASSWORD, "2001:db8:0:1::1").await.unwrap();
    let client = home.operations.database.client().await.unwrap();
    assert_eq!(throttle::sweep(&client).await.unwrap(), 0);
    client
        .execute("update login_attempt set last_at = now() - interval '25 hours'", &[])
        .await
        .unwrap();
    assert!(throttle::sweep(&client).await.unwrap() > 50);
}

#[tokio::test]
async fn attack_15_passwords_take_no_more_memory_than_their_places() {
    let passwords = Passwords::new(2, 6).unwrap();
    let tried = join_all((0..500).map(|_| passwords.verify(PASSWORD, None))).await;
    let served = tried.iter().filter(|tried| tried.is_ok()).count();
    assert_eq!(served as u64, passwords.runs());
    assert!((8..500).contains(&served), "{served}");
    let full = Err(Fault::Unavailable { what: "the password check", retry_after_s: 2 });
    assert!(tried.into_iter().filter(Result::is_err).all(|tried| tried == full));
    passwords.verify(PASSWORD, None).await.unwrap();
}

#[tokio::test]
async fn an_attempt_that_could_not_be_looked_at_is_none() {
    let mut home = Home::new().await;
    home.user("alice", Role::User).await;
    let full = Passwords::new(0, 0).unwrap();
    let good = std::mem::replace(&mut Arc::get_mut(&mut home.operations).unwrap().passwords, full);
    for _ in 0..10 {
        let refused = home.try_login("alice", PASSWORD, HERE).await.unwrap_err();
        assert!(matches!(refused, Fault::Unavailable { .. }), "{refused:?}");
    }
    Arc::get_mut(&mut home.operations).unwrap().passwords = good;
    home.login("alice").await;
}

#[tokio::test]
async fn a_hash_of_other_parameters_is_made_anew_at_the_next_login() {
    let home = Home::new().await;
    home.user("alice", Role::User).await;
    let weak = argon2::Argon2::from(argon2::Params::new(8 * 1024, 1, 1, None).unwrap());
    let weak = argon2::PasswordHasher::hash_password(&weak, PASSWORD.as_bytes()).unwrap();
    home.sql(&format!("update app_user set password_hash = '{weak}'")).await;
    let current =
        "select count(*) from app_user where password_hash like '$argon2id$v=19$m=19456,t=2,p=1$%'";
    assert_eq!(home.number(current).await, 0);
    assert_eq!(home.try_login("alice", "wrong password", HERE).await.unwrap_err(), WRONG);
    assert_eq!(home.number(current).await, 0);
    home.login("alice").await;
    assert_eq!(home.number(current).await, 1);
    home.login("alice").await;
}

#[tokio::test]
async fn attack_03_a_ban_while_the_password_is_hashed_lets_nobody_in() {
    let home = Home::new().await;
    home.user("alice", Role::User).await;
    let mut client = home.operations.database.client().await.unwrap();
    let ban = client.transaction().await.unwrap();
    ban.execute("update app_user set enabled = false", &[]).await.unwrap();
    let banning = async {
        // The login has found its user and waits for the row.
        let waiting = "select count(*) from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock'";
        while home.number(waiting).await == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        ban.commit().await.unwrap();
    };
    let (tried, ()) = tokio::join!(home.try_login("alice", PASSWORD, HERE), banning);
    assert_eq!(tried.unwrap_err(), WRONG);
    let refused = home.audited("login.refuse").await;
    assert_eq!(refused[0].1, Some(serde_json::json!({ "reason": "changed" })));
    assert_eq!(home.number("select count(*) from login").await, 0);
}

#[tokio::test]
async fn attack_11_a_login_ends_by_its_own_user_alone() {
    let home = Home::new().await;
    let (alice, bob) = (home.user("alice", Role::User).await, home.user("bob", Role::User).await);
    let login = home.login("alice").await;
    let revision = home.revision().await;
    let foreign = log_out(&home.operations, &guest(HERE), bob.id, login.login).await.unwrap();
    assert_eq!(foreign, None);
    home.caller(&login.access_token).await.unwrap();
    let ended = log_out(&home.operations, &guest(HERE), alice.id, login.login).await.unwrap();
    assert_eq!(ended, Some(u64::try_from(revision).unwrap() + 1));
    assert_eq!(home.caller(&login.access_token).await.unwrap_err(), WRONG);
    let told = home.told_since(revision).await;
    let [Published::Put(item)] = &told[..] else { panic!("{told:?}") };
    let Item::EndedLogin(told) = &**item else { panic!("{item:?}") };
    let now = jiff::Timestamp::now().as_second();
    assert!(told.id == login.login && told.until >= now + 300, "{told:?}");
    assert_eq!(log_out(&home.operations, &guest(HERE), alice.id, login.login).await, Ok(None));
}

#[tokio::test]
async fn logging_out_everywhere_ends_what_there_is_and_nothing_to_come() {
    let home = Home::new().await;
    let (alice, _) = (home.user("alice", Role::User).await, home.user("bob", Role::User).await);
    let (first, second) = (home.login("alice").await, home.login("alice").await);
    let other = home.login("bob").await;
    log_out_everywhere(&home.operations, &guest(HERE), alice.id).await.unwrap().unwrap();
    for login in [first, second] {
        assert_eq!(home.caller(&login.access_token).await.unwrap_err(), WRONG);
    }
    home.caller(&other.access_token).await.unwrap();
    let next = home.login("alice").await;
    home.caller(&next.access_token).await.unwrap();
}

#[tokio::test]
async fn a_new_password_needs_the_old_one_and_ends_all_logins() {
    let home = Home::new().await;
    let alice = home.user("alice", Role::User).await;
    let login = home.login("alice").await;
    let new = password("another canary");
    let change = async |old: &str| {
        change_password(&home.operations, &guest(HERE), alice.id, old, &new).await
    };
    assert_eq!(change("wrong password").await, Err(WRONG));
    home.caller(&login.access_token).await.unwrap();
    change(PASSWORD).await.unwrap().unwrap();
    assert_eq!(home.caller(&login.access_token).await.unwrap_err(), WRONG);
    assert_eq!(home.try_login("alice", PASSWORD, HERE).await.unwrap_err(), WRONG);
    home.try_login("alice", "another canary", HERE).await.unwrap();
    // Tries at the old password are bounded like those at a login.
    for _ in 0..5 {
        assert_eq!(change("wrong password").await, Err(WRONG));
    }
    assert!(matches!(change("another canary").await, Err(Fault::TooMany { .. })));
}

#[tokio::test]
async fn the_hundred_and_first_login_ends_the_first() {
    let home = Home::new().await;
    let user = home.user("alice", Role::User).await;
    let first = home.login("alice").await;
    let more = "insert into login (id, tenant_id, user_id, sealed_key, not_after)
        select gen_random_uuid(), tenant_id, id, '', now() + interval '1 day'
        from app_user, generate_series(1, 98)";
    home.sql(more).await;
    home.sql(&format!(
        "update login set id = ('ff' || substr(id::text, 3))::uuid
                       where id <> '{}'",
        first.login
    ))
    .await;
    home.login("alice").await;
    home.caller(&first.access_token).await.unwrap();
    home.login("alice").await;
    assert_eq!(home.caller(&first.access_token).await.unwrap_err(), WRONG);
    let alive = "select count(*) from login where ended_at is null";
    assert_eq!(home.number(alive).await, 100);
    home.sql("update login set ended_at = now() - interval '31 days' where ended_at is not null")
        .await;
    let client = home.operations.database.client().await.unwrap();
    assert_eq!(sweep(&client).await.unwrap(), 1);
    drop(client);
    let ban = UserUpdate { enabled: Some(false), ..Default::default() };
    update(&home.operations, &Actor::operator(), user.id, ban).await.unwrap();
    assert_eq!(home.number(alive).await, 0);
}

#[tokio::test]
async fn attack_16_no_password_and_no_token_is_written_down() {
    let home = Home::new().await;
    home.user("alice", Role::User).await;
    let login = home.login("alice").await;
    // People write their password into the field of the name.
    let _ = home.try_login(PASSWORD, "x", HERE).await;
    let _ = home.try_login("alice", "canary-wrong-battery", HERE).await;
    let client = home.operations.database.client().await.unwrap();
    for table in ["audit_log", "change_log", "app_user", "login", "login_attempt", "signing_key"] {
        let rows = client.query(&format!("select t::text from {table} t"), &[]).await.unwrap();
        assert!(!rows.is_empty(), "{table}");
        for row in rows {
            let text: String = row.get(0);
            for secret in ["canary", &login.access_token, &login.refresh_token] {
                assert!(!text.contains(secret), "{table}: {text}");
            }
        }
    }
}
