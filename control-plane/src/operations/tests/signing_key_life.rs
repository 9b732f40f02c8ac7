//! Signing keys: who signs, who will, who did, and that no plane is surprised.

use futures_util::future::join_all;
use pagoda_wire::snapshot::Item;

use super::*;
use crate::operations::signing_keys::{published, replace, tend};

impl Home {
    async fn states(&self) -> Vec<String> {
        let client = self.operations.database.client().await.unwrap();
        let sql = "select state from signing_key order by id";
        client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    async fn age_keys(&self, seconds: i64) {
        let sql = format!(
            "update signing_key set created_at = created_at - interval '{seconds} s',
                 not_after = not_after - interval '{seconds} s'"
        );
        self.sql(&sql).await;
    }
}

#[tokio::test]
async fn many_instances_make_one_key() {
    let home = Home::new().await;
    home.sql("delete from signing_key").await;
    let tended = join_all((0..8).map(|_| tend(&home.operations))).await;
    assert_eq!(tended.into_iter().filter(|tended| tended.as_ref().unwrap().is_some()).count(), 1);
    assert_eq!(home.states().await, ["active"]);
    assert_eq!(tend(&home.operations).await, Ok(None));
}

#[tokio::test]
async fn the_next_key_is_known_a_token_s_life_before_it_signs() {
    let home = Home::new().await;
    home.user("alice", Role::User).await;
    let first = home.login("alice").await;
    let life = home.operations.policy.signing_key_life_s;
    home.age_keys(life - 661).await;
    assert_eq!(tend(&home.operations).await, Ok(None));
    home.age_keys(1).await;
    let revision = home.revision().await;
    tend(&home.operations).await.unwrap().unwrap();
    assert_eq!(home.states().await, ["active", "next"]);
    assert_eq!(published(&home.operations).await.unwrap().len(), 2);
    assert_eq!(home.told_since(revision).await.len(), 1);
    // Its time has come, but not every plane may have it yet.
    home.sql(
        "update signing_key set created_at = created_at - interval '1 year' where state = 'active'",
    )
    .await;
    assert_eq!(tend(&home.operations).await, Ok(None));
    home.age_keys(660).await;
    let revision = home.revision().await;
    tend(&home.operations).await.unwrap().unwrap();
    assert_eq!(home.states().await, ["retired", "active"]);
    let told = home.told_since(revision).await;
    let [Published::Put(item)] = &told[..] else { panic!("{told:?}") };
    assert!(matches!(&**item, Item::SigningKey(key) if key.not_after.is_some()), "{item:?}");
    // Tokens of both are taken until the last one of the first is over.
    let second = home.login("alice").await;
    let kid = |token: &str| token.split('.').next().unwrap().to_string();
    assert_ne!(kid(&first.access_token), kid(&second.access_token));
    for login in [&first, &second] {
        home.caller(&login.access_token).await.unwrap();
    }
    home.age_keys(604).await;
    assert_eq!(tend(&home.operations).await, Ok(None));
    home.age_keys(2).await;
    tend(&home.operations).await.unwrap().unwrap();
    assert_eq!(home.states().await, ["active"]);
    assert_eq!(home.caller(&first.access_token).await.unwrap_err(), WRONG);
    home.caller(&second.access_token).await.unwrap();
}

#[tokio::test]
async fn a_seed_that_somebody_has_is_worth_nothing_at_once() {
    let home = Home::new().await;
    home.user("alice", Role::User).await;
    let login = home.login("alice").await;
    replace(&home.operations, &Actor::operator()).await.unwrap().unwrap();
    assert_eq!(home.caller(&login.access_token).await.unwrap_err(), WRONG);
    let next = home.refresh(&login.refresh_token).await.unwrap();
    home.caller(&next.access_token).await.unwrap();
    assert_eq!(published(&home.operations).await.unwrap().len(), 1);
}

#[tokio::test]
async fn another_installation_s_secret_signs_nothing() {
    let mut home = Home::new().await;
    home.user("alice", Role::User).await;
    let other = Secrets::from_root(&Secret::random().unwrap()).unwrap();
    Arc::get_mut(&mut home.operations).unwrap().secrets = other;
    assert_eq!(home.try_login("alice", PASSWORD, HERE).await.unwrap_err(), Fault::Internal);
    assert_eq!(home.number("select count(*) from login").await, 0);
}
