//! Agents: a model with a prompt and parameters, by a name that people know.
//!
//! They belong to the installation. A prompt is text and stays text: nothing in it is evaluated,
//! here or at the data plane, which puts it before a conversation as the system's message.

use jiff::Timestamp;
use pagoda_wire::snapshot::{self, AgentRecord, Item, Provider};
use serde_json::{Map, Value, json};
use tokio_postgres::types::{Json, ToSql};
use tokio_postgres::{GenericClient, Row};
use uuid::Uuid;

use crate::database::change::{Actor, Change, Event};
use crate::database::{Database, TENANT};
use crate::fault::{Fault, violates};
use crate::operations::Written;
use crate::operations::page::List;
use crate::operations::parameters::Parameters;
use crate::operations::text::{Line, Text};
use crate::operations::upstreams::provider;
use crate::operations::window::Window;

/// What an agent is called.
pub type AgentName = Line<1, 200>;

/// What people are told of it.
pub type Description = Text<10_000>;

/// What stands before every conversation.
pub type SystemPrompt = Text<100_000>;

/// What it is filed under.
pub type Category = Line<1, 100>;

/// Something it can do.
pub type Capability = Line<1, 100>;

/// An agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// The agent.
    pub id: Uuid,
    /// What it is called.
    pub name: String,
    /// What people are told of it.
    pub description: String,
    /// Who serves it.
    pub provider: Provider,
    /// The name of its model.
    pub model: String,
    /// What stands before every conversation.
    pub system_prompt: String,
    /// Parameters of sampling.
    pub parameters: Map<String, Value>,
    /// What it is filed under.
    pub category: String,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Nobody may use it while false.
    pub is_active: bool,
    /// When it was made,
    pub created_at: Timestamp,
    /// and when something of it changed.
    pub updated_at: Timestamp,
}

/// An agent to make, or one of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct NewAgent {
    /// What it is called.
    pub name: AgentName,
    /// What people are told of it.
    pub description: Description,
    /// Who serves it.
    pub provider: Provider,
    /// The name of its model.
    pub model: Line<1, 200>,
    /// What stands before every conversation.
    pub system_prompt: SystemPrompt,
    /// Parameters of sampling.
    pub parameters: Parameters,
    /// What it is filed under.
    pub category: Category,
    /// What it can do; at most 32.
    pub capabilities: Vec<Capability>,
    /// Nobody may use it while false.
    pub is_active: bool,
}

/// What may be changed of an agent; `None` stays.
#[derive(Clone, Debug, Default)]
pub struct AgentChange {
    /// What it is called.
    pub name: Option<AgentName>,
    /// What people are told of it.
    pub description: Option<Description>,
    /// Who serves it.
    pub provider: Option<Provider>,
    /// The name of its model.
    pub model: Option<Line<1, 200>>,
    /// What stands before every conversation.
    pub system_prompt: Option<SystemPrompt>,
    /// Parameters of sampling, all of them.
    pub parameters: Option<Parameters>,
    /// What it is filed under.
    pub category: Option<Category>,
    /// What it can do, all of it.
    pub capabilities: Option<Vec<Capability>>,
    /// Nobody may use it while false.
    pub is_active: Option<bool>,
}

/// Which agents; `None` is all.
#[derive(Clone, Debug, Default)]
pub struct AgentFilter {
    /// Those that may be used, or those that may not.
    pub is_active: Option<bool>,
    /// What they are filed under.
    pub category: Option<Category>,
    /// Who serves them.
    pub provider: Option<Provider>,
}

/// Makes an agent.
pub async fn create(
    database: &Database,
    actor: &Actor,
    new: NewAgent,
) -> Result<Written<Agent>, Fault> {
    let mut client = database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    let id = Uuid::now_v7();
    let made = insert(change.transaction(), id, &new, None).await?;
    change.audit(Event::new("agent.create", "agent", id).with(None, Some(told(&made))));
    change.publish(put(&made));
    Ok(Written { revision: change.commit().await?, value: made })
}

/// Changes an agent. One of the file stays as it is changed until its entry in the file changes.
pub async fn update(
    database: &Database,
    actor: &Actor,
    id: Uuid,
    wanted: AgentChange,
) -> Result<Written<Agent>, Fault> {
    if let Some(capabilities) = &wanted.capabilities {
        bounded(capabilities)?;
    }
    let mut client = database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    let sql = format!("select {COLUMNS} from agent where tenant_id = $1 and id = $2 for update");
    let found = change.transaction().query_opt(&sql, &[&TENANT, &id]).await?;
    let before = agent(&found.ok_or(Fault::NotFound("agent"))?)?;
    let texts = |all: &Vec<Capability>| all.iter().map(|one| one.as_str().to_owned()).collect();
    let capabilities: Option<Vec<String>> = wanted.capabilities.as_ref().map(texts);
    let row = change
        .transaction()
        .query_one(
            &format!(
                "update agent set name = coalesce($3, name), description = coalesce($4, description),
                     provider = coalesce($5, provider), model = coalesce($6, model),
                     system_prompt = coalesce($7, system_prompt),
                     parameters = coalesce($8, parameters), category = coalesce($9, category),
                     capabilities = coalesce($10, capabilities), status = coalesce($11, status),
                     updated_at = now()
                 where tenant_id = $1 and id = $2 returning {COLUMNS}"
            ),
            &[
                &TENANT,
                &id,
                &wanted.name.as_ref().map(Line::as_str),
                &wanted.description.as_ref().map(Text::as_str),
                &wanted.provider.map(Provider::name),
                &wanted.model.as_ref().map(Line::as_str),
                &wanted.system_prompt.as_ref().map(Text::as_str),
                &wanted.parameters.as_ref().map(|parameters| Json(parameters.as_map())),
                &wanted.category.as_ref().map(Line::as_str),
                &capabilities,
                &wanted.is_active.map(status),
            ],
        )
        .await
        .map_err(taken)?;
    let after = agent(&row)?;
    let event = Event::new("agent.update", "agent", id);
    change.audit(event.with(Some(told(&before)), Some(told(&after))));
    change.publish(put(&after));
    Ok(Written { revision: change.commit().await?, value: after })
}

/// Agents, the newest first.
pub async fn list(
    database: &Database,
    filter: &AgentFilter,
    page: Window<Uuid>,
) -> Result<List<Agent>, Fault> {
    let client = database.client().await?;
    let matches = "tenant_id = $1 and ($2::text is null or status = $2)
         and ($3::text is null or category = $3) and ($4::text is null or provider = $4)";
    let (wanted, category) =
        (filter.is_active.map(status), filter.category.as_ref().map(Line::as_str));
    let served_by = filter.provider.map(Provider::name);
    let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&TENANT, &wanted, &category, &served_by];
    let total = format!("select count(*) from agent where {matches}");
    let total = client.query_one(&total, &parameters).await?.get(0);
    let statement = client
        .prepare_cached(&format!(
            "select {COLUMNS} from agent where {matches} and id < $5
             order by id desc limit $6 offset $7"
        ))
        .await?;
    let (below, fetch, left_out) = (page.below(), page.fetch(), page.skip());
    parameters.extend([&below as &(dyn ToSql + Sync), &fetch, &left_out]);
    let rows = client.query(&statement, &parameters).await?;
    let agents = rows.iter().map(agent).collect::<Result<_, _>>()?;
    Ok(page.list(agents, total, |agent: &Agent| agent.id))
}

/// One agent. Whoever may not use inactive ones asks for active ones only.
pub async fn find(database: &Database, id: Uuid, active_only: bool) -> Result<Agent, Fault> {
    let client = database.client().await?;
    let sql = format!(
        "select {COLUMNS} from agent
         where tenant_id = $1 and id = $2 and (status = 'active' or not $3)"
    );
    let row = client.query_opt(&sql, &[&TENANT, &id, &active_only]).await?;
    agent(&row.ok_or(Fault::NotFound("agent"))?)
}

/// What a full snapshot holds of agents.
pub async fn records(client: &impl GenericClient) -> Result<Vec<Item>, Fault> {
    let rows = client.query(&format!("select {COLUMNS} from agent"), &[]).await?;
    rows.iter().map(|row| agent(row).map(|agent| Item::Agent(record(&agent)))).collect()
}

/// An entry of the file: its key, and the hash of what it says.
pub(crate) type FileEntry<'a> = (&'a str, &'a [u8]);

/// Writes a row, in the place of the file's entry of the same key if there is one.
pub(crate) async fn insert(
    client: &deadpool_postgres::Transaction<'_>,
    id: Uuid,
    new: &NewAgent,
    entry: Option<FileEntry<'_>>,
) -> Result<Agent, Fault> {
    bounded(&new.capabilities)?;
    let capabilities: Vec<&str> = new.capabilities.iter().map(Line::as_str).collect();
    let row = client
        .query_one(
            &format!(
                "insert into agent (id, tenant_id, name, description, provider, model,
                     system_prompt, parameters, category, capabilities, status, file_key, file_hash)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                 on conflict (tenant_id, file_key) do update set name = excluded.name,
                     description = excluded.description, provider = excluded.provider,
                     model = excluded.model, system_prompt = excluded.system_prompt,
                     parameters = excluded.parameters, category = excluded.category,
                     capabilities = excluded.capabilities, status = excluded.status,
                     file_hash = excluded.file_hash, updated_at = now()
                 returning {COLUMNS}"
            ),
            &[
                &id,
                &TENANT,
                &new.name.as_str(),
                &new.description.as_str(),
                &new.provider.name(),
                &new.model.as_str(),
                &new.system_prompt.as_str(),
                &Json(new.parameters.as_map()),
                &new.category.as_str(),
                &capabilities,
                &status(new.is_active),
                &entry.map(|(key, _)| key),
                &entry.map(|(_, hash)| hash),
            ],
        )
        .await
        .map_err(taken)?;
    agent(&row)
}

/// A name is in use.
pub(crate) fn taken(error: tokio_postgres::Error) -> Fault {
    match violates(&error, "agent_name") {
        true => Fault::Conflict("another agent has this name".into()),
        false => error.into(),
    }
}

fn bounded(capabilities: &[Capability]) -> Result<(), Fault> {
    match capabilities.len() <= CAPABILITIES_MAX {
        true => Ok(()),
        false => Err(Fault::invalid(
            "capabilities",
            format!("at most {CAPABILITIES_MAX} capabilities can be named"),
        )),
    }
}

/// What data planes learn of an agent.
pub(crate) fn put(agent: &Agent) -> snapshot::Change {
    snapshot::Change::Put(Box::new(Item::Agent(record(agent))))
}

fn record(agent: &Agent) -> AgentRecord {
    AgentRecord {
        id: agent.id,
        name: agent.name.clone(),
        provider: agent.provider,
        model: agent.model.clone(),
        system_prompt: agent.system_prompt.clone(),
        parameters: agent.parameters.clone(),
        active: agent.is_active,
    }
}

/// What the audit tells of an agent. Of its prompt, which may be long, the length.
pub(crate) fn told(agent: &Agent) -> Value {
    json!({
        "name": agent.name,
        "provider": agent.provider,
        "model": agent.model,
        "system_prompt_bytes": agent.system_prompt.len(),
        "parameters": agent.parameters,
        "category": agent.category,
        "capabilities": agent.capabilities,
        "active": agent.is_active,
    })
}

fn status(is_active: bool) -> &'static str {
    if is_active { "active" } else { "inactive" }
}

/// Columns of an agent, for [`agent`].
pub(crate) const COLUMNS: &str = "id, name, description, provider, model, system_prompt, \
     parameters, category, capabilities, status = 'active', created_at, updated_at";

/// An agent from its columns.
pub(crate) fn agent(row: &Row) -> Result<Agent, Fault> {
    let Json(parameters) = row.get(6);
    Ok(Agent {
        id: row.get(0),
        name: row.get(1),
        description: row.get(2),
        provider: provider(row.get(3))?,
        model: row.get(4),
        system_prompt: row.get(5),
        parameters,
        category: row.get(7),
        capabilities: row.get(8),
        is_active: row.get(9),
        created_at: row.get(10),
        updated_at: row.get(11),
    })
}

const CAPABILITIES_MAX: usize = 32;

#[cfg(test)]
mod tests;
