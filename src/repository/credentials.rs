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

    /// The login itself. Called when a connection is made, and wiped by the caller afterwards.
    ///
    /// # Errors
    /// [`MissingCredential`](crate::error::ErrorKind::MissingCredential), or
    /// [`CredentialUnreadable`](crate::error::ErrorKind::CredentialUnreadable) when it does not open.
    ///
    /// # Cancel safety
    /// Must be safe: nothing may be lost when the caller leaves.
    async fn login(&self, source: &DataSource, role: Role) -> Result<Login, Error>;
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
}
