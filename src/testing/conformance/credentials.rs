//! What a [`TenantAdmin`](crate::repository::TenantAdmin) must do with sealed credentials.

use super::{
    Backend,
    support::{World, at_most, by, expect_kind, find_one, sealed},
};
use crate::{
    error::{Error, ErrorKind},
    repository::{
        Actor,
        CredentialSlot::{self, Current, Next},
    },
    tenant::{CredentialVersion, DataSource, DataSourceId, Role, SealedText, TenantRef},
};

/// A stored credential is in the record of every tenant that is placed there, as it was given, for its role alone.
pub async fn a_credential_is_seen_through_the_tenants(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant("acme", east).await;
    let first = set(&world, east, Role::App, Current, None, 'a')
        .await
        .expect("a sealed value is accepted");
    let source = source_of(&world, TenantRef::Id(acme.id)).await;
    let stored = &source.credentials[&Role::App];
    assert_eq!(
        (stored.current.version, &stored.current.sealed),
        (first, &sealed('a'))
    );
    assert_eq!(stored.next, None);
    assert_eq!(source.credentials.len(), 1);
    let next = set(&world, east, Role::App, Next, None, 'b')
        .await
        .expect("a sealed value is accepted");
    let service = set(&world, east, Role::Service, Current, None, 'c')
        .await
        .expect("a sealed value is accepted");
    let source = source_of(&world, TenantRef::Id(acme.id)).await;
    let stored = &source.credentials[&Role::App];
    assert_eq!(
        (stored.current.version, &stored.current.sealed),
        (first, &sealed('a'))
    );
    let prepared = stored.next.as_ref().expect("it was prepared");
    assert_eq!((prepared.version, &prepared.sealed), (next, &sealed('b')));
    assert_eq!(source.credentials[&Role::Service].current.version, service);
    let by_name = world.admin.source("east").await.expect("it answers");
    assert_eq!(by_name, Some(source));
}

/// The version of a credential is above every version that its data source and role ever had, in either slot.
pub async fn versions_rise_across_the_slots(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let admin = async |slot, expected, mark| {
        set(&world, east, Role::App, slot, expected, mark)
            .await
            .expect("a sealed value is accepted")
    };
    let first = admin(Current, None, 'a').await;
    let second = admin(Next, None, 'b').await;
    let third = admin(Current, Some(first), 'c').await;
    let fourth = admin(Next, Some(second), 'd').await;
    let fifth = admin(Current, Some(third), 'c').await;
    assert_eq!(first, CredentialVersion::FIRST);
    for (lower, higher) in [(first, second), (second, third), (third, fourth), (fourth, fifth)] {
        assert_eq!(higher, lower.next());
    }
    let other = set(&world, east, Role::ReadOnly, Current, None, 'a')
        .await
        .expect("a sealed value is accepted");
    assert_eq!(other, CredentialVersion::FIRST, "roles count apart");
}

/// The version of the data source rises with each of its credentials, so that older copies of it are recognised.
pub async fn a_credential_raises_the_version_of_its_source(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let version = async || {
        let source = world.admin.source("east").await.expect("it answers");
        source.expect("it exists").version
    };
    let mut before = version().await;
    let mut expected = None;
    for mark in ['a', 'b'] {
        expected = Some(
            set(&world, east, Role::App, Current, expected, mark)
                .await
                .expect("a sealed value is accepted"),
        );
        let after = version().await;
        assert!(after > before, "{after} after {before}");
        before = after;
    }
}

/// Whoever expects another version in the slot than there is gets `VersionConflict`, and nothing changes.
pub async fn an_old_version_is_refused(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let first = set(&world, east, Role::App, Current, None, 'a')
        .await
        .expect("a sealed value is accepted");
    set(&world, east, Role::App, Current, Some(first), 'b')
        .await
        .expect("a sealed value is accepted");
    let before = world.admin.source("east").await.expect("it answers");
    let wrong = [
        (Current, None),
        (Current, Some(first)),
        (Current, Some(CredentialVersion::new(99))),
        (Next, Some(first)),
    ];
    for (slot, expected) in wrong {
        let result = set(&world, east, Role::App, slot, expected, 'c').await;
        expect_kind(result, ErrorKind::VersionConflict);
    }
    let empty = set(&world, east, Role::Service, Current, Some(first), 'c').await;
    expect_kind(empty, ErrorKind::VersionConflict);
    assert_eq!(world.admin.source("east").await.expect("it answers"), before);
}

/// A text that is not a sealed value is refused, and neither stored nor repeated.
pub async fn plaintext_is_refused(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let long = format!("bp1.0123456789abcdef.{}==", "A".repeat(98));
    for text in [
        "canary-password",
        "postgres://app:canary-password@db.example/acme",
        "AAAAAAAAAAAAAAAAAAAAAA==:AAAAAAAAAAAAAAAAAAAAAA==:canary-password",
        "bp1.canary-password",
        "bp1.0123456789abcdef.canary-password",
        &*long,
        "",
    ] {
        for slot in [Current, Next] {
            let sealed = SealedText::new(text);
            let result = world
                .admin
                .set_credential(&by(), east, Role::App, slot, None, sealed)
                .await;
            let error = result.expect_err("plaintext is refused");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(!format!("{error} {error:?}").contains("canary"));
        }
    }
    let source = world.admin.source("east").await.expect("it answers");
    assert!(source.expect("it exists").credentials.is_empty());
}

/// A credential cannot be prepared where none is in use, nor stored for a data source that does not exist, nor by nobody.
pub async fn a_credential_needs_its_place(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let next = set(&world, east, Role::App, Next, None, 'a').await;
    expect_kind(next, ErrorKind::InvalidInput);
    let nowhere = set(&world, DataSourceId::new(), Role::App, Current, None, 'a').await;
    expect_kind(nowhere, ErrorKind::UnknownDataSource);
    let nobody = Actor::new("somebody", "");
    let unexplained = world
        .admin
        .set_credential(&nobody, east, Role::App, Current, None, sealed('a'))
        .await;
    expect_kind(unexplained, ErrorKind::InvalidInput);
    let source = world.admin.source("east").await.expect("it answers");
    assert!(source.expect("it exists").credentials.is_empty());
}

/// The audit names a credential by role, slot and versions, and holds no part of it.
pub async fn the_audit_has_versions_only(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let first = set(&world, east, Role::ReadOnly, Current, None, 'x')
        .await
        .expect("a sealed value is accepted");
    let second = set(&world, east, Role::ReadOnly, Current, Some(first), 'y')
        .await
        .expect("a sealed value is accepted");
    let entries = world.admin.audit(None, at_most(2)).await.expect("it answers");
    let changed: Vec<_> = entries.iter().map(|entry| entry.changed.clone()).collect();
    let fact = "credential.read_only.current";
    assert_eq!(
        changed,
        [
            serde_json::json!({ fact: { "before": first, "after": second } }),
            serde_json::json!({ fact: { "before": null, "after": first } }),
        ]
    );
    assert!(entries.iter().all(|entry| entry.source == Some(east)));
    let all = world.admin.audit(None, at_most(1_000)).await.expect("it answers");
    let text = format!("{all:?}");
    assert!(!text.contains("bp1.") && !text.contains("xxxx") && !text.contains("yyyy"));
}

async fn set(
    world: &World,
    source: DataSourceId,
    role: Role,
    slot: CredentialSlot,
    expected: Option<CredentialVersion>,
    mark: char,
) -> Result<CredentialVersion, Error> {
    world
        .admin
        .set_credential(&by(), source, role, slot, expected, sealed(mark))
        .await
}

async fn source_of(world: &World, name: TenantRef<'_>) -> DataSource {
    let found = find_one(&*world.tenants, name).await;
    let found = found.expect("the record is readable").expect("it exists");
    (*found.record.source).clone()
}
