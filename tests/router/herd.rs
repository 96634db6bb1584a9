//! Many callers at once.

use std::time::Duration;

use biplane::{
    Biplane,
    repository::MemoryControl,
    tenant::TenantStatus,
    testing::faulty::{Fault, FaultyRepository},
};

use crate::support::{Slow, Steps, gated, kind, settle, slug, world};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_callers_of_one_cold_tenant_are_one_load() {
    for round in 0..10 {
        let world = world();
        let acme = world.control.tenant("acme").await;
        // Odd rounds have a control plane so fast that loads land while callers are still on their way.
        if round % 2 == 0 {
            world.repository.set(Fault::HoldAnswer);
        }
        let callers: Vec<_> = (0..10_000)
            .map(|_| {
                let (biplane, slug) = (world.biplane.clone(), acme.slug);
                tokio::spawn(async move { biplane.route(&slug).await.map(|db| db.tenant()) })
            })
            .collect();
        world.repository.reached(1).await;
        world.repository.set(Fault::None);
        for caller in callers {
            assert_eq!(caller.await.unwrap().unwrap(), acme.id);
        }
        let stats = world.biplane.stats();
        assert_eq!((stats.loads, stats.names_loaded), (1, 1));
        assert_eq!(stats.hits + stats.misses, 10_000);
        assert_eq!(world.repository.calls(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_cold_tenants_at_once_are_at_most_twenty_queries() {
    let control = MemoryControl::new();
    let mut slugs = Vec::new();
    for n in 0..1_000 {
        slugs.push(control.tenant(&format!("tenant-{n}")).await.slug);
    }
    // As slow as a server on the same network at its best, and as one that is far away or busy.
    for latency in [Duration::from_millis(1), Duration::from_millis(50)] {
        let repository = FaultyRepository::new(Slow(control.clone(), latency));
        let biplane = Biplane::memory(repository.clone(), |_| ()).build().unwrap();
        let callers: Vec<_> = slugs
            .iter()
            .map(|slug| {
                let (biplane, slug) = (biplane.clone(), *slug);
                tokio::spawn(async move { biplane.route(&slug).await.map(drop) })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap().unwrap();
        }
        assert_eq!(biplane.stats().names_loaded, 1_000);
        assert!(repository.calls() <= 20, "{} queries", repository.calls());
    }
}

#[tokio::test]
async fn names_that_are_asked_for_while_queries_run_share_the_next() {
    let world = world();
    world.repository.set(Fault::Hang);
    let callers: Vec<_> = (0..100)
        .map(|n| {
            let biplane = world.biplane.clone();
            tokio::spawn(async move { biplane.route(&slug(&format!("nobody-{n}"))).await })
        })
        .collect();
    settle().await;
    assert!(world.repository.calls() <= 2);
    world.repository.set(Fault::None);
    for caller in callers {
        caller.await.unwrap().unwrap_err();
    }
    assert!(world.repository.calls() <= 3, "{}", world.repository.calls());
}

#[tokio::test]
async fn a_caller_that_leaves_harms_no_other() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    let first = world.caller(&acme.slug).await;
    let call = world.gate.call().await;
    let second = world.caller(&acme.slug).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    call.answer();
    assert_eq!(second.await.unwrap().unwrap().0.id, acme.id);
    assert_eq!(world.gate.begun(), 1);
}

#[tokio::test]
async fn a_load_that_nobody_waits_for_any_more_is_not_wasted() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    let only = world.caller(&acme.slug).await;
    let call = world.gate.call().await;
    only.abort();
    let _ = only.await;
    call.answer();
    settle().await;
    assert_eq!(world.route(&acme.slug).await.unwrap().0.id, acme.id);
    assert_eq!(world.gate.begun(), 1);
}

#[tokio::test]
async fn all_callers_of_a_load_that_was_overtaken_share_one_handle() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    let mut callers = Vec::new();
    for _ in 0..100 {
        callers.push(world.caller(&acme.slug).await);
    }
    let call = world.gate.call().await;
    call.read().await;
    world.biplane.invalidate(acme.id).await;
    call.answer();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    assert_eq!(world.records.made(), 1);
}

#[tokio::test]
async fn a_slow_tenant_does_not_hold_up_the_warm_ones() {
    let world = world();
    let warm = world.control.tenant("warm").await;
    world.biplane.route(&warm.slug).await.unwrap();
    let cold = world.control.provision("cold").await;
    world.repository.set(Fault::Hang);
    let biplane: Biplane<_> = world.biplane.clone();
    let waiting = tokio::spawn(async move { biplane.route(cold.id).await });
    world.repository.reached(2).await;
    let soon = tokio::time::timeout(Duration::from_secs(10), world.biplane.route(&warm.slug)).await;
    soon.expect("it does not wait").unwrap();
    world.repository.set(Fault::None);
    let status = TenantStatus::Provisioning;
    assert_eq!(
        kind(waiting.await.unwrap()),
        Some(biplane::error::ErrorKind::Inactive { status })
    );
}
