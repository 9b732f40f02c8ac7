//! Who may do what: one table of roles and permissions, and whoever asks.
//!
//! Routes name a permission; nothing else decides by role. A key never gives more than its owner
//! has, nor more than its scopes say.

use pagoda_wire::snapshot::Scope;
use pagoda_wire::token::Role;
use uuid::Uuid;

use crate::fault::{Fault, Unknown};
use crate::operations::authenticate::{Principal, Shown};

/// Something that may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Use models.
    Infer,
    /// Own sessions, messages and files.
    OwnSessions,
    /// Change the own password, end the own logins.
    OwnAccount,
    /// Read, make and end own keys.
    OwnKeys,
    /// Read the own usage.
    OwnUsage,
    /// List and use active agents and models.
    ReadCatalog,
    /// Load and unload models.
    LoadModels,
    /// Change models and upstreams.
    WriteModels,
    /// Change agents.
    WriteAgents,
    /// Read everybody's account.
    ReadUsers,
    /// Change everybody's account.
    WriteUsers,
    /// Read everybody's keys.
    ReadKeys,
    /// Change everybody's keys.
    WriteKeys,
    /// Read everybody's usage, and figures of the installation.
    ReadUsage,
    /// Read the audit.
    ReadAudit,
    /// Rotate signing keys and peppers.
    WriteSecrets,
}

/// A line of the table.
struct Rule {
    permission: Permission,
    anonymous: bool,
    user: bool,
    /// What a key must have for it; `None`: no key may, whatever it has.
    scope: Option<Scope>,
}

/// The table. An administrator may do everything.
const RULES: &[Rule] = &[
    rule(Permission::Infer, true, true, Some(Scope::Inference)),
    rule(Permission::OwnSessions, true, true, Some(Scope::Sessions)),
    rule(Permission::OwnAccount, false, true, None),
    rule(Permission::OwnKeys, false, true, None),
    rule(Permission::OwnUsage, false, true, Some(Scope::Inference)),
    rule(Permission::ReadCatalog, true, true, Some(Scope::Inference)),
    rule(Permission::LoadModels, false, false, Some(Scope::ModelsWrite)),
    rule(Permission::WriteModels, false, false, Some(Scope::Admin)),
    rule(Permission::WriteAgents, false, false, Some(Scope::Admin)),
    rule(Permission::ReadUsers, false, false, Some(Scope::Admin)),
    rule(Permission::WriteUsers, false, false, Some(Scope::Admin)),
    rule(Permission::ReadKeys, false, false, Some(Scope::Admin)),
    rule(Permission::WriteKeys, false, false, Some(Scope::Admin)),
    rule(Permission::ReadUsage, false, false, Some(Scope::Admin)),
    rule(Permission::ReadAudit, false, false, Some(Scope::Admin)),
    rule(Permission::WriteSecrets, false, false, None),
];

const fn rule(permission: Permission, anonymous: bool, user: bool, scope: Option<Scope>) -> Rule {
    Rule { permission, anonymous, user, scope }
}

/// Whose things an operation may touch. Another's are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Everybody's.
    Everyone,
    /// One user's.
    Only(Uuid),
}

impl Reach {
    /// The one user, for a query in which null is everybody.
    pub fn owner(self) -> Option<Uuid> {
        match self {
            Reach::Everyone => None,
            Reach::Only(user) => Some(user),
        }
    }
}

impl Principal {
    /// Whether it may.
    pub fn may(&self, permission: Permission) -> bool {
        let Some(rule) = found(permission) else { return false };
        match (&self.shown, self.role) {
            (Shown::Token { .. }, role) => rule.user || role == Role::Admin,
            (Shown::Key { scopes, .. }, role) => rule.scope.is_some_and(|scope| match role {
                Role::Admin => scopes.contains(&scope) || scopes.contains(&Scope::Admin),
                // The one scope that gives what a user has not: an administrator granted it.
                Role::User => scopes.contains(&scope) && (rule.user || scope == Scope::ModelsWrite),
            }),
        }
    }

    /// Everybody's things for who has `all`, else its own.
    pub fn reach(&self, all: Permission) -> Reach {
        if self.may(all) { Reach::Everyone } else { Reach::Only(self.user) }
    }
}

/// Refuses whoever may not: who is not known is asked for a credential, others are told no.
pub fn require(principal: Option<&Principal>, permission: Permission) -> Result<(), Fault> {
    match principal {
        Some(principal) if principal.may(permission) => Ok(()),
        Some(_) => Err(Fault::Forbidden),
        None if found(permission).is_some_and(|rule| rule.anonymous) => Ok(()),
        None => Err(Fault::Unauthenticated(Unknown::Missing)),
    }
}

fn found(permission: Permission) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.permission == permission)
}

/// Whether somebody of `role` may put `scope` on a key.
pub fn may_grant(role: Role, scope: Scope) -> bool {
    role == Role::Admin || matches!(scope, Scope::Inference | Scope::Sessions)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Permission; 16] = [
        Permission::Infer,
        Permission::OwnSessions,
        Permission::OwnAccount,
        Permission::OwnKeys,
        Permission::OwnUsage,
        Permission::ReadCatalog,
        Permission::LoadModels,
        Permission::WriteModels,
        Permission::WriteAgents,
        Permission::ReadUsers,
        Permission::WriteUsers,
        Permission::ReadKeys,
        Permission::WriteKeys,
        Permission::ReadUsage,
        Permission::ReadAudit,
        Permission::WriteSecrets,
    ];

    fn user(role: Role) -> Principal {
        Principal { user: Uuid::from_u128(1), role, shown: Shown::Token { login: Uuid::nil() } }
    }

    fn key(role: Role, scopes: &[Scope]) -> Principal {
        let shown = Shown::Key { id: Uuid::from_u128(3), scopes: scopes.to_vec() };
        Principal { shown, ..user(role) }
    }

    fn allowed(principal: &Principal) -> Vec<Permission> {
        ALL.into_iter().filter(|permission| principal.may(*permission)).collect()
    }

    #[test]
    fn the_table_has_each_permission_once() {
        assert_eq!(RULES.len(), ALL.len());
        for permission in ALL {
            let rules = RULES.iter().filter(|rule| rule.permission == permission).count();
            assert_eq!(rules, 1, "{permission:?}");
        }
    }

    #[test]
    fn roles_may_what_the_table_says_and_no_more() {
        let guests = ALL.into_iter().filter(|permission| require(None, *permission).is_ok());
        assert_eq!(
            guests.collect::<Vec<_>>(),
            [Permission::Infer, Permission::OwnSessions, Permission::ReadCatalog]
        );
        assert_eq!(allowed(&user(Role::User)), ALL[..6]);
        assert_eq!(allowed(&user(Role::Admin)), ALL);
        let asked = require(None, Permission::ReadUsers);
        assert_eq!(asked, Err(Fault::Unauthenticated(Unknown::Missing)));
        let told = require(Some(&user(Role::User)), Permission::ReadUsers);
        assert_eq!(told, Err(Fault::Forbidden));
        let own = user(Role::User).reach(Permission::ReadKeys);
        assert_eq!(own.owner(), Some(Uuid::from_u128(1)));
        assert_eq!(user(Role::Admin).reach(Permission::ReadKeys), Reach::Everyone);
    }

    #[test]
    fn a_key_gives_no_more_than_its_owner_and_its_scopes_have() {
        for role in [Role::User, Role::Admin] {
            assert!(allowed(&key(role, &[])).is_empty());
            let inference = allowed(&key(role, &[Scope::Inference]));
            assert_eq!(
                inference,
                [Permission::Infer, Permission::OwnUsage, Permission::ReadCatalog]
            );
            assert_eq!(allowed(&key(role, &[Scope::Sessions])), [Permission::OwnSessions]);
            assert_eq!(allowed(&key(role, &[Scope::ModelsWrite])), [Permission::LoadModels]);
        }
        assert!(allowed(&key(Role::User, &[Scope::Admin])).is_empty());
        let of_an_admin = key(Role::Admin, &[Scope::Admin]);
        assert!(of_an_admin.may(Permission::WriteUsers));
        for never in [Permission::OwnAccount, Permission::OwnKeys, Permission::WriteSecrets] {
            assert!(!of_an_admin.may(never), "{never:?}");
        }
        assert!(!may_grant(Role::User, Scope::Admin) && !may_grant(Role::User, Scope::ModelsWrite));
        assert!(may_grant(Role::User, Scope::Sessions) && may_grant(Role::Admin, Scope::Admin));
    }
}
