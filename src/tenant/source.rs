//! Data sources: one database on one cluster, how to reach it and with which credentials.

use std::{collections::BTreeMap, fmt, num::NonZeroU32, path::PathBuf, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{CredentialVersion, DataSourceId, DatabaseId, Version};

/// One database of the data plane. Several tenants may share one, by schema or by row.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DataSource {
    /// Immutable.
    pub id: DataSourceId,
    /// What people call it; unique.
    pub name: Arc<str>,
    /// Rises with every change of this data source.
    pub version: Version,
    /// Where it is.
    pub location: Location,
    /// How many connections one process may hold to it.
    pub pool: PoolSettings,
    /// What the database must say it is. With it, the database is fenced: it is asked about tenant and epoch before
    /// anything runs. `None` leaves connections unchecked, and no tenant there can share the database.
    pub database_id: Option<DatabaseId>,
    /// The sealed credentials.
    pub credentials: BTreeMap<Role, RoleCredentials>,
}

impl DataSource {
    /// A data source at version 1, with default pool settings, no `database_id` and no credentials.
    #[must_use]
    pub fn new(id: DataSourceId, name: impl Into<Arc<str>>, location: Location) -> Self {
        Self {
            id,
            name: name.into(),
            version: Version::FIRST,
            location,
            pool: PoolSettings::default(),
            database_id: None,
            credentials: BTreeMap::new(),
        }
    }
}

/// Where a data source is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Location {
    /// The process's own configuration says (`BIPLANE_DATA_URL`); the control plane stores no address.
    Environment,
    /// A server that the control plane knows.
    Server(Server),
    /// Nowhere but in the memory of this process.
    Memory,
}

/// A Postgres server and a database on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Server {
    /// The cluster, for limits and breakers that several databases share.
    pub cluster: Arc<str>,
    /// Where the cluster stands, if that matters.
    pub region: Option<Arc<str>>,
    /// Addresses, the preferred one first. Never empty. A login that writes for tenants takes a standby only where no other
    /// endpoint answers, or a transaction pooler stands before it; one that reads takes the first that answers.
    pub endpoints: Vec<Endpoint>,
    /// The name of the database.
    pub database: Arc<str>,
    /// Encryption of the connection.
    pub tls: Tls,
    /// What stands between us and the server.
    pub pooler: Pooler,
}

impl Server {
    /// A database reached directly at one endpoint; the cluster is named after the endpoint.
    #[must_use]
    pub fn new(endpoint: Endpoint, database: impl Into<Arc<str>>) -> Self {
        Self {
            cluster: endpoint.to_string().into(),
            region: None,
            endpoints: vec![endpoint],
            database: database.into(),
            tls: Tls::default(),
            pooler: Pooler::default(),
        }
    }
}

/// A host and a port. A host that starts with `/` is the directory of a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Endpoint {
    /// A host name, an IP address without brackets, or the directory of a Unix socket.
    pub host: Arc<str>,
    /// The port.
    pub port: u16,
}

impl Endpoint {
    /// Postgres' registered port.
    pub const DEFAULT_PORT: u16 = 5432;

    /// An endpoint.
    #[must_use]
    pub fn new(host: impl Into<Arc<str>>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// How a connection is encrypted, and whom it trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Tls {
    /// What is demanded.
    pub mode: TlsMode,
    /// Certificate authorities to trust besides the ones that the TLS stack brings, which sqlx cannot leave out.
    pub ca: Option<CaCertificate>,
}

impl Tls {
    /// This mode, with the authorities that the TLS stack brings.
    #[must_use]
    pub const fn new(mode: TlsMode) -> Self {
        Self { mode, ca: None }
    }

    /// The same with an authority of its own.
    #[must_use]
    pub fn ca(mut self, ca: CaCertificate) -> Self {
        self.ca = Some(ca);
        self
    }
}

/// Certificate authorities in PEM.
///
/// `Debug` prints no PEM: people paste bundles in which a private key follows the certificate.
#[derive(Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CaCertificate {
    /// The text itself, stored with the data source.
    Pem(Arc<str>),
    /// A file on the machine that connects.
    File(PathBuf),
}

impl fmt::Debug for CaCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pem(_) => f.write_str("Pem(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// What is demanded of the encryption, in libpq's words.
///
/// libpq's `allow` is missing because sqlx treats it as `disable`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TlsMode {
    /// No encryption.
    Disable,
    /// Encryption if the server offers it. The default, as in libpq, so that a server on this machine works
    /// without certificates; across a network use [`TlsMode::VerifyFull`].
    #[default]
    Prefer,
    /// Encryption, with whoever answers.
    Require,
    /// Encryption, with a certificate from a trusted authority.
    VerifyCa,
    /// Encryption, with a certificate from a trusted authority for the very host.
    VerifyFull,
}

/// The text is not a TLS mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a TLS mode is disable, prefer, require, verify-ca or verify-full")]
pub struct UnknownTlsMode;

impl TlsMode {
    /// The name used in URLs, SQL and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

impl FromStr for TlsMode {
    type Err = UnknownTlsMode;

    fn from_str(text: &str) -> Result<Self, UnknownTlsMode> {
        match text {
            "disable" => Ok(Self::Disable),
            "prefer" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            "verify-ca" => Ok(Self::VerifyCa),
            "verify-full" => Ok(Self::VerifyFull),
            _ => Err(UnknownTlsMode),
        }
    }
}

impl fmt::Display for TlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What stands between a process and the server, as declared; never detected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum Pooler {
    /// Nothing.
    #[default]
    Direct,
    /// A pooler that keeps one server session for one client session.
    Session,
    /// A pooler that may change the server session between transactions (PgBouncer's `transaction` mode).
    Transaction {
        /// The pooler's `max_prepared_statements`; 0 also for PgBouncer before 1.21, which has no such setting.
        max_prepared_statements: u32,
    },
}

/// How many connections one process may hold to one data source and role.
///
/// As JSON it is `{"min": 2, "max": 10}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawPoolSettings", into = "RawPoolSettings")]
pub struct PoolSettings {
    min: u32,
    max: NonZeroU32,
}

/// The pool settings cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolSettingsError {
    /// `max` is 0, so that nothing could ever connect.
    #[error("max is 0; a pool needs at least one connection")]
    ZeroMax,
    /// `min` is larger than `max`.
    #[error("min is larger than max; keep min at or below max")]
    MinAboveMax,
}

impl PoolSettings {
    /// Between `min` idle connections kept and `max` at most.
    ///
    /// # Errors
    /// When `max` is 0 or `min` is larger than `max`.
    pub fn new(min: u32, max: u32) -> Result<Self, PoolSettingsError> {
        let max = NonZeroU32::new(max).ok_or(PoolSettingsError::ZeroMax)?;
        if min > max.get() {
            return Err(PoolSettingsError::MinAboveMax);
        }
        Ok(Self { min, max })
    }

    /// Idle connections that are kept although nobody used them for a while. None is opened ahead of need.
    #[must_use]
    pub const fn min(self) -> u32 {
        self.min
    }

    /// Connections at most, counting those that are still closing.
    #[must_use]
    pub const fn max(self) -> NonZeroU32 {
        self.max
    }
}

impl Default for PoolSettings {
    /// None kept, 10 at most: what the systems that we come from used per tenant, and small enough that 10
    /// processes stay within the 100 connections of an unconfigured Postgres.
    fn default() -> Self {
        Self {
            min: 0,
            max: NonZeroU32::MIN.saturating_add(9),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPoolSettings {
    #[serde(default)]
    min: u32,
    max: u32,
}

impl TryFrom<RawPoolSettings> for PoolSettings {
    type Error = PoolSettingsError;

    fn try_from(raw: RawPoolSettings) -> Result<Self, PoolSettingsError> {
        Self::new(raw.min, raw.max)
    }
}

impl From<PoolSettings> for RawPoolSettings {
    fn from(settings: PoolSettings) -> Self {
        Self {
            min: settings.min,
            max: settings.max.get(),
        }
    }
}

/// For what a handle connects. Each role has a credential of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// The service's own work, under row-level security. The default, because it can do least harm.
    #[default]
    App,
    /// Work that row-level security would stop.
    Service,
    /// Reads alone.
    ReadOnly,
}

/// The text is not a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a role is app, service or read_only")]
pub struct UnknownRole;

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::App, Self::Service, Self::ReadOnly];

    /// The name used in text, SQL and JSON, and as the field that a credential is sealed for.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Service => "service",
            Self::ReadOnly => "read_only",
        }
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or(UnknownRole)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The credentials of one role: the one in use, and the one that a rotation has prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoleCredentials {
    /// In use.
    pub current: StoredCredential,
    /// Prepared, not yet in use.
    pub next: Option<StoredCredential>,
}

impl RoleCredentials {
    /// A credential in use and none prepared.
    #[must_use]
    pub const fn new(current: StoredCredential) -> Self {
        Self { current, next: None }
    }
}

/// A sealed credential as the control plane stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredCredential {
    /// Rises with every change of the credential.
    pub version: CredentialVersion,
    /// The sealed value.
    pub sealed: SealedText,
}

impl StoredCredential {
    /// A sealed credential.
    #[must_use]
    pub const fn new(version: CredentialVersion, sealed: SealedText) -> Self {
        Self { version, sealed }
    }
}

/// A sealed value in text form (`bp1.…`), kept as found. What opens it is the keyring.
///
/// `Debug` prints no byte of it: sealed is not public.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SealedText(Arc<str>);

impl SealedText {
    /// Takes the text as it is.
    #[must_use]
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SealedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealedText(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_settings_that_cannot_work_are_refused() {
        assert_eq!(PoolSettings::new(0, 0), Err(PoolSettingsError::ZeroMax));
        assert_eq!(PoolSettings::new(3, 2), Err(PoolSettingsError::MinAboveMax));
        assert!(PoolSettings::new(2, 2).is_ok());
    }

    #[test]
    fn pool_settings_read_the_json_that_others_store() {
        let settings: PoolSettings = serde_json::from_str(r#"{"min":2,"max":10}"#).unwrap();
        assert_eq!((settings.min(), settings.max().get()), (2, 10));
        let text = serde_json::from_str::<PoolSettings>(r#"{"min":3,"max":2}"#)
            .unwrap_err()
            .to_string();
        assert!(text.contains("min is larger than max"), "{text}");
    }

    #[test]
    fn endpoints_bracket_ipv6() {
        assert_eq!(Endpoint::new("::1", 5432).to_string(), "[::1]:5432");
        assert_eq!(Endpoint::new("db.example", 6432).to_string(), "db.example:6432");
    }
}
