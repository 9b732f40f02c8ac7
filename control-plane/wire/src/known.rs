//! What one data plane knows now: the records of its snapshot, found by what requests name.
//!
//! Never changed once it is made: a delta makes the next one, which is swapped in whole. So no
//! request sees half a write, and nothing that was taken back can be written into it again.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::api_key::PublicId;
use crate::secret::Secret;
use crate::snapshot::{
    AgentRecord, Change, Delta, Frame, Item, KeyRecord, Kind, ModelRecord, PepperRecord, Revision,
    SigningKeyRecord, Snapshot, UpstreamRecord, UserRecord,
};
use crate::token::{NoKey, Verifier};
use crate::vault::Vault;

/// Everything that requests are decided by.
#[derive(Clone, Debug)]
pub struct Known {
    pub(crate) revision: Revision,
    pub(crate) users: HashMap<Uuid, Arc<UserRecord>>,
    pub(crate) keys: HashMap<PublicId, Arc<KeyRecord>>,
    /// Where a key is that is only known by its id.
    public_ids: HashMap<Uuid, PublicId>,
    pub(crate) peppers: HashMap<Uuid, Pepper>,
    signing_keys: HashMap<Uuid, SigningKeyRecord>,
    /// Logins that ended before their tokens did, and until when that matters.
    pub(crate) ended_logins: HashMap<Uuid, i64>,
    models: HashMap<Uuid, Arc<ModelRecord>>,
    upstreams: HashMap<Uuid, Arc<UpstreamRecord>>,
    agents: HashMap<Uuid, Arc<AgentRecord>>,
    pub(crate) verifier: Verifier,
    issuer: String,
    vault: Arc<Vault>,
}

/// A pepper, as it came and opened.
#[derive(Clone, Debug)]
pub(crate) struct Pepper {
    record: PepperRecord,
    pub(crate) secret: Secret,
}

/// A frame that does not follow what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// Frames between were missed: the whole must be asked for.
    #[error("revision {got} does not follow {known}")]
    Missed {
        /// What is known.
        known: Revision,
        /// What came.
        got: Revision,
    },
    /// The whole is older than what is known: whoever sent it was restored from a copy.
    #[error("revision {got} is older than {known}")]
    Older {
        /// What is known.
        known: Revision,
        /// What came.
        got: Revision,
    },
    /// A signing key is none.
    #[error("a signing key cannot be read")]
    Key,
    /// A pepper is sealed with another secret.
    #[error("a pepper cannot be opened")]
    Pepper,
}

impl From<NoKey> for Gap {
    fn from(_: NoKey) -> Self {
        Gap::Key
    }
}

impl Known {
    /// What a snapshot says, with tokens of `issuer` and peppers in `vault`.
    pub fn from_snapshot(snapshot: Snapshot, issuer: &str, vault: Arc<Vault>) -> Result<Self, Gap> {
        let mut known = Known {
            revision: snapshot.revision,
            users: HashMap::new(),
            keys: HashMap::new(),
            public_ids: HashMap::new(),
            peppers: HashMap::new(),
            signing_keys: HashMap::new(),
            ended_logins: HashMap::new(),
            models: HashMap::new(),
            upstreams: HashMap::new(),
            agents: HashMap::new(),
            verifier: Verifier::new(issuer, issuer, &[])?,
            issuer: issuer.into(),
            vault,
        };
        for item in snapshot.items {
            known.put(item)?;
        }
        known.know_signing_keys()?;
        Ok(known)
    }

    /// What is known after `frame`. `Ok(None)`: nothing else than before.
    pub fn after(&self, frame: Frame) -> Result<Option<Self>, Gap> {
        let known = self.revision;
        match frame {
            Frame::Still(got) if got > known => Err(Gap::Missed { known, got }),
            Frame::Still(_) => Ok(None),
            Frame::Full(Snapshot { revision: got, .. }) if got < known => {
                Err(Gap::Older { known, got })
            }
            Frame::Full(snapshot) => {
                Known::from_snapshot(snapshot, &self.issuer, self.vault.clone()).map(Some)
            }
            // Comes twice where a feed is asked for anew.
            Frame::Delta(delta) if delta.revision <= known => Ok(None),
            Frame::Delta(Delta { revision: got, .. }) if got != known + 1 => {
                Err(Gap::Missed { known, got })
            }
            Frame::Delta(delta) => self.with(delta).map(Some),
        }
    }

    fn with(&self, delta: Delta) -> Result<Self, Gap> {
        let mut next = self.clone();
        next.revision = delta.revision;
        for change in delta.changes {
            match change {
                Change::Put(item) => next.put(*item)?,
                Change::Remove(kind, id) => next.remove(kind, id),
            }
        }
        next.know_signing_keys()?;
        Ok(next)
    }

    /// The same without logins whose tokens are all over by `now`: so their list stays short.
    pub fn without_old(&self, now: i64) -> Option<Self> {
        if self.ended_logins.values().all(|until| *until > now) {
            return None;
        }
        let mut next = self.clone();
        next.ended_logins.retain(|_, until| *until > now);
        Some(next)
    }

    /// All of it, to be saved.
    pub fn to_snapshot(&self) -> Snapshot {
        use crate::snapshot::EndedLogin;
        let users = self.users.values().map(|user| Item::User((**user).clone()));
        let keys = self.keys.values().map(|key| Item::Key((**key).clone()));
        let peppers = self.peppers.values().map(|pepper| Item::Pepper(pepper.record.clone()));
        let signing_keys = self.signing_keys.values().cloned().map(Item::SigningKey);
        let logins = self.ended_logins.iter();
        let logins =
            logins.map(|(id, until)| Item::EndedLogin(EndedLogin { id: *id, until: *until }));
        let models = self.models.values().map(|model| Item::Model((**model).clone()));
        let upstreams = self.upstreams.values().map(|one| Item::Upstream((**one).clone()));
        let agents = self.agents.values().map(|agent| Item::Agent((**agent).clone()));
        let items = users.chain(keys).chain(peppers).chain(signing_keys).chain(logins);
        let items = items.chain(models).chain(upstreams).chain(agents).collect();
        Snapshot { revision: self.revision, items }
    }

    /// The last write that is known.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The models that there are, in no order.
    pub fn models(&self) -> impl Iterator<Item = &Arc<ModelRecord>> {
        self.models.values()
    }

    /// An upstream.
    pub fn upstream(&self, id: Uuid) -> Option<&Arc<UpstreamRecord>> {
        self.upstreams.get(&id)
    }

    /// An agent.
    pub fn agent(&self, id: Uuid) -> Option<&Arc<AgentRecord>> {
        self.agents.get(&id)
    }

    fn put(&mut self, item: Item) -> Result<(), Gap> {
        match item {
            Item::User(user) => drop(self.users.insert(user.id, Arc::new(user))),
            Item::Key(key) => {
                // The id stays when a key gets another secret; what it had opens nothing then.
                self.remove(Kind::Key, key.id);
                self.public_ids.insert(key.id, key.public_id);
                self.keys.insert(key.public_id, Arc::new(key));
            }
            Item::SigningKey(key) => drop(self.signing_keys.insert(key.id, key)),
            Item::EndedLogin(login) => drop(self.ended_logins.insert(login.id, login.until)),
            Item::Pepper(record) => {
                let secret = record.open(&self.vault).map_err(|_| Gap::Pepper)?;
                self.peppers.insert(record.id, Pepper { record, secret });
            }
            Item::Model(model) => drop(self.models.insert(model.id, Arc::new(model))),
            Item::Upstream(one) => drop(self.upstreams.insert(one.id, Arc::new(one))),
            Item::Agent(agent) => drop(self.agents.insert(agent.id, Arc::new(agent))),
        }
        Ok(())
    }

    fn remove(&mut self, kind: Kind, id: Uuid) {
        match kind {
            Kind::User => drop(self.users.remove(&id)),
            Kind::Key => {
                if let Some(public_id) = self.public_ids.remove(&id) {
                    self.keys.remove(&public_id);
                }
            }
            Kind::SigningKey => drop(self.signing_keys.remove(&id)),
            Kind::EndedLogin => drop(self.ended_logins.remove(&id)),
            Kind::Pepper => drop(self.peppers.remove(&id)),
            Kind::Model => drop(self.models.remove(&id)),
            Kind::Upstream => drop(self.upstreams.remove(&id)),
            Kind::Agent => drop(self.agents.remove(&id)),
        }
    }

    fn know_signing_keys(&mut self) -> Result<(), Gap> {
        let keys: Vec<_> = self.signing_keys.values().map(|record| record.key.clone()).collect();
        self.verifier = Verifier::new(&self.issuer, &self.issuer, &keys)?;
        Ok(())
    }

    /// Whether tokens under the key with this id are taken at `now`.
    pub(crate) fn takes_key(&self, kid: &str, now: i64) -> bool {
        let mut keys = self.signing_keys.values();
        keys.any(|record| record.key.kid == kid && record.not_after.is_none_or(|end| now < end))
    }
}

#[cfg(test)]
mod tests;
