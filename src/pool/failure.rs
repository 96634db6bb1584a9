//! Between sqlx's errors and ours.
//!
//! The texts of a database's errors may quote values, so what we pass on of them is the SQLSTATE alone.

use std::io;

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::error::{Error, ErrorKind};

/// What remains of an sqlx error that may be shown: a SQLSTATE or the kind of an I/O error.
#[derive(Clone, Debug, thiserror::Error)]
enum Cause {
    #[error("the database answered with SQLSTATE {0}")]
    SqlState(String),
    #[error("connection failed: {0}")]
    Io(io::ErrorKind),
    #[error("TLS could not be set up; check the server's certificate and the CA that the data source names")]
    Tls,
    #[error("unexpected answer from the server")]
    Protocol,
    #[error("the answer has another form than expected")]
    Shape,
}

impl Error {
    /// The error of ours that an sqlx error carries, if it carries one. Executor methods must fail with
    /// [`sqlx::Error`]; this is how a caller gets the kind back.
    ///
    /// ```
    /// # use biplane::error::{Error, ErrorKind};
    /// let error: sqlx::Error = Error::new(ErrorKind::Closed).into();
    /// assert_eq!(Error::of(&error).map(Error::kind), Some(ErrorKind::Closed));
    /// ```
    #[must_use]
    pub fn of(error: &sqlx::Error) -> Option<&Self> {
        match error {
            sqlx::Error::Io(error) => error.get_ref()?.downcast_ref(),
            _ => None,
        }
    }
}

impl From<Error> for sqlx::Error {
    /// Wraps the error so that [`Error::of`] finds it again.
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::BudgetExhausted { .. } => io::ErrorKind::TimedOut,
            ErrorKind::ControlPlaneUnavailable
            | ErrorKind::DatabaseUnavailable { .. }
            | ErrorKind::Fenced { .. }
            | ErrorKind::StaleRoute => io::ErrorKind::NotConnected,
            ErrorKind::Inactive { .. } | ErrorKind::ReadOnly => io::ErrorKind::PermissionDenied,
            ErrorKind::UnknownTenant => io::ErrorKind::NotFound,
            _ => io::ErrorKind::Other,
        };
        Self::Io(io::Error::new(kind, error))
    }
}

impl From<sqlx::Error> for Error {
    /// Takes our own error out again, or sorts sqlx's: a lost connection is `DatabaseUnavailable`, whatever the
    /// database refused is `Database` with the SQLSTATE as its cause.
    fn from(error: sqlx::Error) -> Self {
        match Self::of(&error) {
            Some(ours) => ours.clone(),
            None => sort(&error),
        }
    }
}

fn sort(error: &sqlx::Error) -> Error {
    let unavailable = ErrorKind::DatabaseUnavailable { retry_after: None };
    match error {
        sqlx::Error::Database(refused) => {
            let code = refused.code().unwrap_or_default().into_owned();
            let kind = match code.as_str() {
                "28P01" | "28000" => ErrorKind::CredentialRejected,
                "3D000" => ErrorKind::DatabaseMissing,
                "25006" => ErrorKind::ReadOnly,
                "25P02" => ErrorKind::TransactionAborted,
                "42501" => ErrorKind::MissingPrivilege,
                "53300" | "57P01" | "57P02" | "57P03" => unavailable,
                code if code.starts_with("08") => unavailable,
                _ => ErrorKind::Database,
            };
            Error::new(kind).caused_by(Cause::SqlState(code))
        }
        sqlx::Error::Io(error) => Error::new(unavailable).caused_by(Cause::Io(error.kind())),
        sqlx::Error::Tls(_) => Error::new(unavailable).caused_by(Cause::Tls),
        sqlx::Error::Protocol(_) => Error::new(unavailable).caused_by(Cause::Protocol),
        sqlx::Error::Configuration(_) => Error::new(ErrorKind::InvalidConfiguration),
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
            Error::new(unavailable)
        }
        _ => Error::new(ErrorKind::Database).caused_by(Cause::Shape),
    }
}

/// What PgBouncer says when it does not take a login. Of whatever it refuses by itself the SQLSTATE is 08P01, so that only
/// its words tell; they are in no other language.
const POOLERS_REJECT_WITH: [&str; 3] = [
    "SASL authentication failed",
    "password authentication failed",
    "no such user",
];

/// That a login was rejected, if a pooler says so. One that could not log in at the server says that of itself, in a
/// longer text: the caller's login may be a good one.
pub(super) fn poolers_rejection(error: &sqlx::Error) -> Option<Error> {
    let sqlx::Error::Database(refused) = error else {
        return None;
    };
    let code = refused.code().unwrap_or_default();
    let rejected = code == "08P01" && POOLERS_REJECT_WITH.contains(&refused.message());
    rejected.then(|| Error::new(ErrorKind::CredentialRejected).caused_by(Cause::SqlState(code.into_owned())))
}

/// Whose fault it is that there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// Nothing answers there, or only that it cannot serve anybody now.
    Endpoint,
    /// The server does not take this login, or has no such database.
    Login,
    /// What the data source asks for cannot be agreed on with this server, such as how to encrypt.
    Source,
    /// The server has no room for more.
    Crowd,
    /// The server let us in and then refused something else.
    Refusal,
    /// Ours, or nobody's: it says nothing about the other side.
    Nobody,
}

impl Blame {
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(refused) => match refused.code().unwrap_or_default().as_ref() {
                "57P03" => Self::Endpoint,
                "53300" if cfg!(biplane_mutant = "full_servers_are_dead") => Self::Endpoint,
                "53300" => Self::Crowd,
                "28P01" | "28000" | "3D000" if cfg!(biplane_mutant = "wrong_password_opens_the_endpoint") => {
                    Self::Endpoint
                }
                "28P01" | "28000" | "3D000" => Self::Login,
                // Of sessions that are being ended, not of a server that cannot be reached.
                "57P01" | "57P02" => Self::Nobody,
                // Poolers say so of anything that is wrong with one of their databases.
                code if code.starts_with("08") => Self::Source,
                _ => Self::Refusal,
            },
            sqlx::Error::Io(error) => Self::of_io(error),
            sqlx::Error::Tls(error) => match error.downcast_ref::<io::Error>() {
                Some(error) => Self::of_io(error),
                None => Self::Source,
            },
            sqlx::Error::Protocol(_) => Self::Source,
            sqlx::Error::Configuration(_) | sqlx::Error::WorkerCrashed => Self::Nobody,
            _ => Self::Refusal,
        }
    }

    fn of_io(error: &io::Error) -> Self {
        if error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
            return Self::Refusal;
        }
        match error.kind() {
            // So do TLS stacks say that they do not trust the other side.
            io::ErrorKind::InvalidData => Self::Source,
            // Of this machine: no port, no memory, no file descriptor is left.
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::OutOfMemory => Self::Nobody,
            _ if is_out_of_files(error) => Self::Nobody,
            _ => Self::Endpoint,
        }
    }
}

#[cfg(unix)]
fn is_out_of_files(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let full = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS];
    error
        .raw_os_error()
        .is_some_and(|code| full.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(not(unix))]
const fn is_out_of_files(_: &io::Error) -> bool {
    false
}

/// What an error says about the connection that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// None: the server refused a statement, and what is left of its answer is read before the next one.
    Refused,
    /// None, but how far the exchange with the server has got is not known.
    Unread,
    /// Both sides no longer agree on where they are, or nothing is heard any more. The backend may still be there.
    Suspect,
    /// The server ended the session.
    Gone,
}

impl Damage {
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(refused) => {
                let fatal = refused
                    .try_downcast_ref::<PgDatabaseError>()
                    .is_some_and(|refused| {
                        matches!(refused.severity(), PgSeverity::Fatal | PgSeverity::Panic)
                    });
                if fatal { Self::Gone } else { Self::Refused }
            }
            sqlx::Error::Io(error) => match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => Self::Gone,
                _ => Self::Suspect,
            },
            sqlx::Error::RowNotFound
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::Encode(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::InvalidArgument(_)
            | sqlx::Error::InvalidSavePointStatement => Self::Unread,
            _ => Self::Suspect,
        }
    }

    /// Whether the connection may be of further use.
    pub(crate) const fn spares_connection(self) -> bool {
        matches!(self, Self::Refused | Self::Unread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_errors_survive_sqlx() {
        let sent = Error::new(ErrorKind::UnknownTenant);
        let through: sqlx::Error = sent.into();
        assert_eq!(Error::from(through).kind(), ErrorKind::UnknownTenant);
    }

    #[test]
    fn io_errors_of_others_are_not_ours() {
        let error = sqlx::Error::Io(io::Error::new(io::ErrorKind::ConnectionRefused, "canary"));
        assert!(Error::of(&error).is_none());
        let ours = Error::from(error);
        assert_eq!(ours.kind(), ErrorKind::DatabaseUnavailable { retry_after: None });
        assert!(!format!("{ours:?}").contains("canary"));
    }
}
