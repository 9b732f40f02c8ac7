//! What data planes know: all records that a request may need, at one revision, and how they change.
//!
//! The control plane sends a whole [`Snapshot`] first and [`Delta`]s then, as [`Frame`]s; a data
//! plane that missed one asks anew. Revisions have no gaps and stand in the order of commits.
//! Holds MACs, public keys and sealed credentials, never a password or a key's secret.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api_key::{KeyMac, PublicId};
use crate::secret::Secret;
use crate::token::{PublicKey, Role};
use crate::vault::{Vault, VaultError};

/// Counts administrative writes, from 1.
pub type Revision = u64;

/// Everything at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The last write that is in it.
    pub revision: Revision,
    /// All records, in no order.
    pub items: Vec<Item>,
}

/// What one write changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The write.
    pub revision: Revision,
    /// In order.
    pub changes: Vec<Change>,
}

/// One record comes, is replaced or goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The record as it is now.
    Put(Box<Item>),
    /// No record of this kind has this id any more.
    Remove(Kind, Uuid),
}

/// A line of the feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// The whole: what was known before is forgotten.
    Full(Snapshot),
    /// The write behind the last one.
    Delta(Delta),
    /// Nothing new since this revision. Comes every second.
    Still(Revision),
}

/// A record of any kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Item {
    /// A user.
    User(UserRecord),
    /// An API key.
    Key(KeyRecord),
    /// A key that tokens are signed with.
    SigningKey(SigningKeyRecord),
    /// A login that ended before its tokens did.
    EndedLogin(EndedLogin),
    /// A pepper of key MACs.
    Pepper(PepperRecord),
    /// A model's name and where it is served.
    Model(ModelRecord),
    /// Somebody else's API.
    Upstream(UpstreamRecord),
    /// A model with a prompt and parameters.
    Agent(AgentRecord),
}

/// What kinds of records there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// [`UserRecord`]
    User,
    /// [`KeyRecord`]
    Key,
    /// [`SigningKeyRecord`]
    SigningKey,
    /// [`EndedLogin`]
    EndedLogin,
    /// [`PepperRecord`]
    Pepper,
    /// [`ModelRecord`]
    Model,
    /// [`UpstreamRecord`]
    Upstream,
    /// [`AgentRecord`]
    Agent,
}

/// How many requests a minute somebody may make who has no limit of his own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateClass {
    /// Whoever shows no credential.
    Anonymous,
    /// A user.
    #[default]
    User,
    /// A user who pays for more.
    Enterprise,
}

/// A user, as far as requests need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    /// The user.
    pub id: Uuid,
    /// Whose user.
    pub tenant: Uuid,
    /// What the user may do.
    pub role: Role,
    /// May not call while false.
    pub enabled: bool,
    /// Tokens of an earlier epoch are over.
    pub epoch: i64,
    /// The limit of requests.
    pub rate_class: RateClass,
    /// May call from there only; empty is anywhere.
    pub networks: Vec<IpNet>,
}

/// What a key may be used for. A closed list: the database refuses others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// Completions, chat, embeddings.
    #[serde(rename = "inference")]
    Inference,
    /// Sessions, messages and files of the owner.
    #[serde(rename = "sessions")]
    Sessions,
    /// Loading and unloading models.
    #[serde(rename = "models:write")]
    ModelsWrite,
    /// Everything that an administrator may do; worth nothing where the owner is none.
    #[serde(rename = "admin")]
    Admin,
}

/// An API key, as far as requests need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The key.
    pub id: Uuid,
    /// Its public part.
    pub public_id: PublicId,
    /// The MAC of its secret,
    pub mac: KeyMac,
    /// and the pepper of that MAC.
    pub pepper: Uuid,
    /// Whose key.
    pub owner: Uuid,
    /// Whose limits and budget it uses up: its own, or those of the key that took its place, so
    /// that rotating a key gives nobody more.
    pub limits: Uuid,
    /// May not be used while false.
    pub enabled: bool,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// Names of models that it may use; `None` is all.
    pub models: Option<Vec<String>>,
    /// May be used from there only; empty is anywhere.
    pub networks: Vec<IpNet>,
    /// Unix seconds from which on it is worth nothing. A key that was rotated has the end of its grace.
    pub expires_at: Option<i64>,
    /// Requests in any minute; `None` is the owner's class.
    pub requests_per_minute: Option<u32>,
    /// Tokens in any minute, prompts and answers.
    pub tokens_per_minute: Option<u64>,
    /// What may be spent.
    pub budget: Option<Budget>,
}

/// An amount of money in a window of time. In nano-dollars: sums of floats are not exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Billionths of a dollar.
    pub nano: u64,
    /// When spending begins anew.
    pub window: Window,
}

/// When a budget begins anew, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// At midnight.
    Day,
    /// On the first of a month.
    Month,
    /// Never.
    Total,
}

/// A key that tokens are signed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKeyRecord {
    /// The record.
    pub id: Uuid,
    /// Its public part.
    pub key: PublicKey,
    /// Unix seconds from which on nothing under it is taken; `None` while it signs or will.
    pub not_after: Option<i64>,
}

/// A login that ended before its tokens did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedLogin {
    /// The `sid` of its tokens.
    pub id: Uuid,
    /// Unix seconds from which on no token of it can be alive, so that this may be forgotten.
    pub until: i64,
}

/// A pepper of key MACs. Sealed, as the log of changes and the saved copy of a data plane hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PepperRecord {
    /// The pepper.
    pub id: Uuid,
    /// Its bytes, in the planes' vault.
    pub sealed: String,
}

impl PepperRecord {
    /// What data planes learn of a pepper.
    pub fn seal(id: Uuid, pepper: &Secret, vault: &Vault) -> Result<Self, VaultError> {
        Ok(PepperRecord { id, sealed: vault.seal(pepper.bytes(), &format!("pepper {id}"))? })
    }

    /// The pepper.
    pub fn open(&self, vault: &Vault) -> Result<Secret, VaultError> {
        let plain = vault.open(&self.sealed, &format!("pepper {}", self.id))?;
        <[u8; 32]>::try_from(plain).map(Secret::from).map_err(|_| VaultError::Closed)
    }
}

/// Whose wire format an upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    /// An engine of ours, in the data plane.
    Local,
    /// OpenAI's.
    Openai,
    /// Anthropic's.
    Anthropic,
    /// Dify's.
    Dify,
    /// FastGPT's.
    Fastgpt,
    /// OpenAI's, at an address of the operator's own.
    Custom,
}

impl Provider {
    /// All of them.
    pub const ALL: [Provider; 6] = [
        Provider::Local,
        Provider::Openai,
        Provider::Anthropic,
        Provider::Dify,
        Provider::Fastgpt,
        Provider::Custom,
    ];

    /// As contracts and the database have it.
    pub fn name(self) -> &'static str {
        match self {
            Provider::Local => "local",
            Provider::Openai => "openai",
            Provider::Anthropic => "anthropic",
            Provider::Dify => "dify",
            Provider::Fastgpt => "fastgpt",
            Provider::Custom => "custom",
        }
    }
}

/// What tokens cost, in nano-dollars a million. An absent price is unknown, which is never free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Of prompts.
    pub input: Option<u64>,
    /// Of what a prefix cache had.
    pub cached: Option<u64>,
    /// Of answers.
    pub output: Option<u64>,
}

/// A model's name and where it is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// The record.
    pub id: Uuid,
    /// What callers call it.
    pub name: String,
    /// Who serves it.
    pub provider: Provider,
    /// Where, unless it is local.
    pub upstream: Option<Uuid>,
    /// What it is called there.
    pub model: String,
    /// Nobody may use it while false.
    pub enabled: bool,
    /// What its tokens cost.
    pub price: Price,
}

/// Somebody else's API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamRecord {
    /// The record.
    pub id: Uuid,
    /// Its wire format.
    pub provider: Provider,
    /// Where it is; the credential goes to this scheme, host and port alone.
    pub base_url: String,
    /// The credential.
    pub credential: Option<SealedCredential>,
    /// Milliseconds until the first byte of an answer must be there.
    pub timeout_ms: u64,
}

/// A credential under AES-256-GCM, bound to the upstream's id and origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedCredential {
    /// Nonce, cipher text and tag, as base64url.
    pub sealed: String,
    /// Which key it is under.
    pub key_id: String,
    /// Scheme, host and port that it is bound to.
    pub origin: String,
}

/// A model with a prompt and parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// The agent.
    pub id: Uuid,
    /// What people call it.
    pub name: String,
    /// Who serves it.
    pub provider: Provider,
    /// The name of its model.
    pub model: String,
    /// Stands before every conversation.
    pub system_prompt: String,
    /// Parameters of sampling, as a request would have them.
    pub parameters: serde_json::Map<String, serde_json::Value>,
    /// Nobody may use it while false.
    pub active: bool,
}

impl Item {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Item::User(_) => Kind::User,
            Item::Key(_) => Kind::Key,
            Item::SigningKey(_) => Kind::SigningKey,
            Item::EndedLogin(_) => Kind::EndedLogin,
            Item::Pepper(_) => Kind::Pepper,
            Item::Model(_) => Kind::Model,
            Item::Upstream(_) => Kind::Upstream,
            Item::Agent(_) => Kind::Agent,
        }
    }

    /// Its id, unique within its kind.
    pub fn id(&self) -> Uuid {
        match self {
            Item::User(user) => user.id,
            Item::Key(key) => key.id,
            Item::SigningKey(key) => key.id,
            Item::EndedLogin(login) => login.id,
            Item::Pepper(pepper) => pepper.id,
            Item::Model(model) => model.id,
            Item::Upstream(upstream) => upstream.id,
            Item::Agent(agent) => agent.id,
        }
    }
}
