//! The keyring of a running process: where it is loaded from, how it is refreshed, and what becomes of failures.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot fail here should say so where it does"
)]
#![cfg(unix)]

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::Duration,
};

use biplane::{
    error::ErrorKind,
    keyring::{
        Distributed, KeyId, KeyMaterial, KeySource, KeyState, KeyWrapper, Keyring, KeyringError, KeyringFile,
        LiveKeyring, Refreshed, SourceError, Unused, WrapperError,
    },
    repository::CredentialSource,
    secret::Credential,
    tenant::{
        CredentialVersion, DataSource, DataSourceId, Location, Role, RoleCredentials, StoredCredential,
    },
    testing::{KeyServiceFault, MemoryKeyService, wait},
};
use secrecy::ExposeSecret;

struct Stored {
    directory: tempfile::TempDir,
}

impl Stored {
    fn new(keys: &KeyringFile) -> Self {
        let stored = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        KeyringFile::create(stored.path(), keys).unwrap();
        stored
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("keys.json")
    }

    fn source(&self) -> KeySource {
        KeySource::file(self.path())
    }

    fn edit<T>(&self, change: impl FnOnce(&mut KeyringFile) -> Result<T, KeyringError>) -> T {
        KeyringFile::edit(self.path(), change).unwrap()
    }

    fn overwrite(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
    }
}

fn material() -> KeyMaterial {
    KeyMaterial::generate().unwrap()
}

/// A service, and a file whose primary key it has wrapped.
async fn wrapped() -> (MemoryKeyService, Stored, KeyId) {
    let service = MemoryKeyService::new().unwrap();
    let key = material();
    let wrapped = service.wrap_key(key.id(), &key.to_bytes()).await.unwrap();
    let stored = Stored::new(&KeyringFile::wrapped(key.id(), &wrapped));
    (service, stored, key.id())
}

async fn add_wrapped(service: &MemoryKeyService, stored: &Stored) -> KeyId {
    let key = material();
    let wrapped = service.wrap_key(key.id(), &key.to_bytes()).await.unwrap();
    stored.edit(|keys| keys.add_wrapped(key.id(), &wrapped))
}

fn unwrapping(key: KeyId, failure: WrapperError) -> KeyringError {
    KeyringError::NotUnwrapped { key, failure }
}

#[tokio::test]
async fn a_refresh_takes_up_what_the_file_says() {
    let stored = Stored::new(&KeyringFile::new(material()));
    let live = LiveKeyring::load(stored.source()).await.unwrap();
    let first = live.current().primary();
    assert_eq!(live.refresh().await.unwrap(), Refreshed::Unchanged);

    let second = stored.edit(|keys| keys.add(material()));
    assert_eq!(live.refresh().await.unwrap(), Refreshed::Changed);
    assert_eq!(live.current().state(second), Some(KeyState::Pending));
    stored.edit(|keys| keys.promote(Distributed::confirmed_by_hand(second)));
    assert_eq!(live.refresh().await.unwrap(), Refreshed::Changed);
    assert_eq!(live.current().primary(), second);
    stored.edit(|keys| keys.disable(Unused::confirmed_by_hand(first)));
    live.refresh().await.unwrap();
    stored.edit(|keys| keys.enable(first));
    live.refresh().await.unwrap();
    assert_eq!(live.current().state(first), Some(KeyState::DecryptOnly));
}

#[tokio::test]
async fn a_refresh_that_fails_keeps_the_keys_and_says_so() {
    let stored = Stored::new(&KeyringFile::new(material()));
    let live = LiveKeyring::load(stored.source()).await.unwrap();
    let primary = live.current().primary();
    let whole = fs::read_to_string(stored.path()).unwrap();
    assert_eq!(live.health().failing, None);

    let another = KeyringFile::new(material()).to_text();
    for (text, error) in [
        ("", KeyringError::NoPrimary),
        (
            &whole[..whole.len() / 2],
            KeyringError::MalformedFile {
                line: Some(4),
                what: "it is not JSON",
            },
        ),
        // A keyring of another service, or one that lost its keys.
        (another.expose_secret(), KeyringError::KeyVanished(primary)),
    ] {
        stored.overwrite(text);
        assert_eq!(live.refresh().await.unwrap_err(), error);
        assert_eq!(live.current().primary(), primary);
        let health = live.health();
        assert_eq!(health.failing, Some(error));
        assert!(health.failing_for.is_some());
    }
    fs::set_permissions(stored.path(), Permissions::from_mode(0o644)).unwrap();
    let exposed = KeyringError::Source(SourceError::Exposed);
    assert_eq!(live.refresh().await.unwrap_err(), exposed);
    fs::remove_file(stored.path()).unwrap();
    assert!(live.refresh().await.is_err());
    assert_eq!(live.current().primary(), primary);

    stored.overwrite(&whole);
    fs::set_permissions(stored.path(), Permissions::from_mode(0o600)).unwrap();
    assert_eq!(live.refresh().await.unwrap(), Refreshed::Unchanged);
    assert_eq!(live.health().failing, None);
}

#[tokio::test]
async fn a_destroyed_key_does_not_come_back_into_a_running_process() {
    let stored = Stored::new(&KeyringFile::new(material()));
    let old = stored.edit(|keys| keys.add(material()));
    let backup = fs::read_to_string(stored.path()).unwrap();
    stored.edit(|keys| keys.disable(Unused::confirmed_by_hand(old)));
    stored.edit(|keys| keys.destroy(old, &old.to_string()));
    let live = LiveKeyring::load(stored.source()).await.unwrap();
    stored.overwrite(&backup);
    assert_eq!(live.refresh().await.unwrap_err(), KeyringError::KeyDestroyed(old));
    assert_eq!(live.current().state(old), Some(KeyState::Destroyed));
}

#[tokio::test]
async fn a_keyring_without_a_source_is_swapped_and_not_refreshed() {
    let keyring = || KeyringFile::new(material()).into_keyring().unwrap();
    let live = LiveKeyring::new(keyring());
    let refused = live.refresh().await.unwrap_err();
    assert_eq!(refused, KeyringError::Source(SourceError::NoSource));
    let next = keyring();
    let primary = next.primary();
    live.swap(next);
    assert_eq!(live.current().primary(), primary);
}

#[tokio::test(start_paused = true)]
async fn keys_are_kept_fresh_until_the_guard_is_dropped() {
    let stored = Stored::new(&KeyringFile::new(material()));
    let live = LiveKeyring::load(stored.source()).await.unwrap();
    let fresh = live.keep_fresh(LiveKeyring::REFRESH_EVERY);
    let second = stored.edit(|keys| keys.add(material()));
    tokio::time::sleep(LiveKeyring::REFRESH_EVERY + Duration::from_secs(1)).await;
    assert_eq!(live.current().state(second), Some(KeyState::Pending));

    drop(fresh);
    let third = stored.edit(|keys| keys.add(material()));
    tokio::time::sleep(LiveKeyring::REFRESH_EVERY * 3).await;
    assert_eq!(live.current().state(third), None);
}

#[tokio::test]
async fn wrapped_keys_open_what_they_sealed() {
    let (service, stored, id) = wrapped().await;
    let keyring = stored.source().unwrapping_with(service).load().await.unwrap();
    assert_eq!(keyring.primary(), id);
    let context = biplane::keyring::Context::new("p", "o", "f").unwrap();
    let sealed = keyring.seal(&context, b"x").unwrap();
    assert_eq!(keyring.open(&context, &sealed).unwrap().expose_secret(), b"x");
}

#[tokio::test]
async fn without_the_key_service_there_is_no_start() {
    let (service, stored, id) = wrapped().await;
    let source = stored.source().unwrapping_with(service.clone());
    let refused = stored.source().load().await.unwrap_err();
    assert_eq!(refused, KeyringError::NoKeyService(id));
    for (fault, error) in [
        (
            KeyServiceFault::Unavailable,
            unwrapping(id, WrapperError::Unavailable),
        ),
        (KeyServiceFault::Refused, unwrapping(id, WrapperError::Refused)),
        (KeyServiceFault::WrongKey, KeyringError::WrongKeyMaterial(id)),
        (KeyServiceFault::Short, KeyringError::WrongKeyMaterial(id)),
    ] {
        service.set_fault(fault);
        let refused = source.load().await.unwrap_err();
        assert_eq!(refused, error);
        assert!(refused.to_string().contains(&id.to_string()), "{refused}");
        assert_eq!(refused.key_id(), Some(id));
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_service_that_does_not_answer_is_given_up_in_time() {
    let (service, stored, id) = wrapped().await;
    add_wrapped(&service, &stored).await;
    let source = stored.source().unwrapping_with(service.clone());
    service.set_fault(KeyServiceFault::Hang);
    let begun = tokio::time::Instant::now();
    let refused = source.load().await.unwrap_err();
    assert!(
        matches!(
            refused,
            KeyringError::NotUnwrapped {
                failure: WrapperError::TimedOut,
                ..
            }
        ),
        "{refused} for one of two, {id} among them"
    );
    // Both were asked for at once.
    assert_eq!(begun.elapsed(), KeySource::UNWRAP_TIMEOUT);
}

#[tokio::test]
async fn a_refresh_unwraps_what_is_new_alone() {
    let (service, stored, first) = wrapped().await;
    let live = LiveKeyring::load(stored.source().unwrapping_with(service.clone()))
        .await
        .unwrap();
    assert_eq!(service.unwraps(), 1);
    live.refresh().await.unwrap();
    assert_eq!(service.unwraps(), 1);
    let second = add_wrapped(&service, &stored).await;
    live.refresh().await.unwrap();
    assert_eq!(service.unwraps(), 2);

    // Also while the service is down, an operator can promote and disable.
    service.set_fault(KeyServiceFault::Unavailable);
    stored.edit(|keys| keys.promote(Distributed::confirmed_by_hand(second)));
    stored.edit(|keys| keys.disable(Unused::confirmed_by_hand(first)));
    live.refresh().await.unwrap();
    assert_eq!(live.current().primary(), second);
    // To switch it on again, it has to be unwrapped again.
    stored.edit(|keys| keys.enable(first));
    let refused = live.refresh().await.unwrap_err();
    assert_eq!(refused, unwrapping(first, WrapperError::Unavailable));
    service.set_fault(KeyServiceFault::None);
    live.refresh().await.unwrap();
    assert_eq!(live.current().state(first), Some(KeyState::DecryptOnly));
}

/// The service's own key was rotated, and every key wrapped anew: a wrap that is wrong is found now, and not when the
/// process starts the next time.
#[tokio::test]
async fn a_wrap_that_has_changed_is_unwrapped_again() {
    let (service, stored, id) = wrapped().await;
    let live = LiveKeyring::load(stored.source().unwrapping_with(service.clone()))
        .await
        .unwrap();
    let other = material();
    let wrong = service.wrap_key(id, &other.to_bytes()).await.unwrap();
    stored.overwrite(KeyringFile::wrapped(id, &wrong).to_text().expose_secret());
    assert_eq!(
        live.refresh().await.unwrap_err(),
        KeyringError::WrongKeyMaterial(id)
    );
    assert_eq!(live.current().primary(), id);
}

#[tokio::test]
async fn a_failing_key_service_takes_no_keys_from_a_running_process() {
    let (service, stored, first) = wrapped().await;
    let live = LiveKeyring::load(stored.source().unwrapping_with(service.clone()))
        .await
        .unwrap();
    let second = add_wrapped(&service, &stored).await;
    for (fault, error) in [
        (
            KeyServiceFault::Unavailable,
            unwrapping(second, WrapperError::Unavailable),
        ),
        (
            KeyServiceFault::Refused,
            unwrapping(second, WrapperError::Refused),
        ),
        (KeyServiceFault::WrongKey, KeyringError::WrongKeyMaterial(second)),
    ] {
        service.set_fault(fault);
        assert_eq!(live.refresh().await.unwrap_err(), error);
        assert_eq!(live.current().primary(), first);
        assert_eq!(live.current().state(second), None);
        assert_eq!(live.health().failing, Some(error));
    }
}

/// Opening never waits for a key service.
#[tokio::test]
async fn requests_go_on_while_a_refresh_hangs() {
    let (service, stored, _) = wrapped().await;
    let live = LiveKeyring::load(stored.source().unwrapping_with(service.clone()))
        .await
        .unwrap();
    let second = add_wrapped(&service, &stored).await;
    service.set_fault(KeyServiceFault::Hang);
    let refresh = tokio::spawn({
        let live = live.clone();
        async move { live.refresh().await }
    });
    service.reached(2).await;
    let context = biplane::keyring::Context::new("p", "o", "f").unwrap();
    let sealed = live.current().seal(&context, b"x").unwrap();
    live.current().open(&context, &sealed).unwrap();
    service.set_fault(KeyServiceFault::None);
    assert_eq!(refresh.await.unwrap().unwrap(), Refreshed::Changed);
    assert_eq!(live.current().state(second), Some(KeyState::Pending));
}

fn data_source(keyring: &Keyring) -> DataSource {
    let mut source = DataSource::new(DataSourceId::new(), "east", Location::Memory);
    let login = Credential::new("app", "password".into()).unwrap();
    let sealed = keyring.seal_credential(source.id, Role::App, &login).unwrap();
    let stored = StoredCredential::new(CredentialVersion::FIRST, sealed);
    source.credentials.insert(Role::App, RoleCredentials::new(stored));
    source
}

/// Another process was faster: it seals under a key that this one has not heard of.
#[tokio::test(start_paused = true)]
async fn a_login_under_a_key_that_is_new_refreshes_the_keys_and_works() {
    let stored = Stored::new(&KeyringFile::new(material()));
    let late = LiveKeyring::load(stored.source()).await.unwrap();
    let new = stored.edit(|keys| keys.add(material()));
    stored.edit(|keys| keys.promote(Distributed::confirmed_by_hand(new)));
    let early = LiveKeyring::load(stored.source()).await.unwrap();
    let source = data_source(&early.current());
    tokio::time::advance(Duration::from_secs(2)).await;

    let login = late.login(&source, Role::App).await.unwrap();
    assert_eq!(login.credential.username(), "app");
    assert_eq!(late.current().primary(), new);
    assert_eq!(
        late.version(&source, Role::App).unwrap(),
        CredentialVersion::FIRST
    );
}

/// Many values under keys that nobody has do not keep a process reading its keys.
#[tokio::test(start_paused = true)]
async fn a_key_that_nobody_has_refreshes_once_a_second() {
    let (service, stored, _) = wrapped().await;
    let live = LiveKeyring::load(stored.source().unwrapping_with(service.clone()))
        .await
        .unwrap();
    let unknown = KeyringFile::new(material()).into_keyring().unwrap();
    let source = data_source(&unknown);
    // Each refresh that is tried is seen at the service, which refuses this key.
    add_wrapped(&service, &stored).await;
    service.set_fault(KeyServiceFault::Refused);
    for second in 1..=3 {
        tokio::time::advance(Duration::from_millis(1100)).await;
        for _ in 0..100 {
            let error = live.login(&source, Role::App).await.unwrap_err();
            let key = Some(unknown.primary());
            assert_eq!(error.kind(), ErrorKind::CredentialUnreadable { key });
        }
        assert_eq!(service.unwraps(), 1 + second);
    }
}

/// Of a hundred connections that are made at once, one reads the keys.
#[tokio::test]
async fn logins_at_once_share_a_refresh() {
    let (service, stored, _) = wrapped().await;
    let live = LiveKeyring::load(stored.source().unwrapping_with(service.clone()))
        .await
        .unwrap();
    let new = add_wrapped(&service, &stored).await;
    stored.edit(|keys| keys.promote(Distributed::confirmed_by_hand(new)));
    let ahead = stored
        .source()
        .unwrapping_with(service.clone())
        .load()
        .await
        .unwrap();
    let source = data_source(&ahead);
    let asked = service.unwraps();
    wait::until(
        "the keys may be refreshed again",
        Duration::from_secs(60),
        async || live.login(&source, Role::App).await.is_ok(),
    )
    .await
    .unwrap();
    let logins = (0..100).map(|_| live.login(&source, Role::App));
    for login in futures_util::future::join_all(logins).await {
        login.unwrap();
    }
    assert_eq!(service.unwraps(), asked + 1);
}
