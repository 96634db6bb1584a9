//! Where a tenant's rows are.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{DataSourceId, Epoch};

/// Where a tenant's rows are, and since which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Placement {
    /// The database that holds the rows.
    pub source: DataSourceId,
    /// What keeps the rows apart from those of other tenants.
    pub isolation: Isolation,
    /// Rises when the rows move or are fenced.
    pub epoch: Epoch,
}

impl Placement {
    /// A first placement, at epoch 1.
    #[must_use]
    pub const fn new(source: DataSourceId, isolation: Isolation) -> Self {
        Self {
            source,
            isolation,
            epoch: Epoch::FIRST,
        }
    }
}

/// What keeps a tenant's rows apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Isolation {
    /// A database of its own: no other tenant may be placed on the same data source.
    Database,
    /// A schema of its own in a shared database, in which unqualified names are looked up.
    Schema,
    /// Rows of its own in shared tables, behind row-level security by a setting of the transaction.
    Row,
}

/// The text is not an isolation mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an isolation mode is database, schema or row")]
pub struct UnknownIsolation;

impl Isolation {
    /// The name used in text, SQL and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Schema => "schema",
            Self::Row => "row",
        }
    }
}

impl FromStr for Isolation {
    type Err = UnknownIsolation;

    fn from_str(text: &str) -> Result<Self, UnknownIsolation> {
        match text {
            "database" => Ok(Self::Database),
            "schema" => Ok(Self::Schema),
            "row" => Ok(Self::Row),
            _ => Err(UnknownIsolation),
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
