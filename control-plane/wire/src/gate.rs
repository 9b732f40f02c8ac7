//! Who calls, decided by what is known and nothing else: parse, MAC or signature, look-up.
//!
//! A refusal does not tell which part of a credential was wrong, and a key that does not exist
//! costs what one with a wrong secret does.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use uuid::Uuid;

use crate::api_key::ApiKey;
use crate::known::Known;
use crate::secret::Secret;
use crate::snapshot::{KeyRecord, Scope, UserRecord};
use crate::token::{Claims, Role, TokenError};

/// Somebody known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Whose rights these are.
    pub user: Arc<UserRecord>,
    /// With what it came.
    pub by: By,
}

/// What somebody known showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// A key.
    Key(Arc<KeyRecord>),
    /// A token of this login.
    Login(Uuid),
}

/// Why nobody is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The credential is worth nothing.
    #[error("the credential is not valid")]
    Wrong,
    /// It was worth something.
    #[error("the credential has expired")]
    Expired,
    /// It is worth nothing at this address.
    #[error("the credential may not be used from this address")]
    Address,
}

impl Admitted {
    /// Whether what was shown may be used for this.
    pub fn has(&self, scope: Scope) -> bool {
        match &self.by {
            By::Login(_) => true,
            By::Key(key) => key.scopes.contains(&scope),
        }
    }

    /// Whether it may change what belongs to everybody.
    pub fn is_admin(&self) -> bool {
        self.user.role == Role::Admin && self.has(Scope::Admin)
    }

    /// Whether it may use the model of this name.
    pub fn may_use(&self, model: &str) -> bool {
        let By::Key(key) = &self.by else { return true };
        key.models.as_ref().is_none_or(|models| models.iter().any(|name| name == model))
    }
}

impl Known {
    /// Who shows this credential from this address at `now`, in Unix seconds.
    pub fn admit(&self, credential: &str, address: IpAddr, now: i64) -> Result<Admitted, Refusal> {
        let admitted = match credential.starts_with("sk-") {
            true => self.by_key(credential, now)?,
            false => self.by_token(credential, now)?,
        };
        let key_networks = match &admitted.by {
            By::Key(key) => key.networks.as_slice(),
            By::Login(_) => &[],
        };
        match is_allowed(&admitted.user.networks, address) && is_allowed(key_networks, address) {
            true => Ok(admitted),
            false => Err(Refusal::Address),
        }
    }

    fn by_key(&self, credential: &str, now: i64) -> Result<Admitted, Refusal> {
        let key = ApiKey::parse(credential).ok_or(Refusal::Wrong)?;
        let record = self.keys.get(&key.public_id);
        let pepper = record.and_then(|record| self.peppers.get(&record.pepper));
        let Some((record, pepper)) = record.zip(pepper) else {
            std::hint::black_box(key.mac(&Secret::from([0; 32])));
            return Err(Refusal::Wrong);
        };
        if !key.mac(&pepper.secret).is(&record.mac) || !record.enabled {
            return Err(Refusal::Wrong);
        }
        if record.expires_at.is_some_and(|end| now >= end) {
            return Err(Refusal::Expired);
        }
        let user = self.users.get(&record.owner).filter(|user| user.enabled);
        let user = user.ok_or(Refusal::Wrong)?.clone();
        Ok(Admitted { user, by: By::Key(record.clone()) })
    }

    fn by_token(&self, credential: &str, now: i64) -> Result<Admitted, Refusal> {
        let verified = self.verifier.verify(credential, now).map_err(|error| match error {
            TokenError::Expired => Refusal::Expired,
            TokenError::Invalid | TokenError::Early => Refusal::Wrong,
        })?;
        if !self.takes_key(verified.kid, now) {
            return Err(Refusal::Wrong);
        }
        let Claims { sub, sid, epoch, .. } = verified.claims;
        let user = self.users.get(&sub).filter(|user| user.enabled && user.epoch == epoch);
        let user = user.ok_or(Refusal::Wrong)?.clone();
        if self.ended_logins.contains_key(&sid) {
            return Err(Refusal::Wrong);
        }
        Ok(Admitted { user, by: By::Login(sid) })
    }
}

/// An empty list allows every address.
fn is_allowed(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.is_empty() || networks.iter().any(|network| network.contains(&address))
}

#[cfg(test)]
mod tests;
