//! Logins: from a password to tokens, and to their end.
//!
//! A refused login tells nobody why, takes as long for a name that nobody has, and is audited. A
//! login ends by logout, by a new password, by a ban or by a refresh token that was stolen; its
//! access tokens end with it on every plane.

use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use pagoda_wire::secret::Secret;
use pagoda_wire::snapshot::{Change as Published, EndedLogin, Item, Revision};
use pagoda_wire::token::{Claims, LIFE_MAX_S, SKEW_S};
use serde_json::json;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Transaction};
use uuid::Uuid;

use super::fields::{Password, is_within};
use super::page::{Records, stream_records};
use super::passwords::Verdict;
use super::refresh::RefreshToken;
use super::throttle::Attempt;
use super::users::{self, User};
use super::{Operations, signing_keys};
use crate::database::change::{Actor, Change, Event};
use crate::database::{Client, TENANT};
use crate::fault::{Fault, Unknown};

/// Lives of tokens, and who may come.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whether anybody may make an account.
    pub registration_open: bool,
    /// Seconds that an access token lives, at most [`LIFE_MAX_S`].
    pub access_life_s: i64,
    /// Seconds after which a login ends, however often it was refreshed.
    pub login_life_s: i64,
    /// Seconds after which the key that signs is replaced by the next one.
    pub signing_key_life_s: i64,
}

impl Default for Policy {
    fn default() -> Self {
        const DAY_S: i64 = 24 * 3600;
        Policy {
            registration_open: false,
            access_life_s: 300,
            login_life_s: 30 * DAY_S,
            signing_key_life_s: 30 * DAY_S,
        }
    }
}

/// Somebody is logged in.
#[derive(Clone)]
pub struct LoggedIn {
    /// Who.
    pub user: User,
    /// The login.
    pub login: Uuid,
    /// For requests.
    pub access_token: String,
    /// For the next access token.
    pub refresh_token: String,
    /// Seconds that the access token lives.
    pub expires_in_s: i64,
}

impl fmt::Debug for LoggedIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoggedIn")
            .field("user", &self.user.id)
            .field("login", &self.login)
            .finish_non_exhaustive()
    }
}

/// A name and a password, as somebody wrote them.
#[derive(Clone, Copy)]
pub struct Offered<'a> {
    /// A user name or an e-mail address.
    pub name: &'a str,
    /// The password.
    pub password: &'a str,
    /// With what program; anything.
    pub user_agent: &'a str,
}

/// Logs somebody in.
pub async fn log_in(
    operations: &Operations,
    actor: &Actor,
    offered: Offered<'_>,
) -> Result<LoggedIn, Fault> {
    let client = operations.database.client().await?;
    let found = find(&client, offered.name, actor.address).await?;
    let is_known = found.as_ref().is_some_and(|found| found.is_known_here);
    let attempt = Attempt::by_name(offered.name, actor.address).known(is_known);
    attempt.charge(&client).await.inspect_err(|_| operations.metrics.login_refused("throttled"))?;
    // No connection is held while a password is hashed.
    drop(client);
    let hash = found.as_ref().and_then(|found| found.hash.as_deref());
    let verdict = checked(operations, &attempt, offered.password, hash).await?;
    let mut client = operations.database.client().await?;
    let entry = match (found, verdict) {
        (None, _) => Err((None, "unknown")),
        (Some(found), Verdict::Wrong) => Err((Some(found.user.id), "password")),
        (Some(found), _) if !found.user.enabled => Err((Some(found.user.id), "disabled")),
        (Some(found), _) if !is_within(&found.user.networks, actor.address) => {
            Err((Some(found.user.id), "network"))
        }
        (Some(found), verdict) => Ok((found, verdict)),
    };
    match entry {
        Ok((found, verdict)) => {
            let entry =
                Entry { operations, actor, attempt: &attempt, user_agent: offered.user_agent };
            entry.accept(&mut client, found, verdict).await
        }
        Err((user, reason)) => Err(refuse(operations, &mut client, actor, user, reason).await?),
    }
}

/// What of a user decides about a login.
struct Found {
    user: User,
    hash: Option<String>,
    is_known_here: bool,
}

async fn find(
    client: &Client,
    name: &str,
    address: Option<IpAddr>,
) -> Result<Option<Found>, Fault> {
    let column = if name.contains('@') { "email" } else { "username" };
    // What nobody can be called is looked for all the same, as something that nobody is called.
    let name = if name.len() > 254 || name.contains('\0') { "" } else { name };
    let columns = users::COLUMNS;
    let sql = format!(
        "select {columns}, password_hash,
             exists (select from login l where l.user_id = app_user.id and l.address = $3)
         from app_user where tenant_id = $1 and lower({column}) = $2"
    );
    let statement = client.prepare_cached(&sql).await?;
    let name = name.to_ascii_lowercase();
    let row = client.query_opt(&statement, &[&TENANT, &name, &address]).await?;
    let found = |row: &Row| {
        Ok(Found { user: users::user(row)?, hash: row.get(11), is_known_here: row.get(12) })
    };
    row.as_ref().map(found).transpose()
}

/// What the password is worth. If it could not be looked at, the attempt was none.
async fn checked(
    operations: &Operations,
    attempt: &Attempt,
    password: &str,
    hash: Option<&str>,
) -> Result<Verdict, Fault> {
    let checked = operations.passwords.verify(password, hash).await;
    if checked.is_err() {
        attempt.refund(&operations.database.client().await?, false).await?;
    }
    checked
}

struct Entry<'a> {
    operations: &'a Operations,
    actor: &'a Actor,
    attempt: &'a Attempt,
    user_agent: &'a str,
}

impl Entry<'_> {
    async fn accept(
        &self,
        client: &mut Client,
        found: Found,
        verdict: Verdict,
    ) -> Result<LoggedIn, Fault> {
        let mut actor = self.actor.clone();
        let login = Uuid::now_v7();
        (actor.login, actor.id) = (Some(login), Some(found.user.id));
        let mut change = Change::begin(client, &actor).await?;
        // What was true when the password was hashed must still be.
        let Some(user) = locked(change.transaction(), &found).await? else {
            drop(change);
            let user = Some(found.user.id);
            return Err(refuse(self.operations, client, self.actor, user, "changed").await?);
        };
        if let Verdict::Rehash(hash) = verdict {
            let sql = "update app_user set password_hash = $2 where id = $1";
            change.transaction().execute(sql, &[&user.id, &hash]).await?;
        }
        let refresh = self.insert(change.transaction(), &user, login).await?;
        end_oldest(&mut change, user.id).await?;
        self.attempt.refund(change.transaction(), true).await?;
        let logged_in = issue(self.operations, change.transaction(), user, login, &refresh).await?;
        change.audit(Event::new("login.accept", "user", logged_in.user.id));
        change.commit().await?;
        Ok(logged_in)
    }

    async fn insert(
        &self,
        transaction: &Transaction<'_>,
        user: &User,
        login: Uuid,
    ) -> Result<RefreshToken, Fault> {
        let key = Secret::random().map_err(Fault::internal)?;
        let place = sealed_for(login);
        let sealed = self.operations.secrets.seal(key.bytes(), &place).map_err(Fault::internal)?;
        let agent: String = self.user_agent.chars().filter(|c| !c.is_control()).take(200).collect();
        let sql = "insert into login
                 (id, tenant_id, user_id, sealed_key, not_after, user_agent, address)
             values ($1, $2, $3, $4, now() + make_interval(secs => $5::bigint), $6, $7)";
        let life = self.operations.policy.login_life_s;
        let values: [&(dyn ToSql + Sync); 7] =
            [&login, &TENANT, &user.id, &sealed, &life, &agent, &self.actor.address];
        transaction.execute(sql, &values).await?;
        Ok(RefreshToken::new(login, 0, &key))
    }
}

/// Where a login's key may be opened.
pub(super) fn sealed_for(login: Uuid) -> String {
    format!("login {login}")
}

async fn locked(transaction: &Transaction<'_>, found: &Found) -> Result<Option<User>, Fault> {
    let columns = users::COLUMNS;
    let sql = format!(
        "select {columns} from app_user
         where id = $1 and enabled and epoch = $2 and password_hash = $3 for update"
    );
    let (id, epoch) = (&found.user.id, &found.user.epoch);
    let row = transaction.query_opt(&sql, &[id, epoch, &found.hash]).await?;
    row.as_ref().map(users::user).transpose()
}

/// Audits a refusal; answers what the caller is told, which is always the same.
async fn refuse(
    operations: &Operations,
    client: &mut Client,
    actor: &Actor,
    user: Option<Uuid>,
    reason: &'static str,
) -> Result<Fault, Fault> {
    operations.metrics.login_refused(reason);
    let mut change = Change::begin(client, actor).await?;
    // Never the name that was given: it may be a password.
    let id = user.map_or_else(|| "unknown".to_string(), |user| user.to_string());
    let event = Event::new("login.refuse", "user", id);
    change.audit(event.with(None, Some(json!({ "reason": reason }))));
    change.commit().await?;
    Ok(Fault::Unauthenticated(Unknown::Wrong))
}

/// Tokens of a login, for its user as it is now.
pub(super) async fn issue(
    operations: &Operations,
    transaction: &Transaction<'_>,
    user: User,
    login: Uuid,
    refresh: &RefreshToken,
) -> Result<LoggedIn, Fault> {
    let (signer, now) = signing_keys::active(operations, transaction).await?;
    let expires_in_s = operations.policy.access_life_s.clamp(1, LIFE_MAX_S);
    let claims = Claims {
        iss: operations.issuer.clone(),
        aud: operations.issuer.clone(),
        sub: user.id,
        sid: login,
        role: user.role,
        epoch: user.epoch,
        iat: now,
        nbf: now,
        exp: now + expires_in_s,
    };
    Ok(LoggedIn {
        user,
        login,
        access_token: signer.sign(&claims),
        refresh_token: refresh.text(operations.secrets.refresh()),
        expires_in_s,
    })
}

/// Ends one login of a user. One that has ended stays as it is.
pub async fn log_out(
    operations: &Operations,
    actor: &Actor,
    user: Uuid,
    login: Uuid,
) -> Result<Option<Revision>, Fault> {
    let mut client = operations.database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    if !end(&mut change, user, login, "logout").await? {
        return Ok(None);
    }
    change.audit(Event::new("login.end", "login", login));
    change.commit().await
}

/// Ends all logins of a user, and all tokens.
pub async fn log_out_everywhere(
    operations: &Operations,
    actor: &Actor,
    user: Uuid,
) -> Result<Option<Revision>, Fault> {
    let mut client = operations.database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    users::end_tokens(&mut change, user, "logout").await?;
    change.audit(Event::new("login.end_all", "user", user));
    change.commit().await
}

/// Changes the password of who knows the old one; ends all logins and tokens.
pub async fn change_password(
    operations: &Operations,
    actor: &Actor,
    user: Uuid,
    old: &str,
    new: &Password,
) -> Result<Option<Revision>, Fault> {
    let client = operations.database.client().await?;
    // A stolen access token is no way to try passwords either.
    let attempt = Attempt::by_name(&format!("password of {user}"), actor.address).known(true);
    attempt.charge(&client).await?;
    let sql = "select password_hash from app_user where tenant_id = $1 and id = $2 and enabled";
    let row = client.query_opt(sql, &[&TENANT, &user]).await?;
    let stored: Option<String> = row.and_then(|row| row.get(0));
    drop(client);
    let verdict = checked(operations, &attempt, old, stored.as_deref()).await?;
    let mut client = operations.database.client().await?;
    if verdict == Verdict::Wrong {
        return Err(refuse(operations, &mut client, actor, Some(user), "old password").await?);
    }
    drop(client);
    let hash = operations.passwords.hash(new).await?;
    let mut client = operations.database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    let sql = "update app_user set password_hash = $3 where id = $1 and password_hash = $2";
    if change.transaction().execute(sql, &[&user, &stored, &hash]).await? == 0 {
        return Err(Fault::Conflict("the password was changed meanwhile".into()));
    }
    users::end_tokens(&mut change, user, "password").await?;
    attempt.refund(change.transaction(), true).await?;
    change.audit(Event::new("user.change_password", "user", user));
    change.commit().await
}

/// Ends a login that is not over. Data planes learn of it.
pub(super) async fn end(
    change: &mut Change<'_>,
    user: Uuid,
    login: Uuid,
    reason: &str,
) -> Result<bool, Fault> {
    let sql = "update login set ended_at = now(), end_reason = $3
               where id = $1 and user_id = $2 and ended_at is null
               returning floor(extract(epoch from now()))::bigint";
    let row = change.transaction().query_opt(sql, &[&login, &user, &reason]).await?;
    let Some(row) = row else { return Ok(false) };
    publish_end(change, login, row.get(0));
    Ok(true)
}

fn publish_end(change: &mut Change<'_>, login: Uuid, now: i64) {
    let ended = EndedLogin { id: login, until: now + LIFE_MAX_S + SKEW_S };
    change.publish(Published::Put(Box::new(Item::EndedLogin(ended))));
}

/// Ends all logins of a user whose epoch grows, so that data planes need not learn of each.
pub(super) async fn end_all(
    transaction: &Transaction<'_>,
    user: Uuid,
    reason: &str,
) -> Result<(), Fault> {
    let sql = "update login set ended_at = now(), end_reason = $2
               where user_id = $1 and ended_at is null";
    transaction.execute(sql, &[&user, &reason]).await?;
    Ok(())
}

/// A user has so many logins; the next ends the oldest.
async fn end_oldest(change: &mut Change<'_>, user: Uuid) -> Result<(), Fault> {
    let sql = "update login set ended_at = now(), end_reason = 'too many'
               where id in (select id from login where user_id = $1 and ended_at is null
                            order by id desc offset $2)
               returning id, floor(extract(epoch from now()))::bigint";
    for row in change.transaction().query(sql, &[&user, &LOGINS_MAX]).await? {
        publish_end(change, row.get(0), row.get(1));
    }
    Ok(())
}

/// Logins that ended before their tokens did, for a full snapshot.
pub async fn records(transaction: &Transaction<'_>) -> Result<Records, Fault> {
    let sql = format!(
        "select id, ended_at from login
         where ended_at > now() - make_interval(secs => {})",
        LIFE_MAX_S + SKEW_S
    );
    stream_records(transaction, &sql, |row| {
        let ended: Timestamp = row.get(1);
        let until = ended.as_second() + LIFE_MAX_S + SKEW_S;
        Ok(Item::EndedLogin(EndedLogin { id: row.get(0), until }))
    })
    .await
}

/// Forgets some of the logins that nobody can use any more; answers how many. One that ended is
/// kept for a month, since the audit names it.
pub async fn sweep(client: &Client) -> Result<u64, Fault> {
    let sql = "delete from login where id in (
                   select id from login where not_after < now() - interval '30 days'
                   union all
                   select id from login where ended_at < now() - interval '30 days' limit 1000)";
    Ok(client.execute(sql, &[]).await?)
}

/// Logins that a user may have at once.
const LOGINS_MAX: i64 = 100;
