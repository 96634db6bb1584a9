//! What a tenant may do, and how its status may change.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The state of a tenant. What each one allows is [`TenantStatus::access`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TenantStatus {
    /// Being set up; not yet open.
    Provisioning,
    /// In service.
    Active,
    /// Open for reads alone.
    ReadOnly,
    /// Closed until further notice.
    Suspended,
    /// In service while its rows are copied elsewhere.
    Migrating,
    /// Closed, rows kept.
    Archived,
    /// Gone; the record stays as a tombstone and keeps its slug reserved.
    Deleted,
}

/// What a status lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Nothing.
    Refused,
    /// Reads, in read-only transactions.
    Read,
    /// Reads and writes.
    ReadWrite,
}

/// The text is not a tenant status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a status is provisioning, active, read_only, suspended, migrating, archived or deleted")]
pub struct UnknownStatus;

impl TenantStatus {
    /// Every status, in the order of a tenant's life.
    pub const ALL: [Self; 7] = [
        Self::Provisioning,
        Self::Active,
        Self::ReadOnly,
        Self::Suspended,
        Self::Migrating,
        Self::Archived,
        Self::Deleted,
    ];

    /// What this status lets through.
    #[must_use]
    pub const fn access(self) -> Access {
        match self {
            Self::Active | Self::Migrating => Access::ReadWrite,
            Self::ReadOnly => Access::Read,
            Self::Provisioning | Self::Suspended | Self::Archived | Self::Deleted => Access::Refused,
        }
    }

    /// Whether a tenant may go from this status to `next` in one step. A status never follows itself.
    #[must_use]
    pub const fn can_become(self, next: Self) -> bool {
        use TenantStatus::{Active, Archived, Deleted, Migrating, Provisioning, ReadOnly, Suspended};
        matches!(
            (self, next),
            (Provisioning, Active | Deleted)
                | (Active, ReadOnly | Suspended | Migrating | Archived)
                | (ReadOnly, Active | Suspended | Archived)
                | (Suspended, Active | ReadOnly | Archived)
                | (Migrating, Active)
                | (Archived, Active | Deleted)
        )
    }

    /// The name used in text, SQL and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Active => "active",
            Self::ReadOnly => "read_only",
            Self::Suspended => "suspended",
            Self::Migrating => "migrating",
            Self::Archived => "archived",
            Self::Deleted => "deleted",
        }
    }
}

impl FromStr for TenantStatus {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or(UnknownStatus)
    }
}

impl fmt::Display for TenantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_those_of_the_table_and_no_others() {
        let mut edges = String::new();
        for from in TenantStatus::ALL {
            for to in TenantStatus::ALL {
                if from.can_become(to) {
                    edges.push_str(&format!("{from}>{to} "));
                }
            }
        }
        assert_eq!(
            edges.trim_end(),
            "provisioning>active provisioning>deleted active>read_only active>suspended active>migrating \
             active>archived read_only>active read_only>suspended read_only>archived suspended>active \
             suspended>read_only suspended>archived migrating>active archived>active archived>deleted"
        );
    }

    #[test]
    fn names_parse_back() {
        for status in TenantStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        assert_eq!("Active".parse::<TenantStatus>(), Err(UnknownStatus));
    }
}
