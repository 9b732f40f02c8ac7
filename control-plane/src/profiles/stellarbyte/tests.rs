//! The face over a socket, as the document has it.

use pagoda_wire::token::Role;
use serde_json::{Value, json};

use super::ROUTES;
use crate::profiles::site::Site;

#[tokio::test]
async fn sessions_and_messages_are_as_the_document_has_them() {
    let site = Site::new("stellarbyte").await;
    site.home.user("alice", Role::User).await;
    let token = site.home.login("alice").await.access_token;
    let call = async |method: &str, path: &str, body: Value| {
        let answer = site.call(method, path, &token, body).await;
        assert!(answer.head.contains("x-api-profile: stellarbyte"), "{}", answer.head);
        (answer.status, answer.body)
    };
    let (status, made) = call("POST", "/api/sessions", json!({ "title": "新会话" })).await;
    assert_eq!(status, 200, "{made}");
    let fields: Vec<&String> = made.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["id", "title", "created_at", "updated_at", "is_active"]);
    let created_at = made["created_at"].as_str().unwrap();
    assert!(created_at.len() == 19 && created_at.as_bytes()[10] == b'T', "{created_at}");

    let session = format!("/api/sessions/{}", made["id"].as_str().unwrap());
    assert_eq!(call("GET", &session, Value::Null).await, (200, made.clone()));
    let (_, changed) = call("PUT", &session, json!({ "title": "更新后的会话" })).await;
    assert_eq!((&changed["title"], &changed["is_active"]), (&json!("更新后的会话"), &json!(true)));

    let messages = format!("{session}/messages");
    let body = json!({ "role": "user", "content": "你好", "tokens": 2, "metadata_info": {} });
    let (status, stored) = call("POST", &messages, body).await;
    assert_eq!(status, 200, "{stored}");
    assert_eq!((&stored["session_id"], &stored["tokens"]), (&made["id"], &json!(2)));
    let answer = json!({ "role": "assistant", "content": "<b>hi</b>" });
    assert_eq!(call("POST", &messages, answer).await.0, 200);
    let (_, listed) = call("GET", &format!("{messages}?skip=0&limit=1"), Value::Null).await;
    assert_eq!(listed, json!([stored]));
    let (_, history) = call("GET", &format!("{session}/history"), Value::Null).await;
    assert_eq!(
        history,
        json!([{ "role": "user", "content": "你好" }, { "role": "assistant", "content": "<b>hi</b>" }])
    );

    assert_eq!(call("PUT", &session, json!({ "is_active": false })).await.0, 200);
    assert_eq!(call("GET", "/api/sessions", Value::Null).await, (200, json!([])));
    let (_, all) = call("GET", "/api/sessions?active_only=false", Value::Null).await;
    assert_eq!(all.as_array().map(Vec::len), Some(1));
    let gone = call("DELETE", &session, Value::Null).await;
    assert_eq!(gone, (200, json!({ "message": "会话删除成功" })));
    let (status, body) = call("GET", &session, Value::Null).await;
    assert_eq!((status, body), (404, json!({ "detail": "there is no such session" })));
}

#[tokio::test]
async fn attack_11_no_route_opens_another_s_session_and_none_opens_without_a_credential() {
    let site = Site::new("stellarbyte").await;
    for name in ["alice", "mallory"] {
        site.home.user(name, Role::User).await;
    }
    let alice = site.home.login("alice").await.access_token;
    let mallory = site.home.login("mallory").await.access_token;
    let made = site.call("POST", "/api/sessions", &alice, json!({ "title": "private" })).await.body;
    let id = made["id"].as_str().unwrap();
    let mut swept = 0;
    for route in ROUTES {
        let path = route.path.replace("{session_id}", id);
        let body = match route.method.as_str() {
            "PUT" => json!({ "title": "mine" }),
            "POST" if path.ends_with("messages") => json!({ "role": "user", "content": "x" }),
            "POST" => json!({}),
            _ => Value::Null,
        };
        for wrong in ["x", "a.b.c", "sk-x"] {
            let answer = site.call(route.method.as_str(), &path, wrong, body.clone()).await;
            assert_eq!(answer.status, 401, "{} {path}", route.method);
        }
        if route.path.contains("{session_id}") {
            let answer = site.call(route.method.as_str(), &path, &mallory, body).await;
            assert_eq!(answer.status, 404, "{} {path}", route.method);
            swept += 1;
        }
    }
    assert_eq!(swept, 6);
    let listed = site.call("GET", "/api/sessions?active_only=false", &mallory, Value::Null).await;
    // The one that the sweep made for itself.
    assert!(!listed.body.to_string().contains(id), "{}", listed.body);
    let still = site.call("GET", &format!("/api/sessions/{id}"), &alice, Value::Null).await;
    assert_eq!((still.status, still.body), (200, made));
}

#[tokio::test]
async fn attack_12_fields_that_nobody_may_set_are_refused() {
    let site = Site::new("stellarbyte").await;
    site.home.user("alice", Role::User).await;
    let token = site.home.login("alice").await.access_token;
    for field in ["id", "user_id", "tenant_id", "profile", "created_at", "is_admin"] {
        let answer = site.call("POST", "/api/sessions", &token, json!({ field: "x" })).await;
        assert_eq!(answer.status, 400, "{field}");
    }
    for query in ["limit=0", "skip=-1", "skip=10001", "limit=x", "active_only=maybe"] {
        let path = format!("/api/sessions?{query}");
        assert_eq!(site.call("GET", &path, &token, Value::Null).await.status, 400, "{query}");
    }
    let none = site.call("GET", "/api/sessions/not-an-id", &token, Value::Null).await;
    assert_eq!(none.status, 404);
}
