//! What can go wrong with a throwaway server.

use std::{fmt, io, path::PathBuf, time::Duration};

/// A throwaway server could not be had, or not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// The programs are not on this machine.
    #[error("{0}")]
    NotInstalled(Box<Missing>),
    /// Root asked, and there is no user to run the server as.
    #[error(
        "a server cannot run as root, and there is neither a user `postgres` nor a user `nobody` to run it as"
    )]
    NoUser,
    /// No directory for temporary files that the server's user may write to, with a path short enough for a socket.
    #[error(
        "found no directory for the server's files among {}; it must be writable for the user who runs the server, \
         and its path at most {longest} bytes long",
        tried.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoDirectory {
        /// Where it was tried.
        tried: Vec<PathBuf>,
        /// The longest path that leaves room for a socket's name.
        longest: usize,
    },
    /// No free TCP port.
    #[error("found no free port on 127.0.0.1")]
    NoPort,
    /// `initdb` failed.
    #[error("initdb did not make a cluster")]
    Initdb(#[source] ServerLog),
    /// `pg_basebackup` failed.
    #[error("the standby could not copy its primary")]
    Backup(#[source] ServerLog),
    /// The server ended instead of starting; usually a setting that it does not take.
    #[error("the server did not start")]
    Start(#[source] ServerLog),
    /// The server did not do in time what it was told.
    #[error("the server did not {what} within {limit:?}")]
    TimedOut {
        /// What it was told.
        what: &'static str,
        /// For how long it was waited.
        limit: Duration,
        /// What it said.
        #[source]
        log: ServerLog,
    },
    /// The process that watches over the server is gone, and with it the server.
    #[error("the process that watches over the server was ended from outside")]
    SupervisorGone,
    /// Files or processes could not be handled.
    #[error("cannot {doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The certificates could not be made.
    #[error("cannot make certificates")]
    Certificates(#[source] rcgen::Error),
    /// The server refused a connection or a statement.
    #[error("the server refused to {doing}")]
    Sql {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        #[source]
        source: sqlx::Error,
    },
    /// A variable would change every connection, and sqlx offers no way to overrule it.
    #[error("the environment sets {0}, which would change every connection; run the tests without it")]
    Environment(&'static str),
    /// The text cannot be a user name or a password.
    #[error("not a credential")]
    Credential(#[from] crate::secret::CredentialError),
    /// The tokio runtime is shutting down.
    #[error("the tokio runtime is shutting down")]
    RuntimeGone,
}

impl ClusterError {
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// Programs that are not on this machine: what was looked for, where, and what to install.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// The programs.
    pub programs: &'static [&'static str],
    /// The variable that names the place.
    pub variable: &'static str,
    /// Where they were looked for.
    pub looked_in: Vec<PathBuf>,
    /// The packages to install, per system.
    pub install: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "found no {} in ", self.programs.join(" and "))?;
        for (index, place) in self.looked_in.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { ", " }, place.display())?;
        }
        write!(f, "; install {}, or set {}", self.install, self.variable)
    }
}

/// The last lines that a server or `initdb` wrote before it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerLog(String);

impl ServerLog {
    /// Enough for Postgres' message with its detail and hint, and for PgBouncer's.
    const LINES: usize = 20;

    pub(super) fn new(text: &str) -> Self {
        let lines: Vec<&str> = text.lines().collect();
        Self(lines[lines.len().saturating_sub(Self::LINES)..].join("\n"))
    }

    /// The lines.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() {
            "it wrote nothing"
        } else {
            &self.0
        })
    }
}

impl std::error::Error for ServerLog {}
