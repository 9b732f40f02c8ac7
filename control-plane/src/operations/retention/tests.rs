//! Retention against a real Postgres.

use jiff::Timestamp;
use tokio_postgres::Client;
use uuid::Uuid;

use super::*;
use crate::database::TENANT;
use crate::operations::partitions::{AUDIT, USAGE, tend};
use crate::operations::upkeep::{self, Keep};
use crate::test_database::TestDatabase;

async fn count(client: &Client, from: &str) -> i64 {
    client.query_one(&format!("select count(*) from {from}"), &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn idle_sessions_of_a_profile_go_with_their_messages_in_batches() {
    let test = TestDatabase::new().unwrap();
    let database = test.database();
    let client = database.client().await.unwrap();
    for (profile, days) in [("llmchat", 31), ("llmchat", 29), ("stellarbyte", 400)] {
        let id = Uuid::now_v7();
        client
            .execute(
                "insert into chat (id, tenant_id, profile, updated_at)
                 values ($1, $2, $3, now() - make_interval(days => $4))",
                &[&id, &TENANT, &profile, &days],
            )
            .await
            .unwrap();
        client
            .execute(
                "insert into message (chat_id, id, place, role, content)
                 select $1, gen_random_uuid(), place, 'user', '\"x\"'
                 from generate_series(1, 6000) place",
                &[&id],
            )
            .await
            .unwrap();
    }
    assert_eq!(remove_idle_chats(database, "llmchat", 30).await.unwrap(), 1);
    assert_eq!(remove_idle_chats(database, "llmchat", 30).await.unwrap(), 0);
    assert_eq!(delete_removed_chats(database).await.unwrap(), 5000);
    assert_eq!(delete_removed_chats(database).await.unwrap(), 1001);
    assert_eq!(delete_removed_chats(database).await.unwrap(), 0);
    assert_eq!((count(&client, "chat").await, count(&client, "message").await), (2, 12000));
}

#[tokio::test]
async fn of_two_who_tend_one_does() {
    let test = TestDatabase::new().unwrap();
    let database = test.database();
    let mut client = database.client().await.unwrap();
    let other = alone(&mut client).await.unwrap().unwrap();
    assert_eq!(remove_idle_chats(database, "llmchat", 30).await.unwrap(), 0);
    let now: Timestamp = "2026-11-22T04:00:00Z".parse().unwrap();
    assert!(tend(database, USAGE, now, 90).await.unwrap().made.is_empty());
    drop(other);
    assert_eq!(tend(database, USAGE, now, 90).await.unwrap().made.len(), 8);
}

async fn store_event(client: &Client, at: &str) {
    let at: Timestamp = at.parse().unwrap();
    client
        .execute(
            "insert into audit_log (id, at, tenant_id, actor_kind, request_id, action,
                 object_kind, object_id)
             values ($1, $2, $3, 'system', '', 'test', 'test', '')",
            &[&Uuid::now_v7(), &at, &TENANT],
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn partitions_are_there_ahead_take_stray_rows_and_go_whole() {
    let test = TestDatabase::new().unwrap();
    let database = test.database();
    let client = database.client().await.unwrap();
    for at in ["2026-11-01T00:00:00Z", "2026-11-30T23:59:59Z", "2026-12-01T00:00:00Z"] {
        store_event(&client, at).await;
    }
    assert_eq!(count(&client, "audit_log_rest").await, 3);
    let now: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
    let tended = tend(database, AUDIT, now, 60).await.unwrap();
    assert_eq!(
        (tended.made.join(" "), tended.moved),
        ("audit_log_202611 audit_log_202612".into(), 3)
    );
    assert_eq!(count(&client, "audit_log_rest").await, 0);
    assert_eq!(count(&client, "audit_log_202611").await, 2);
    store_event(&client, "2026-12-31T23:00:00Z").await;
    assert_eq!(count(&client, "audit_log_202612").await, 2);
    // The parts keep the whole's rules.
    let wrong = "update audit_log_202612 set actor_kind = 'nobody'";
    assert!(client.execute(wrong, &[]).await.is_err());
    let wrong = "update audit_log_202612 set tenant_id = gen_random_uuid()";
    assert!(client.execute(wrong, &[]).await.is_err());
    let indexes = "pg_indexes where tablename = ";
    let whole = count(&client, &format!("{indexes}'audit_log'")).await;
    assert_eq!(count(&client, &format!("{indexes}'audit_log_202612'")).await, whole);
    assert_eq!(tend(database, AUDIT, now, 60).await.unwrap(), Default::default());

    // November's last row is 60 days old at the end of January, and not a moment before.
    let early: Timestamp = "2027-01-29T23:59:59Z".parse().unwrap();
    assert!(tend(database, AUDIT, early, 60).await.unwrap().dropped.is_empty());
    let late: Timestamp = "2027-01-30T00:00:00Z".parse().unwrap();
    assert_eq!(tend(database, AUDIT, late, 60).await.unwrap().dropped, ["audit_log_202611"]);
    assert_eq!(count(&client, "audit_log").await, 2);
}

#[tokio::test]
async fn days_are_cut_at_midnight_over_the_end_of_a_year() {
    let test = TestDatabase::new().unwrap();
    let now: Timestamp = "2026-12-29T23:59:59Z".parse().unwrap();
    let tended = tend(test.database(), USAGE, now, 1).await.unwrap();
    assert_eq!(tended.made.len(), 8);
    assert_eq!(tended.made[0], "usage_event_20261229");
    assert_eq!(tended.made[7], "usage_event_20270105");
    let later: Timestamp = "2026-12-31T00:00:00Z".parse().unwrap();
    let tended = tend(test.database(), USAGE, later, 1).await.unwrap();
    assert_eq!(tended.made, ["usage_event_20270106", "usage_event_20270107"]);
    assert_eq!(tended.dropped, ["usage_event_20261229"]);
}

#[tokio::test]
async fn what_is_due_is_done_to_its_end() {
    let test = TestDatabase::new().unwrap();
    let database = test.database();
    let client = database.client().await.unwrap();
    client
        .execute(
            "insert into chat (id, tenant_id, profile, updated_at)
             select gen_random_uuid(), $1, 'llmchat', now() - interval '31 days'
             from generate_series(1, 250)",
            &[&TENANT],
        )
        .await
        .unwrap();
    upkeep::tend(database, None, &Keep::default()).await.unwrap();
    assert_eq!(count(&client, "chat").await, 0);
    let parts = "pg_inherits where inhparent = ";
    assert_eq!(count(&client, &format!("{parts}'usage_event'::regclass")).await, 9);
    upkeep::tend(database, None, &Keep::default()).await.unwrap();
}
