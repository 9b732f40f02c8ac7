//! `pagoda-control admin`: users and keys by hand, also before there is anybody to log in as.
//!
//! Answers are JSON, an object a line. A password comes from a file, standard input or a variable, or
//! is made up and told once; as an argument, others on the machine could read it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use ipnet::IpNet;
use jiff::{Timestamp, ToSpan};
use pagoda_wire::secret::random;
use pagoda_wire::snapshot::{RateClass, Scope};
use pagoda_wire::token::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use super::CommandError;
use super::place::Place;
use crate::database::Database;
use crate::database::change::Actor;
use crate::database::migrate::missing;
use crate::fault::Fault;
use crate::metrics::Metrics;
use crate::operations::Operations;
use crate::operations::api_keys::{self, Hand, Key, Settings, issue, rows};
use crate::operations::fields::{
    Email, Label, Named, Password, Search, Username, parse_models, parse_networks,
};
use crate::operations::logins::Policy;
use crate::operations::passwords::Passwords;
use crate::operations::rbac::Reach;
use crate::operations::users::{self, NewUser, User, UserFilter, UserUpdate};
use crate::operations::window::Window;
use crate::secrets::Secrets;

/// Commands about users and keys.
#[derive(Debug, Subcommand)]
pub(super) enum Admin {
    /// Make the first administrator, unless there is one
    First {
        /// User name
        #[arg(long, env = "PAGODA_ADMIN_USERNAME", default_value = "admin")]
        username: String,
        /// E-mail address
        #[arg(long, env = "PAGODA_ADMIN_EMAIL", default_value = "admin@localhost")]
        email: String,
        #[command(flatten)]
        password: PasswordSource,
    },
    /// Make a user
    CreateUser {
        /// User name
        #[arg(long)]
        username: String,
        /// E-mail address
        #[arg(long)]
        email: String,
        /// What people call the user
        #[arg(long, default_value = "")]
        name: String,
        /// `user` or `admin`
        #[arg(long, default_value = "user", value_parser = named::<Role>)]
        role: Role,
        /// `user` or `enterprise`
        #[arg(long, default_value = "user", value_parser = named::<RateClass>)]
        rate_class: RateClass,
        #[command(flatten)]
        password: PasswordSource,
    },
    /// List users, newest first
    ListUsers,
    /// Give a user another password, which ends all logins
    SetPassword {
        /// User name, e-mail address or id
        user: String,
        #[command(flatten)]
        password: PasswordSource,
    },
    /// Let a user in again
    EnableUser {
        /// User name, e-mail address or id
        user: String,
    },
    /// Refuse a user and all keys and logins of that user
    DisableUser {
        /// User name, e-mail address or id
        user: String,
    },
    /// Make a key, whose secret is told this once
    CreateKey(NewKey),
    /// List keys, newest first
    ListKeys {
        /// Of this user alone
        #[arg(long)]
        user: Option<String>,
    },
    /// Take a key away
    DeleteKey {
        /// Its id
        id: Uuid,
    },
}

/// A key to be.
#[derive(Debug, Args)]
pub(super) struct NewKey {
    /// Whose: user name, e-mail address or id
    #[arg(long)]
    user: String,
    /// What people call it
    #[arg(long)]
    name: String,
    /// What it is for: `inference`, `sessions`, `models:write`, `admin`; repeatable
    /// [default: inference and sessions]
    #[arg(long, value_parser = named::<Scope>)]
    scope: Vec<Scope>,
    /// A model that it may use; repeatable [default: all]
    #[arg(long)]
    model: Vec<String>,
    /// A network that it may be used from; repeatable [default: anywhere]
    #[arg(long)]
    network: Vec<String>,
    /// Requests in any minute [default: those of the owner's class]
    #[arg(long)]
    requests_per_minute: Option<u32>,
    /// Tokens in any minute
    #[arg(long)]
    tokens_per_minute: Option<u64>,
    /// Days after which it is worth nothing
    #[arg(long)]
    expires_in_days: Option<u16>,
}

/// Where a password comes from.
#[derive(Debug, Args)]
pub(super) struct PasswordSource {
    /// File whose first line is the password, `-` is standard input
    /// [default: PAGODA_ADMIN_PASSWORD, else one is made up and told]
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl Admin {
    /// Does it; answers lines of JSON.
    pub(super) fn run(self, place: &Place) -> Result<String, CommandError> {
        let database = place.database()?;
        let behind = missing(&mut database.connect()?)?;
        if !behind.is_empty() {
            return Err(CommandError::Behind(behind));
        }
        let operations = Operations {
            database: Database::new(database.address.clone(), 2)?,
            secrets: Secrets::open_or_make(&place.secret_file()?)?,
            metrics: Arc::new(Metrics::new().map_err(Fault::internal)?),
            issuer: String::new(),
            passwords: Passwords::new(1, 0)?,
            policy: Policy::default(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Fault::internal)?;
        let lines = runtime.block_on(self.carry_out(&operations))?;
        Ok(lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n"))
    }

    async fn carry_out(self, operations: &Operations) -> Result<Vec<Value>, CommandError> {
        let actor = Actor::operator();
        let one = match self {
            Admin::First { username, email, password } => {
                let (password, told) = password.read()?;
                let mut new = new_user(&username, &email, password)?;
                new.role = Role::Admin;
                match users::first_admin(operations, &actor, new).await? {
                    Some(made) => with_password(shown(&made.value), told),
                    None => json!({ "message": "there is an administrator already" }),
                }
            }
            Admin::CreateUser { username, email, name, role, rate_class, password } => {
                let (password, told) = password.read()?;
                let new = NewUser {
                    name: Label::parse("name", &name)?,
                    role,
                    rate_class,
                    ..new_user(&username, &email, password)?
                };
                with_password(shown(&users::create(operations, &actor, new).await?.value), told)
            }
            Admin::ListUsers => return list_users(operations).await,
            Admin::SetPassword { user, password } => {
                let (password, told) = password.read()?;
                let update = UserUpdate { password: Some(password), ..UserUpdate::default() };
                with_password(change_user(operations, &user, update).await?, told)
            }
            Admin::EnableUser { user } => {
                let update = UserUpdate { enabled: Some(true), ..UserUpdate::default() };
                change_user(operations, &user, update).await?
            }
            Admin::DisableUser { user } => {
                let update = UserUpdate { enabled: Some(false), ..UserUpdate::default() };
                change_user(operations, &user, update).await?
            }
            Admin::CreateKey(new) => create_key(operations, new).await?,
            Admin::ListKeys { user } => return list_keys(operations, user.as_deref()).await,
            Admin::DeleteKey { id } => {
                api_keys::delete(operations, hand(&actor), id).await?;
                json!({ "id": id, "deleted": true })
            }
        };
        Ok(vec![one])
    }
}

impl PasswordSource {
    /// The password, and its text if it was made up.
    fn read(&self) -> Result<(Password, Option<String>), CommandError> {
        let given = match &self.password_file {
            Some(path) => Some(first_line(path)?),
            None => std::env::var("PAGODA_ADMIN_PASSWORD").ok().filter(|text| !text.is_empty()),
        };
        if let Some(text) = given {
            return Ok((Password::parse("password", &text)?, None));
        }
        let bytes: [u8; 18] = random().map_err(Fault::internal)?;
        let text = URL_SAFE_NO_PAD.encode(bytes);
        Ok((Password::parse("password", &text)?, Some(text)))
    }
}

fn first_line(path: &Path) -> Result<String, CommandError> {
    let mut text = String::new();
    let most = Password::BYTES_MAX as u64 + 2;
    let read = match path == Path::new("-") {
        true => std::io::stdin().take(most).read_to_string(&mut text),
        false => {
            std::fs::File::open(path).and_then(|file| file.take(most).read_to_string(&mut text))
        }
    };
    read.map_err(|source| CommandError::File { path: path.into(), source })?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn new_user(username: &str, email: &str, password: Password) -> Result<NewUser, Fault> {
    Ok(NewUser {
        username: Username::parse(username)?,
        email: Email::parse(email)?,
        name: Label::default(),
        password: Some(password),
        role: Role::User,
        rate_class: RateClass::User,
        networks: Vec::new(),
        enabled: true,
    })
}

async fn change_user(
    operations: &Operations,
    user: &str,
    update: UserUpdate,
) -> Result<Value, Fault> {
    let user = find(operations, user).await?;
    let changed = users::update(operations, &Actor::operator(), user.id, update).await?;
    Ok(shown(&changed.value))
}

async fn create_key(operations: &Operations, new: NewKey) -> Result<Value, Fault> {
    let owner = find(operations, &new.user).await?;
    let mut settings = Settings::named(Label::required("name", &new.name)?);
    if !new.scope.is_empty() {
        settings.scopes = new.scope;
    }
    if !new.model.is_empty() {
        settings.models = Some(parse_models("model", new.model)?);
    }
    settings.networks = parse_networks("network", &new.network)?;
    settings.requests_per_minute = new.requests_per_minute;
    settings.tokens_per_minute = new.tokens_per_minute;
    if let Some(days) = new.expires_in_days {
        let life = (i64::from(days) * 24).hours();
        settings.expires_at = Some(Timestamp::now().checked_add(life).map_err(Fault::internal)?);
    }
    let actor = Actor::operator();
    let issued = issue::create(operations, hand(&actor), owner.id, settings).await?.value;
    let mut line = shown_key(&issued.key);
    line["key"] = issued.secret.into();
    Ok(line)
}

/// An operator may put anything on any key.
fn hand(actor: &Actor) -> Hand<'_> {
    Hand { actor, reach: Reach::Everyone, role: Role::Admin }
}

/// The one user of this id, user name or address.
async fn find(operations: &Operations, user: &str) -> Result<User, Fault> {
    if let Ok(id) = user.parse() {
        return users::find(operations, id).await;
    }
    let filter = UserFilter { search: Some(Search::parse("user", user)?), ..UserFilter::default() };
    let mut after = None;
    loop {
        let page = Window::largest(after)?;
        let part = users::list(operations, &filter, page).await?;
        let is_it = |found: &User| {
            found.username.eq_ignore_ascii_case(user) || found.email.eq_ignore_ascii_case(user)
        };
        if let Some(found) = part.items.into_iter().find(is_it) {
            return Ok(found);
        }
        after = Some(part.next.ok_or(Fault::NotFound("user"))?);
    }
}

async fn list_users(operations: &Operations) -> Result<Vec<Value>, CommandError> {
    let (mut lines, mut after) = (Vec::new(), None);
    loop {
        let page = Window::largest(after)?;
        let part = users::list(operations, &UserFilter::default(), page).await?;
        lines.extend(part.items.iter().map(shown));
        after = part.next;
        if after.is_none() {
            return Ok(lines);
        }
    }
}

async fn list_keys(
    operations: &Operations,
    user: Option<&str>,
) -> Result<Vec<Value>, CommandError> {
    let reach = match user {
        Some(user) => Reach::Only(find(operations, user).await?.id),
        None => Reach::Everyone,
    };
    let (mut lines, mut after) = (Vec::new(), None);
    loop {
        let page = Window::largest(after)?;
        let part = rows::list(operations, reach, &rows::KeyFilter::default(), page).await?;
        lines.extend(part.items.iter().map(shown_key));
        after = part.next;
        if after.is_none() {
            return Ok(lines);
        }
    }
}

fn shown(user: &User) -> Value {
    json!({
        "id": user.id, "username": user.username, "email": user.email, "name": user.name,
        "role": user.role.text(), "enabled": user.enabled, "rate_class": user.rate_class.text(),
        "created_at": user.created_at.to_string(),
    })
}

fn with_password(mut line: Value, made_up: Option<String>) -> Value {
    if let Some(password) = made_up {
        line["password"] = password.into();
    }
    line
}

fn shown_key(key: &Key) -> Value {
    let settings = &key.settings;
    json!({
        "id": key.id, "public_id": key.public_id.as_str(), "user_id": key.owner,
        "name": settings.name.as_str(), "enabled": settings.enabled,
        "scopes": settings.scopes.iter().map(|scope| scope.text()).collect::<Vec<_>>(),
        "models": settings.models,
        "networks": settings.networks.iter().map(IpNet::to_string).collect::<Vec<_>>(),
        "expires_at": settings.expires_at.map(|at| at.to_string()),
        "created_at": key.created_at.to_string(),
    })
}

fn named<T: Named>(text: &str) -> Result<T, String> {
    T::parse(text).ok_or_else(|| {
        let known: Vec<_> = T::ALL.iter().map(|(_, text)| *text).collect();
        format!("known are {}", known.join(", "))
    })
}
