//! Keys, origins, methods, and the listener's own routes.

use futures_util::future::{BoxFuture, ready};
use futures_util::{FutureExt, StreamExt, stream};
use hyper::Method;
use pagoda_http::reply::{Reply, ReplyBody};
use serde_json::json;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::client::{get, post, read_to_end, send};
use super::scripted::{Scripted, Setup, listen_with, until};
use crate::api::Api;
use crate::api::error::ApiError;
use crate::http::body::BodyBudget;
use crate::http::route::{AccessRule, Call, Face, Route};
use crate::metrics::Metrics;
use crate::profiles::openai::errors::render;

#[tokio::test]
async fn with_keys_only_public_routes_are_open() {
    let keys = vec!["sk-right".to_string()];
    let server = Scripted::with(Setup { keys, ..Setup::default() }).await;
    let at = server.address;
    for path in ["/", "/health", "/ready", "/version"] {
        assert_eq!(get(at, path).await.status, 200, "{path}");
    }
    let wrong = "authorization: Bearer sk-wrong\r\n";
    let right = "authorization: Bearer sk-right\r\n";
    for (method, path) in [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/model-a"),
        ("GET", "/metrics"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("HEAD", "/v1/models"),
    ] {
        let missing = send(at, method, path, "", "").await;
        assert_eq!(missing.status, 401, "{method} {path}");
        assert_eq!(missing.header("www-authenticate"), Some("Bearer"));
        let refused = send(at, method, path, wrong, "{}").await;
        assert_eq!(refused.status, 401, "{method} {path}");
        if method != "HEAD" {
            assert_eq!(refused.error(), "401 - invalid_api_key");
        }
        assert_ne!(send(at, method, path, right, "{}").await.status, 401, "{method} {path}");
    }
    // Near misses of a protected path are no way in: they are not found.
    for path in ["/v1/models/", "//v1/models", "/v1/%6Dodels", "/health/../v1/models"] {
        assert_eq!(get(at, path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn without_keys_a_name_chosen_by_others_opens_nothing() {
    let raw = |method: &str, path: &str, more: &str| {
        format!("{method} {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n{more}\r\n")
    };
    let keys = vec!["sk-right".to_string()];
    let (open, locked) =
        (Scripted::open().await, Scripted::with(Setup { keys, ..Setup::default() }).await);
    for (server, method, path, more, expected) in [
        (&open, "GET", "/v1/models", "", 403),
        (&open, "GET", "/metrics", "", 403),
        (&open, "POST", "/v1/completions", "content-length: 0\r\n", 403),
        (&open, "GET", "/health", "", 200),
        (&locked, "GET", "/v1/models", "authorization: Bearer sk-right\r\n", 200),
        (&locked, "GET", "/v1/models", "", 401),
    ] {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(raw(method, path, more).as_bytes()).await.unwrap();
        let answer = read_to_end(&mut socket).await;
        assert_eq!(answer.status, expected, "{method} {path}: {}", answer.body);
        if expected == 403 {
            assert_eq!(answer.error(), "403 - host_not_allowed");
        }
    }
}

#[tokio::test]
async fn wrong_paths_methods_and_types_have_the_error_shape() {
    let server = Scripted::open().await;
    let at = server.address;
    let answer = get(at, "/v1/nowhere").await;
    assert_eq!(answer.error(), "404 - unknown_url");
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("/v1/nowhere"));
    let answer = get(at, "/v1/chat/completions").await;
    assert_eq!(answer.error(), "405 - method_not_supported");
    assert_eq!(answer.header("allow"), Some("POST, OPTIONS"));
    assert_eq!(send(at, "DELETE", "/health", "", "").await.error(), "405 - method_not_supported");
    assert_eq!(send(at, "BREW", "/health", "", "").await.error(), "405 - method_not_supported");
    let plain = "content-type: text/plain\r\n";
    let answer = send(at, "POST", "/v1/completions", plain, "{}").await;
    assert_eq!(answer.error(), "415 - unsupported_content_type");
    let zipped = "content-type: application/json\r\ncontent-encoding: gzip\r\n";
    let answer = send(at, "POST", "/v1/completions", zipped, "{\"prompt\": \"x\"}").await;
    assert_eq!(answer.error(), "415 - unsupported_content_encoding");
    let answer = send(at, "POST", "/v1/completions", "", "{\"prompt\": ").await;
    assert_eq!(answer.error(), "400 - -");
    assert_eq!(post(at, "/v1/completions", &json!([])).await.error(), "400 - -");
}

#[tokio::test]
async fn head_has_the_head_of_get() {
    let server = Scripted::open().await;
    let (whole, head) = (
        get(server.address, "/version").await,
        send(server.address, "HEAD", "/version", "", "").await,
    );
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(head.header("content-length"), Some(whole.body.len().to_string().as_str()));
    assert_eq!(head.header("content-type"), whole.header("content-type"));
}

#[tokio::test]
async fn request_ids_come_back() {
    let server = Scripted::open().await;
    let answer = send(server.address, "GET", "/nowhere", "x-request-id: abc-1\r\n", "").await;
    assert_eq!(answer.header("x-request-id"), Some("abc-1"));
    let answer = send(server.address, "GET", "/health", "x-request-id: a b\r\n", "").await;
    assert!(answer.header("x-request-id").unwrap().starts_with("req_"));
}

#[tokio::test]
async fn only_listed_origins_may_read() {
    let origins = vec!["https://a.example".to_string()];
    let server = Scripted::with(Setup { origins, ..Setup::default() }).await;
    let at = server.address;
    let listed = "origin: https://a.example\r\n";
    let preflight = format!(
        "{listed}access-control-request-method: POST\r\n\
         access-control-request-headers: authorization, content-type\r\n"
    );
    let answer = send(at, "OPTIONS", "/v1/chat/completions", &preflight, "").await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://a.example"));
    assert_eq!(answer.header("access-control-allow-methods"), Some("POST, OPTIONS"));
    assert_eq!(answer.header("access-control-allow-headers"), Some("authorization, content-type"));
    // Errors can be read by the page too.
    let answer = send(at, "GET", "/v1/nowhere", listed, "").await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://a.example"));
    let answer = send(at, "GET", "/v1/models", "origin: https://b.example\r\n", "").await;
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn the_page_comes_whole_and_may_reach_nothing_else() {
    let server = Scripted::open().await;
    let page = get(server.address, "/").await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"));
    assert!(page.body.contains("/v1/chat/completions"));
    for outside in ["src=\"http", "href=\"http", "@import", "url(http"] {
        assert!(!page.body.contains(outside), "{outside}");
    }
}

#[tokio::test]
async fn draining_is_told_before_the_door_closes() {
    let server = Scripted::open().await;
    server.api.start_draining();
    assert_eq!(get(server.address, "/ready").await.status, 503);
    assert_eq!(get(server.address, "/health").await.status, 200);
    let body = json!({"prompt": "x"});
    let answer = post(server.address, "/v1/completions", &body).await;
    assert_eq!(answer.error(), "503 - shutting_down");
}

/// Routes whose handler, or whose answer's body, is a defect of ours.
static PANICS: Face = Face {
    name: "panics",
    base_path: "/",
    routes: &[
        panics("/handler", |_| async { panic!("planted in a handler") }.boxed()),
        panics("/body", |_| {
            let frames = stream::once(async { panic!("planted in a body") });
            ready(Ok(Reply::new(ReplyBody::frames(frames.boxed())))).boxed()
        }),
    ],
    error: render,
};

static PANICKING: &[&Face] = &[&PANICS];

const fn panics(
    path: &'static str,
    serve: fn(Call) -> BoxFuture<'static, Result<Reply, ApiError>>,
) -> Route {
    Route { method: Method::GET, path, access: AccessRule::Public, serve }
}

#[tokio::test]
async fn a_panic_ends_its_own_request_and_is_counted_out() {
    let metrics = Metrics::new(false).unwrap();
    let setup = Setup::default();
    let bodies = BodyBudget::new(&setup.limits);
    let api = Api::new(metrics.clone());
    let (at, _drain) = listen_with(PANICKING, setup, bodies, api, metrics.clone()).await;
    assert_eq!(get(at, "/handler").await.error(), "500 - internal_error");
    let _ = get(at, "/body").await;
    let counts = |line: &str| metrics.render(&[]).lines().any(|other| other == line);
    until(|| counts("pagoda_http_connections 0") && counts("pagoda_http_requests_in_flight 0"))
        .await;
}
