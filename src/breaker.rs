//! What breakers tell: which endpoints and logins are left alone for now because they fail, and until when.
//!
//! [`Biplane::breakers`](crate::Biplane::breakers) gives it to whoever looks.

use std::{fmt, time::Duration};

use crate::tenant::{CredentialVersion, DataSourceId, Endpoint, Role, TenantId};

/// What a breaker stands before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BreakerScope {
    /// An address, for all data sources there.
    Endpoint(Endpoint),
    /// A login at a data source, for whatever endpoint.
    Login {
        /// The data source.
        source: DataSourceId,
        /// For what the login is.
        role: Role,
        /// Which of its credentials.
        version: CredentialVersion,
        /// For whom alone, where an override file leads a tenant: what fails there says nothing about the others on the
        /// same data source. `None` for all that go by the control plane.
        tenant: Option<TenantId>,
    },
}

/// What a breaker lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// Everything.
    Closed,
    /// Nothing, for this long; after that one attempt.
    Open {
        /// Until then.
        retry_after: Duration,
    },
    /// Nothing but the one attempt that is under way.
    Probing,
    /// That many attempts at once.
    Recovering {
        /// How many.
        at_once: u32,
    },
}

/// How one breaker is doing. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BreakerStatus {
    /// What it stands before.
    pub scope: BreakerScope,
    /// What it lets through.
    pub state: BreakerState,
    /// Callers that it refused since it opened, or the last time that it was open.
    pub refused: u64,
}

impl fmt::Display for BreakerScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(endpoint) => write!(f, "endpoint {endpoint}"),
            Self::Login {
                source,
                role,
                version,
                tenant,
            } => {
                write!(
                    f,
                    "login of data source {source}, role {role}, credential version {version}"
                )?;
                match tenant {
                    Some(tenant) => write!(f, ", where a file leads tenant {tenant}"),
                    None => Ok(()),
                }
            }
        }
    }
}
