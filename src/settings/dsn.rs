//! Database URLs as fields.

use std::{fmt, num::NonZeroU32, str::FromStr, time::Duration};

use super::parse;
use crate::{
    secret::Credential,
    tenant::{DataSource, DataSourceId, Location, PoolSettings, Server},
};

/// A `postgres://` URL, taken apart.
///
/// The URLs in use carry settings of several clients in one text. Here each becomes a field: the address and the
/// pooler a [`Server`], the login a [`Credential`], the limit [`PoolSettings`]. What has no field is refused by name
/// rather than ignored, because an ignored setting is found out in production.
///
/// ```
/// use biplane::{settings::Dsn, tenant::Pooler};
///
/// let dsn = Dsn::parse(
///     "postgresql://app:pa%2Fss}|<@db.example:6432/crm?pgbouncer=true&connection_limit=15&sslmode=require",
/// )?;
/// assert_eq!(dsn.to_string(), "db.example:6432/crm");
/// assert_eq!(dsn.pool().max().get(), 15);
/// assert_eq!(dsn.server().pooler, Pooler::Transaction { max_prepared_statements: 0 });
/// # Ok::<(), biplane::settings::DsnError>(())
/// ```
///
/// # Contract
/// - User, password, host, database and values may be percent-encoded. Decoding is strict: two hexadecimal digits
///   after each `%`, UTF-8, no NUL. A `+` is a plus sign, as in libpq.
/// - User and password may hold any character as it is, except `%`, `/`, `?`, `#`, a control character and, in the
///   user, `:`. They end at the last `@` before the path. Since nobody can tell a raw `/`, `?` or `#` of a password from
///   the end of the address, an `@` that follows one is an error, never a guess.
/// - There may be several hosts (`h1:5432,h2:5433`), IPv6 addresses in brackets, and the directory of a Unix socket,
///   percent-encoded or as the parameter `host`. The place of a host may be left empty or hold `localhost` if `host`
///   names a directory.
/// - User, host and database are never guessed. A missing password is an error unless the URL says
///   `require_auth=none` (libpq's words for "the server asks for nothing") or the caller says
///   [`WithoutPassword::Accept`]. An empty password is a missing one.
/// - The parameters are those of [`Parameter`], each at most once.
/// - One trailing newline is dropped, which files and secret stores tend to add.
///
/// `Debug` and `Display` show `host:port/database` and nothing else.
#[derive(Clone)]
pub struct Dsn {
    pub(super) server: Server,
    pub(super) credential: Credential,
    pub(super) connection_limit: Option<NonZeroU32>,
    pub(super) schema: Option<Box<str>>,
    pub(super) application_name: Option<Box<str>>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) pool_timeout: Option<Duration>,
}

/// What to make of a URL without a password.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WithoutPassword {
    /// An error. The default, because a password usually is missing by accident, and the server's refusal comes
    /// later and says less.
    #[default]
    Refuse,
    /// A credential without a password, for servers that let the user in by `trust`, `peer` or `cert`.
    Accept,
}

impl Dsn {
    /// The longest URL in bytes: many times what real ones need, and too little to keep a process busy.
    pub const MAX_LEN: usize = 8192;

    /// Parses a URL that has a password or says `require_auth=none`.
    ///
    /// Apart from the credential that it returns it makes no copy of the password; the text stays the caller's to
    /// wipe.
    ///
    /// # Errors
    /// The rule that was broken. No error holds a piece of the text other than names of unknown parameters.
    pub fn parse(text: &str) -> Result<Self, DsnError> {
        Self::parse_with(text, WithoutPassword::Refuse)
    }

    /// Parses a URL, and says what a missing password means.
    ///
    /// # Errors
    /// As for [`Dsn::parse`].
    pub fn parse_with(text: &str, without_password: WithoutPassword) -> Result<Self, DsnError> {
        parse::dsn(text, without_password)
    }

    /// The address, the encryption and the pooler. The cluster is named after the first endpoint.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The login.
    #[must_use]
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    /// `connection_limit`: connections at most.
    #[must_use]
    pub fn connection_limit(&self) -> Option<NonZeroU32> {
        self.connection_limit
    }

    /// `connection_limit` as pool settings, with none kept idle; [`PoolSettings::default`] if the URL says nothing.
    #[must_use]
    pub fn pool(&self) -> PoolSettings {
        let limit = self
            .connection_limit
            .map(|limit| PoolSettings::new(0, limit.get()));
        limit.and_then(Result::ok).unwrap_or_default()
    }

    /// `schema` (or `search_path`): one schema name, as it is stored, without case folding. It holds letters, digits,
    /// `_`, `-` and `$` only and does not begin with `$` or `pg_`.
    #[must_use]
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// `application_name`.
    #[must_use]
    pub fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    /// `connect_timeout`: how long one attempt to connect may take.
    #[must_use]
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    /// `pool_timeout`: how long a caller may wait for a connection of the pool.
    #[must_use]
    pub fn pool_timeout(&self) -> Option<Duration> {
        self.pool_timeout
    }

    /// Makes a data source of it, for an import: address and pool settings in the record, the credential beside it,
    /// still to be sealed. Schema, timeouts and application name have no place in the record and are dropped.
    #[must_use]
    pub fn into_source(self, id: DataSourceId, name: &str) -> (DataSource, Credential) {
        let pool = self.pool();
        let mut source = DataSource::new(id, name, Location::Server(self.server));
        source.pool = pool;
        (source, self.credential)
    }

    /// Whether both lead to one server, as far as addresses tell.
    pub(super) fn shares_endpoint(&self, other: &Self) -> bool {
        let others = &other.server.endpoints;
        self.server
            .endpoints
            .iter()
            .any(|endpoint| others.contains(endpoint))
    }
}

impl FromStr for Dsn {
    type Err = DsnError;

    fn from_str(text: &str) -> Result<Self, DsnError> {
        Self::parse(text)
    }
}

impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, endpoint) in self.server.endpoints.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            fmt::Display::fmt(endpoint, f)?;
        }
        // Any character may occur in the name of a database, a line break in a log among them.
        write!(f, "/{}", self.server.database.escape_debug())
    }
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dsn({self})")
    }
}

/// Why a text is not a database URL that we can follow. No variant holds a piece of the text other than the names of
/// unknown parameters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DsnError {
    /// Longer than [`Dsn::MAX_LEN`].
    #[error("a database URL has at most 8192 bytes")]
    TooLong,
    /// An `http://` or `https://` URL.
    #[error(
        "this is the https address of an API, not of a database; wanted is the connection string, \
         postgres://user:password@host:5432/database"
    )]
    ApiAddress,
    /// Another scheme, or none.
    #[error("a database URL begins with postgres:// or postgresql://")]
    Scheme,
    /// A control character, or white space after the credentials, neither of them encoded.
    #[error(
        "the URL holds a control character, or a space after the credentials; percent-encode it (a space is %20)"
    )]
    RawCharacter,
    /// Nobody can tell where the password ends.
    #[error(
        "the URL holds a raw # or an @ behind a raw / or ?, so that the end of the password is ambiguous; \
         percent-encode them (/ is %2F, ? is %3F, # is %23, @ is %40)"
    )]
    Ambiguous,
    /// Encoded in a way that cannot be undone.
    #[error(
        "the {0} holds a % without two hexadecimal digits, bytes that are not UTF-8, or NUL; write % itself as %25"
    )]
    Encoding(UrlPart),
    /// No user.
    #[error("the URL names no user; write postgres://user:password@host:5432/database")]
    MissingUser,
    /// No password, and nobody said that there is none.
    #[error("the URL holds no password; add it, or say require_auth=none if the server asks for none")]
    MissingPassword,
    /// A password, and `require_auth=none`.
    #[error("the URL holds a password and says require_auth=none; leave one of them out")]
    UnexpectedPassword,
    /// No host.
    #[error("the URL names no host; write one, or the directory of a unix socket as the parameter host")]
    MissingHost,
    /// Neither a host name, nor an IP address, nor the directory of a socket.
    #[error(
        "a host of the URL is not an ASCII host name, an IPv4 address, an IPv6 address in brackets, or the \
         percent-encoded directory of a unix socket"
    )]
    Host,
    /// The parameter `host` names another host than the address does.
    #[error("the URL names a host in its address and in the parameter host; leave one of them out")]
    HostTwice,
    /// Not a port.
    #[error("a port of the URL is not a number from 1 to 65535")]
    Port,
    /// No database.
    #[error(
        "the URL names no database; write it after the host, as in postgres://user:password@host:5432/database"
    )]
    MissingDatabase,
    /// A name that Postgres would cut off, or a raw `/` in it.
    #[error("the name of the database has at most 63 bytes, and a / in it is written as %2F")]
    Database,
    /// Parameters that have no place in our settings.
    #[error("{0}")]
    UnknownParameters(UnknownParameters),
    /// A parameter given more than once.
    #[error("the parameter {0} is given more than once")]
    Duplicate(Parameter),
    /// A value that the parameter does not take.
    #[error("the parameter {0} takes {takes}", takes = .0.takes())]
    Value(Parameter),
    /// `sslmode=allow`.
    #[error(
        "sslmode=allow is not supported, because the driver would never encrypt; write prefer, or better require \
         or verify-full"
    )]
    SslModeAllow,
    /// A certificate authority, and a mode that does not ask it.
    #[error(
        "sslrootcert has an effect in the modes verify-ca and verify-full only; set sslmode to one of them"
    )]
    UnusedCa,
    /// `sslrootcert=system` in a mode other than `verify-full`.
    #[error(
        "sslrootcert=system needs sslmode=verify-full, because anybody can get a certificate for some name"
    )]
    SystemCa,
    /// Encryption demanded over a Unix socket.
    #[error("postgres does not encrypt over a unix socket; leave sslmode out")]
    TlsOverSocket,
}

/// A part of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UrlPart {
    /// Before the first `:`.
    User,
    /// From the first `:` to the last `@`.
    Password,
    /// From the `@` to the path.
    Host,
    /// The path.
    Database,
    /// The value of a parameter.
    Parameter(Parameter),
}

impl fmt::Display for UrlPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("user"),
            Self::Password => f.write_str("password"),
            Self::Host => f.write_str("host"),
            Self::Database => f.write_str("name of the database"),
            Self::Parameter(parameter) => write!(f, "parameter {parameter}"),
        }
    }
}

/// A parameter that a URL may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Parameter {
    /// `sslmode`: [`TlsMode`](crate::tenant::TlsMode); `allow` is refused. Over a Unix socket there is none.
    SslMode,
    /// `sslrootcert`: a PEM file of authorities for `verify-ca` and `verify-full`; or `system`, the authorities that
    /// the TLS stack brings, which implies `verify-full`, as in libpq.
    SslRootCert,
    /// `pgbouncer`: `true` declares a pooler in transaction mode, without prepared statements.
    PgBouncer,
    /// `connection_limit`: connections at most. 0 is refused.
    ConnectionLimit,
    /// `connect_timeout`, in seconds. 0, which elsewhere means for ever, is refused.
    ConnectTimeout,
    /// `pool_timeout`, in seconds. 0, which elsewhere means for ever, is refused.
    PoolTimeout,
    /// `application_name`.
    ApplicationName,
    /// `schema`, also as `search_path`: one schema.
    Schema,
    /// `host`: instead of one in the address.
    Host,
    /// `require_auth`: only `none`, which says that there is no password.
    RequireAuth,
}

impl Parameter {
    /// Every parameter.
    pub const ALL: [Self; 10] = [
        Self::SslMode,
        Self::SslRootCert,
        Self::PgBouncer,
        Self::ConnectionLimit,
        Self::ConnectTimeout,
        Self::PoolTimeout,
        Self::ApplicationName,
        Self::Schema,
        Self::Host,
        Self::RequireAuth,
    ];

    /// The name in a URL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SslMode => "sslmode",
            Self::SslRootCert => "sslrootcert",
            Self::PgBouncer => "pgbouncer",
            Self::ConnectionLimit => "connection_limit",
            Self::ConnectTimeout => "connect_timeout",
            Self::PoolTimeout => "pool_timeout",
            Self::ApplicationName => "application_name",
            Self::Schema => "schema",
            Self::Host => "host",
            Self::RequireAuth => "require_auth",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        let name = if name == "search_path" { "schema" } else { name };
        Self::ALL.into_iter().find(|parameter| parameter.as_str() == name)
    }

    const fn takes(self) -> &'static str {
        match self {
            Self::SslMode => "disable, prefer, require, verify-ca or verify-full",
            Self::SslRootCert => "the path of a PEM file, or system",
            Self::PgBouncer => "true or false",
            Self::ConnectionLimit => "a number of connections, 1 or more",
            Self::ConnectTimeout | Self::PoolTimeout => "a number of seconds, 1 or more",
            Self::ApplicationName => "a name",
            Self::Schema => {
                "one schema of at most 63 bytes, of letters, digits, _, - and $, not beginning with $ or pg_"
            }
            Self::Host => "one host name, or the directory of a unix socket",
            Self::RequireAuth => "none, and nothing else",
        }
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The parameters of a URL that have no place in our settings: all of them, so that one look mends them all.
///
/// A name is kept if it has the form of one, ASCII letters, digits, `_` and `-`, at most 40. Others are counted, and
/// so are all that follow a parameter that seems to hold a secret, since they may be the rest of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnknownParameters {
    pub(super) names: Vec<Box<str>>,
    pub(super) unnamed: usize,
}

impl UnknownParameters {
    /// The names, in the order of the URL, each once.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// How many more there are.
    #[must_use]
    pub fn unnamed(&self) -> usize {
        self.unnamed
    }
}

impl fmt::Display for UnknownParameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the URL has parameters that are not supported: ")?;
        for (i, name) in self.names.iter().enumerate() {
            write!(f, "{}{name}", if i > 0 { ", " } else { "" })?;
        }
        match (self.names.is_empty(), self.unnamed) {
            (_, 0) => {}
            (true, 1) => f.write_str("an unnamed parameter")?,
            (false, 1) => f.write_str(" and an unnamed parameter")?,
            (true, n) => write!(f, "{n} unnamed parameters")?,
            (false, n) => write!(f, " and {n} unnamed parameters")?,
        }
        f.write_str("; supported are")?;
        for (i, parameter) in Parameter::ALL.into_iter().enumerate() {
            write!(f, "{}{parameter}", if i > 0 { ", " } else { " " })?;
        }
        Ok(())
    }
}
