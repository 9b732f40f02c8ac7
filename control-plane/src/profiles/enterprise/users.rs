//! Users, for administrators.

use futures_util::future::BoxFuture;
use pagoda_http::reply::Reply;
use pagoda_wire::snapshot::RateClass;
use pagoda_wire::token::Role;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::envelope::success;
use super::listing::{Paging, time};
use crate::fault::Fault;
use crate::http::call::Call;
use crate::http::route::Failure;
use crate::operations::fields::{Email, Label, Named, Password, Search, Username, parse_networks};
use crate::operations::users::{self, NewUser, User, UserFilter, UserUpdate};
use crate::profiles::settle::settle;

type Answered = BoxFuture<'static, Result<Reply, Failure>>;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    id: Uuid,
    username: &'a str,
    email: &'a str,
    name: &'a str,
    role: &'static str,
    enabled: bool,
    rate_class: &'static str,
    networks: Vec<String>,
    created_at: String,
}

#[derive(Deserialize)]
struct Filter {
    search: Option<String>,
    role: Option<String>,
    enabled: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Create {
    username: String,
    email: String,
    password: String,
    name: Option<String>,
    role: Option<String>,
    enabled: Option<bool>,
    rate_class: Option<String>,
    networks: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Update {
    username: Option<String>,
    email: Option<String>,
    password: Option<String>,
    name: Option<String>,
    role: Option<String>,
    enabled: Option<bool>,
    rate_class: Option<String>,
    networks: Option<Vec<String>>,
}

/// `GET /api/v1/admin/users`
pub(super) fn list(call: Call) -> Answered {
    Box::pin(async move {
        let context = call.context;
        let paging: Paging = context.query()?;
        let filter: Filter = context.query()?;
        let filter = UserFilter {
            search: filter.search.map(|text| Search::parse("search", &text)).transpose()?,
            role: named("role", filter.role.as_deref())?,
            enabled: filter.enabled,
        };
        let part = paging.part()?;
        let list = users::list(&context.operations, &filter, part).await?;
        Ok(success(&paging.listing(&part, list, |user| serde_json::json!(shown(user)))))
    })
}

/// `POST /api/v1/admin/users`
pub(super) fn create(call: Call) -> Answered {
    Box::pin(async move {
        let (context, body) = call.read::<Create>().await?;
        let networks = body.networks.unwrap_or_default();
        let new = NewUser {
            username: Username::parse(&body.username)?,
            email: Email::parse(&body.email)?,
            name: Label::parse("name", &body.name.unwrap_or_default())?,
            password: Some(Password::parse("password", &body.password)?),
            role: named("role", body.role.as_deref())?.unwrap_or(Role::User),
            rate_class: named::<RateClass>("rateClass", body.rate_class.as_deref())?
                .unwrap_or_default(),
            networks: parse_networks("networks", &networks)?,
            enabled: body.enabled.unwrap_or(true),
        };
        let written = users::create(&context.operations, &context.actor, new).await?;
        let reply = success(&shown(&written.value));
        Ok(settle(&context.operations, written.revision, reply).await)
    })
}

/// `GET /api/v1/admin/users/{userId}`
pub(super) fn find(call: Call) -> Answered {
    Box::pin(async move {
        let context = call.context;
        let id = context.id("userId", "user")?;
        Ok(success(&shown(&users::find(&context.operations, id).await?)))
    })
}

/// `PUT /api/v1/admin/users/{userId}`
pub(super) fn update(call: Call) -> Answered {
    Box::pin(async move {
        let (context, body) = call.read::<Update>().await?;
        let id = context.id("userId", "user")?;
        let networks = body.networks.as_deref();
        let update = UserUpdate {
            username: body.username.as_deref().map(Username::parse).transpose()?,
            email: body.email.as_deref().map(Email::parse).transpose()?,
            name: body.name.as_deref().map(|text| Label::parse("name", text)).transpose()?,
            password: body
                .password
                .as_deref()
                .map(|text| Password::parse("password", text))
                .transpose()?,
            role: named("role", body.role.as_deref())?,
            rate_class: named("rateClass", body.rate_class.as_deref())?,
            networks: networks.map(|texts| parse_networks("networks", texts)).transpose()?,
            enabled: body.enabled,
        };
        let written = users::update(&context.operations, &context.actor, id, update).await?;
        let reply = success(&shown(&written.value));
        Ok(settle(&context.operations, written.revision, reply).await)
    })
}

fn shown(user: &User) -> Shown<'_> {
    Shown {
        id: user.id,
        username: &user.username,
        email: &user.email,
        name: &user.name,
        role: user.role.text(),
        enabled: user.enabled,
        rate_class: user.rate_class.text(),
        networks: user.networks.iter().map(ToString::to_string).collect(),
        created_at: time(user.created_at),
    }
}

/// A value of a closed list; what is not in it is refused by the list.
pub(super) fn named<T: Named>(field: &'static str, text: Option<&str>) -> Result<Option<T>, Fault> {
    let Some(text) = text else { return Ok(None) };
    T::parse(text).map(Some).ok_or_else(|| {
        let all: Vec<&str> = T::ALL.iter().map(|(_, text)| *text).collect();
        Fault::invalid(field, format!("{field} must be one of {}", all.join(", ")))
    })
}
