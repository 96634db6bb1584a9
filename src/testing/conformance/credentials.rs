//! What a [`TenantAdmin`](crate::repository::TenantAdmin) and a
//! [`CredentialStore`](crate::repository::CredentialStore) must do with sealed credentials.

use super::{
    Backend,
    support::{NEW_KEY, OLD_KEY, World, at_most, by, expect_kind, find_one, sealed, sealed_under},
};
use crate::{
    error::{Error, ErrorKind},
    repository::{
        Actor, ChangeKind, CredentialPlace,
        CredentialSlot::{self, Current, Next},
        Reseal,
        ResealOutcome::{self, Changed, Replaced},
        Subject,
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

/// A credential that is sealed anew is the same login: its version stays, others stay as they are, and the next one that is
/// stored counts on.
pub async fn a_resealed_credential_keeps_its_version(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant("acme", east).await;
    let first = set(&world, east, Role::App, Current, None, 'a')
        .await
        .expect("a sealed value is accepted");
    let second = set(&world, east, Role::App, Next, None, 'b')
        .await
        .expect("a sealed value is accepted");
    for (slot, mark) in [(Current, 'a'), (Next, 'b')] {
        assert_eq!(reseal(&world, east, slot, mark, 'z').await, [Replaced]);
    }
    let source = source_of(&world, TenantRef::Id(acme.id)).await;
    let stored = &source.credentials[&Role::App];
    let next = stored.next.as_ref().expect("it was prepared");
    assert_eq!(
        (stored.current.version, &stored.current.sealed),
        (first, &sealed_under(NEW_KEY, 'z'))
    );
    assert_eq!(
        (next.version, &next.sealed),
        (second, &sealed_under(NEW_KEY, 'z'))
    );
    let third = set(&world, east, Role::App, Current, Some(first), 'c')
        .await
        .expect("the version is what it was");
    assert_eq!(third, second.next());
}

/// The version of the data source rises with each credential that is sealed anew, so that routers take up the new text.
pub async fn a_reseal_raises_the_version_of_the_source(backend: &dyn Backend) {
    let world = World::of(backend);
    let (east, west) = (world.source("east").await, world.source("west").await);
    for source in [east, west] {
        set(&world, source, Role::App, Current, None, 'a')
            .await
            .expect("a sealed value is accepted");
    }
    let version = async |name| {
        let source = world.admin.source(name).await.expect("it answers");
        source.expect("it exists").version
    };
    let before = (version("east").await, version("west").await);
    assert_eq!(reseal(&world, east, Current, 'a', 'z').await, [Replaced]);
    assert!(version("east").await > before.0);
    assert_eq!(version("west").await, before.1);
    let raised = version("east").await;
    assert_eq!(reseal(&world, east, Current, 'a', 'y').await, [Changed]);
    assert_eq!(version("east").await, raised, "nothing was replaced");
}

/// Where the slot no longer holds what was read, it stays as it is, the rest of the batch is replaced, and the outcomes say
/// so in the order of the batch.
pub async fn a_reseal_leaves_what_was_changed_meanwhile(backend: &dyn Backend) {
    let world = World::of(backend);
    let (east, west) = (world.source("east").await, world.source("west").await);
    for source in [east, west] {
        let first = set(&world, source, Role::App, Current, None, 'a').await;
        if source == west {
            let first = first.expect("a sealed value is accepted");
            set(&world, source, Role::App, Current, Some(first), 'n')
                .await
                .expect("a sealed value is accepted");
        }
    }
    let place = |source, role, slot| CredentialPlace::new(source, role, slot);
    let anew = |place, before, after| Reseal::new(place, sealed(before), sealed_under(NEW_KEY, after));
    let batch = [
        anew(place(west, Role::App, Current), 'a', 'w'),
        anew(place(east, Role::App, Current), 'a', 'x'),
        anew(place(east, Role::App, Current), 'a', 'y'),
        anew(place(east, Role::App, Next), 'a', 'z'),
        anew(place(east, Role::Service, Current), 'a', 'z'),
        anew(place(DataSourceId::new(), Role::App, Current), 'a', 'z'),
        anew(place(west, Role::App, Current), 'n', 'v'),
    ];
    let outcomes = world.credentials.reseal_credentials(&by(), &batch).await;
    assert_eq!(
        outcomes.expect("the batch is taken"),
        [Changed, Replaced, Changed, Changed, Changed, Changed, Replaced]
    );
    for (name, mark) in [("east", 'x'), ("west", 'v')] {
        let source = world.admin.source(name).await.expect("it answers");
        let stored = &source.expect("it exists").credentials;
        assert_eq!(stored.len(), 1);
        assert_eq!(stored[&Role::App].current.sealed, sealed_under(NEW_KEY, mark));
        assert_eq!(stored[&Role::App].next, None);
    }
    let nothing = world.credentials.reseal_credentials(&by(), &[]).await;
    assert_eq!(nothing.expect("an empty batch is taken"), []);
}

/// A batch by nobody, or with a text in it that is not sealed, is refused as a whole.
pub async fn a_reseal_that_cannot_be_changes_nothing(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    for role in [Role::App, Role::Service] {
        set(&world, east, role, Current, None, 'a')
            .await
            .expect("a sealed value is accepted");
    }
    let before = world.admin.source("east").await.expect("it answers");
    let anew = |role, after| Reseal::new(CredentialPlace::new(east, role, Current), sealed('a'), after);
    let good = anew(Role::App, sealed_under(NEW_KEY, 'z'));
    for text in ["canary-password", "", "bp1.0123456789abcdef.canary", "can\0ary"] {
        let batch = [good.clone(), anew(Role::Service, SealedText::new(text))];
        let refused = world.credentials.reseal_credentials(&by(), &batch).await;
        let error = refused.expect_err("plaintext is refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(!format!("{error} {error:?}").contains("canary"));
    }
    for nobody in [Actor::new("", "a test"), Actor::new("somebody", " ")] {
        let refused = world
            .credentials
            .reseal_credentials(&nobody, std::slice::from_ref(&good))
            .await;
        expect_kind(refused, ErrorKind::InvalidInput);
    }
    assert_eq!(world.admin.source("east").await.expect("it answers"), before);
}

/// The audit names both keys of a credential that was sealed anew, and the change log says that a credential changed.
pub async fn a_reseal_is_audited_by_key_and_logged(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    set(&world, east, Role::App, Current, None, 'a')
        .await
        .expect("a sealed value is accepted");
    let head = backend.changes().head().await.expect("it answers");
    assert_eq!(reseal(&world, east, Current, 'a', 'z').await, [Replaced]);
    assert_eq!(reseal(&world, east, Current, 'a', 'z').await, [Changed]);
    let entries = world.admin.audit(None, at_most(2)).await.expect("it answers");
    assert_eq!(
        entries[0].changed,
        serde_json::json!({ "credential.app.current.key": { "before": OLD_KEY, "after": NEW_KEY } })
    );
    assert_eq!(
        (&*entries[0].actor, entries[0].source),
        ("conformance", Some(east))
    );
    let first = serde_json::json!({ "credential.app.current": { "before": null, "after": 1 } });
    assert_eq!(entries[1].changed, first, "one entry for one replacement");
    let text = format!("{entries:?}");
    assert!(!text.contains("bp1.") && !text.contains("zzzz"));
    let changes = backend.changes().since(head.seq, at_most(10)).await;
    let changes: Vec<_> = changes
        .expect("it answers")
        .changes
        .iter()
        .map(|change| (change.subject, change.kind))
        .collect();
    assert_eq!(changes, [(Subject::Source(east), ChangeKind::Credential)]);
}

/// Page after page gives every sealed credential once, in one order, whatever the size of the pages, with its version and
/// the name of its data source.
pub async fn pages_of_sealed_credentials_have_each_one_once(backend: &dyn Backend) {
    let world = World::of(backend);
    let after_nothing = world.credentials.sealed_credentials(None, at_most(10)).await;
    assert_eq!(after_nothing.expect("it answers"), []);
    let mut expected = Vec::new();
    for n in 0..3 {
        let name = format!("source-{n}");
        let source = world.source(&name).await;
        for role in Role::ALL {
            for (slot, mark) in [(Current, 'a'), (Next, 'b')] {
                let version = set(&world, source, role, slot, None, mark)
                    .await
                    .expect("a sealed value is accepted");
                expected.push((
                    CredentialPlace::new(source, role, slot),
                    name.clone(),
                    version,
                    sealed(mark),
                ));
            }
        }
    }
    world.source("empty").await;
    expected.sort_by_key(|(place, ..)| *place);
    let roles: Vec<_> = expected.iter().map(|(place, ..)| place.role).collect();
    assert_eq!(
        roles[..6],
        [
            Role::App,
            Role::App,
            Role::ReadOnly,
            Role::ReadOnly,
            Role::Service,
            Role::Service
        ]
    );
    for size in [1, 2, 3, 5, 6, 7, 17, 18, 19] {
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let page = world.credentials.sealed_credentials(after, at_most(size)).await;
            let page = page.expect("it answers");
            assert!(page.len() <= size as usize);
            let Some(last) = page.last() else { break };
            after = Some(last.place);
            seen.extend(page.into_iter().map(|held| {
                (
                    held.place,
                    held.source_name.to_string(),
                    held.version,
                    held.sealed,
                )
            }));
        }
        assert_eq!(seen, expected, "pages of {size}");
    }
}

/// Who opens a credential gets what is stored, and is in the audit with the version and the key, before. Nothing has
/// changed: no version rises, and the change log says nothing.
pub async fn an_opening_is_audited_and_changes_nothing(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let role = Role::Service;
    let first = set(&world, east, role, Current, None, 'a').await;
    let first = first.expect("a sealed value is accepted");
    let second = set(&world, east, role, Next, None, 'b').await;
    let second = second.expect("a sealed value is accepted");
    let before = (
        world.admin.source("east").await.expect("it answers"),
        backend.changes().head().await.expect("it answers"),
    );
    for (slot, version, mark) in [(Current, first, 'a'), (Next, second, 'b')] {
        let place = CredentialPlace::new(east, role, slot);
        let who = Actor::new("ann", "INC-7: which login is it?");
        let opened = world.credentials.record_opening(&who, place).await;
        let opened = opened.expect("it is there");
        assert_eq!((opened.place, opened.version), (place, version));
        assert_eq!((&*opened.source_name, opened.sealed), ("east", sealed(mark)));
        let audit = world.admin.audit(None, at_most(1)).await.expect("it answers");
        assert_eq!((&audit[0].actor, &audit[0].reason), (&who.name, &who.reason));
        assert_eq!((audit[0].tenant, audit[0].source), (None, Some(east)));
        let fact = format!("credential.service.{}.opened", slot.as_str());
        assert_eq!(
            audit[0].changed,
            serde_json::json!({ fact: { "version": version, "key": OLD_KEY } })
        );
    }
    let after = (
        world.admin.source("east").await.expect("it answers"),
        backend.changes().head().await.expect("it answers"),
    );
    assert_eq!(after, before);
}

/// What is not there is not opened, nobody opens without saying who and why, and neither is in the audit.
pub async fn an_opening_of_nothing_or_by_nobody_is_refused(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let stored = set(&world, east, Role::App, Current, None, 'a').await;
    stored.expect("a sealed value is accepted");
    let before = world.admin.audit(None, at_most(100)).await.expect("it answers");
    let app = CredentialPlace::new(east, Role::App, Current);
    let elsewhere = DataSourceId::new();
    let missing = |role| ErrorKind::MissingCredential { role };
    for (by, place, kind) in [
        (Actor::new("", "why"), app, ErrorKind::InvalidInput),
        (Actor::new("ann", " "), app, ErrorKind::InvalidInput),
        (
            by(),
            CredentialPlace::new(east, Role::App, Next),
            missing(Role::App),
        ),
        (
            by(),
            CredentialPlace::new(east, Role::Service, Current),
            missing(Role::Service),
        ),
        (
            by(),
            CredentialPlace::new(elsewhere, Role::App, Current),
            ErrorKind::UnknownDataSource,
        ),
    ] {
        expect_kind(world.credentials.record_opening(&by, place).await, kind);
    }
    let after = world.admin.audit(None, at_most(100)).await.expect("it answers");
    assert_eq!(after, before);
}

/// Seals a credential of the role `App` anew, under the new key.
async fn reseal(
    world: &World,
    source: DataSourceId,
    slot: CredentialSlot,
    before: char,
    after: char,
) -> Vec<ResealOutcome> {
    let place = CredentialPlace::new(source, Role::App, slot);
    let anew = Reseal::new(place, sealed(before), sealed_under(NEW_KEY, after));
    let outcomes = world.credentials.reseal_credentials(&by(), &[anew]).await;
    outcomes.expect("the batch is taken")
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
