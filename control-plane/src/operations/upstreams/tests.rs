//! Upstreams and models against a real Postgres.

use pagoda_wire::secret::Secret;
use pagoda_wire::snapshot::Price;

use super::*;
use crate::operations::models::{self, ModelChange, NewModel};
use crate::operations::text::field;
use crate::test_database::TestDatabase;

struct Installation {
    reach: Reach,
    cipher: CredentialCipher,
}

impl Installation {
    fn new() -> Self {
        let cipher = CredentialCipher::new(&Secret::random().unwrap()).unwrap();
        Installation { reach: Reach::default(), cipher }
    }

    fn border(&self) -> Border<'_> {
        Border { reach: &self.reach, cipher: &self.cipher }
    }
}

fn url(text: &str) -> BaseUrl {
    BaseUrl::parse(text).unwrap()
}

fn secret(text: &str) -> Credential {
    Credential::try_from(text.to_owned()).unwrap()
}

fn openai() -> NewUpstream {
    NewUpstream {
        provider: Provider::Openai,
        base_url: url("https://api.openai.com/v1"),
        credential: Some(secret("sk-canary-credential")),
        timeout_ms: None,
    }
}

/// What data planes were told last.
async fn published(database: &Database) -> Vec<snapshot::Change> {
    let client = database.client().await.unwrap();
    let sql = "select changes from change_log order by revision desc limit 1";
    let tokio_postgres::types::Json(changes) = client.query_one(sql, &[]).await.unwrap().get(0);
    changes
}

async fn published_upstream(database: &Database) -> UpstreamRecord {
    match published(database).await.remove(0) {
        snapshot::Change::Put(item) => match *item {
            Item::Upstream(record) => record,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn attack_10_a_credential_does_not_follow_to_another_origin() {
    let test = TestDatabase::new().unwrap();
    let (database, us) = (test.database(), Installation::new());
    let actor = Actor::operator();
    let made = create(database, us.border(), &actor, openai()).await.unwrap();
    assert_eq!(made.revision, Some(1));
    let id = made.value.id;
    let record = published_upstream(database).await;
    let origin = record.credential.as_ref().map(|sealed| sealed.origin.clone()).unwrap();
    let opened = us.cipher.open(id, &origin, record.credential.as_ref().unwrap());
    assert_eq!(opened, Some(secret("sk-canary-credential")));

    // Another path: the same origin.
    let change =
        UpstreamChange { base_url: Some(url("https://api.openai.com/v2")), ..Default::default() };
    let moved = update(database, us.border(), &actor, id, change).await.unwrap();
    assert!(moved.value.has_credential);
    assert_eq!(published_upstream(database).await.credential, record.credential);

    // Another host, scheme or port: none, until it is typed in again.
    for elsewhere in ["https://evil.com/v1", "https://api.openai.com:444/v1"] {
        let change = UpstreamChange { base_url: Some(url(elsewhere)), ..Default::default() };
        let moved = update(database, us.border(), &actor, id, change).await.unwrap();
        assert!(!moved.value.has_credential, "{elsewhere}");
        assert_eq!(published_upstream(database).await.credential, None);
    }
    let back = UpstreamChange { base_url: Some(openai().base_url), ..Default::default() };
    let back = update(database, us.border(), &actor, id, back).await.unwrap();
    assert!(!back.value.has_credential);
    let typed = UpstreamChange { credential: Some(Some(secret("again"))), ..Default::default() };
    assert!(update(database, us.border(), &actor, id, typed).await.unwrap().value.has_credential);
    let removed = UpstreamChange { credential: Some(None), ..Default::default() };
    let removed = update(database, us.border(), &actor, id, removed).await.unwrap();
    assert!(!removed.value.has_credential);
}

#[tokio::test]
async fn attack_16_no_credential_in_the_database_the_audit_or_debug() {
    let test = TestDatabase::new().unwrap();
    let (database, us) = (test.database(), Installation::new());
    let made = create(database, us.border(), &Actor::operator(), openai()).await.unwrap();
    assert!(!format!("{:?}{made:?}", openai()).contains("canary"));
    let client = database.client().await.unwrap();
    for table in ["upstream", "audit_log", "change_log"] {
        let sql = format!("select coalesce(string_agg(t::text, ''), '') from {table} t");
        let text: String = client.query_one(&sql, &[]).await.unwrap().get(0);
        assert!(!text.is_empty() && !text.contains("canary"), "{table}: {text}");
    }
}

#[tokio::test]
async fn attack_09_an_upstream_inside_is_refused_when_saved() {
    let test = TestDatabase::new().unwrap();
    let (database, us) = (test.database(), Installation::new());
    let actor = Actor::operator();
    let made = create(database, us.border(), &actor, openai()).await.unwrap().value;
    for inside in ["https://127.0.0.1", "https://[::ffff:a00:1]", "http://169.254.169.254/latest"] {
        let new = NewUpstream { base_url: url(inside), ..openai() };
        let fault = create(database, us.border(), &actor, new).await.unwrap_err();
        assert!(matches!(fault, Fault::Invalid { .. }), "{inside}: {fault:?}");
        let change = UpstreamChange { base_url: Some(url(inside)), ..Default::default() };
        let fault = update(database, us.border(), &actor, made.id, change).await.unwrap_err();
        assert!(matches!(fault, Fault::Invalid { .. }), "{inside}: {fault:?}");
    }
    assert_eq!(find(database, made.id).await.unwrap(), made);
    let allowed = Reach::new(vec!["127.0.0.0/8".parse().unwrap()]);
    let border = Border { reach: &allowed, cipher: &us.cipher };
    let new = NewUpstream { base_url: url("http://127.0.0.1:8001/v1"), ..openai() };
    assert!(create(database, border, &actor, new).await.is_ok());
    assert_eq!(list(database, Window::page(1, 9).unwrap()).await.unwrap().items.len(), 2);
    let local = NewUpstream { provider: Provider::Local, ..openai() };
    assert!(create(database, us.border(), &actor, local).await.is_err());
}

#[tokio::test]
async fn models_are_made_changed_and_published() {
    let test = TestDatabase::new().unwrap();
    let (database, us) = (test.database(), Installation::new());
    let actor = Actor::operator();
    let upstream = create(database, us.border(), &actor, openai()).await.unwrap().value.id;
    let new = |name: &str, provider, upstream| NewModel {
        name: field("name", name).unwrap(),
        provider,
        upstream,
        model: field("model", "gpt-4o").unwrap(),
        is_enabled: true,
        price: Price { input: Some(2_500_000_000), cached: None, output: Some(10_000_000_000) },
    };
    let made = new("gpt-4o", Provider::Openai, Some(upstream));
    let made = models::create(database, &actor, made).await.unwrap();
    assert!(made.revision.is_some());
    for wrong in [
        new("a", Provider::Openai, None),
        new("a", Provider::Local, Some(upstream)),
        new("a", Provider::Anthropic, Some(upstream)),
        new("a", Provider::Openai, Some(Uuid::now_v7())),
        NewModel {
            price: Price { input: Some(u64::MAX), ..Price::default() },
            ..new("a", Provider::Local, None)
        },
    ] {
        let fault = models::create(database, &actor, wrong).await.unwrap_err();
        assert!(matches!(fault, Fault::Invalid { .. }), "{fault:?}");
    }
    let twice = models::create(database, &actor, new("gpt-4o", Provider::Local, None)).await;
    assert!(matches!(twice, Err(Fault::Conflict(_))));
    assert!(field::<models::ModelName>("name", "org/name").is_err());
    assert!(field::<models::ModelName>("name", "a\r\nb").is_err());

    let off = ModelChange { is_enabled: Some(false), ..ModelChange::default() };
    let off = models::update(database, &actor, made.value.id, off).await.unwrap().value;
    assert!(!off.is_enabled && off.price == made.value.price && off.name == "gpt-4o");
    let [snapshot::Change::Put(item)] = &published(database).await[..] else { panic!() };
    let Item::Model(record) = &**item else { panic!() };
    assert!(!record.enabled && record.upstream == Some(upstream));
    let client = database.client().await.unwrap();
    assert_eq!(models::records(&**client).await.unwrap(), [(**item).clone()]);
    assert_eq!(records(&**client).await.unwrap().len(), 1);

    let used = delete(database, &actor, upstream).await.unwrap_err();
    assert!(matches!(used, Fault::Conflict(_)), "{used:?}");
    let local = ModelChange { served_by: Some((Provider::Local, None)), ..Default::default() };
    models::update(database, &actor, made.value.id, local).await.unwrap();
    delete(database, &actor, upstream).await.unwrap();
    assert_eq!(published(database).await, [snapshot::Change::Remove(Kind::Upstream, upstream)]);
    let listed = models::list(database, Window::page(1, 9).unwrap()).await.unwrap();
    assert_eq!((listed.items.len(), listed.total), (1, 1));
    models::delete(database, &actor, made.value.id).await.unwrap();
    assert_eq!(models::find(database, made.value.id).await, Err(Fault::NotFound("model")));
    let audited: i64 =
        client.query_one("select count(*) from audit_log", &[]).await.unwrap().get(0);
    assert_eq!(audited, 6);
}
