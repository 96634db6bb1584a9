//! The credential sources that come with the crate.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;

use crate::{
    error::{Error, ErrorKind},
    secret::Credential,
    tenant::{CredentialVersion, DataSource, DataSourceId, Role},
};

use super::{CredentialSource, Login};

/// Credentials in plain form, kept in the memory of this process: for tests, and for the data source whose address comes
/// from the environment, because the control plane stores no credential of that one.
///
/// Cheap to clone; clones share their content. Whatever the record of a data source says is not looked at.
#[derive(Clone, Default)]
pub struct MemoryCredentials {
    known: Arc<RwLock<HashMap<(DataSourceId, Role), Known>>>,
}

#[derive(Clone)]
struct Known {
    version: CredentialVersion,
    credential: Credential,
}

impl MemoryCredentials {
    /// No credentials yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores the credential of a data source and role and returns its version, one above the one it replaces.
    pub fn set(&self, source: DataSourceId, role: Role, credential: Credential) -> CredentialVersion {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let version = known
            .get(&(source, role))
            .map_or(CredentialVersion::FIRST, |known| known.version.next());
        known.insert((source, role), Known { version, credential });
        version
    }

    fn look<T>(&self, source: &DataSource, role: Role, part: impl FnOnce(&Known) -> T) -> Result<T, Error> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known
            .get(&(source.id, role))
            .map(part)
            .ok_or_else(|| missing(source, role))
    }
}

impl fmt::Debug for MemoryCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCredentials").finish_non_exhaustive()
    }
}

#[async_trait]
impl CredentialSource for MemoryCredentials {
    fn version(&self, source: &DataSource, role: Role) -> Result<CredentialVersion, Error> {
        self.look(source, role, |known| known.version)
    }

    async fn open(&self, source: &DataSource, role: Role) -> Result<Login, Error> {
        self.look(source, role, |known| Login::new(known.credential.clone()))
    }
}

fn missing(source: &DataSource, role: Role) -> Error {
    Error::new(ErrorKind::MissingCredential { role }).detail(format!("data source {}", source.name))
}
