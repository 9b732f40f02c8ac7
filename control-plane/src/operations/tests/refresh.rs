//! Refresh tokens under attack: replayed, shared, stolen, kept too long, made up.

use futures_util::future::join_all;
use pagoda_wire::snapshot::Item;
use uuid::Uuid;

use super::*;
use crate::database::Database;
use crate::operations::logins::{change_password, log_out};
use crate::operations::refresh::{RefreshToken, refresh};
use crate::operations::users::{UserUpdate, update};

impl Home {
    pub(super) async fn refresh(&self, token: &str) -> Result<LoggedIn, Fault> {
        refresh(&self.operations, &guest(HERE), token).await
    }

    /// Lets the last rotations be so many seconds older.
    async fn wait_s(&self, seconds: u32) {
        let sql = format!("update login set rotated_at = rotated_at - interval '{seconds} s'");
        self.sql(&sql).await;
    }

    async fn is_copied(&self) -> bool {
        let sql = "select count(*) from login where end_reason = 'copied'";
        self.number(sql).await == 1 && self.audited("login.copied").await.len() == 1
    }
}

#[tokio::test]
async fn each_use_gives_the_next_token_and_rights_as_they_are_now() {
    let home = Home::new().await;
    home.user("root", Role::Admin).await;
    let alice = home.user("alice", Role::Admin).await;
    let mut login = home.login("alice").await;
    for _ in 0..20 {
        let next = home.refresh(&login.refresh_token).await.unwrap();
        assert_ne!(next.refresh_token, login.refresh_token);
        assert_eq!(next.login, login.login);
        login = next;
    }
    let demote = UserUpdate { role: Some(Role::User), ..Default::default() };
    update(&home.operations, &Actor::operator(), alice.id, demote).await.unwrap();
    assert_eq!(home.caller(&login.access_token).await.unwrap_err(), WRONG);
    let next = home.refresh(&login.refresh_token).await.unwrap();
    assert_eq!(home.caller(&next.access_token).await.unwrap().role, Role::User);
}

#[tokio::test]
async fn attack_04_the_same_token_at_once_gives_all_tabs_the_same_next_one() {
    let home = Home::new().await;
    home.user("alice", Role::User).await;
    let login = home.login("alice").await;
    let tabs = join_all((0..20).map(|_| home.refresh(&login.refresh_token))).await;
    let next = tabs[0].as_ref().unwrap().refresh_token.clone();
    for tab in tabs {
        let tab = tab.unwrap();
        assert_eq!(tab.refresh_token, next);
        home.caller(&tab.access_token).await.unwrap();
    }
    assert_eq!(home.number("select counter from login").await, 1);
    home.wait_s(300).await;
    home.refresh(&next).await.unwrap();
}

#[tokio::test]
async fn attack_04_an_old_token_after_31_s_ends_the_login() {
    let home = Home::new().await;
    home.user("alice", Role::User).await;
    let stolen = home.login("alice").await;
    let next = home.refresh(&stolen.refresh_token).await.unwrap();
    home.wait_s(29).await;
    home.refresh(&stolen.refresh_token).await.unwrap();
    home.wait_s(2).await;
    let revision = home.revision().await;
    assert_eq!(home.refresh(&stolen.refresh_token).await.unwrap_err(), WRONG);
    assert!(home.is_copied().await);
    let told = home.told_since(revision).await;
    assert!(
        matches!(&told[..], [Published::Put(item)] if matches!(&**item, Item::EndedLogin(ended) if ended.id == stolen.login))
    );
    assert_eq!(home.refresh(&next.refresh_token).await.unwrap_err(), WRONG);
    assert_eq!(home.caller(&next.access_token).await.unwrap_err(), WRONG);
    // Another login of the same user is another matter.
    let other = home.login("alice").await;
    home.refresh(&other.refresh_token).await.unwrap();
}

#[tokio::test]
async fn attack_04_a_token_two_uses_old_ends_the_login_at_once() {
    let home = Home::new().await;
    home.user("alice", Role::User).await;
    let stolen = home.login("alice").await;
    let next = home.refresh(&stolen.refresh_token).await.unwrap();
    home.refresh(&next.refresh_token).await.unwrap();
    assert_eq!(home.refresh(&stolen.refresh_token).await.unwrap_err(), WRONG);
    assert!(home.is_copied().await);
}

#[tokio::test]
async fn attack_04_thief_and_victim_who_take_turns_for_ten_cycles_are_noticed() {
    for pause_s in [0, 20, 31, 290] {
        let home = Home::new().await;
        home.user("alice", Role::User).await;
        let start = home.login("alice").await.refresh_token;
        let (mut thief, mut victim) = (start.clone(), start);
        let mut cycles = 0;
        while cycles < 10 {
            cycles += 1;
            match home.refresh(&thief).await {
                Ok(next) => thief = next.refresh_token,
                Err(_) => break,
            }
            home.wait_s(pause_s).await;
            match home.refresh(&victim).await {
                Ok(next) => victim = next.refresh_token,
                Err(_) => break,
            }
        }
        assert!(cycles < 10 && home.is_copied().await, "{pause_s} s: {cycles} cycles");
        assert!(home.refresh(&thief).await.is_err() && home.refresh(&victim).await.is_err());
    }
}

#[tokio::test]
async fn attack_04_nothing_works_after_logout_new_password_ban_or_end() {
    let home = Home::new().await;
    let alice = home.user("alice", Role::User).await;
    let first = home.login("alice").await;
    log_out(&home.operations, &guest(HERE), alice.id, first.login).await.unwrap();
    let second = home.login("alice").await;
    let new = password(PASSWORD);
    change_password(&home.operations, &guest(HERE), alice.id, PASSWORD, &new).await.unwrap();
    let third = home.login("alice").await;
    home.sql(&format!("update login set not_after = now() where id = '{}'", third.login)).await;
    let fourth = home.login("alice").await;
    for enabled in [false, true] {
        let ban = UserUpdate { enabled: Some(enabled), ..Default::default() };
        update(&home.operations, &Actor::operator(), alice.id, ban).await.unwrap();
        for login in [&first, &second, &third, &fourth] {
            assert_eq!(home.refresh(&login.refresh_token).await.unwrap_err(), WRONG);
        }
    }
    assert_eq!(home.audited("login.copied").await.len(), 0);
}

#[tokio::test]
async fn attack_01_what_is_made_up_opens_nothing_and_an_access_token_is_no_refresh_token() {
    let home = Home::new().await;
    home.user("alice", Role::User).await;
    let login = home.login("alice").await;
    assert_eq!(home.refresh(&login.access_token).await.unwrap_err(), WRONG);
    assert_eq!(home.caller(&login.refresh_token).await.unwrap_err(), WRONG);
    // Marked as ours, but under another key, of another login, or ahead.
    let mark = home.operations.secrets.refresh();
    let key = Secret::random().unwrap();
    for token in
        [RefreshToken::new(login.login, 0, &key), RefreshToken::new(Uuid::now_v7(), 0, &key)]
    {
        assert_eq!(home.refresh(&token.text(mark)).await.unwrap_err(), WRONG);
    }
    let next = home.refresh(&login.refresh_token).await.unwrap();
    home.sql("update login set counter = 0").await;
    assert_eq!(home.refresh(&next.refresh_token).await.unwrap_err(), WRONG);
    assert_eq!(home.audited("login.copied").await.len(), 0);
    home.refresh(&login.refresh_token).await.unwrap();
}

#[tokio::test]
async fn garbage_is_refused_before_the_database_is_asked() {
    let mut home = Home::new().await;
    home.user("alice", Role::User).await;
    let login = home.login("alice").await;
    let nowhere = crate::database::parse_address("host=/nowhere user=x").unwrap();
    let operations = Arc::get_mut(&mut home.operations).unwrap();
    operations.database = Database::new(nowhere, 1).unwrap();
    let text = &login.refresh_token;
    let mut other = text.clone().into_bytes();
    other[10] ^= 1;
    let other = String::from_utf8(other).unwrap();
    for garbage in ["", "x", &text[1..], &other, &"A".repeat(60), &"x".repeat(1 << 20)] {
        assert_eq!(home.refresh(garbage).await.unwrap_err(), WRONG);
    }
    let asked = home.refresh(text).await.unwrap_err();
    assert!(matches!(asked, Fault::Unavailable { .. }), "{asked:?}");
}
