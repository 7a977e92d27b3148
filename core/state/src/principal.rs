//! Who may be a client, and what each may do. The registry starts in the genesis and changes only by ordered commands,
//! so every replica judges every command by the same registry. Knows nothing of sessions.

use crate::frame::PRINCIPAL_NAME_BYTES_MAX;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use core::fmt;
use dwcp_base::configuration::{Principal, Role};
use dwcp_base::{Genesis, PublicKey};

/// Principals that may be registered; a put beyond it is refused.
pub const PRINCIPALS_MAX: usize = 4096;

/// The ordered registry. At most [`PRINCIPALS_MAX`] entries, of which at least one is an admin if the genesis had one.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Registry {
    by_name: BTreeMap<String, (PublicKey, Role)>,
}

/// Why the registry refused a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum PrincipalError {
    Name,
    Unknown,
    LastAdmin,
    KeyTaken,
    Full,
}

impl fmt::Display for PrincipalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => write!(f, "a principal's name has 1 to {PRINCIPAL_NAME_BYTES_MAX} bytes"),
            Self::Unknown => write!(f, "no such principal: list them first"),
            Self::LastAdmin => {
                write!(f, "this is the last admin: add another before removing or demoting it")
            }
            Self::KeyTaken => write!(f, "another principal has this key: give each its own"),
            Self::Full => write!(f, "{PRINCIPALS_MAX} principals are registered: remove one first"),
        }
    }
}

impl core::error::Error for PrincipalError {}

impl Registry {
    #[must_use]
    pub fn of(genesis: &Genesis) -> Self {
        let entries = genesis.principals.iter().map(|one| (one.name.clone(), (one.key, one.role)));
        Self { by_name: entries.collect() }
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<(PublicKey, Role)> {
        self.by_name.get(name).copied()
    }

    /// In order of name.
    #[must_use]
    pub fn list(&self) -> Vec<Principal> {
        self.by_name
            .iter()
            .map(|(name, (key, role))| Principal { name: name.clone(), key: *key, role: *role })
            .collect()
    }

    fn is_last_admin(&self, name: &str) -> bool {
        self.get(name).is_some_and(|(_, role)| role == Role::Admin)
            && self.by_name.values().filter(|(_, role)| *role == Role::Admin).count() == 1
    }

    /// Adds or replaces. True when an existing principal's key changed, which ends its sessions.
    ///
    /// # Errors
    /// When the registry's promises would break; nothing changed then.
    pub fn put(&mut self, name: &str, key: PublicKey, role: Role) -> Result<bool, PrincipalError> {
        if name.is_empty() || name.len() > PRINCIPAL_NAME_BYTES_MAX {
            return Err(PrincipalError::Name);
        }
        if self.by_name.iter().any(|(other, (taken, _))| *taken == key && other != name) {
            return Err(PrincipalError::KeyTaken);
        }
        if role != Role::Admin && self.is_last_admin(name) {
            return Err(PrincipalError::LastAdmin);
        }
        if self.by_name.len() >= PRINCIPALS_MAX && !self.by_name.contains_key(name) {
            return Err(PrincipalError::Full);
        }
        let before = self.by_name.insert(name.to_string(), (key, role));
        Ok(before.is_some_and(|(before, _)| before != key))
    }

    /// # Errors
    /// When there is no such principal, or it is the last admin.
    pub fn remove(&mut self, name: &str) -> Result<(), PrincipalError> {
        if self.is_last_admin(name) {
            return Err(PrincipalError::LastAdmin);
        }
        self.by_name.remove(name).map(|_| ()).ok_or(PrincipalError::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_admin_can_neither_leave_nor_be_demoted() {
        let mut registry = Registry::default();
        assert_eq!(registry.put("a", PublicKey([1; 32]), Role::Admin), Ok(false));
        assert_eq!(registry.put("w", PublicKey([2; 32]), Role::Writer), Ok(false));
        assert_eq!(registry.remove("a"), Err(PrincipalError::LastAdmin));
        assert_eq!(registry.put("a", PublicKey([1; 32]), Role::Writer), Err(PrincipalError::LastAdmin));
        assert_eq!(registry.put("b", PublicKey([3; 32]), Role::Admin), Ok(false));
        assert_eq!(registry.remove("a"), Ok(()));
        assert_eq!(registry.remove("a"), Err(PrincipalError::Unknown));
        assert_eq!(registry.remove("b"), Err(PrincipalError::LastAdmin));
    }

    #[test]
    fn keys_are_not_shared_and_a_new_key_is_reported() {
        let mut registry = Registry::default();
        assert_eq!(registry.put("a", PublicKey([1; 32]), Role::Admin), Ok(false));
        assert_eq!(registry.put("w", PublicKey([1; 32]), Role::Writer), Err(PrincipalError::KeyTaken));
        assert_eq!(registry.put("a", PublicKey([1; 32]), Role::Admin), Ok(false));
        assert_eq!(registry.put("a", PublicKey([4; 32]), Role::Admin), Ok(true));
        assert_eq!(registry.put("", PublicKey([5; 32]), Role::Reader), Err(PrincipalError::Name));
    }
}
