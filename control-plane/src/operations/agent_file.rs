//! Agents of a file: read whole, checked whole, and then written in one change or not at all.
//!
//! Each entry has a key, and its row the hash of the entry that it was made of. An entry that says
//! what it said leaves its row alone, so what an administrator changed outlives the reload; one that
//! says something else replaces the row; an entry that is gone leaves an inactive agent.

use std::collections::HashMap;
use std::path::Path;

use pagoda_wire::snapshot::Provider;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::database::change::{Actor, Change, Event};
use crate::database::{Database, TENANT};
use crate::fault::Fault;
use crate::operations::Written;
use crate::operations::agents::{self, COLUMNS, NewAgent, agent, taken};
use crate::operations::parameters::Parameters;
use crate::operations::text::field;

/// A file that was read and is whole.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentFile {
    entries: Vec<Checked>,
}

/// Why a file is not taken. Nothing of it is.
#[derive(Debug, thiserror::Error)]
pub enum AgentFileError {
    /// It cannot be read.
    #[error("cannot read the agents' file: {0}")]
    Io(#[from] std::io::Error),
    /// Nobody writes so many agents.
    #[error("the agents' file has more than {0}")]
    TooLarge(&'static str),
    /// It is no TOML or JSON of the known form.
    #[error("the agents' file is not understood: {0}")]
    Form(String),
    /// An entry.
    #[error("agent {key:?} of the file: {fault}")]
    Entry {
        /// Its key.
        key: String,
        /// What is wrong with it.
        fault: Fault,
    },
    /// Two entries have one key.
    #[error("two agents of the file have the key {0:?}")]
    Twice(String),
}

/// What a reload did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// Entries that are new, or back.
    pub added: usize,
    /// Entries that say something else.
    pub changed: usize,
    /// Entries that say what they said.
    pub unchanged: usize,
    /// Entries that are gone.
    pub removed: usize,
}

#[derive(Clone, Debug, PartialEq)]
struct Checked {
    key: String,
    hash: Vec<u8>,
    agent: NewAgent,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    agent: Vec<Entry>,
}

/// An entry as it is written. Its hash is that of this, so the order of fields and the format of the
/// file mean nothing.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key: String,
    name: String,
    #[serde(default)]
    description: String,
    provider: Provider,
    model: String,
    #[serde(default)]
    system_prompt: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    #[serde(default = "general")]
    category: String,
    #[serde(default)]
    capabilities: Vec<String>,
    #[serde(default = "yes")]
    active: bool,
}

fn general() -> String {
    "general".into()
}

fn yes() -> bool {
    true
}

impl AgentFile {
    /// Reads a file; `.json` is JSON, everything else TOML. Blocks.
    pub fn read(path: &Path) -> Result<Self, AgentFileError> {
        use std::io::Read;
        let mut text = String::new();
        std::fs::File::open(path)?.take(BYTES_MAX + 1).read_to_string(&mut text)?;
        if text.len() as u64 > BYTES_MAX {
            return Err(AgentFileError::TooLarge("4 MiB"));
        }
        Self::parse(&text, path.extension().is_some_and(|ending| ending == "json"))
    }

    /// Reads the text of a file.
    pub fn parse(text: &str, is_json: bool) -> Result<Self, AgentFileError> {
        let file: File = match is_json {
            true => serde_json::from_str(text).map_err(|e| AgentFileError::Form(e.to_string()))?,
            false => toml::from_str(text).map_err(|e| AgentFileError::Form(e.to_string()))?,
        };
        if file.agent.len() > ENTRIES_MAX {
            return Err(AgentFileError::TooLarge("1000 agents"));
        }
        let mut entries: Vec<Checked> = Vec::new();
        for entry in file.agent {
            let key = entry.key.clone();
            if entries.iter().any(|other| other.key == key) {
                return Err(AgentFileError::Twice(key));
            }
            let checked = check(entry);
            entries.push(checked.map_err(|fault| AgentFileError::Entry { key, fault })?);
        }
        Ok(AgentFile { entries })
    }
}

/// Makes the file's agents what the file says.
pub async fn reload(
    database: &Database,
    actor: &Actor,
    file: &AgentFile,
) -> Result<Written<Reloaded>, Fault> {
    let mut client = database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    // One reload at a time, and two entries may swap their names in it.
    let sql = "select pg_advisory_xact_lock($1)";
    change.transaction().execute(sql, &[&LOCK]).await?;
    change.transaction().batch_execute("set constraints agent_name deferred").await?;
    let sql = "select file_key, file_hash from agent
               where tenant_id = $1 and file_key is not null for update";
    let rows = change.transaction().query(sql, &[&TENANT]).await?;
    let known: HashMap<String, Option<Vec<u8>>> =
        rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let mut done = Reloaded::default();
    for entry in &file.entries {
        let count = match known.get(&entry.key) {
            Some(Some(hash)) if *hash == entry.hash => {
                done.unchanged += 1;
                continue;
            }
            Some(Some(_)) => &mut done.changed,
            Some(None) | None => &mut done.added,
        };
        *count += 1;
        let place = Some((entry.key.as_str(), entry.hash.as_slice()));
        let id = Uuid::now_v7();
        let now = agents::insert(change.transaction(), id, &entry.agent, place).await?;
        let event = Event::new("agent.load", "agent", now.id);
        change.audit(event.with(None, Some(agents::told(&now))));
        change.publish(agents::put(&now));
    }
    let keys: Vec<&str> = file.entries.iter().map(|entry| entry.key.as_str()).collect();
    let sql = format!(
        "update agent set status = 'inactive', file_hash = null, updated_at = now()
         where tenant_id = $1 and file_hash is not null and file_key <> all($2)
         returning {COLUMNS}"
    );
    for row in change.transaction().query(&sql, &[&TENANT, &keys]).await? {
        let gone = agent(&row)?;
        done.removed += 1;
        change.audit(Event::new("agent.unload", "agent", gone.id));
        change.publish(agents::put(&gone));
    }
    let constraint = "set constraints agent_name immediate";
    change.transaction().batch_execute(constraint).await.map_err(taken)?;
    change.audit(Event::new("agents.reload", "agents", "file").with(None, Some(json!(done))));
    Ok(Written { revision: change.commit().await?, value: done })
}

fn check(entry: Entry) -> Result<Checked, Fault> {
    let hash = Sha256::digest(canonical(&entry)?).to_vec();
    if entry.key.is_empty() || entry.key.len() > KEY_BYTES_MAX {
        return Err(Fault::invalid("key", format!("a key has 1 to {KEY_BYTES_MAX} bytes")));
    }
    let capabilities = entry.capabilities.into_iter();
    let agent = NewAgent {
        name: field("name", entry.name)?,
        description: field("description", entry.description)?,
        provider: entry.provider,
        model: field("model", entry.model)?,
        system_prompt: field("system_prompt", entry.system_prompt)?,
        parameters: Parameters::new(entry.parameters)?,
        category: field("category", entry.category)?,
        capabilities: capabilities
            .map(|one| field("capabilities", one))
            .collect::<Result<_, _>>()?,
        is_active: entry.active,
    };
    Ok(Checked { key: entry.key, hash, agent })
}

/// The same bytes for the same entry: fields in our order, parameters in that of their names.
fn canonical(entry: &Entry) -> Result<Vec<u8>, Fault> {
    let mut value = serde_json::to_value(entry).map_err(Fault::internal)?;
    value.sort_all_objects();
    serde_json::to_vec(&value).map_err(Fault::internal)
}

const BYTES_MAX: u64 = 4 << 20;

const ENTRIES_MAX: usize = 1000;

const KEY_BYTES_MAX: usize = 200;

/// Held by whoever reloads.
const LOCK: i64 = 0x7061_676f_6461_0010;

#[cfg(test)]
mod tests;
