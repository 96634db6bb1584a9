//! What a [`TenantAdmin`](crate::repository::TenantAdmin) must do when a prepared credential comes into use.

use super::{
    Backend,
    support::{World, at_most, by, expect_kind, find_one, sealed},
};
use crate::{
    error::ErrorKind,
    repository::{
        Actor, ChangeKind,
        CredentialSlot::{self, Current, Next},
        Subject,
    },
    tenant::{CredentialVersion, DataSourceId, Role, RoleCredentials, TenantRef},
};

/// What was prepared is current afterwards, at a version above all others, and nothing is prepared any more; other roles
/// stay as they are, and the next credential that is stored counts on.
pub async fn what_was_prepared_is_in_use_after_its_promotion(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant("acme", east).await;
    let (current, next) = prepare(&world, east).await;
    let service = set(&world, east, Role::Service, Current, None, 's').await;
    let promoted = world
        .admin
        .promote_credential(&by(), east, Role::App, current, next)
        .await
        .expect("it is promoted");
    assert_eq!(promoted, next.next());
    let found = find_one(&*world.tenants, TenantRef::Id(acme.id)).await;
    let record = found.expect("the record is readable").expect("it exists").record;
    let stored = &record.source.credentials[&Role::App];
    assert_eq!(
        (stored.current.version, &stored.current.sealed, &stored.next),
        (promoted, &sealed('b'), &None)
    );
    assert_eq!(record.source.credentials[&Role::Service].current.version, service);
    let prepared = set(&world, east, Role::App, Next, None, 'c').await;
    assert_eq!(prepared, promoted.next());
}

/// It raises the version of the data source, and has one entry in the change log and one in the audit, with versions
/// alone.
pub async fn a_promotion_is_one_change(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let (current, next) = prepare(&world, east).await;
    let head = backend.changes().head().await.expect("it answers").seq;
    let source = async || {
        let source = world.admin.source("east").await.expect("it answers");
        source.expect("it exists")
    };
    let before = source().await.version;
    let promoted = world
        .admin
        .promote_credential(&Actor::new("ann", "monthly"), east, Role::App, current, next)
        .await
        .expect("it is promoted");
    assert!(source().await.version > before);
    let changes = backend.changes().since(head, at_most(10)).await;
    let changes: Vec<_> = changes
        .expect("it answers")
        .changes
        .iter()
        .map(|change| (change.subject, change.kind))
        .collect();
    assert_eq!(changes, [(Subject::Source(east), ChangeKind::Credential)]);
    let entries = world.admin.audit(None, at_most(2)).await.expect("it answers");
    assert_eq!((&*entries[0].actor, &*entries[0].reason), ("ann", "monthly"));
    assert_eq!(
        entries[0].changed,
        serde_json::json!({
            "credential.app.current": { "before": current, "after": promoted },
            "credential.app.next": { "before": next, "after": null },
        })
    );
    assert_ne!((&*entries[1].actor, &*entries[1].reason), ("ann", "monthly"));
}

/// Other versions than those in the slots, an empty slot, a data source that does not exist, and nobody: nothing changes.
pub async fn a_promotion_of_what_was_not_looked_at_is_refused(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let admin = &world.admin;
    let first = CredentialVersion::FIRST;
    let conflict = ErrorKind::VersionConflict;
    let promoted = admin
        .promote_credential(&by(), east, Role::App, first, first)
        .await;
    expect_kind(promoted, conflict);
    let current = set(&world, east, Role::App, Current, None, 'a').await;
    let promoted = admin
        .promote_credential(&by(), east, Role::App, current, current.next())
        .await;
    expect_kind(promoted, conflict);
    let looked_at = set(&world, east, Role::App, Next, None, 'b').await;
    let next = set(&world, east, Role::App, Next, Some(looked_at), 'c').await;
    let before = admin.source("east").await.expect("it answers");
    let head = backend.changes().head().await.expect("it answers");
    for (current, next) in [(current, looked_at), (current.next(), next), (next, current)] {
        let promoted = admin
            .promote_credential(&by(), east, Role::App, current, next)
            .await;
        expect_kind(promoted, conflict);
    }
    let other_role = admin
        .promote_credential(&by(), east, Role::Service, current, next)
        .await;
    expect_kind(other_role, conflict);
    let nowhere = admin
        .promote_credential(&by(), DataSourceId::new(), Role::App, current, next)
        .await;
    expect_kind(nowhere, ErrorKind::UnknownDataSource);
    let nobody = Actor::new("", "a reason");
    let unsaid = admin
        .promote_credential(&nobody, east, Role::App, current, next)
        .await;
    expect_kind(unsaid, ErrorKind::InvalidInput);
    assert_eq!(admin.source("east").await.expect("it answers"), before);
    assert_eq!(backend.changes().head().await.expect("it answers"), head);
    admin
        .promote_credential(&by(), east, Role::App, current, next)
        .await
        .expect("what is there is promoted");
    let again = admin
        .promote_credential(&by(), east, Role::App, current, next)
        .await;
    expect_kind(again, conflict);
}

/// A rotation that is given up leaves the current credential as it is, in one change; what was not looked at stays.
pub async fn what_was_prepared_can_be_given_up(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let (current, next) = prepare(&world, east).await;
    let admin = &world.admin;
    let conflict = ErrorKind::VersionConflict;
    expect_kind(
        admin.discard_credential(&by(), east, Role::App, current).await,
        conflict,
    );
    assert!(stored(&world).await.next.is_some());
    let head = backend.changes().head().await.expect("it answers").seq;
    admin
        .discard_credential(&by(), east, Role::App, next)
        .await
        .expect("it is given up");
    let now = stored(&world).await;
    assert_eq!((now.current.version, &now.next), (current, &None));
    let changes = backend.changes().since(head, at_most(10)).await;
    assert_eq!(changes.expect("it answers").changes.len(), 1);
    let entries = world.admin.audit(None, at_most(1)).await.expect("it answers");
    assert_eq!(
        entries[0].changed,
        serde_json::json!({ "credential.app.next": { "before": next, "after": null } })
    );
    expect_kind(
        admin.discard_credential(&by(), east, Role::App, next).await,
        conflict,
    );
    expect_kind(
        admin
            .discard_credential(&by(), DataSourceId::new(), Role::App, next)
            .await,
        ErrorKind::UnknownDataSource,
    );
    let prepared = set(&world, east, Role::App, Next, None, 'c').await;
    assert!(prepared > next, "no version comes back");
}

/// Of several who promote at once, each with what was there when it looked, one does and the others are told.
pub async fn of_rival_promotions_one_wins(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let (current, next) = prepare(&world, east).await;
    let all = (0..8).map(|rival| {
        let admin = &world.admin;
        async move {
            let promoted = admin
                .promote_credential(&by(), east, Role::App, current, next)
                .await;
            if promoted.is_ok() {
                // Whoever comes late finds something prepared again, which nobody has looked at.
                let again = admin
                    .set_credential(&by(), east, Role::App, Next, None, sealed('d'))
                    .await;
                again.expect("the slot is empty");
            }
            (rival, promoted)
        }
    });
    let (won, lost): (Vec<_>, Vec<_>) = futures_util::future::join_all(all)
        .await
        .into_iter()
        .partition(|(_, promoted)| promoted.is_ok());
    assert_eq!(won.len(), 1, "{won:?}");
    for (_, promoted) in lost {
        expect_kind(promoted, ErrorKind::VersionConflict);
    }
    assert_eq!(stored(&world).await.current.sealed, sealed('b'));
}

async fn prepare(world: &World, source: DataSourceId) -> (CredentialVersion, CredentialVersion) {
    (
        set(world, source, Role::App, Current, None, 'a').await,
        set(world, source, Role::App, Next, None, 'b').await,
    )
}

async fn set(
    world: &World,
    source: DataSourceId,
    role: Role,
    slot: CredentialSlot,
    expected: Option<CredentialVersion>,
    mark: char,
) -> CredentialVersion {
    world
        .admin
        .set_credential(&by(), source, role, slot, expected, sealed(mark))
        .await
        .expect("a sealed value is accepted")
}

async fn stored(world: &World) -> RoleCredentials {
    let source = world.admin.source("east").await.expect("it answers");
    source.expect("it exists").credentials[&Role::App].clone()
}
