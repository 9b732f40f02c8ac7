//! The face over a socket: who gets in, what the document promises, and what is refused.

use hyper::Method;
use pagoda_wire::token::{PublicKey, Role, Verifier};
use serde_json::{Value, json};

use super::ROUTES;
use crate::http::route::Access;
use crate::operations::tests::PASSWORD;
use crate::profiles::site::Site;

#[tokio::test]
async fn login_and_refresh_are_as_the_document_has_them() {
    let site = Site::new("enterprise").await;
    site.home.user("alice", Role::User).await;
    let shown = json!({ "username": "Alice@example.org", "password": PASSWORD });
    let answer = site.call("POST", "/api/v1/auth/login", "", shown).await;
    assert_eq!((answer.status, &answer.body["code"]), (200, &json!(0)));
    assert!(answer.head.contains("x-api-profile: enterprise"), "{}", answer.head);
    let data = &answer.body["data"];
    assert_eq!((&data["tokenType"], &data["expiresIn"]), (&json!("Bearer"), &json!(300)));
    let shown = json!({ "refreshToken": data["refreshToken"] });
    let answer = site.call("POST", "/api/v1/auth/refresh", "", shown).await;
    assert_eq!(answer.status, 200);
    assert_ne!(answer.body["data"]["refreshToken"], data["refreshToken"]);
    let wrong = json!({ "username": "alice", "password": "wrong password" });
    for _ in 0..5 {
        let answer = site.call("POST", "/api/v1/auth/login", "", wrong.clone()).await;
        assert_eq!((answer.status, &answer.body["code"]), (401, &json!(40001)));
        assert_eq!(answer.body["data"], Value::Null);
    }
    let answer = site.call("POST", "/api/v1/auth/login", "", wrong).await;
    assert_eq!(answer.status, 429);
    assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
    let made_up = json!({ "refreshToken": "x" });
    let answer = site.call("POST", "/api/v1/auth/refresh", "", made_up).await;
    assert_eq!((answer.status, &answer.body["code"]), (401, &json!(40001)));
}

#[tokio::test]
async fn the_published_key_set_verifies_tokens() {
    let site = Site::new("enterprise").await;
    let token = site.root().await;
    let set = site.ask("GET", "/.well-known/jwks.json", "", Value::Null).await.body;
    let [key] = &set["keys"].as_array().unwrap()[..] else { panic!("{set}") };
    assert_eq!((&key["kty"], &key["crv"]), (&json!("OKP"), &json!("Ed25519")));
    let text = |name: &str| key[name].as_str().unwrap().to_string();
    let key = PublicKey { kid: text("kid"), x: text("x") };
    let verifier = Verifier::new("pagoda", "pagoda", &[key]).unwrap();
    verifier.verify(&token, jiff::Timestamp::now().as_second()).unwrap();
}

#[tokio::test]
async fn attack_05_no_route_opens_without_the_right_credential() {
    let site = Site::new("enterprise").await;
    site.root().await;
    let alice = site.home.user("alice", Role::User).await;
    let token = site.home.login("alice").await.access_token;
    let mut swept = 0;
    for route in ROUTES.iter().filter(|route| route.access != Access::Public) {
        swept += 1;
        let id = alice.id.to_string();
        let path = route.path.replace("{userId}", &id).replace("{keyId}", &id);
        let body = if route.method == Method::GET { Value::Null } else { json!({}) };
        let wrong_key = format!("sk-{}-{}", "a".repeat(12), "A".repeat(43));
        let wrong_token = format!("{}x", &token[..token.len() - 1]);
        for (bearer, status) in
            [("", 401), ("x", 401), (&wrong_token, 401), (&wrong_key, 401), (&token, 403)]
        {
            let answer = site.call(route.method.as_str(), &path, bearer, body.clone()).await;
            assert_eq!(answer.status, status, "{} {path} {bearer}", route.method);
            assert_eq!(answer.body["data"], Value::Null);
        }
    }
    assert!(swept >= 9);
}

#[tokio::test]
async fn users_are_made_listed_shown_and_changed() {
    let site = Site::new("enterprise").await;
    let root = site.root().await;
    let new = json!({ "username": "bob", "email": "bob@a.b", "password": PASSWORD, "name": "Bob" });
    let made = site.call("POST", "/api/v1/admin/users", &root, new.clone()).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let bob = &made.body["data"];
    assert_eq!(
        (&bob["role"], &bob["rateClass"], &bob["enabled"]),
        (&json!("user"), &json!("user"), &json!(true))
    );
    let since = bob["createdAt"].as_str().unwrap();
    assert!(since.len() == 24 && since.ends_with('Z'), "{since}");
    assert!(!made.body.to_string().contains(PASSWORD));
    assert_eq!(site.call("POST", "/api/v1/admin/users", &root, new).await.status, 409);
    let path = format!("/api/v1/admin/users/{}", bob["id"].as_str().unwrap());
    assert_eq!(&site.call("GET", &path, &root, Value::Null).await.body["data"], bob);
    let token = site.home.login("bob").await.access_token;
    let change = json!({ "enabled": false, "rateClass": "enterprise" });
    let changed = site.call("PUT", &path, &root, change).await.body;
    assert_eq!(changed["data"]["rateClass"], "enterprise");
    assert_eq!(site.call("GET", &path, &token, Value::Null).await.status, 401);
    let list =
        site.call("GET", "/api/v1/admin/users?page=2&limit=1", &root, Value::Null).await.body;
    assert_eq!(list["data"]["items"][0]["username"], "root");
    let pages = json!({ "page": 2, "limit": 1, "total": 2, "totalPages": 2 });
    assert_eq!(list["data"]["pagination"], pages);
    let found = site
        .call("GET", "/api/v1/admin/users?search=BOB&enabled=false", &root, Value::Null)
        .await
        .body;
    assert_eq!(found["data"]["pagination"]["total"], 1);
    for query in ["page=0", "page=x", "limit=0", "page=99999999", "role=root", "enabled=2"] {
        let path = format!("/api/v1/admin/users?{query}");
        assert_eq!(site.call("GET", &path, &root, Value::Null).await.status, 400, "{query}");
    }
    for id in ["1", "018f0000-0000-7000-8000-000000000000", "%27"] {
        let path = format!("/api/v1/admin/users/{id}");
        assert_eq!(site.call("GET", &path, &root, Value::Null).await.status, 404, "{id}");
    }
}

#[tokio::test]
async fn attack_12_fields_that_nobody_may_write_are_refused() {
    let site = Site::new("enterprise").await;
    let root = site.root().await;
    let bob = site.home.user("bob", Role::User).await;
    let user = format!("/api/v1/admin/users/{}", bob.id);
    for field in ["id", "tenantId", "tenant_id", "epoch", "passwordHash", "createdAt", "Role"] {
        let answer = site.call("PUT", &user, &root, json!({ field: 1 })).await;
        assert_eq!(answer.status, 400, "{field}");
        let key = json!({ "userId": bob.id, "name": "k", field: 1 });
        let answer = site.call("POST", "/api/v1/admin/keys", &root, key).await;
        assert_eq!(answer.status, 400, "{field}");
    }
    for field in ["id", "userId", "key", "spent", "publicId"] {
        let login = json!({ "username": "bob", "password": PASSWORD, field: 1 });
        let answer = site.call("POST", "/api/v1/auth/login", "", login).await;
        assert_eq!(answer.status, 400, "{field}");
    }
    for body in [json!([]), json!("x"), json!({ "enabled": "no" }), json!({ "password": "short" })]
    {
        assert_eq!(site.call("PUT", &user, &root, body.clone()).await.status, 400, "{body}");
    }
}

#[tokio::test]
async fn keys_are_shown_once_changed_rotated_and_deleted() {
    let site = Site::new("enterprise").await;
    let root = site.root().await;
    let bob = site.home.user("bob", Role::Admin).await;
    let new = json!({
        "userId": bob.id, "name": "build", "scopes": ["admin", "admin"], "models": ["small"],
        "requestsPerMinute": 60, "budgetNano": 5, "budgetWindow": "day",
        "expiresAt": "2100-01-01T00:00:00Z",
    });
    let made = site.call("POST", "/api/v1/admin/keys", &root, new).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let (id, key) =
        (made.body["data"]["id"].as_str().unwrap(), made.body["data"]["key"].as_str().unwrap());
    assert_eq!(made.body["data"]["scopes"], json!(["admin"]));
    assert_eq!(made.body["data"]["expiresAt"], "2100-01-01T00:00:00.000Z");
    let list = site.call("GET", "/api/v1/admin/keys", key, Value::Null).await;
    assert_eq!(list.status, 200);
    assert_eq!(list.body["data"]["items"][0]["prefix"], key[..15]);
    assert!(!list.body.to_string().contains(&key[16..]));
    let path = format!("/api/v1/admin/keys/{id}");
    let less = json!({ "models": null, "budgetNano": null, "expiresAt": null });
    let less = site.call("PUT", &path, &root, less).await.body;
    for gone in ["models", "budgetNano", "budgetWindow", "expiresAt"] {
        assert_eq!(less["data"][gone], Value::Null);
    }
    assert_eq!(less["data"]["requestsPerMinute"], 60);
    let rotate = format!("{path}/rotate");
    let rotated = site.call("POST", &rotate, &root, json!({ "graceSeconds": 60 })).await.body;
    let next = rotated["data"]["key"].as_str().unwrap();
    let works =
        async |key: &str| site.call("GET", "/api/v1/admin/keys", key, Value::Null).await.status;
    assert_eq!((works(key).await, works(next).await), (200, 200));
    site.call("PUT", &path, &root, json!({ "enabled": false })).await;
    assert_eq!((works(key).await, works(next).await), (401, 401));
    site.call("PUT", &path, &root, json!({ "enabled": true })).await;
    assert_eq!((works(key).await, works(next).await), (200, 200));
    assert_eq!(site.call("DELETE", &path, &root, Value::Null).await.status, 200);
    assert_eq!((works(key).await, works(next).await), (401, 401));
    assert_eq!(site.call("DELETE", &path, &root, Value::Null).await.status, 404);
    for wrong in [
        json!({ "name": "k", "scopes": ["root"] }),
        json!({ "name": "k", "scopes": [] }),
        json!({ "name": "" }),
        json!({ "name": "k", "budgetWindow": "day" }),
        json!({ "name": "k", "expiresAt": "tomorrow" }),
        json!({ "name": "k", "expiresAt": "-009999-01-02T00:00:00Z" }),
        json!({ "name": "k", "requestsPerMinute": 0 }),
    ] {
        let mut body = wrong.clone();
        body["userId"] = json!(bob.id);
        let answer = site.call("POST", "/api/v1/admin/keys", &root, body).await;
        assert_eq!(answer.status, 400, "{wrong}");
    }
}

#[tokio::test]
async fn models_are_as_the_document_has_them() {
    let site = Site::new("enterprise").await;
    let root = site.root().await;
    let new = json!({ "name": "small", "provider": "local", "inputNano": 100 });
    let made = site.call("POST", "/api/v1/admin/models", &root, new.clone()).await;
    assert_eq!((made.status, &made.body["code"]), (200, &json!(0)), "{}", made.body);
    let model = &made.body["data"];
    assert_eq!((&model["model"], &model["enabled"]), (&json!("small"), &json!(true)));
    assert_eq!(site.call("POST", "/api/v1/admin/models", &root, new).await.status, 409);
    let path = format!("/api/v1/admin/models/{}", model["id"].as_str().unwrap());
    let off = site.call("PUT", &path, &root, json!({ "enabled": false })).await;
    assert_eq!((off.status, &off.body["data"]["enabled"]), (200, &json!(false)));
    assert_eq!(off.body["data"]["inputNano"], json!(100));
    let free = site.call("PUT", &path, &root, json!({ "inputNano": null })).await;
    assert_eq!(free.body["data"]["inputNano"], Value::Null);
    for wrong in [
        json!({ "name": "a/b", "provider": "local" }),
        json!({ "name": "a", "provider": "openai" }),
        json!({ "name": "a", "provider": "nobody" }),
        json!({ "name": "a", "provider": "local", "apiBase": "https://evil.com" }),
        json!({ "name": "a", "provider": "local", "inputNano": -1 }),
    ] {
        let answer = site.call("POST", "/api/v1/admin/models", &root, wrong.clone()).await;
        assert_eq!(answer.status, 400, "{wrong}");
    }
    let moved = site.call("PUT", &path, &root, json!({ "provider": "openai" })).await;
    assert_eq!(moved.status, 400);
    let listed = site.call("GET", "/api/v1/admin/models?limit=1", &root, Value::Null).await.body;
    assert_eq!(listed["data"]["items"], json!([free.body["data"]]));
    assert_eq!(listed["data"]["pagination"]["total"], json!(1));
}
