//! What data planes are told, change by change, is what a full snapshot says.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use pagoda_wire::snapshot::Item;
use uuid::Uuid;

use super::*;
use crate::operations::api_keys::issue::{create as create_key, rotate};
use crate::operations::api_keys::{Hand, KeyUpdate, Settings, delete, rows, update as update_key};
use crate::operations::rbac::Reach;
use crate::operations::users::{self, UserUpdate, update};
use crate::operations::{logins, peppers};

type Known = BTreeMap<(String, Uuid), Item>;

fn put(known: &mut Known, item: Item) {
    // A pepper is sealed anew each time; that it opens is shown elsewhere.
    let item = match item {
        Item::Pepper(record) => {
            Item::Pepper(pagoda_wire::snapshot::PepperRecord { sealed: String::new(), ..record })
        }
        item => item,
    };
    known.insert((format!("{:?}", item.kind()), item.id()), item);
}

async fn full(home: &Home) -> Known {
    let mut client = home.operations.database.client().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let mut known = Known::new();
    for records in [
        users::records(&transaction).await.unwrap(),
        logins::records(&transaction).await.unwrap(),
        signing_keys::records(&transaction).await.unwrap(),
        rows::records(&transaction).await.unwrap(),
    ] {
        for item in records.try_collect::<Vec<_>>().await.unwrap() {
            put(&mut known, item);
        }
    }
    for item in peppers::records(&home.operations, &transaction).await.unwrap() {
        put(&mut known, item);
    }
    known
}

async fn told(home: &Home) -> Known {
    let mut known = Known::new();
    for change in home.told_since(0).await {
        match change {
            Published::Put(item) => put(&mut known, *item),
            Published::Remove(kind, id) => {
                known.remove(&(format!("{kind:?}"), id)).expect("only what is there is removed");
            }
        }
    }
    known
}

#[tokio::test]
async fn changes_add_up_to_the_whole() {
    let home = Home::new().await;
    let by = Actor::operator();
    let hand = Hand { actor: &by, reach: Reach::Everyone, role: Role::Admin };
    let operations = &home.operations;
    let alice = home.user("alice", Role::User).await;
    home.user("root", Role::Admin).await;
    let mut keys = Vec::new();
    for name in ["a", "b", "c"] {
        let settings = Settings::named(Label::required("name", name).unwrap());
        keys.push(create_key(operations, hand, alice.id, settings).await.unwrap().value.key.id);
    }
    rotate(operations, hand, keys[0], 60).await.unwrap();
    rotate(operations, hand, keys[1], 60).await.unwrap();
    let off = KeyUpdate { enabled: Some(false), ..KeyUpdate::default() };
    update_key(operations, hand, keys[0], off).await.unwrap();
    delete(operations, hand, keys[1]).await.unwrap();
    peppers::rotate(operations, &by).await.unwrap();
    rotate(operations, hand, keys[2], 0).await.unwrap();
    let login = home.login("alice").await;
    logins::log_out(operations, &by, alice.id, login.login).await.unwrap();
    let class = UserUpdate { rate_class: Some(RateClass::Enterprise), ..Default::default() };
    update(operations, &by, alice.id, class).await.unwrap();
    logins::log_out_everywhere(operations, &by, alice.id).await.unwrap();
    signing_keys::replace(operations, &by).await.unwrap();
    let (told, full) = (told(&home).await, full(&home).await);
    assert_eq!(told, full);
    // Two users, three keys of which one has a former secret, two peppers, a signing key, a login.
    assert_eq!(full.len(), 2 + 3 + 2 + 1 + 1);
}
