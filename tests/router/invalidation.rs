//! Once `invalidate` returns, nothing that was read before it is given to anybody who asks later.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use biplane::{
    Biplane,
    error::ErrorKind,
    repository::MemoryControl,
    tenant::{TenantName, TenantStatus},
};

use crate::support::{Records, Steps, by, domain, gated, kind, seconds, settle};

const SUSPENDED: Option<ErrorKind> = Some(ErrorKind::Inactive {
    status: TenantStatus::Suspended,
});

#[tokio::test]
async fn a_load_begun_before_is_never_published() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    let names = [
        TenantName::Id(acme.id),
        TenantName::Slug(acme.slug),
        TenantName::Domain(domain("acme.example")),
    ];
    for name in &names {
        world.control.turn(acme.id, TenantStatus::Active).await;
        world.biplane.invalidate(acme.id).await;
        let early = world.caller(name).await;
        let call = world.gate.call().await;
        call.read().await;
        world.control.turn(acme.id, TenantStatus::Suspended).await;
        world.biplane.invalidate(acme.id).await;
        call.answer();
        // Who asked before may have the answer of before.
        early.await.unwrap().unwrap();
        settle().await;
        for name in &names {
            assert!(world.biplane.cached(name).is_none());
            assert_eq!(kind(world.route(name).await), SUSPENDED);
        }
    }
}

#[tokio::test]
async fn who_asks_after_does_not_wait_for_a_load_begun_before() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    for name in [TenantName::Id(acme.id), TenantName::Slug(acme.slug)] {
        world.control.turn(acme.id, TenantStatus::Active).await;
        world.biplane.invalidate(acme.id).await;
        let early = world.caller(&name).await;
        let old = world.gate.call().await;
        old.read().await;
        world.control.turn(acme.id, TenantStatus::Suspended).await;
        world.biplane.invalidate(acme.id).await;
        let late = world.caller(&name).await;
        let new = world.gate.call().await;
        new.answer();
        assert_eq!(kind(late.await.unwrap()), SUSPENDED);
        old.answer();
        early.await.unwrap().unwrap();
        settle().await;
        assert_eq!(kind(world.route(&name).await), SUSPENDED);
    }
}

#[tokio::test]
async fn who_asked_before_the_query_began_needs_no_other() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    // Both workers are busy, so that acme waits its turn.
    let others = ["x", "y"].map(crate::support::slug);
    let (_x, _y) = (world.caller(&others[0]).await, world.caller(&others[1]).await);
    let (x, y) = (world.gate.call().await, world.gate.call().await);
    let early = world.caller(&acme.slug).await;
    world.biplane.invalidate(acme.id).await;
    let late = world.caller(&acme.slug).await;
    x.answer();
    world.gate.call().await.answer();
    early.await.unwrap().unwrap();
    late.await.unwrap().unwrap();
    assert_eq!(world.gate.begun(), 3);
    y.answer();
}

#[tokio::test]
async fn a_late_load_does_not_overwrite_a_newer_version() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    let early = world.caller(&acme.slug).await;
    let slow = world.gate.call().await;
    slow.read().await;
    world.control.turn(acme.id, TenantStatus::Suspended).await;
    // Nobody announces it, but a load by id finds out.
    assert_eq!(kind(world.route(acme.id).await), SUSPENDED);
    slow.answer();
    // Even the early caller gets what is known by now.
    assert_eq!(kind(early.await.unwrap()), SUSPENDED);
    settle().await;
    assert!(world.biplane.cached(&acme.slug).is_none());
    assert_eq!(kind(world.route(&acme.slug).await), SUSPENDED);
    assert_eq!(kind(world.route(acme.id).await), SUSPENDED);
}

#[tokio::test]
async fn a_change_of_the_data_source_alone_makes_a_new_route() {
    use biplane::{
        repository::{SourceChange, TenantAdmin},
        tenant::PoolSettings,
    };
    let world = gated();
    let acme = world.control.tenant("acme").await;
    world.route(&acme.slug).await.unwrap();
    let (by, source) = (by(), acme.placement.source);
    let mut change = SourceChange::default();
    change.pool = Some(PoolSettings::new(0, 3).unwrap());
    let version = biplane::tenant::Version::FIRST;
    let changed = world.control.update_source(&by, source, version, change);
    changed.await.unwrap();
    world.clock.advance(seconds(300));
    world.route(&acme.slug).await.unwrap();
    assert_eq!(world.records.made(), 2);
}

#[tokio::test]
async fn others_are_left_alone() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    let zeta = world.control.tenant("zeta").await;
    world.route(&acme.slug).await.unwrap();
    world.route(&zeta.slug).await.unwrap();
    world.biplane.invalidate(acme.id).await;
    assert!(world.biplane.cached(&acme.slug).is_none());
    assert!(world.biplane.cached(&zeta.slug).is_some());
}

/// Every thread reads what the last announcement before its call must have made visible.
#[test]
fn under_load_nobody_sees_what_was_there_before_an_announcement() {
    const TENANTS: usize = 4;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    let control = MemoryControl::new();
    let biplane = Biplane::builder(control.clone(), Records::default())
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut writers = Vec::new();
        let mut readers = Vec::new();
        let stop = Arc::new(AtomicBool::new(false));
        for n in 0..TENANTS {
            let tenant = control.tenant(&format!("tenant-{n}")).await;
            let announced = Arc::new(AtomicU64::new(tenant.version.value()));
            let names = [
                TenantName::Id(tenant.id),
                TenantName::Slug(tenant.slug),
                TenantName::Domain(domain(&format!("tenant-{n}.example"))),
            ];
            for name in names {
                let (biplane, announced, stop) = (biplane.clone(), Arc::clone(&announced), Arc::clone(&stop));
                readers.push(tokio::spawn(async move {
                    let mut routed = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        let least = announced.load(Ordering::SeqCst);
                        let seen = match biplane.cached(&name) {
                            Some(record) => record,
                            None => biplane.route(&name).await.unwrap(),
                        };
                        assert!(seen.0.version.value() >= least, "{name}: {seen:?} < {least}");
                        routed += 1;
                        tokio::task::yield_now().await;
                    }
                    routed
                }));
            }
            let (biplane, control) = (biplane.clone(), control.clone());
            writers.push(tokio::spawn(async move {
                for _ in 0..1_000 {
                    let version = control.touch(tenant.id).await.version;
                    biplane.invalidate(tenant.id).await;
                    announced.store(version.value(), Ordering::SeqCst);
                    tokio::task::yield_now().await;
                }
            }));
        }
        for writer in writers {
            writer.await.unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.await.unwrap() > 0);
        }
    });
}
