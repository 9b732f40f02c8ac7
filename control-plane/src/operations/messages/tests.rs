//! Sessions and their messages against a real Postgres.

use serde_json::json;

use super::*;
use crate::operations::chats::ChatChange;
use crate::operations::history;
use crate::operations::text::field;
use crate::test_database::TestDatabase;

/// Two users of the default tenant.
async fn users(database: &Database) -> (Owner, Owner) {
    let client = database.client().await.unwrap();
    let mut made = Vec::new();
    for name in ["ada", "bob"] {
        let id = Uuid::now_v7();
        client
            .execute(
                "insert into app_user (id, tenant_id, username, email, role)
                 values ($1, $2, $3, $3 || '@example.com', 'user')",
                &[&id, &crate::database::TENANT, &name],
            )
            .await
            .unwrap();
        made.push(Owner::user(id, "llmchat"));
    }
    (made[0].clone(), made[1].clone())
}

fn says(speaker: Speaker, text: &str) -> NewMessage {
    NewMessage {
        id: Uuid::now_v7(),
        speaker,
        content: Content::new(json!(text)).unwrap(),
        tokens: None,
        state: State::Done,
        metadata: Metadata::default(),
    }
}

fn titled(title: &str) -> NewChat {
    NewChat { title: field("title", title).unwrap(), ..NewChat::default() }
}

fn texts(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.content.as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_session_is_made_listed_changed_and_removed() {
    let test = TestDatabase::new().unwrap();
    let database = test.database();
    let (ada, _) = users(database).await;
    let mut made = Vec::new();
    for title in ["first", "second", "<script>alert(1)</script>"] {
        made.push(chats::create(database, &ada, titled(title)).await.unwrap());
    }
    let change = ChatChange { is_active: Some(false), ..ChatChange::default() };
    let hidden = chats::update(database, &ada, made[0].id, change).await.unwrap();
    assert!(!hidden.is_active && hidden.title == "first" && hidden.updated_at > made[0].updated_at);

    let all = Window::first(100).unwrap();
    let listed = chats::list(database, &ada, false, &all).await.unwrap();
    let titles: Vec<&str> = listed.iter().map(|chat| chat.title.as_str()).collect();
    assert_eq!(titles, ["first", "<script>alert(1)</script>", "second"]);
    assert_eq!(chats::list(database, &ada, true, &all).await.unwrap().len(), 2);

    // By key and by offset: the same rows.
    let behind = Window::after(listed[0].place(), 1).unwrap();
    let offset = Window::skipping(1, 1).unwrap();
    assert_eq!(chats::list(database, &ada, false, &behind).await.unwrap(), listed[1..2]);
    assert_eq!(chats::list(database, &ada, false, &offset).await.unwrap(), listed[1..2]);

    chats::delete(database, &ada, made[1].id).await.unwrap();
    let gone = Err(Fault::NotFound("session"));
    assert_eq!(chats::find(database, &ada, made[1].id).await, gone);
    assert_eq!(chats::delete(database, &ada, made[1].id).await, Err(Fault::NotFound("session")));
    assert_eq!(chats::list(database, &ada, false, &all).await.unwrap().len(), 2);
    let nobody = NewChat { agent: Some(Uuid::now_v7()), ..titled("x") };
    let fault = chats::create(database, &ada, nobody).await.unwrap_err();
    assert!(matches!(fault, Fault::Invalid { .. }), "{fault:?}");
}

#[tokio::test]
async fn attack_11_another_s_session_is_an_id_of_nothing() {
    let test = TestDatabase::new().unwrap();
    let database = test.database();
    let (ada, bob) = users(database).await;
    let chat = chats::create(database, &ada, titled("private")).await.unwrap().id;
    append(database, &ada, chat, &[says(Speaker::User, "secret")]).await.unwrap();
    let anonymous = Owner::anonymous("stellarbyte");
    let shared = chats::create(database, &anonymous, titled("shared")).await.unwrap().id;
    let other_profile = Owner::anonymous("caiqitalk");
    // The nil id must own nothing, either.
    let nil = Owner::user(Uuid::nil(), "stellarbyte");
    let all = Window::first(100).unwrap();
    let none = "session";
    for (stranger, id) in [
        (&bob, chat),
        (&anonymous, chat),
        (&nil, chat),
        (&ada, shared),
        (&bob, shared),
        (&other_profile, shared),
        (&nil, shared),
    ] {
        let faults = [
            chats::find(database, stranger, id).await.unwrap_err(),
            chats::update(database, stranger, id, ChatChange::default()).await.unwrap_err(),
            chats::delete(database, stranger, id).await.unwrap_err(),
            append(database, stranger, id, &[says(Speaker::User, "x")]).await.unwrap_err(),
            list(database, stranger, id, &Window::first(9).unwrap()).await.unwrap_err(),
            list_before(database, stranger, id, None, &Window::first(9).unwrap())
                .await
                .unwrap_err(),
            history::read(database, stranger, id, None).await.unwrap_err(),
            save(database, stranger, SavedChat { id, title: None, agent: None, messages: vec![] })
                .await
                .unwrap_err(),
        ];
        assert!(faults.iter().all(|fault| *fault == Fault::NotFound(none)), "{faults:?}");
        let listed = chats::list(database, stranger, false, &all).await.unwrap();
        assert!(listed.iter().all(|chat| chat.id != id));
        // Nor can its id be taken.
        let taken = NewChat { id: Some(id), ..titled("mine") };
        let fault = chats::create(database, stranger, taken).await.unwrap_err();
        assert_eq!(fault, Fault::NotFound(none));
    }
    assert_eq!(history::read(database, &ada, chat, None).await.unwrap().unwrap().messages.len(), 1);
    // A place in another's session is none in one's own.
    let own = chats::create(database, &bob, titled("own")).await.unwrap().id;
    let theirs = history::read(database, &ada, chat, None).await.unwrap().unwrap().messages[0].id;
    let window = Window::first(9).unwrap();
    let fault = list_before(database, &bob, own, Some(theirs), &window).await.unwrap_err();
    assert_eq!(fault, Fault::NotFound("message"));
}

#[tokio::test]
async fn messages_have_places_in_order_and_come_once() {
    let test = TestDatabase::new().unwrap();
    let database = test.database();
    let (ada, _) = users(database).await;
    let chat = chats::create(database, &ada, titled("talk")).await.unwrap().id;
    let turn = [
        says(Speaker::User, "hello"),
        NewMessage {
            state: State::Cancelled,
            tokens: Some(2),
            ..says(Speaker::Assistant, "hi th")
        },
    ];
    let (stored, now) = append(database, &ada, chat, &turn).await.unwrap();
    assert_eq!(texts(&stored), ["hello", "hi th"]);
    assert_eq!(
        (stored[1].place, stored[1].state, stored[1].tokens),
        (2, State::Cancelled, Some(2))
    );
    assert_eq!((now.version, now.num_messages), (1, 2));

    // Sent again, with one more behind: the first write stands, the version moves once.
    let mut again = turn.to_vec();
    again[0].content = Content::new(json!("changed")).unwrap();
    again.push(says(Speaker::User, "go on"));
    let (stored, now) = append(database, &ada, chat, &again).await.unwrap();
    assert_eq!(texts(&stored), ["hello", "hi th", "go on"]);
    assert_eq!((now.version, now.num_messages), (2, 3));
    let (_, now) = append(database, &ada, chat, &again).await.unwrap();
    assert_eq!((now.version, now.num_messages), (2, 3));

    // Writers at once leave no gap and share no place.
    let writers = (0..8).map(|n| {
        let (database, ada) = (database.clone(), ada.clone());
        tokio::spawn(async move {
            for m in 0..5 {
                let message = says(Speaker::User, &format!("{n}.{m}"));
                append(&database, &ada, chat, &[message]).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let window = Window::first(100).unwrap();
    let all = list(database, &ada, chat, &window).await.unwrap();
    let places: Vec<i64> = all.iter().map(|message| message.place).collect();
    assert_eq!(places, (1..=43).collect::<Vec<_>>());

    let skipped = Window::skipping(40, 100).unwrap();
    assert_eq!(list(database, &ada, chat, &skipped).await.unwrap(), all[40..]);
    let behind = Window::after(41, 1).unwrap();
    assert_eq!(list(database, &ada, chat, &behind).await.unwrap(), all[41..42]);
    let two = Window::first(2).unwrap();
    let last = list_before(database, &ada, chat, None, &two).await.unwrap();
    assert_eq!(last, all[41..]);
    let earlier = list_before(database, &ada, chat, Some(last[0].id), &two).await.unwrap();
    assert_eq!(earlier, all[39..41]);
}

#[tokio::test]
async fn a_saved_session_holds_what_was_saved() {
    let test = TestDatabase::new().unwrap();
    let database = test.database();
    let (ada, _) = users(database).await;
    let id = Uuid::new_v4();
    let saved = |title: Option<&str>, texts: &[&str]| SavedChat {
        id,
        title: title.map(|title| field("title", title).unwrap()),
        agent: None,
        messages: texts.iter().map(|text| says(Speaker::User, text)).collect(),
    };
    let made = save(database, &ada, saved(Some("mine"), &["a", "b", "c"])).await.unwrap();
    assert_eq!((made.title.as_str(), made.num_messages), ("mine", 3));
    let replaced = save(database, &ada, saved(None, &["d"])).await.unwrap();
    assert_eq!((replaced.title.as_str(), replaced.num_messages), ("mine", 1));
    assert!(replaced.version > made.version);
    let read = history::read(database, &ada, id, Some(made.version)).await.unwrap().unwrap();
    assert_eq!(texts(&read.messages), ["d"]);
    assert_eq!(history::read(database, &ada, id, Some(read.version)).await.unwrap(), None);
    // Two messages of one id are refused before anything is removed.
    let mut twice = saved(None, &["e", "f"]);
    twice.messages[1].id = twice.messages[0].id;
    assert!(matches!(save(database, &ada, twice).await, Err(Fault::Invalid { .. })));
    assert_eq!(chats::find(database, &ada, id).await.unwrap().num_messages, 1);
}

#[tokio::test]
async fn a_history_is_bounded_and_keeps_system_messages() {
    let test = TestDatabase::new().unwrap();
    let database = test.database();
    let (ada, _) = users(database).await;
    let chat = chats::create(database, &ada, titled("long")).await.unwrap().id;
    append(database, &ada, chat, &[says(Speaker::System, "be brief")]).await.unwrap();
    for _ in 0..2 {
        let many: Vec<_> = (0..1000).map(|n| says(Speaker::User, &n.to_string())).collect();
        append(database, &ada, chat, &many).await.unwrap();
    }
    let read = history::read(database, &ada, chat, None).await.unwrap().unwrap().messages;
    assert_eq!(read.len(), 1001);
    assert_eq!((texts(&read)[0], texts(&read)[1], texts(&read)[1000]), ("be brief", "0", "999"));
    let big = "x".repeat(1_000_000);
    let many: Vec<_> = (0..12).map(|_| says(Speaker::User, &big)).collect();
    append(database, &ada, chat, &many).await.unwrap();
    let read = history::read(database, &ada, chat, None).await.unwrap().unwrap().messages;
    assert_eq!((read.len(), texts(&read)[0]), (9, "be brief"));
}

#[tokio::test]
async fn what_is_too_much_or_unstorable_is_refused() {
    let test = TestDatabase::new().unwrap();
    let database = test.database();
    let (ada, _) = users(database).await;
    let chat = chats::create(database, &ada, titled("t")).await.unwrap().id;
    assert!(Content::new(json!("x".repeat(1 << 20))).is_err());
    assert!(Content::new(json!({"a": 1})).is_err());
    let many: Vec<_> = (0..1001).map(|_| says(Speaker::User, "x")).collect();
    let fault = append(database, &ada, chat, &many).await.unwrap_err();
    assert!(matches!(fault, Fault::TooLarge { .. }));
    let nul = append(database, &ada, chat, &[says(Speaker::User, "a\0b")]).await.unwrap_err();
    assert!(matches!(nul, Fault::Invalid { .. }), "{nul:?}");
    let client = database.client().await.unwrap();
    client.execute("update chat set message_count = 9999", &[]).await.unwrap();
    let two = [says(Speaker::User, "x"), says(Speaker::User, "y")];
    let full = append(database, &ada, chat, &two).await.unwrap_err();
    assert!(matches!(full, Fault::TooLarge { .. }));
}
