//! The one error of routing: what happened, in a kind that callers can decide on.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc, time::Duration};

use crate::{
    keyring::KeyId,
    settings::{DsnError, SettingsError},
    tenant::{DomainError, IdError, Isolation, PoolSettingsError, Role, SlugError, TenantStatus},
};

/// What went wrong, with the cause if there is one. Cheap to clone, because callers that wait for one load share it.
///
/// The text names what to do and never holds a secret, a URL or SQL. Decide on [`Error::kind`], not on the text.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    detail: Option<Cow<'static, str>>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// The kinds of failure. "Could not tell" is never "does not exist".
///
/// [A page](crate::manual::errors) has the HTTP status, the gRPC code and the next step for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The control plane answered, and knows no such tenant.
    UnknownTenant,
    /// The control plane answered, and knows no such data source.
    UnknownDataSource,
    /// The text cannot name a tenant.
    InvalidName,
    /// The tenant's status refuses this.
    Inactive {
        /// The status.
        status: TenantStatus,
    },
    /// A write to a tenant, or through a role, that is open for reads alone.
    ReadOnly,
    /// The control plane could not be asked. Whether the tenant exists is not known.
    ControlPlaneUnavailable,
    /// So many names that nobody has are asked for that this one was not, and nothing is known of it. Whether the tenant
    /// exists is not known.
    TooManyUnknownNames,
    /// What the control plane holds about this tenant cannot be understood. Other tenants are not affected.
    MalformedRecord,
    /// What was asked for is not to be had in the tenant's isolation mode.
    UnsupportedIsolation {
        /// The mode.
        isolation: Isolation,
    },
    /// The data source has no credential for this role.
    MissingCredential {
        /// The role.
        role: Role,
    },
    /// The credential does not open: the key is not in the keyring, or the value was sealed for something else.
    CredentialUnreadable {
        /// The key that sealed it, if the value says so.
        key: Option<KeyId>,
    },
    /// The credential holds no password, and nothing says that none is needed.
    MissingPassword,
    /// The server refused the credential.
    CredentialRejected,
    /// The server that should hold the database could not be reached, or closed the connection; or its endpoint or this
    /// login has failed before and is left alone for now, which the time to try again tells.
    DatabaseUnavailable {
        /// When to try again, if that is known.
        retry_after: Option<Duration>,
    },
    /// The server has no database of this name.
    DatabaseMissing,
    /// The database is not the one that the control plane means.
    WrongDatabase,
    /// The tenant's rows are closed for a moment, because they are being moved. Nothing was read or written.
    Fenced {
        /// When to try again, if that is known.
        retry_after: Option<Duration>,
    },
    /// The database says that the tenant's rows are elsewhere, or are here since another epoch, and the control plane says
    /// that they are not. Nothing was read or written.
    StaleRoute,
    /// No connection came free in time.
    BudgetExhausted {
        /// The cap that was reached.
        scope: BudgetScope,
    },
    /// The transaction had already failed; nothing was committed.
    TransactionAborted,
    /// Another transaction changed the same data first.
    TransactionConflict,
    /// Somebody else changed the record first.
    VersionConflict,
    /// The name or id is taken.
    AlreadyExists,
    /// A tenant's status cannot change this way.
    ForbiddenTransition {
        /// The status it has.
        from: TenantStatus,
        /// The status that was asked for.
        to: TenantStatus,
    },
    /// A value that the control plane does not accept.
    InvalidInput,
    /// The database role lacks a privilege.
    MissingPrivilege,
    /// The schema is missing in this database, or of a version that this crate does not work with.
    SchemaMismatch,
    /// Tables of one plane are readable through the other.
    MisplacedTables,
    /// A fence did not take hold by its deadline, because something that ran before it had not ended.
    Undrained,
    /// Settings that cannot work.
    InvalidConfiguration,
    /// The router is closed.
    Closed,
    /// The database refused a statement of biplane's own.
    Database,
    /// A defect in biplane itself, such as a task that panicked.
    Internal,
}

/// Which cap on connections was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BudgetScope {
    /// The cap of the process.
    Process,
    /// The cap of one data source and role.
    DataSource,
    /// The number of callers that may wait.
    Queue,
    /// What the server itself has room for.
    Server,
}

impl Error {
    /// An error of this kind.
    #[must_use]
    pub const fn new(kind: ErrorKind) -> Self {
        Self {
            kind,
            detail: None,
            source: None,
        }
    }

    /// Adds what this case is about and what to do. Must hold no secret, URL or SQL.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds the cause. Its texts must hold no secret, URL or SQL either.
    #[must_use]
    pub fn caused_by(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// What happened.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl ErrorKind {
    const fn text(&self) -> &'static str {
        match self {
            Self::UnknownTenant => "no such tenant",
            Self::UnknownDataSource => "no such data source",
            Self::InvalidName => "not a name that a tenant can have",
            Self::Inactive { .. } => "the tenant is not open",
            Self::ReadOnly => "open for reads only, and this writes",
            Self::ControlPlaneUnavailable => "the control plane could not be asked; try again",
            Self::TooManyUnknownNames => {
                "too many unknown names are being asked for, and this one was not; try again"
            }
            Self::MalformedRecord => "the control plane's record cannot be understood; correct it there",
            Self::UnsupportedIsolation { .. } => "not to be had in this isolation mode",
            Self::MissingCredential { .. } => "the data source has no credential for this role; store one",
            Self::CredentialUnreadable { .. } => {
                "the credential does not open; load the key that sealed it, or seal it again for this data source and role"
            }
            Self::MissingPassword => {
                "the credential has no password; store one, or say explicitly that none is needed"
            }
            Self::CredentialRejected => "the server refused the credential; store the one that it expects",
            Self::DatabaseUnavailable { .. } => "the database could not be reached; try again",
            Self::DatabaseMissing => {
                "the server has no database of this name; create it or correct the data source"
            }
            Self::WrongDatabase => {
                "the database is not the one that the control plane means; correct the data source or stamp the database"
            }
            Self::Fenced { .. } => "the tenant's rows are being moved; try again",
            Self::StaleRoute => {
                "the database and the control plane disagree about where the tenant's rows are; try again, or reconcile them"
            }
            Self::BudgetExhausted { .. } => "no connection came free in time; try again or raise the cap",
            Self::TransactionAborted => {
                "the transaction had already failed, nothing was committed; run it again"
            }
            Self::TransactionConflict => "another transaction changed the same data first; run it again",
            Self::VersionConflict => "somebody changed the record first; read it again and decide anew",
            Self::AlreadyExists => "the name or id is taken; choose another",
            Self::ForbiddenTransition { .. } => "the status cannot change this way",
            Self::InvalidInput => "the control plane does not accept this value",
            Self::MissingPrivilege => "the database role lacks a privilege; grant it",
            Self::SchemaMismatch => "the schema is missing or of another version; install or migrate it",
            Self::MisplacedTables => "tables of one plane are readable through the other",
            Self::Undrained => "what ran before the fence did not end in time; end it, or try again later",
            Self::InvalidConfiguration => "the settings cannot work",
            Self::Closed => "the router is closed",
            Self::Database => "the database refused a statement",
            Self::Internal => "an internal task failed; please report this",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())?;
        match self {
            Self::Inactive { status } => write!(f, " (status {status})"),
            Self::UnsupportedIsolation { isolation } => write!(f, " ({isolation})"),
            Self::MissingCredential { role } => write!(f, " ({role})"),
            Self::CredentialUnreadable { key: Some(key) } => write!(f, " (key {key})"),
            Self::DatabaseUnavailable {
                retry_after: Some(after),
            }
            | Self::Fenced {
                retry_after: Some(after),
            } => {
                write!(f, " (in {} ms)", after.as_millis())
            }
            Self::BudgetExhausted { scope } => write!(f, " ({scope})"),
            Self::ForbiddenTransition { from, to } => write!(f, " (from {from} to {to})"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for BudgetScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "cap of the process",
            Self::DataSource => "cap of the data source",
            Self::Queue => "too many callers waiting",
            Self::Server => "room at the server",
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.kind, f)?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("detail", &self.detail)
            .field("source", &self.source.as_ref().map(|source| source.to_string()))
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_ref()
            .map(|source| &**source as &(dyn StdError + 'static))
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

/// What fails before a router is asked, so that `?` takes a name from a request and its lookup alike.
macro_rules! from {
    ($($cause:ty => $kind:ident),+ $(,)?) => {
        $(impl From<$cause> for Error {
            fn from(cause: $cause) -> Self {
                Self::new(ErrorKind::$kind).caused_by(cause)
            }
        })+
    };
}

from! {
    SlugError => InvalidName,
    DomainError => InvalidName,
    IdError => InvalidName,
    PoolSettingsError => InvalidConfiguration,
    DsnError => InvalidConfiguration,
    SettingsError => InvalidConfiguration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_says_this_level_and_source_says_the_next() {
        let error = Error::new(ErrorKind::DatabaseUnavailable {
            retry_after: Some(Duration::from_millis(40)),
        })
        .detail("data source east-1")
        .caused_by(std::io::Error::other("connection refused"));
        assert_eq!(
            error.to_string(),
            "the database could not be reached; try again (in 40 ms): data source east-1"
        );
        assert_eq!(
            error.source().map(ToString::to_string).as_deref(),
            Some("connection refused")
        );
    }

    #[test]
    fn errors_stay_small_enough_to_pass_by_value() {
        assert!(size_of::<Error>() <= 80, "{}", size_of::<Error>());
    }
}
