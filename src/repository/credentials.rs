//! Opening credentials.

use std::{fmt::Debug, sync::Arc, time::SystemTime};

use async_trait::async_trait;

use crate::{
    error::Error,
    secret::Credential,
    tenant::{CredentialVersion, DataSource, Role},
};

/// Where the login for a data source and role comes from: a keyring that opens what the control plane stores, a secret
/// service, or an issuer of short-lived tokens.
#[async_trait]
pub trait CredentialSource: Debug + Send + Sync + 'static {
    /// Which credential is in use. Connections are pooled by it, so it must change when the credential does. Called for
    /// every checkout: no I/O, no allocation.
    ///
    /// # Errors
    /// [`MissingCredential`](crate::error::ErrorKind::MissingCredential) when there is none for this role.
    fn version(&self, source: &DataSource, role: Role) -> Result<CredentialVersion, Error>;

    /// The login itself. Called when a connection is made, and wiped by the caller afterwards, unless it expires: then it
    /// is kept, and asked for again when a quarter to a third of its life is left, 5 minutes at most. Until the first one
    /// has come it may be asked for several at once. When the next one is not to be had, the old one is used until it
    /// expires.
    ///
    /// # Errors
    /// [`MissingCredential`](crate::error::ErrorKind::MissingCredential), or
    /// [`CredentialUnreadable`](crate::error::ErrorKind::CredentialUnreadable) when it does not open.
    ///
    /// # Cancel safety
    /// Must be safe: nothing may be lost when the caller leaves.
    async fn login(&self, source: &DataSource, role: Role) -> Result<Login, Error>;

    /// The login that is to follow, if one is prepared. It is tried where the server has rejected the other, so that
    /// nobody fails when a password is changed at the server before it is here. None by default, which is right for
    /// whoever prepares none.
    ///
    /// # Errors
    /// As [`CredentialSource::login`]. It counts as none; what the server said of the other is what callers hear.
    ///
    /// # Cancel safety
    /// Must be safe.
    async fn next_login(&self, source: &DataSource, role: Role) -> Result<Option<Login>, Error> {
        let _ = (source, role);
        Ok(None)
    }
}

/// A shared one is one, so that a caller may keep a handle on what it gives to a router.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: CredentialSource + ?Sized> CredentialSource for Arc<T> {
    fn version(&self, source: &DataSource, role: Role) -> Result<CredentialVersion, Error> {
        T::version(self, source, role)
    }

    async fn login(&self, source: &DataSource, role: Role) -> Result<Login, Error> {
        T::login(self, source, role).await
    }

    async fn next_login(&self, source: &DataSource, role: Role) -> Result<Option<Login>, Error> {
        T::next_login(self, source, role).await
    }
}

/// Asks the servers of data sources about logins, for an operator who replaces one.
#[async_trait]
pub trait DataServers: Debug + Send + Sync + 'static {
    /// Logs in to a data source, as a service would for this role, and out again.
    ///
    /// # Errors
    /// [`CredentialRejected`](crate::error::ErrorKind::CredentialRejected) and whatever else keeps a service out.
    ///
    /// # Cancel safety
    /// Must be safe.
    async fn log_in(&self, source: &DataSource, role: Role, credential: &Credential) -> Result<(), Error>;

    /// How many sessions are logged in to the server of a data source as a database role, in whatever database.
    ///
    /// # Errors
    /// As [`DataServers::log_in`].
    ///
    /// # Cancel safety
    /// Must be safe.
    async fn sessions(
        &self,
        source: &DataSource,
        role: Role,
        credential: &Credential,
        user: &str,
    ) -> Result<u64, Error>;
}

/// A login, and until when it works.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Login {
    /// User and password.
    pub credential: Credential,
    /// When the server stops accepting it; `None` when it does not expire.
    pub expires_at: Option<SystemTime>,
}

impl Login {
    /// A login that does not expire.
    #[must_use]
    pub const fn new(credential: Credential) -> Self {
        Self {
            credential,
            expires_at: None,
        }
    }

    /// The same, until then.
    #[must_use]
    pub const fn expires_at(mut self, expires_at: SystemTime) -> Self {
        self.expires_at = Some(expires_at);
        self
    }
}
