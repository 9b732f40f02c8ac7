//! Who calls: from a credential to a user with rights, as the database has them now.
//!
//! The control plane asks its database at every request, so nothing that was taken back is taken
//! here; data planes do the same with their snapshot and without any I/O.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use pagoda_wire::api_key::{ApiKey, KeyMac};
use pagoda_wire::secret::Secret;
use pagoda_wire::snapshot::Scope;
use pagoda_wire::token::{PublicKey, Role, TokenError, Verifier};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::database::Client;
use crate::database::change::ActorKind;
use crate::fault::{Fault, Unknown};
use crate::http::credential::{Credential, Token};
use crate::operations::Operations;

/// Somebody known, with the rights of a user.
#[derive(Clone, Debug)]
pub struct Principal {
    /// The user.
    pub user: Uuid,
    /// What the user may do.
    pub role: Role,
    /// With what it came.
    pub shown: Shown,
}

/// What a principal showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// An access token of this login.
    Token {
        /// The login.
        login: Uuid,
    },
    /// A key.
    Key {
        /// The key.
        id: Uuid,
        /// What it may be used for.
        scopes: Vec<Scope>,
    },
}

impl Principal {
    /// How the audit names it.
    pub fn for_audit(&self) -> (ActorKind, Option<Uuid>, Option<Uuid>) {
        match &self.shown {
            Shown::Token { login } => (ActorKind::User, Some(self.user), Some(*login)),
            Shown::Key { id, .. } => (ActorKind::Key, Some(*id), None),
        }
    }
}

impl Operations {
    /// Who calls with this credential from this address.
    pub async fn authenticate(
        &self,
        shown: &Credential,
        address: IpAddr,
    ) -> Result<Principal, Fault> {
        let client = self.database.client().await?;
        match shown {
            Credential::Key(key) => self.by_key(&client, key, address).await,
            Credential::Token(token) => self.by_token(&client, token, address).await,
        }
    }

    async fn by_key(
        &self,
        client: &Client,
        key: &ApiKey,
        address: IpAddr,
    ) -> Result<Principal, Fault> {
        let statement = client
            .prepare_cached(
                "select k.id, k.mac, k.scopes, k.networks, k.pepper_id, p.sealed,
                        u.id, u.role, u.networks,
                        k.enabled and u.enabled and (k.expires_at is null or k.expires_at > now())
                 from api_key k join pepper p on p.id = k.pepper_id join app_user u on u.id = k.owner_id
                 where k.public_id = $1",
            )
            .await?;
        let row = client.query_opt(&statement, &[&key.public_id.as_str()]).await?;
        // The MAC is computed where there is no such key, too: the time tells nothing.
        let Some(row) = row else {
            std::hint::black_box(key.mac(&Secret::from([0; 32])));
            return Err(wrong());
        };
        let (id, pepper): (Uuid, Uuid) = (row.get(0), row.get(4));
        let pepper = self.pepper(pepper, row.get(5))?;
        let stored = KeyMac::from_bytes(row.get(1)).ok_or_else(|| damaged("the MAC of a key"))?;
        if !key.mac(&pepper).is(&stored) || !row.get::<_, bool>(9) {
            return Err(wrong());
        }
        allowed_from(row.get(3), address)?;
        allowed_from(row.get(8), address)?;
        let scopes: Vec<String> = row.get(2);
        let scopes = scopes.iter().map(|name| scope(name)).collect::<Result<_, _>>()?;
        Ok(Principal { user: row.get(6), role: role(&row, 7)?, shown: Shown::Key { id, scopes } })
    }

    /// A pepper as its sealed column holds it.
    pub fn pepper(&self, id: Uuid, sealed: &[u8]) -> Result<Secret, Fault> {
        let plain = self.secrets.unseal(sealed, &format!("pepper {id}"));
        let bytes: Option<[u8; 32]> = plain.and_then(|plain| plain.try_into().ok());
        bytes.map(Secret::from).ok_or_else(|| damaged("a pepper"))
    }

    async fn by_token(
        &self,
        client: &Client,
        token: &Token,
        address: IpAddr,
    ) -> Result<Principal, Fault> {
        let verifier = self.verifier(client).await?;
        let now = Timestamp::now().as_second();
        let verified = verifier.verify(&token.0, now).map_err(|error| match error {
            TokenError::Expired => Fault::Unauthenticated(Unknown::Expired),
            TokenError::Invalid | TokenError::Early => wrong(),
        })?;
        let claims = verified.claims;
        let statement = client
            .prepare_cached(
                "select u.role, u.networks, u.enabled and u.epoch = $2 and l.ended_at is null
                 from app_user u join login l on l.user_id = u.id
                 where u.id = $1 and l.id = $3",
            )
            .await?;
        let found =
            client.query_opt(&statement, &[&claims.sub, &claims.epoch, &claims.sid]).await?;
        let row = found.filter(|row| row.get(2)).ok_or_else(wrong)?;
        allowed_from(row.get(1), address)?;
        let shown = Shown::Token { login: claims.sid };
        Ok(Principal { user: claims.sub, role: role(&row, 0)?, shown })
    }

    /// Who takes tokens of any key that is not retired for good.
    async fn verifier(&self, client: &Client) -> Result<Verifier, Fault> {
        let statement = client
            .prepare_cached(
                "select kid, public_x from signing_key
                 where state <> 'next' and (not_after is null or not_after > now())",
            )
            .await?;
        let rows = client.query(&statement, &[]).await?;
        let keys: Vec<_> =
            rows.iter().map(|row| PublicKey { kid: row.get(0), x: row.get(1) }).collect();
        Verifier::new(&self.issuer, &self.issuer, &keys).map_err(Fault::internal)
    }
}

fn wrong() -> Fault {
    Fault::Unauthenticated(Unknown::Wrong)
}

/// What we wrote ourselves cannot be read: another root secret, or somebody else wrote it.
fn damaged(what: &str) -> Fault {
    Fault::internal(format!(
        "{what} in the database cannot be read with this installation's secret"
    ))
}

/// A list that is empty allows every address. An entry that cannot be read allows none.
fn allowed_from(networks: Vec<String>, address: IpAddr) -> Result<(), Fault> {
    let holds = |text: &String| text.parse::<IpNet>().is_ok_and(|net| net.contains(&address));
    if networks.is_empty() || networks.iter().any(holds) {
        return Ok(());
    }
    Err(Fault::Forbidden)
}

fn role(row: &Row, column: usize) -> Result<Role, Fault> {
    match row.get(column) {
        "admin" => Ok(Role::Admin),
        "user" => Ok(Role::User),
        other => Err(Fault::internal(format!("the database has a role {other}"))),
    }
}

fn scope(name: &str) -> Result<Scope, Fault> {
    serde_json::from_value(serde_json::Value::String(name.into())).map_err(Fault::internal)
}
