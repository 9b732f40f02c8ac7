//! Users: who may log in, and what data planes know of them.
//!
//! A ban, another role, another password or other networks end every access token at once: the
//! epoch grows, and tokens of an earlier one are worth nothing on any plane. The last administrator
//! stays one.

use ipnet::IpNet;
use jiff::Timestamp;
use pagoda_wire::snapshot::{Change as Published, Item, RateClass, UserRecord};
use pagoda_wire::token::Role;
use serde_json::{Value, json};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::fields::{Email, Label, Named, Password, Search, Username};
use super::page::{List, Records, stream_records};
use super::window::Window;
use super::{Operations, Written, logins};
use crate::database::change::{Actor, Change, Event};
use crate::database::{Client, TENANT};
use crate::fault::{Fault, violates};

/// A user. Knows no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub id: Uuid,
    /// What the user logs in as.
    pub username: String,
    /// Or this.
    pub email: String,
    /// What people call the user; may be empty.
    pub name: String,
    /// What the user may do.
    pub role: Role,
    /// May do nothing while false.
    pub enabled: bool,
    /// The limit of requests.
    pub rate_class: RateClass,
    /// May come from there only; empty is anywhere.
    pub networks: Vec<IpNet>,
    /// Counts what ended all tokens.
    pub epoch: i64,
    /// Since when.
    pub created_at: Timestamp,
    /// Last written.
    pub updated_at: Timestamp,
}

/// A user to be.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// What the user logs in as; nobody else has it in any case of its letters.
    pub username: Username,
    /// Likewise.
    pub email: Email,
    /// What people call the user.
    pub name: Label,
    /// `None`: cannot log in with one.
    pub password: Option<Password>,
    /// What the user may do.
    pub role: Role,
    /// The limit of requests.
    pub rate_class: RateClass,
    /// May come from there only; empty is anywhere.
    pub networks: Vec<IpNet>,
    /// May do nothing while false.
    pub enabled: bool,
}

/// Somebody who comes alone.
#[derive(Clone, Debug)]
pub struct Registration {
    /// `None`: made of the address.
    pub username: Option<Username>,
    /// The address.
    pub email: Email,
    /// What people call the user.
    pub name: Label,
    /// The password.
    pub password: Password,
}

/// What becomes of a user. `None` leaves it as it is.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "as in NewUser")]
pub struct UserUpdate {
    pub username: Option<Username>,
    pub email: Option<Email>,
    pub name: Option<Label>,
    pub password: Option<Password>,
    pub role: Option<Role>,
    pub rate_class: Option<RateClass>,
    pub networks: Option<Vec<IpNet>>,
    pub enabled: Option<bool>,
}

/// Which users a list holds.
#[derive(Clone, Debug, Default)]
pub struct UserFilter {
    /// In the user name, the address or the name.
    pub search: Option<Search>,
    /// With this role.
    pub role: Option<Role>,
    /// Allowed to log in, or not.
    pub enabled: Option<bool>,
}

/// Columns of a [`User`].
pub(super) const COLUMNS: &str = "id, username, email, name, role, enabled, rate_class, networks, \
                                  epoch, created_at, updated_at";

/// Makes a user.
pub async fn create(
    operations: &Operations,
    actor: &Actor,
    new: NewUser,
) -> Result<Written<User>, Fault> {
    insert(operations, actor, new, "user.create").await
}

/// Makes a user of whoever asks, where that is allowed: without any rights beyond a user's.
pub async fn register(
    operations: &Operations,
    actor: &Actor,
    new: Registration,
) -> Result<Written<User>, Fault> {
    if !operations.policy.registration_open {
        return Err(Fault::Forbidden);
    }
    let username = match new.username {
        Some(username) => username,
        None => free_username(&operations.database.client().await?, &new.email).await?,
    };
    let new = NewUser {
        username,
        email: new.email,
        name: new.name,
        password: Some(new.password),
        role: Role::User,
        rate_class: RateClass::User,
        networks: Vec::new(),
        enabled: true,
    };
    insert(operations, actor, new, "user.register").await
}

/// Makes the first administrator. `None`: there is one.
pub async fn first_admin(
    operations: &Operations,
    actor: &Actor,
    new: NewUser,
) -> Result<Option<Written<User>>, Fault> {
    let client = operations.database.client().await?;
    let sql = "select exists (select from app_user where tenant_id = $1 and role = 'admin')";
    if client.query_one(sql, &[&TENANT]).await?.get(0) {
        return Ok(None);
    }
    drop(client);
    create(operations, actor, NewUser { role: Role::Admin, ..new }).await.map(Some)
}

async fn insert(
    operations: &Operations,
    actor: &Actor,
    new: NewUser,
    action: &'static str,
) -> Result<Written<User>, Fault> {
    // No connection is held while a password is hashed.
    let hash = match &new.password {
        Some(password) => Some(operations.passwords.hash(password).await?),
        None => None,
    };
    let mut client = operations.database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    let sql = format!(
        "insert into app_user (id, tenant_id, username, email, name, password_hash, role, enabled,
             rate_class, networks)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) returning {COLUMNS}"
    );
    let (id, networks) = (Uuid::now_v7(), texts(&new.networks));
    let values: [&(dyn ToSql + Sync); 10] = [
        &id,
        &TENANT,
        &new.username.as_str(),
        &new.email.as_str(),
        &new.name.as_str(),
        &hash,
        &new.role.text(),
        &new.enabled,
        &new.rate_class.text(),
        &networks,
    ];
    let user = user(&change.transaction().query_one(&sql, &values).await.map_err(taken)?)?;
    change.audit(Event::new(action, "user", id).with(None, Some(shown(&user))));
    change.publish(Published::Put(Box::new(Item::User(record(&user)))));
    let revision = change.commit().await?;
    Ok(Written { value: user, revision })
}

/// The user of this id.
pub async fn find(operations: &Operations, id: Uuid) -> Result<User, Fault> {
    let client = operations.database.client().await?;
    let sql = format!("select {COLUMNS} from app_user where tenant_id = $1 and id = $2");
    let row = client.query_opt(&client.prepare_cached(&sql).await?, &[&TENANT, &id]).await?;
    user(&row.ok_or(Fault::NotFound("user"))?)
}

/// A part of the users.
pub async fn list(
    operations: &Operations,
    filter: &UserFilter,
    page: Window<Uuid>,
) -> Result<List<User>, Fault> {
    let client = operations.database.client().await?;
    let search = filter.search.as_ref().map(Search::as_str);
    let role = filter.role.map(Named::text);
    let sql = format!(
        "select {COLUMNS} from app_user where {FILTER} and id < $5 order by id desc
         limit $6 offset $7"
    );
    let rows = client.prepare_cached(&sql).await?;
    let (below, fetch, left_out) = (page.below(), page.fetch(), page.skip());
    let rows = client
        .query(&rows, &[&TENANT, &search, &role, &filter.enabled, &below, &fetch, &left_out])
        .await?;
    let total = format!("select count(*) from app_user where {FILTER}");
    let total = client.prepare_cached(&total).await?;
    let total = client.query_one(&total, &[&TENANT, &search, &role, &filter.enabled]).await?;
    let users = rows.iter().map(user).collect::<Result<_, _>>()?;
    Ok(page.list(users, total.get(0), |user: &User| user.id))
}

/// Compared character by character: no text of a caller is a pattern.
const FILTER: &str = "tenant_id = $1
    and ($2::text is null or strpos(lower(username), $2) > 0 or strpos(lower(email), $2) > 0
         or strpos(lower(name), $2) > 0)
    and ($3::text is null or role = $3) and ($4::boolean is null or enabled = $4)";

/// Changes a user.
pub async fn update(
    operations: &Operations,
    actor: &Actor,
    id: Uuid,
    update: UserUpdate,
) -> Result<Written<User>, Fault> {
    let hash = match &update.password {
        Some(password) => Some(operations.passwords.hash(password).await?),
        None => None,
    };
    let mut client = operations.database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    let before = locked(&change, id, &update).await?;
    let mut after = changed(&before, update);
    let ends_logins = hash.is_some() || (before.enabled && !after.enabled);
    let ends_tokens = ends_logins
        || (before.role, before.enabled, &before.networks)
            != (after.role, after.enabled, &after.networks);
    after.epoch += i64::from(ends_tokens);
    let after = write(&change, &after, hash.as_deref()).await?;
    if ends_logins {
        let reason = if hash.is_some() { "password" } else { "ban" };
        logins::end_all(change.transaction(), id, reason).await?;
    }
    let mut event = Event::new("user.update", "user", id);
    event = event.with(Some(shown(&before)), Some(shown(&after)));
    if hash.is_some() {
        event.action = "user.update_password";
    }
    change.audit(event);
    if record(&before) != record(&after) {
        change.publish(Published::Put(Box::new(Item::User(record(&after)))));
    }
    let revision = change.commit().await?;
    Ok(Written { value: after, revision })
}

/// The user, whom nobody else changes meanwhile; with all administrators if one may go.
async fn locked(change: &Change<'_>, id: Uuid, update: &UserUpdate) -> Result<User, Fault> {
    let transaction = change.transaction();
    let takes_rights = update.role == Some(Role::User) || update.enabled == Some(false);
    let mut others = 0;
    if takes_rights {
        // In the order of ids, so that two who do this at once wait and do not lock each other out.
        let sql = "select id from app_user where tenant_id = $1 and role = 'admin' and enabled
                   order by id for update";
        let admins = transaction.query(sql, &[&TENANT]).await?;
        others = admins.iter().filter(|row| row.get::<_, Uuid>(0) != id).count();
    }
    let sql = format!("select {COLUMNS} from app_user where tenant_id = $1 and id = $2 for update");
    let row = transaction.query_opt(&sql, &[&TENANT, &id]).await?;
    let user = user(&row.ok_or(Fault::NotFound("user"))?)?;
    if takes_rights && others == 0 && user.enabled && user.role == Role::Admin {
        return Err(Fault::Conflict("this is the last administrator".into()));
    }
    Ok(user)
}

fn changed(before: &User, update: UserUpdate) -> User {
    let text = |new: Option<&str>, old: &str| new.unwrap_or(old).to_string();
    User {
        username: text(update.username.as_ref().map(Username::as_str), &before.username),
        email: text(update.email.as_ref().map(Email::as_str), &before.email),
        name: text(update.name.as_ref().map(Label::as_str), &before.name),
        role: update.role.unwrap_or(before.role),
        rate_class: update.rate_class.unwrap_or(before.rate_class),
        networks: update.networks.unwrap_or_else(|| before.networks.clone()),
        enabled: update.enabled.unwrap_or(before.enabled),
        ..*before
    }
}

async fn write(change: &Change<'_>, user_now: &User, hash: Option<&str>) -> Result<User, Fault> {
    let sql = format!(
        "update app_user set username = $3, email = $4, name = $5, role = $6, enabled = $7,
             rate_class = $8, networks = $9, epoch = $10, updated_at = now(),
             password_hash = coalesce($11, password_hash)
         where tenant_id = $1 and id = $2 returning {COLUMNS}"
    );
    let values: [&(dyn ToSql + Sync); 11] = [
        &TENANT,
        &user_now.id,
        &user_now.username,
        &user_now.email,
        &user_now.name,
        &user_now.role.text(),
        &user_now.enabled,
        &user_now.rate_class.text(),
        &texts(&user_now.networks),
        &user_now.epoch,
        &hash,
    ];
    user(&change.transaction().query_one(&sql, &values).await.map_err(taken)?)
}

/// Ends all tokens and logins of a user; data planes learn of it.
pub(super) async fn end_tokens(
    change: &mut Change<'_>,
    id: Uuid,
    reason: &str,
) -> Result<User, Fault> {
    let sql = format!(
        "update app_user set epoch = epoch + 1, updated_at = now()
         where tenant_id = $1 and id = $2 returning {COLUMNS}"
    );
    let row = change.transaction().query_opt(&sql, &[&TENANT, &id]).await?;
    let user = user(&row.ok_or(Fault::NotFound("user"))?)?;
    logins::end_all(change.transaction(), id, reason).await?;
    change.publish(Published::Put(Box::new(Item::User(record(&user)))));
    Ok(user)
}

/// All users, for a full snapshot.
pub async fn records(transaction: &tokio_postgres::Transaction<'_>) -> Result<Records, Fault> {
    let sql = format!("select {COLUMNS} from app_user");
    stream_records(transaction, &sql, |row| Ok(Item::User(record(&user(row)?)))).await
}

/// What data planes know of a user.
pub fn record(user: &User) -> UserRecord {
    UserRecord {
        id: user.id,
        tenant: TENANT,
        role: user.role,
        enabled: user.enabled,
        epoch: user.epoch,
        rate_class: user.rate_class,
        networks: user.networks.clone(),
    }
}

/// From a row of [`COLUMNS`].
pub(super) fn user(row: &Row) -> Result<User, Fault> {
    Ok(User {
        id: row.get(0),
        username: row.get(1),
        email: row.get(2),
        name: row.get(3),
        role: named(row, 4)?,
        enabled: row.get(5),
        rate_class: named(row, 6)?,
        networks: networks(row, 7)?,
        epoch: row.get(8),
        created_at: row.get(9),
        updated_at: row.get(10),
    })
}

/// A value of a closed list in a row of ours.
pub(super) fn named<T: Named>(row: &Row, column: usize) -> Result<T, Fault> {
    T::parse(row.get(column)).ok_or_else(|| Fault::internal("a column holds an unknown name"))
}

/// Networks in a row of ours.
pub(super) fn networks(row: &Row, column: usize) -> Result<Vec<IpNet>, Fault> {
    let texts: Vec<String> = row.get(column);
    texts.iter().map(|text| text.parse().map_err(Fault::internal)).collect()
}

/// Networks for a row of ours.
pub(super) fn texts(networks: &[IpNet]) -> Vec<String> {
    networks.iter().map(ToString::to_string).collect()
}

/// What the audit shows of a user.
fn shown(user: &User) -> Value {
    json!({
        "username": user.username, "email": user.email, "name": user.name,
        "role": user.role.text(), "enabled": user.enabled, "rate_class": user.rate_class.text(),
        "networks": texts(&user.networks), "epoch": user.epoch,
    })
}

async fn free_username(client: &Client, email: &Email) -> Result<Username, Fault> {
    let plain = Username::from_email(email, "");
    let sql = "select exists (select from app_user
                              where tenant_id = $1 and lower(username) = lower($2))";
    if !client.query_one(sql, &[&TENANT, &plain.as_str()]).await?.get::<_, bool>(0) {
        return Ok(plain);
    }
    let random: [u8; 5] = pagoda_wire::secret::random().map_err(Fault::internal)?;
    let more: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Username::from_email(email, &format!("-{more}")))
}

fn taken(error: tokio_postgres::Error) -> Fault {
    if violates(&error, "app_user_username") {
        return Fault::Conflict("the user name is taken".into());
    }
    if violates(&error, "app_user_email") {
        return Fault::Conflict("the e-mail address is taken".into());
    }
    error.into()
}
