//! The credentials of the control plane.

use std::{num::NonZeroU32, sync::Arc};

use biplane::{
    keyring::{Keyring, KeyringError},
    repository::{Actor, CredentialSlot, CredentialStore, MemoryControl, NewSource, TenantAdmin},
    rotation::{Reseal, SealedStore, StoredCredentials, doctor},
    secret::Credential,
    tenant::{DataSource, DataSourceId, Location, Role},
};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    control,
    sealed::{Keys, incomplete},
};

fn by() -> Actor {
    Actor::new("ann", "rotation")
}

/// A data source with a current and a next credential for two roles.
async fn source(admin: &dyn TenantAdmin, keyring: &Keyring, name: &str) -> DataSource {
    let source = admin
        .create_source(&by(), NewSource::new(name, Location::Memory))
        .await
        .unwrap();
    for role in [Role::App, Role::Service] {
        for slot in [CredentialSlot::Current, CredentialSlot::Next] {
            set(admin, keyring, source.id, role, slot, &password(name, role, slot)).await;
        }
    }
    admin.source(name).await.unwrap().unwrap()
}

fn password(name: &str, role: Role, slot: CredentialSlot) -> String {
    format!("{name} {role} {}", slot.as_str())
}

async fn set(
    admin: &dyn TenantAdmin,
    keyring: &Keyring,
    source: DataSourceId,
    role: Role,
    slot: CredentialSlot,
    password: &str,
) {
    let login = Credential::new("app", SecretString::from(password)).unwrap();
    let sealed = keyring.seal_credential(source, role, &login).unwrap();
    admin
        .set_credential(&by(), source, role, slot, None, sealed)
        .await
        .unwrap();
}

async fn memory() -> Arc<MemoryControl> {
    Arc::new(MemoryControl::new())
}

async fn postgres() -> Arc<biplane::repository::PgTenantAdmin> {
    Arc::new(control::postgres().await.pg_admin())
}

async fn come_under_the_primary_key_as_what_they_were<S: CredentialStore + TenantAdmin>(store: Arc<S>) {
    let keys = Keys::new();
    let mut sources = Vec::new();
    for name in ["east", "west", "north"] {
        sources.push(source(&*store, &keys.before, name).await);
    }
    let credentials = Arc::new(StoredCredentials::new(Arc::clone(&store), by()));
    let mut job = Reseal::new(keys.after.clone())
        .store(Arc::clone(&credentials))
        .page(NonZeroU32::new(5).unwrap());
    let report = job.run().await.unwrap();
    assert_eq!((report.done(), &*report.stores[0].store), (12, "credentials"));
    assert_eq!(job.run().await.unwrap().done(), 0);
    let census = credentials.census().await.unwrap();
    assert_eq!((census.under(keys.new), census.total()), (12, 12));

    let only_new = crate::sealed::keyring(&[(&keys.hex[1], biplane::keyring::KeyState::Primary)]);
    for before in sources {
        let after = store.source(&before.name).await.unwrap().unwrap();
        for (role, held) in &after.credentials {
            let next = held.next.as_ref().unwrap();
            for (slot, stored) in [
                (CredentialSlot::Current, &held.current),
                (CredentialSlot::Next, next),
            ] {
                let login = only_new.open_credential(after.id, *role, &stored.sealed).unwrap();
                let expected = password(&before.name, *role, slot);
                assert_eq!(login.password().unwrap().expose_secret(), expected);
            }
            let known = &before.credentials[role];
            assert_eq!(held.current.version, known.current.version);
        }
    }
}

async fn that_were_swapped_are_named<S: CredentialStore + TenantAdmin>(store: Arc<S>) {
    let keys = Keys::new();
    let east = source(&*store, &keys.before, "east").await;
    source(&*store, &keys.before, "west").await;
    let of_app = east.credentials[&Role::App].current.sealed.clone();
    let version = east.credentials[&Role::Service]
        .next
        .as_ref()
        .map(|held| held.version);
    let service = CredentialSlot::Next;
    store
        .set_credential(&by(), east.id, Role::Service, service, version, of_app)
        .await
        .unwrap();

    let credentials = Arc::new(StoredCredentials::new(Arc::clone(&store), by()));
    let diagnosis = doctor(&keys.after, &[&credentials]).await.unwrap();
    let found = &diagnosis.stores[0];
    assert_eq!((found.values, found.failed, found.failures.len()), (8, 1, 1));
    let failure = &found.failures[0];
    assert_eq!(&*failure.owner, east.id.to_string());
    assert_eq!(&*failure.field, "service (next) of east");
    assert_eq!(failure.error, KeyringError::Authentication(keys.old));

    let report = incomplete(Reseal::new(keys.after.clone()).store(credentials).run().await);
    assert_eq!((report.done(), report.failed(), report.busy()), (7, 1, 0));
}

async fn are_left_by_a_dry_run<S: CredentialStore + TenantAdmin>(store: Arc<S>) {
    let keys = Keys::new();
    source(&*store, &keys.before, "east").await;
    let credentials = Arc::new(StoredCredentials::new(Arc::clone(&store), by()));
    let mut job = Reseal::new(keys.after.clone())
        .store(Arc::clone(&credentials))
        .dry_run();
    assert_eq!(job.run().await.unwrap().done(), 4);
    assert_eq!(credentials.census().await.unwrap().under(keys.old), 4);
}

macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod in_memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::memory().await).await;
            })+
        }

        mod on_postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::postgres().await).await;
            })+
        }
    };
}

on_both!(
    come_under_the_primary_key_as_what_they_were,
    that_were_swapped_are_named,
    are_left_by_a_dry_run,
);
