//! Names of database roles.

use std::{fmt, str::FromStr, sync::Arc};

use crate::pool::identifier;

/// The name of a Postgres role, as it stands in the catalogue, to be granted something in printed SQL.
///
/// It exists so that no name, whatever it holds, ends the statement it is put into or means somebody else:
/// [`RoleName::quoted`] is always one identifier, and what Postgres would cut short or understand as everybody is
/// refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoleName(Arc<str>);

/// Why a text is not the name of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoleNameError {
    /// Nothing there.
    #[error("a role has a name")]
    Empty,
    /// More than 63 bytes, of which Postgres would silently drop the rest.
    #[error("the name of a role has at most 63 bytes")]
    TooLong,
    /// A NUL character, which Postgres cannot carry.
    #[error("the name of a role holds no NUL character")]
    Nul,
    /// `public` or `none`, which even in quotes stand for everybody and for nobody.
    #[error("public and none are not names of roles")]
    Reserved,
}

impl RoleName {
    /// The longest name, in bytes, in a Postgres of the usual build.
    pub const MAX_LEN: usize = 63;

    /// Takes a name, case and all.
    ///
    /// # Errors
    /// The rule that was broken.
    pub fn parse(name: &str) -> Result<Self, RoleNameError> {
        if name.is_empty() {
            return Err(RoleNameError::Empty);
        }
        if name.len() > Self::MAX_LEN {
            return Err(RoleNameError::TooLong);
        }
        if name.contains('\0') {
            return Err(RoleNameError::Nul);
        }
        if matches!(name, "public" | "none") {
            return Err(RoleNameError::Reserved);
        }
        Ok(Self(name.into()))
    }

    /// The name as it stands in the catalogue.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as an identifier in SQL.
    #[must_use]
    pub fn quoted(&self) -> String {
        identifier(&self.0)
    }
}

impl FromStr for RoleName {
    type Err = RoleNameError;

    fn from_str(name: &str) -> Result<Self, RoleNameError> {
        Self::parse(name)
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_means_somebody_else_is_refused() {
        assert_eq!(RoleName::parse(""), Err(RoleNameError::Empty));
        assert_eq!(RoleName::parse("public"), Err(RoleNameError::Reserved));
        assert_eq!(RoleName::parse(&"r".repeat(64)), Err(RoleNameError::TooLong));
        assert_eq!(RoleName::parse("a\0b"), Err(RoleNameError::Nul));
    }

    proptest! {
        #[test]
        fn a_quoted_name_is_one_identifier(name in "[^\0]{1,15}") {
            if let Ok(role) = RoleName::parse(&name) {
                let quoted = role.quoted();
                let inner = quoted.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
                prop_assert!(!inner.replace("\"\"", "").contains('"'));
                prop_assert_eq!(inner.replace("\"\"", "\""), name);
            }
        }
    }
}
