//! Refresh tokens: a login's id, a counter and a MAC under the login's own key, marked as ours.
//!
//! Each use gives the next counter. The last token but one works again for 30 seconds, for tabs that
//! ask at once, and gives the same current token; whatever is older was copied, and ends the login.
//! Two who take turns within those seconds are noticed by the row of contended uses that they make.
//! What does not bear the installation's mark is refused before the database is asked.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pagoda_wire::secret::Secret;
use serde_json::json;
use tokio_postgres::{Row, Transaction};
use uuid::Uuid;

use super::Operations;
use super::fields::is_within;
use super::logins::{self, LoggedIn};
use super::users::{self, User};
use crate::database::change::{Actor, Change, Event};
use crate::fault::{Fault, Unknown};

/// A refresh token.
#[derive(Clone, PartialEq, Eq)]
pub struct RefreshToken {
    login: Uuid,
    counter: i64,
    mac: [u8; MAC_LEN],
}

impl RefreshToken {
    /// The token with this number of a login whose key is `key`.
    pub fn new(login: Uuid, counter: i64, key: &Secret) -> Self {
        RefreshToken { login, counter, mac: mac(login, counter, key) }
    }

    /// Its text, with the mark that `installation` makes.
    pub fn text(&self, installation: &Secret) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(self.login.as_bytes());
        bytes.extend_from_slice(&self.counter.to_be_bytes());
        bytes.extend_from_slice(&self.mac);
        bytes.extend_from_slice(&mark(&bytes, installation));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// From its text. `None`: this installation has made no such token.
    pub fn parse(text: &str, installation: &Secret) -> Option<Self> {
        let mut bytes = [0; TOKEN_LEN];
        if text.len() != TEXT_LEN || URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) != Ok(TOKEN_LEN)
        {
            return None;
        }
        let (told, marked) = bytes.split_at_checked(TOKEN_LEN - MARK_LEN)?;
        verify_slices_are_equal(&mark(told, installation), marked).ok()?;
        let (version, rest) = told.split_first()?;
        let (login, rest) = rest.split_first_chunk::<16>()?;
        let (counter, mac) = rest.split_first_chunk::<8>()?;
        let token = RefreshToken {
            login: Uuid::from_bytes(*login),
            counter: i64::from_be_bytes(*counter),
            mac: mac.try_into().ok()?,
        };
        (*version == VERSION).then_some(token)
    }

    fn is_under(&self, key: &Secret) -> bool {
        verify_slices_are_equal(&self.mac, &mac(self.login, self.counter, key)).is_ok()
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RefreshToken({} {} ***)", self.login, self.counter)
    }
}

fn mac(login: Uuid, counter: i64, key: &Secret) -> [u8; MAC_LEN] {
    sign(&[b"refresh", login.as_bytes(), &counter.to_be_bytes()], key)
}

fn mark(told: &[u8], installation: &Secret) -> [u8; MARK_LEN] {
    sign(&[b"mark", told], installation)
}

fn sign<const N: usize>(parts: &[&[u8]], key: &Secret) -> [u8; N] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key.bytes()));
    for part in parts {
        context.update(part);
    }
    let mut start = [0; N];
    start.iter_mut().zip(context.sign().as_ref()).for_each(|(to, from)| *to = *from);
    start
}

const VERSION: u8 = 1;
const MAC_LEN: usize = 16;
const MARK_LEN: usize = 4;
const TOKEN_LEN: usize = 1 + 16 + 8 + MAC_LEN + MARK_LEN;
const TEXT_LEN: usize = TOKEN_LEN * 4 / 3;

/// Seconds in which the last token but one still gives the current one.
const GRACE_S: f64 = 30.0;

/// Contended uses in a row that tabs of one user may make.
const CONTENDED_MAX: i32 = 4;

/// Gives the next tokens of a login.
pub async fn refresh(
    operations: &Operations,
    actor: &Actor,
    text: &str,
) -> Result<LoggedIn, Fault> {
    let wrong = Fault::Unauthenticated(Unknown::Wrong);
    let token = RefreshToken::parse(text, operations.secrets.refresh());
    let token = token.ok_or_else(|| wrong.clone())?;
    let mut client = operations.database.client().await?;
    let transaction = client.transaction().await?;
    let held = Held::lock(operations, &transaction, &token).await?.ok_or_else(|| wrong.clone())?;
    if held.is_over || !held.user.enabled || !is_within(&held.user.networks, actor.address) {
        return Err(wrong);
    }
    let number = match held.meant_by(&token) {
        Meaning::Next { contended } => held.rotate(&transaction, contended).await?,
        Meaning::Again => held.grace(&transaction).await?,
        // Ahead of us: the database was set back to an older state. Nobody stole anything.
        Meaning::Unknown => return Err(wrong),
        Meaning::Copied => {
            transaction.rollback().await?;
            end_copied(operations, &mut client, actor, &held, &token).await?;
            return Err(wrong);
        }
    };
    let current = RefreshToken::new(token.login, number, &held.key);
    let login = logins::issue(operations, &transaction, held.user, token.login, &current).await?;
    transaction.commit().await?;
    Ok(login)
}

/// A login whose row is ours until the transaction ends.
struct Held {
    user: User,
    login: Uuid,
    key: Secret,
    counter: i64,
    since_rotation_s: f64,
    graced: bool,
    contended: i32,
    is_over: bool,
}

/// What a token means.
enum Meaning {
    /// The current one: the next is due.
    Next {
        /// Uses in a row that followed each other at once, with the last token but one between.
        contended: i32,
    },
    /// The last but one, a moment ago.
    Again,
    /// Somebody else has a copy.
    Copied,
    /// One that was never given.
    Unknown,
}

impl Held {
    /// `None`: there is no such login, or the token is not of it.
    async fn lock(
        operations: &Operations,
        transaction: &Transaction<'_>,
        token: &RefreshToken,
    ) -> Result<Option<Self>, Fault> {
        // clock_timestamp: now() is from before the wait for the row. Of the user no lock is
        // taken: whoever changes rights raises the epoch, which ends what is issued here.
        let sql = "select user_id, sealed_key, counter,
                 extract(epoch from clock_timestamp() - rotated_at)::float8, graced, contended,
                 ended_at is not null or not_after <= now()
             from login where id = $1 for update";
        let Some(row) = transaction.query_opt(sql, &[&token.login]).await? else { return Ok(None) };
        let key = unsealed(operations, token.login, &row)?;
        if !token.is_under(&key) {
            return Ok(None);
        }
        let columns = users::COLUMNS;
        let sql = format!("select {columns} from app_user where id = $1");
        let user = transaction.query_one(&sql, &[&row.get::<_, Uuid>(0)]).await?;
        Ok(Some(Held {
            user: users::user(&user)?,
            login: token.login,
            key,
            counter: row.get(2),
            since_rotation_s: row.get(3),
            graced: row.get(4),
            contended: row.get(5),
            is_over: row.get(6),
        }))
    }

    fn meant_by(&self, token: &RefreshToken) -> Meaning {
        let is_recent = self.since_rotation_s <= GRACE_S;
        match self.counter - token.counter {
            0 => {
                let contended = if is_recent && self.graced { self.contended + 1 } else { 0 };
                match contended > CONTENDED_MAX {
                    true => Meaning::Copied,
                    false => Meaning::Next { contended },
                }
            }
            1 if is_recent => Meaning::Again,
            1.. => Meaning::Copied,
            ..0 => Meaning::Unknown,
        }
    }

    async fn rotate(&self, transaction: &Transaction<'_>, contended: i32) -> Result<i64, Fault> {
        let sql = "update login set counter = $2, contended = $3, graced = false,
                       rotated_at = clock_timestamp() where id = $1";
        let next = self.counter + 1;
        transaction.execute(sql, &[&self.login, &next, &contended]).await?;
        Ok(next)
    }

    async fn grace(&self, transaction: &Transaction<'_>) -> Result<i64, Fault> {
        let sql = "update login set graced = true where id = $1";
        transaction.execute(sql, &[&self.login]).await?;
        Ok(self.counter)
    }
}

fn unsealed(operations: &Operations, login: Uuid, row: &Row) -> Result<Secret, Fault> {
    let plain = operations.secrets.unseal(row.get(1), &logins::sealed_for(login));
    let bytes: Option<[u8; 32]> = plain.and_then(|plain| plain.try_into().ok());
    let damaged = || Fault::internal("the key of a login is not under this installation's secret");
    bytes.map(Secret::from).ok_or_else(damaged)
}

/// Ends a login whose token somebody else has: nobody knows which of the two is the thief.
async fn end_copied(
    operations: &Operations,
    client: &mut crate::database::Client,
    actor: &Actor,
    held: &Held,
    token: &RefreshToken,
) -> Result<(), Fault> {
    operations.metrics.login_refused("copied");
    let mut change = Change::begin(client, actor).await?;
    if logins::end(&mut change, held.user.id, held.login, "copied").await? {
        let numbers = json!({ "shown": token.counter, "current": held.counter });
        let event = Event::new("login.copied", "login", held.login);
        change.audit(event.with(None, Some(numbers)));
        change.commit().await?;
    }
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn what_this_installation_did_not_make_is_refused_unseen() {
        let (installation, key) = (Secret::random().unwrap(), Secret::random().unwrap());
        let token = RefreshToken::new(Uuid::now_v7(), 7, &key);
        let text = token.text(&installation);
        assert_eq!(text.len(), TEXT_LEN);
        assert_eq!(RefreshToken::parse(&text, &installation), Some(token.clone()));
        assert!(token.is_under(&key) && !token.is_under(&Secret::random().unwrap()));
        assert!(RefreshToken::parse(&text, &Secret::random().unwrap()).is_none());
        for end in 0..text.len() {
            assert!(RefreshToken::parse(&text[..end], &installation).is_none());
        }
        for more in ["=", "A", " ", "\0", "é"] {
            assert!(RefreshToken::parse(&format!("{text}{more}"), &installation).is_none());
        }
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(RefreshToken::parse(&changed, &installation).is_none(), "{at}");
        }
        assert!(!format!("{token:?}").contains(&text[34..]));
    }
}
