//! Operations on accounts against a real Postgres: what they do, and the attacks that they must stand.
//!
//! Time is moved by changing rows, so no test waits.

mod api_keys;
mod logins;
mod refresh;
mod signing_key_life;
mod snapshot;
mod users;

use std::net::IpAddr;
use std::sync::Arc;

use pagoda_wire::secret::Secret;
use pagoda_wire::snapshot::{Change as Published, RateClass};
use pagoda_wire::token::Role;
use serde_json::Value;
use tokio_postgres::types::Json;

use super::authenticate::Principal;
use super::fields::{Email, Label, Password, Username};
use super::logins::{LoggedIn, Offered, Policy, log_in};
use super::passwords::Passwords;
use super::users::{NewUser, User, create};
use super::{Operations, signing_keys};
use crate::database::change::{Actor, ActorKind};
use crate::fault::{Fault, Unknown};
use crate::http::credential::{Credential, Token};
use crate::metrics::Metrics;
use crate::secrets::Secrets;
use crate::test_database::TestDatabase;

/// An installation of its own.
pub(crate) struct Home {
    pub(crate) operations: Arc<Operations>,
    database: TestDatabase,
}

pub(crate) const PASSWORD: &str = "canary-correct-horse";
const HERE: &str = "198.51.100.1";
const THERE: &str = "203.0.113.9";
const WRONG: Fault = Fault::Unauthenticated(Unknown::Wrong);

impl Home {
    pub(crate) async fn new() -> Self {
        let database = TestDatabase::new().unwrap();
        let operations = Operations {
            database: database.database().clone(),
            secrets: Secrets::from_root(&Secret::random().unwrap()).unwrap(),
            metrics: Arc::new(Metrics::new().unwrap()),
            issuer: "pagoda".into(),
            passwords: Passwords::new(4, 500).unwrap(),
            policy: Policy { registration_open: true, ..Policy::default() },
        };
        signing_keys::tend(&operations).await.unwrap();
        Home { operations: Arc::new(operations), database }
    }

    /// Where its database is.
    pub(crate) fn address(&self) -> tokio_postgres::Config {
        self.database.address()
    }

    pub(crate) async fn user(&self, name: &str, role: Role) -> User {
        create(&self.operations, &Actor::operator(), new_user(name, role)).await.unwrap().value
    }

    async fn try_login(&self, name: &str, password: &str, from: &str) -> Result<LoggedIn, Fault> {
        let offered = Offered { name, password, user_agent: "test" };
        log_in(&self.operations, &guest(from), offered).await
    }

    pub(crate) async fn login(&self, name: &str) -> LoggedIn {
        self.try_login(name, PASSWORD, HERE).await.unwrap()
    }

    async fn caller(&self, credential: &str) -> Result<Principal, Fault> {
        let credential = match credential.starts_with("sk-") {
            true => Credential::Key(pagoda_wire::api_key::ApiKey::parse(credential).unwrap()),
            false => Credential::Token(Token(credential.into())),
        };
        self.operations.authenticate(&credential, HERE.parse().unwrap()).await
    }

    /// Runs a statement that makes time pass, or breaks something.
    pub(crate) async fn sql(&self, sql: &str) -> u64 {
        self.operations.database.client().await.unwrap().execute(sql, &[]).await.unwrap()
    }

    async fn number(&self, sql: &str) -> i64 {
        let client = self.operations.database.client().await.unwrap();
        client.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// What the audit has of an action, oldest first: object and what it became.
    async fn audited(&self, action: &str) -> Vec<(String, Option<Value>)> {
        let client = self.operations.database.client().await.unwrap();
        let sql = "select object_id, after from audit_log where action = $1 order by id";
        let rows = client.query(sql, &[&action]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// What data planes were told since a revision.
    async fn told_since(&self, revision: i64) -> Vec<Published> {
        let client = self.operations.database.client().await.unwrap();
        let sql = "select changes from change_log where revision > $1 order by revision";
        let rows = client.query(sql, &[&revision]).await.unwrap();
        rows.iter().flat_map(|row| row.get::<_, Json<Vec<Published>>>(0).0).collect()
    }

    async fn revision(&self) -> i64 {
        self.number("select revision from control_revision").await
    }
}

fn guest(from: &str) -> Actor {
    let address: IpAddr = from.parse().unwrap();
    Actor { kind: ActorKind::Anonymous, address: Some(address), ..Actor::system() }
}

fn new_user(name: &str, role: Role) -> NewUser {
    NewUser {
        username: Username::parse(name).unwrap(),
        email: Email::parse(&format!("{name}@example.org")).unwrap(),
        name: Label::parse("name", "").unwrap(),
        password: Some(password(PASSWORD)),
        role,
        rate_class: RateClass::User,
        networks: Vec::new(),
        enabled: true,
    }
}

fn password(text: &str) -> Password {
    Password::parse("password", text).unwrap()
}
