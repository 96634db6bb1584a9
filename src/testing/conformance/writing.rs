//! What a [`TenantAdmin`](crate::repository::TenantAdmin) must do with tenants.

use std::future::Future;

use serde_json::json;

use super::{
    Backend,
    support::{World, at_most, by, domain, expect_kind, find_one, new_tenant, slug},
};
use crate::{
    error::{Error, ErrorKind},
    repository::{Actor, NewTenant},
    tenant::{DataSourceId, Epoch, Isolation, Tenant, TenantId, TenantRef, TenantStatus, Version},
};

/// A new tenant is being provisioned, at version 1 and epoch 1, and is found as it was given.
pub async fn a_new_tenant_is_provisioning_at_version_and_epoch_one(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let mut new = new_tenant("acme", east);
    new.domains = ["b.example", "a.example", "b.example"].map(domain).to_vec();
    new.isolation = Isolation::Schema;
    new.settings = json!({ "plan": "gold", "seats": 12, "ratio": 0.1, "emoji": "🦀" });
    let acme = world
        .admin
        .create(&by(), new.clone())
        .await
        .expect("a new tenant is accepted");
    assert_eq!((acme.id, acme.slug), (new.id, new.slug));
    assert_eq!(acme.status, TenantStatus::Provisioning);
    assert_eq!(acme.version, Version::FIRST);
    assert_eq!(acme.placement.epoch, Epoch::FIRST);
    assert_eq!(
        (acme.placement.source, acme.placement.isolation),
        (east, Isolation::Schema)
    );
    assert_eq!(acme.domains, ["a.example", "b.example"].map(domain));
    assert_eq!(acme.settings, new.settings);
    assert_eq!(world.read(acme.id).await, acme);
}

/// What a write returns is what the next read finds, and its version is higher than the one before.
pub async fn each_write_raises_the_version_and_is_seen_by_the_next_read(backend: &dyn Backend) {
    let world = World::of(backend);
    let west = world.source("west").await;
    let mut before = world
        .tenant_in("acme", world.source("east").await, TenantStatus::Active)
        .await;
    for write in Write::ALL {
        let after = write
            .of(&world, &by(), before.id, before.version, west)
            .await
            .unwrap_or_else(|error| panic!("{write:?} is accepted: {error}"));
        assert!(after.version > before.version, "{write:?}");
        assert_eq!(world.read(after.id).await, after, "{write:?}");
        before = after;
    }
}

/// Every write with an old version is `VersionConflict` and changes nothing.
pub async fn an_old_version_is_refused_by_every_write(backend: &dyn Backend) {
    let world = World::of(backend);
    let (east, west) = (world.source("east").await, world.source("west").await);
    for (write, n) in Write::ALL.into_iter().zip(1u32..) {
        let old = world.tenant(&format!("tenant-{n}"), east).await;
        let new = world.bring(old.clone(), TenantStatus::Active).await;
        for expected in [old.version, new.version.next(), Version::ZERO] {
            let result = write.of(&world, &by(), old.id, expected, west).await;
            expect_kind(result, ErrorKind::VersionConflict);
        }
        assert_eq!(world.read(old.id).await, new, "{write:?}");
    }
}

/// Every write to a tenant that does not exist is `UnknownTenant`.
pub async fn an_unknown_tenant_is_refused_by_every_write(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    for write in Write::ALL {
        let result = write
            .of(&world, &by(), TenantId::new(), Version::FIRST, east)
            .await;
        expect_kind(result, ErrorKind::UnknownTenant);
    }
}

/// A write that does not say who and why is refused and changes nothing.
pub async fn a_write_without_actor_or_reason_is_refused(backend: &dyn Backend) {
    let world = World::of(backend);
    let (east, west) = (world.source("east").await, world.source("west").await);
    let acme = world.tenant_in("acme", east, TenantStatus::Active).await;
    for nobody in [
        Actor::new("", "a reason"),
        Actor::new("somebody", ""),
        Actor::new(" ", "\t"),
    ] {
        for write in Write::ALL {
            let result = write.of(&world, &nobody, acme.id, acme.version, west).await;
            expect_kind(result, ErrorKind::InvalidInput);
        }
        let created = world.admin.create(&nobody, new_tenant("new", east)).await;
        expect_kind(created, ErrorKind::InvalidInput);
    }
    assert_eq!(world.read(acme.id).await, acme);
}

/// Settings are a JSON object of texts that Postgres can store, and so deep that they can be read back.
pub async fn settings_are_an_object(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant("acme", east).await;
    for settings in [
        json!(null),
        json!([]),
        json!("text"),
        json!(1),
        json!({ "a": { "b": ["\0"] } }),
        json!({ "\0": 1 }),
        nested(101),
    ] {
        let mut new = new_tenant("new", east);
        new.settings = settings.clone();
        expect_kind(world.admin.create(&by(), new).await, ErrorKind::InvalidInput);
        let set = world
            .admin
            .set_settings(&by(), acme.id, acme.version, settings)
            .await;
        expect_kind(set, ErrorKind::InvalidInput);
    }
    assert_eq!(world.read(acme.id).await, acme);
    let deep = world
        .admin
        .set_settings(&by(), acme.id, acme.version, nested(100))
        .await
        .expect("a hundred levels are accepted");
    assert_eq!(world.read(acme.id).await, deep);
}

/// A status changes along the edges of [`TenantStatus::can_become`] and no others, whatever the writer asks for.
pub async fn status_follows_the_edges(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    for from in TenantStatus::ALL {
        for to in TenantStatus::ALL {
            let name = format!("{from}-{to}").replace('_', "");
            let tenant = world.tenant_in(&name, east, from).await;
            let result = world.admin.set_status(&by(), tenant.id, tenant.version, to).await;
            if from.can_become(to) {
                let changed = result.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
                assert_eq!(changed.status, to);
                assert_eq!(world.read(tenant.id).await.status, to);
            } else {
                expect_kind(result, ErrorKind::ForbiddenTransition { from, to });
                assert_eq!(world.read(tenant.id).await, tenant);
            }
        }
    }
}

/// Only an archived tenant and one that is being provisioned can be deleted.
pub async fn delete_follows_the_edges(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    for from in TenantStatus::ALL {
        let name = format!("{from}").replace('_', "");
        let tenant = world.tenant_in(&name, east, from).await;
        let result = world.admin.delete(&by(), tenant.id, tenant.version).await;
        if from.can_become(TenantStatus::Deleted) {
            let deleted = result.unwrap_or_else(|error| panic!("delete {from}: {error}"));
            assert_eq!(deleted.status, TenantStatus::Deleted);
            assert!(deleted.version > tenant.version);
            assert_eq!(world.read(tenant.id).await, deleted);
        } else {
            let to = TenantStatus::Deleted;
            expect_kind(result, ErrorKind::ForbiddenTransition { from, to });
        }
    }
}

/// A deleted tenant stays as it is.
pub async fn a_deleted_tenant_stays_as_it_is(backend: &dyn Backend) {
    let world = World::of(backend);
    let (east, west) = (world.source("east").await, world.source("west").await);
    let acme = world.tenant_in("acme", east, TenantStatus::Deleted).await;
    let status = TenantStatus::Deleted;
    for write in Write::ALL {
        if !matches!(write, Write::Status) {
            let result = write.of(&world, &by(), acme.id, acme.version, west).await;
            expect_kind(result, ErrorKind::Inactive { status });
        }
    }
    assert_eq!(world.read(acme.id).await, acme);
}

/// Placing a tenant raises its epoch by one, on another data source, in another mode, and where it already is.
pub async fn placing_raises_the_epoch_by_one(backend: &dyn Backend) {
    let world = World::of(backend);
    let (east, west) = (world.source("east").await, world.source("west").await);
    let mut before = world.tenant("acme", east).await;
    for (source, isolation) in [
        (west, Isolation::Row),
        (west, Isolation::Database),
        (west, Isolation::Database),
        (east, Isolation::Schema),
    ] {
        let after = world
            .admin
            .place(&by(), before.id, before.version, source, isolation)
            .await
            .expect("a placement is accepted");
        assert_eq!(after.placement.epoch, before.placement.epoch.next());
        assert_eq!(
            (after.placement.source, after.placement.isolation),
            (source, isolation)
        );
        assert_eq!(world.read(after.id).await, after);
        before = after;
    }
}

/// Nothing but a placement touches the epoch.
pub async fn other_writes_leave_the_epoch(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let mut acme = world.tenant_in("acme", east, TenantStatus::Active).await;
    for write in Write::ALL {
        if !matches!(write, Write::Place) {
            acme = write
                .of(&world, &by(), acme.id, acme.version, east)
                .await
                .unwrap_or_else(|error| panic!("{write:?} is accepted: {error}"));
            assert_eq!(acme.placement.epoch, Epoch::FIRST, "{write:?}");
        }
    }
}

/// A placement on a data source that does not exist is `UnknownDataSource`.
pub async fn an_unknown_data_source_is_refused(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant("acme", east).await;
    let nowhere = DataSourceId::new();
    let placed = world
        .admin
        .place(&by(), acme.id, acme.version, nowhere, Isolation::Row)
        .await;
    expect_kind(placed, ErrorKind::UnknownDataSource);
    let created = world.admin.create(&by(), new_tenant("new", nowhere)).await;
    expect_kind(created, ErrorKind::UnknownDataSource);
    assert_eq!(world.read(acme.id).await, acme);
    let name = find_one(&*world.tenants, TenantRef::Slug(&slug("new"))).await;
    assert_eq!(name.expect("it can be told"), None);
}

/// A database that is one tenant's alone takes no second one, and a shared one cannot become one tenant's alone, until
/// whoever is there is deleted.
pub async fn a_database_is_one_tenants_alone(backend: &dyn Backend) {
    let world = World::of(backend);
    let modes = [Isolation::Database, Isolation::Schema, Isolation::Row];
    for first in modes {
        for second in modes {
            let here = world.source(&format!("{first}-{second}")).await;
            let elsewhere = world.source(&format!("{first}-{second}-elsewhere")).await;
            let name = |n: u32| format!("{first}-{second}-{n}");
            let new = |n: u32, source| {
                let mut new = NewTenant::new(slug(&name(n)), source);
                new.isolation = if n == 1 { first } else { second };
                new
            };
            let owner = world
                .admin
                .create(&by(), new(1, here))
                .await
                .expect("the first is accepted");
            let mover = world
                .admin
                .create(&by(), new(2, elsewhere))
                .await
                .expect("alone elsewhere");
            let created = world.admin.create(&by(), new(3, here)).await;
            let placed = world
                .admin
                .place(&by(), mover.id, mover.version, here, second)
                .await;
            if first != Isolation::Database && second != Isolation::Database {
                created.expect("shared databases take any number");
                placed.expect("shared databases take any number");
                continue;
            }
            expect_kind(created, ErrorKind::InvalidInput);
            expect_kind(placed, ErrorKind::InvalidInput);
            world
                .admin
                .delete(&by(), owner.id, owner.version)
                .await
                .expect("a tenant that is being provisioned can be deleted");
            world
                .admin
                .place(&by(), mover.id, mover.version, here, second)
                .await
                .expect("nobody else is there any more");
        }
    }
}

/// What leaves every fact as it was succeeds, without a higher version and without entries.
pub async fn what_changes_nothing_leaves_no_trace(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let mut new = new_tenant("acme", east);
    new.domains = vec![domain("a.example")];
    let acme = world
        .admin
        .create(&by(), new)
        .await
        .expect("a new tenant is accepted");
    let head = backend.changes().head().await.expect("it answers");
    let same = [
        world.admin.rename(&by(), acme.id, acme.version, acme.slug).await,
        world
            .admin
            .set_settings(&by(), acme.id, acme.version, acme.settings.clone())
            .await,
        world
            .admin
            .add_domain(&by(), acme.id, acme.version, domain("a.example"))
            .await,
    ];
    for result in same {
        assert_eq!(result.expect("it succeeds"), acme);
    }
    assert_eq!(backend.changes().head().await.expect("it answers"), head);
    let entries = world
        .admin
        .audit(Some(acme.id), at_most(10))
        .await
        .expect("it answers");
    assert_eq!(entries.len(), 1);
}

/// Each change has one audit entry with who, why, and the values before and after; the newest comes first.
pub async fn the_audit_says_who_why_and_what(backend: &dyn Backend) {
    let world = World::of(backend);
    let (east, west) = (world.source("east").await, world.source("west").await);
    let other = world.tenant("other", east).await;
    let mut before = world.tenant_in("acme", east, TenantStatus::Active).await;
    for write in Write::ALL {
        let reason = format!("reason of {write:?}");
        let ann = Actor::new("ann", reason.as_str());
        let after = write
            .of(&world, &ann, before.id, before.version, west)
            .await
            .unwrap_or_else(|error| panic!("{write:?} is accepted: {error}"));
        let entries = world
            .admin
            .audit(Some(before.id), at_most(1))
            .await
            .expect("it answers");
        let [entry] = &entries[..] else {
            panic!("one entry was asked for, {} came", entries.len());
        };
        assert_eq!((&*entry.actor, &*entry.reason), ("ann", &*reason));
        assert_eq!((entry.tenant, entry.source), (Some(before.id), None));
        let expected = write.changed(&before, &after);
        for (fact, values) in expected.as_object().expect("it is an object") {
            assert_eq!(entry.changed.get(fact), Some(values), "{write:?}");
        }
        let expected = expected.as_object().map(|facts| facts.len());
        assert_eq!(
            entry.changed.as_object().map(|facts| facts.len()),
            expected,
            "{write:?}"
        );
        before = after;
    }
    let of_acme = world
        .admin
        .audit(Some(before.id), at_most(100))
        .await
        .expect("it answers");
    assert_eq!(of_acme.len(), 2 + Write::ALL.len(), "one entry for each change");
    assert!(of_acme.windows(2).all(|pair| pair[0].at >= pair[1].at));
    let of_other = world
        .admin
        .audit(Some(other.id), at_most(100))
        .await
        .expect("it answers");
    assert_eq!(of_other.len(), 1);
    let all = world.admin.audit(None, at_most(1_000)).await.expect("it answers");
    assert!(
        all.len() >= of_acme.len() + of_other.len() + 2,
        "sources included"
    );
    assert_eq!(&all[..1], &of_acme[..1]);
}

/// A write that was refused leaves no entry in the audit.
pub async fn a_refused_write_leaves_no_audit(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant("acme", east).await;
    world.tenant("other", east).await;
    for result in [
        world
            .admin
            .rename(&by(), acme.id, acme.version, slug("other"))
            .await,
        world
            .admin
            .set_status(&by(), acme.id, acme.version, TenantStatus::Archived)
            .await,
        world
            .admin
            .set_settings(&by(), acme.id, Version::ZERO, json!({ "a": 1 }))
            .await,
    ] {
        result.expect_err("it is refused");
    }
    let entries = world
        .admin
        .audit(Some(acme.id), at_most(10))
        .await
        .expect("it answers");
    assert_eq!(entries.len(), 1, "its creation");
}

/// The writes that change an active tenant, one of each method.
#[derive(Clone, Copy, Debug)]
pub(super) enum Write {
    Rename,
    AddDomain,
    RemoveDomain,
    Settings,
    Place,
    Status,
}

impl Write {
    pub(super) const ALL: [Self; 6] = [
        Self::AddDomain,
        Self::Rename,
        Self::Settings,
        Self::RemoveDomain,
        Self::Place,
        Self::Status,
    ];

    pub(super) fn of<'a>(
        self,
        world: &'a World,
        by: &'a Actor,
        id: TenantId,
        expected: Version,
        to: DataSourceId,
    ) -> impl Future<Output = Result<Tenant, Error>> + 'a {
        let admin = &world.admin;
        async move {
            match self {
                Self::Rename => admin.rename(by, id, expected, slug("renamed")).await,
                Self::AddDomain => admin.add_domain(by, id, expected, domain("shop.example")).await,
                Self::RemoveDomain => {
                    admin
                        .remove_domain(by, id, expected, &domain("shop.example"))
                        .await
                }
                Self::Settings => admin.set_settings(by, id, expected, json!({ "plan": 2 })).await,
                Self::Place => admin.place(by, id, expected, to, Isolation::Row).await,
                Self::Status => admin.set_status(by, id, expected, TenantStatus::Suspended).await,
            }
        }
    }

    fn changed(self, before: &Tenant, after: &Tenant) -> serde_json::Value {
        match self {
            Self::Rename => json!({ "slug": { "before": before.slug, "after": after.slug } }),
            Self::AddDomain | Self::RemoveDomain => {
                json!({ "domains": { "before": before.domains, "after": after.domains } })
            }
            Self::Settings => json!({ "settings": { "before": before.settings, "after": after.settings } }),
            Self::Place => json!({
                "data_source_id": { "before": before.placement.source, "after": after.placement.source },
                "epoch": { "before": before.placement.epoch, "after": after.placement.epoch },
            }),
            Self::Status => json!({ "status": { "before": before.status, "after": after.status } }),
        }
    }
}

/// An object of so many levels, counting itself.
fn nested(levels: usize) -> serde_json::Value {
    (1..levels).fold(json!({}), |inner, _| json!({ "a": inner }))
}
