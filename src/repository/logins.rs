//! The credential sources that come with the crate.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;

use crate::{
    error::{Error, ErrorKind},
    keyring::{Fingerprint, Fingerprints, Keyring, KeyringError, LiveKeyring},
    secret::Credential,
    tenant::{CredentialVersion, DataSource, DataSourceId, Role, StoredCredential},
};

use super::{CredentialSource, Login};

/// Opens the credentials that the control plane stores, with the keys of this process.
///
/// A credential stays sealed until a connection is made. The version is that of the record's current credential, so a
/// rotation is noticed as soon as the record is.
#[async_trait]
impl CredentialSource for Keyring {
    fn version(&self, source: &DataSource, role: Role) -> Result<CredentialVersion, Error> {
        stored(source, role).map(|stored| stored.version)
    }

    async fn login(&self, source: &DataSource, role: Role) -> Result<Login, Error> {
        self.open_credential(source.id, role, &stored(source, role)?.sealed)
            .map(Login::new)
            .map_err(|error| unreadable(&source.name, role, error))
    }

    async fn next_login(&self, source: &DataSource, role: Role) -> Result<Option<Login>, Error> {
        let Some(next) = prepared(source, role) else {
            return Ok(None);
        };
        self.open_credential(source.id, role, &next.sealed)
            .map(|credential| Some(Login::new(credential)))
            .map_err(|error| unreadable(&source.name, role, error))
    }
}

/// Opens with the keys of the moment. A key that is unknown here may have been added where the keys come from: then the
/// keys are refreshed, at most once a second, and the credential is tried once more.
#[async_trait]
impl CredentialSource for LiveKeyring {
    fn version(&self, source: &DataSource, role: Role) -> Result<CredentialVersion, Error> {
        stored(source, role).map(|stored| stored.version)
    }

    async fn login(&self, source: &DataSource, role: Role) -> Result<Login, Error> {
        open_live(self, source, role, stored(source, role)?).await
    }

    async fn next_login(&self, source: &DataSource, role: Role) -> Result<Option<Login>, Error> {
        match prepared(source, role) {
            Some(next) => open_live(self, source, role, next).await.map(Some),
            None => Ok(None),
        }
    }
}

async fn open_live(
    keys: &LiveKeyring,
    source: &DataSource,
    role: Role,
    stored: &StoredCredential,
) -> Result<Login, Error> {
    let open = || keys.current().open_credential(source.id, role, &stored.sealed);
    let opened = match open() {
        Err(KeyringError::UnknownKey(id) | KeyringError::KeyDisabled(id)) if keys.refresh_for(id).await => {
            open()
        }
        opened => opened,
    };
    opened
        .map(Login::new)
        .map_err(|error| unreadable(&source.name, role, error))
}

fn prepared(source: &DataSource, role: Role) -> Option<&StoredCredential> {
    source.credentials.get(&role)?.next.as_ref()
}

fn stored(source: &DataSource, role: Role) -> Result<&StoredCredential, Error> {
    source
        .credentials
        .get(&role)
        .map(|credentials| &credentials.current)
        .ok_or_else(|| missing(source, role))
}

pub(super) fn unreadable(source: &str, role: Role, error: KeyringError) -> Error {
    let key = match &error {
        KeyringError::UnknownKey(key)
        | KeyringError::KeyDisabled(key)
        | KeyringError::KeyDestroyed(key)
        | KeyringError::Authentication(key) => Some(*key),
        _ => None,
    };
    Error::new(ErrorKind::CredentialUnreadable { key })
        .detail(format!("data source {source}, role {role}"))
        .caused_by(error)
}

/// Credentials in plain form, kept in the memory of this process: for tests, and for the data source whose address comes
/// from the environment, because the control plane stores no credential of that one.
///
/// Cheap to clone; clones share their content. Whatever the record of a data source says is not looked at.
#[derive(Clone)]
pub struct MemoryCredentials {
    known: Arc<RwLock<HashMap<(DataSourceId, Role), Known>>>,
    /// `None` when the system gave no random numbers: then every credential counts as another one, which costs
    /// connections and never leaves an old login in use.
    fingerprints: Option<Arc<Fingerprints>>,
}

#[derive(Clone)]
struct Known {
    version: CredentialVersion,
    fingerprint: Option<Fingerprint>,
    credential: Credential,
}

impl MemoryCredentials {
    /// No credentials yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            known: Arc::default(),
            fingerprints: Fingerprints::new().ok().map(Arc::new),
        }
    }

    /// Stores the credential of a data source and role and returns its version, one above the one it replaces. The very
    /// same credential keeps its version, so that pools go on with the connections that they have.
    pub fn set(&self, source: DataSourceId, role: Role, credential: Credential) -> CredentialVersion {
        let fingerprint = self.fingerprints.as_ref().map(|prints| prints.of(&credential));
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let version = match known.get(&(source, role)) {
            None => CredentialVersion::FIRST,
            Some(before) if is_same(before.fingerprint, fingerprint) => return before.version,
            Some(before) => before.version.next(),
        };
        let now = Known {
            version,
            fingerprint,
            credential,
        };
        known.insert((source, role), now);
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

fn is_same(before: Option<Fingerprint>, now: Option<Fingerprint>) -> bool {
    if cfg!(biplane_mutant = "same_credentials_are_new") {
        return false;
    }
    before.is_some() && before == now
}

impl Default for MemoryCredentials {
    fn default() -> Self {
        Self::new()
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

    async fn login(&self, source: &DataSource, role: Role) -> Result<Login, Error> {
        self.look(source, role, |known| Login::new(known.credential.clone()))
    }
}

fn missing(source: &DataSource, role: Role) -> Error {
    Error::new(ErrorKind::MissingCredential { role }).detail(format!("data source {}", source.name))
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use secrecy::{ExposeSecret, SecretString};

    use super::*;
    use crate::{
        keyring::{KeyMaterial, KeyState},
        tenant::{Location, RoleCredentials, SealedText},
    };

    fn keyring(byte: u8) -> Keyring {
        let bytes: Vec<u8> = (0..32u8).map(|n| n.wrapping_mul(37).wrapping_add(byte)).collect();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let material = KeyMaterial::parse(&hex).unwrap();
        Keyring::builder()
            .key(material, KeyState::Primary)
            .build()
            .unwrap()
    }

    fn login() -> Credential {
        Credential::new("app", SecretString::from("canary-pass")).unwrap()
    }

    fn source_with(version: u64, sealed: SealedText) -> DataSource {
        let mut source = DataSource::new(DataSourceId::new(), "east", Location::Memory);
        let stored = StoredCredential::new(CredentialVersion::new(version), sealed);
        source.credentials.insert(Role::App, RoleCredentials::new(stored));
        source
    }

    #[tokio::test]
    async fn a_credential_opens_for_its_own_data_source_and_role_alone() {
        let keys = keyring(1);
        let credentials = keys.clone();
        let mut source = source_with(7, SealedText::new(""));
        let sealed = keys.seal_credential(source.id, Role::App, &login()).unwrap();
        source = DataSource {
            id: source.id,
            ..source_with(7, sealed.clone())
        };
        assert_eq!(
            credentials.version(&source, Role::App).unwrap(),
            CredentialVersion::new(7)
        );
        let opened = credentials.login(&source, Role::App).await.unwrap().credential;
        assert_eq!(opened.username(), "app");
        assert_eq!(opened.password().unwrap().expose_secret(), "canary-pass");

        let elsewhere = source_with(1, sealed.clone());
        let error = credentials.login(&elsewhere, Role::App).await.unwrap_err();
        let key = Some(keys.primary());
        assert_eq!(error.kind(), ErrorKind::CredentialUnreadable { key });

        let stored = source.credentials[&Role::App].clone();
        source.credentials.insert(Role::Service, stored);
        let error = credentials.login(&source, Role::Service).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CredentialUnreadable { key });
        let texts = format!("{error} {error:?} {}", error.source().unwrap());
        assert!(!texts.contains("canary") && !texts.contains(sealed.as_str()));
    }

    #[tokio::test]
    async fn a_missing_key_is_named_and_a_missing_credential_too() {
        let source = source_with(1, SealedText::new(""));
        let others = keyring(2);
        let sealed = others.seal_credential(source.id, Role::App, &login()).unwrap();
        let source = DataSource {
            id: source.id,
            ..source_with(1, sealed)
        };
        let credentials = keyring(1);
        let error = credentials.login(&source, Role::App).await.unwrap_err();
        let key = Some(others.primary());
        assert_eq!(error.kind(), ErrorKind::CredentialUnreadable { key });
        assert!(error.to_string().contains(&others.primary().to_string()));
        let role = Role::ReadOnly;
        let missing = ErrorKind::MissingCredential { role };
        assert_eq!(credentials.version(&source, role).unwrap_err().kind(), missing);
        assert_eq!(
            credentials.login(&source, role).await.unwrap_err().kind(),
            missing
        );
    }

    #[tokio::test]
    async fn a_plain_credential_has_a_new_version_when_it_is_replaced() {
        let credentials = MemoryCredentials::new();
        let source = source_with(9, SealedText::new(""));
        let missing = ErrorKind::MissingCredential { role: Role::App };
        assert_eq!(
            credentials.version(&source, Role::App).unwrap_err().kind(),
            missing
        );
        let first = credentials.set(source.id, Role::App, login());
        let shared = credentials.clone();
        let second = shared.set(
            source.id,
            Role::App,
            Credential::without_password("peer").unwrap(),
        );
        assert!(second > first);
        assert_eq!(credentials.version(&source, Role::App).unwrap(), second);
        let opened = credentials.login(&source, Role::App).await.unwrap().credential;
        assert_eq!(opened.username(), "peer");
        assert!(!format!("{credentials:?}").contains("peer"));
    }

    #[test]
    fn the_very_same_credential_keeps_its_version_and_any_other_does_not() {
        let credentials = MemoryCredentials::new();
        let source = DataSourceId::new();
        let set = |user: &str, password: Option<&str>| {
            let credential = match password {
                Some(password) => Credential::new(user, SecretString::from(password)),
                None => Credential::without_password(user),
            };
            credentials.set(source, Role::App, credential.unwrap())
        };
        let first = set("app", Some("one"));
        assert_eq!(set("app", Some("one")), first);
        let mut last = first;
        // In turn another password, another user, none, an empty one, and back to the first.
        for (user, password) in [
            ("app", Some("two")),
            ("svc", Some("two")),
            ("svc", None),
            ("svc", Some("")),
            ("app", Some("one")),
        ] {
            let version = set(user, password);
            assert!(version > last, "{user} {password:?} is a change");
            assert_eq!(set(user, password), version);
            last = version;
        }
        let one = || Credential::new("app", SecretString::from("one")).unwrap();
        assert_eq!(
            credentials.set(source, Role::Service, one()),
            CredentialVersion::FIRST,
            "another role's is not looked at"
        );
    }
}
