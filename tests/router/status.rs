//! What a tenant's status lets through, at the door and on handles that were given out before.

use biplane::{
    error::ErrorKind,
    repository::TenantRepository,
    router::CacheOptions,
    tenant::{TenantRef, TenantStatus},
};

use crate::support::{Steps, gated, kind, settle, world};

const REFUSED: [TenantStatus; 4] = [
    TenantStatus::Provisioning,
    TenantStatus::Suspended,
    TenantStatus::Archived,
    TenantStatus::Deleted,
];

#[tokio::test]
async fn a_tenant_that_is_not_open_gets_no_handle_and_costs_one_query() {
    for status in REFUSED {
        let world = world();
        let acme = world.control.provision("acme").await;
        if status != TenantStatus::Provisioning {
            world.control.turn(acme.id, TenantStatus::Active).await;
            world.control.turn(acme.id, status).await;
        }
        let refused = Some(ErrorKind::Inactive { status });
        for _ in 0..10 {
            assert_eq!(kind(world.biplane.route(&acme.slug).await), refused);
        }
        assert_eq!(kind(world.biplane.route(acme.id).await), refused);
        assert!(world.biplane.cached(&acme.slug).is_none());
        assert_eq!(
            world.repository.calls(),
            1,
            "{status}: by slug, and then known by id"
        );
    }
}

#[tokio::test]
async fn a_handle_held_since_before_is_refused_at_its_next_use() {
    for status in [
        TenantStatus::Suspended,
        TenantStatus::Archived,
        TenantStatus::Deleted,
    ] {
        let world = world();
        let acme = world.control.tenant("acme").await;
        let held = world.biplane.route(&acme.slug).await.unwrap();
        held.write(|notes| notes.push("before")).await.unwrap();
        world.control.turn(acme.id, status).await;
        world.biplane.invalidate(acme.id).await;
        let refused = Some(ErrorKind::Inactive { status });
        // Twice: by a question to the control plane, and by what is known since.
        for _ in 0..2 {
            assert_eq!(kind(held.read(|_| ()).await), refused);
            assert_eq!(kind(held.write(|notes| notes.clear()).await), refused);
            assert_eq!(kind(held.begin().await), refused);
        }
    }
}

#[tokio::test]
async fn a_held_handle_works_again_when_the_tenant_does() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    held.write(|notes| notes.push("before")).await.unwrap();
    world.control.turn(acme.id, TenantStatus::Suspended).await;
    world.biplane.invalidate(acme.id).await;
    held.read(|_| ()).await.unwrap_err();
    world.control.turn(acme.id, TenantStatus::Active).await;
    world.biplane.invalidate(acme.id).await;
    assert_eq!(held.read(|notes| notes.clone()).await.unwrap(), ["before"]);
}

#[tokio::test]
async fn a_held_handle_learns_of_an_unannounced_suspension_when_its_route_is_no_longer_fresh() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    world.control.turn(acme.id, TenantStatus::Suspended).await;
    world.clock.advance(CacheOptions::default().fresh_for);
    // Its next use has that found out.
    held.read(|_| ()).await.unwrap();
    settle().await;
    assert_eq!(
        kind(held.read(|_| ()).await),
        Some(ErrorKind::Inactive {
            status: TenantStatus::Suspended
        })
    );
}

#[tokio::test]
async fn a_read_only_tenant_is_read_and_not_written() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    held.write(|notes| notes.push("before")).await.unwrap();
    world.control.turn(acme.id, TenantStatus::ReadOnly).await;
    world.biplane.invalidate(acme.id).await;
    let fresh = world.biplane.route(&acme.slug).await.unwrap();
    for db in [held, fresh] {
        assert_eq!(db.read(|notes| notes.clone()).await.unwrap(), ["before"]);
        let refused = db.write(|notes| notes.push("no")).await;
        assert_eq!(kind(refused), Some(ErrorKind::ReadOnly));
        let mut tx = db.begin().await.unwrap();
        assert_eq!(tx.read(), &["before"]);
        assert_eq!(kind(tx.write().map(drop)), Some(ErrorKind::ReadOnly));
        tx.commit().unwrap();
        assert_eq!(db.read(|notes| notes.clone()).await.unwrap(), ["before"]);
    }
}

#[tokio::test]
async fn a_migrating_tenant_reads_and_writes() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    world.control.turn(acme.id, TenantStatus::Migrating).await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    db.write(|notes| notes.push("on the way")).await.unwrap();
    assert_eq!(db.read(Vec::len).await.unwrap(), 1);
}

#[tokio::test]
async fn older_data_does_not_open_a_tenant_again() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    let mut active = world.control.find(&[TenantRef::Slug(&acme.slug)]).await.unwrap();
    let active = active.pop().unwrap().unwrap();
    world.control.turn(acme.id, TenantStatus::Suspended).await;
    let suspended = Some(ErrorKind::Inactive {
        status: TenantStatus::Suspended,
    });
    assert_eq!(kind(world.route(&acme.slug).await), suspended);

    // A copy of the control plane that lags behind says that it is active.
    world.clock.advance(CacheOptions::default().fresh_for);
    let caller = world.caller(&acme.slug).await;
    world.gate.call().await.answer_with(Ok(vec![Ok(active)]));
    assert_eq!(
        kind(caller.await.unwrap()),
        Some(ErrorKind::ControlPlaneUnavailable)
    );
    assert!(world.biplane.cached(&acme.slug).is_none());
    assert_eq!(kind(world.route(&acme.slug).await), suspended);
}
