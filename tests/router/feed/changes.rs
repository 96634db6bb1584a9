//! What a change does to what is cached, and to what is on its way.

use biplane::{
    Biplane,
    error::ErrorKind,
    repository::{MemoryControl, NewTenant, SourceChange, TenantAdmin},
    router::{CacheOptions, Clock},
    tenant::{DataSourceId, Isolation, PoolSettings, TenantRef, TenantStatus, Version},
    testing::faulty::{Fault, FaultyRepository},
};

use super::{SUSPENDED, world};
use crate::support::{Gate, Records, Steps, by, kind, settle, slug};

#[tokio::test(start_paused = true)]
async fn a_change_that_nobody_announced_acts_with_the_next_look() {
    let world = world();
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    world.looks(2).await;
    world.control.turn(acme.id, TenantStatus::Suspended).await;
    world.looks(1).await;
    assert!(world.biplane.cached(&acme.slug).is_none());
    assert_eq!(kind(world.biplane.route(&acme.slug).await), SUSPENDED);
    assert_eq!(kind(world.biplane.route(acme.id).await), SUSPENDED);
    assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_a_change_overtakes_is_not_published() {
    let control = MemoryControl::new();
    let gate = Gate::new(control.clone());
    let log = FaultyRepository::new(control.clone());
    let biplane = Biplane::builder(gate.clone(), Records::default())
        .changes(log.clone())
        .build()
        .unwrap();
    log.reached(1).await;
    settle().await;
    let acme = control.tenant("acme").await;
    log.reached(log.calls() + 1).await;
    settle().await;
    let ask = |name: biplane::tenant::TenantName| {
        let biplane = biplane.clone();
        tokio::spawn(async move { biplane.route(&name).await })
    };
    let by_id = || TenantRef::Id(acme.id).to_name();
    let change = SourceChange::default().pool(PoolSettings::new(0, 3).unwrap());
    for of_source in [false, true] {
        biplane.invalidate(acme.id).await;
        let early = ask(by_id());
        let call = gate.call().await;
        call.read().await;
        if of_source {
            control
                .update_source(&by(), acme.placement.source, Version::FIRST, change.clone())
                .await
                .unwrap();
        } else {
            control.touch(acme.id).await;
        }
        log.reached(log.calls() + 1).await;
        settle().await;
        // Who asks now does not wait for what was read before.
        let late = ask(by_id());
        settle().await;
        assert!(!late.is_finished());
        call.answer();
        early.await.unwrap().unwrap();
        settle().await;
        assert!(biplane.cached(acme.id).is_none());
        gate.call().await.answer();
        late.await.unwrap().unwrap();
        assert!(biplane.cached(acme.id).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_a_change_overtakes_does_not_keep_the_old_route() {
    let control = MemoryControl::new();
    let gate = Gate::new(control.clone());
    let log = FaultyRepository::new(control.clone());
    let clock = Clock::manual();
    let biplane = Biplane::builder(gate.clone(), Records::default())
        .changes(log.clone())
        .clock(clock.clone())
        .build()
        .unwrap();
    log.reached(1).await;
    settle().await;
    let acme = control.tenant("acme").await;
    let ask = || {
        let (biplane, id) = (biplane.clone(), acme.id);
        tokio::spawn(async move { biplane.route(id).await })
    };
    let first = ask();
    gate.call().await.answer();
    first.await.unwrap().unwrap();
    log.set(Fault::Unreachable);
    clock.advance(CacheOptions::default().refresh_for);
    let early = ask();
    let call = gate.call().await;
    control.turn(acme.id, TenantStatus::Suspended).await;
    log.set(Fault::None);
    log.reached(log.calls() + 1).await;
    settle().await;
    call.fail();
    // Who came before the change may be served with what was known.
    early.await.unwrap().unwrap();
    assert!(biplane.cached(acme.id).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_changed_tenant_stays_doubtful_until_it_was_read_again() {
    let options = CacheOptions::default();
    let world = world();
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    world.looks(1).await;
    world.repository.set(Fault::Unreachable);
    world.control.turn(acme.id, TenantStatus::Suspended).await;
    for _ in 0..10 {
        world.looks(1).await;
        world.clock.advance(options.retry_after);
        assert!(world.biplane.cached(&acme.slug).is_none());
        // What it was is all that can be had, and better than nothing.
        held.read(|_| ()).await.unwrap();
        world.clock.advance(options.retry_after);
    }
    assert_eq!(world.biplane.stats().feed.unsure_tenants, 1);
    assert!(world.biplane.stats().served_stale > 0);
    world.repository.set(Fault::None);
    world.looks(3).await;
    assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
    assert_eq!(world.biplane.stats().feed.unsure_tenants, 0);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_unknown_is_found_when_its_tenant_is_created() {
    let world = world();
    world.looks(1).await;
    let unknown = Some(ErrorKind::UnknownTenant);
    assert_eq!(kind(world.biplane.route(&slug("acme")).await), unknown);
    let acme = world.control.tenant("acme").await;
    world.looks(1).await;
    let db = world.biplane.route(&slug("acme")).await.unwrap();
    assert_eq!(db.tenant(), acme.id);
    // And one that is given to a tenant there was.
    assert_eq!(kind(world.biplane.route(&slug("zeta")).await), unknown);
    world.control.renamed(acme.id, "zeta").await;
    world.looks(1).await;
    assert_eq!(
        world.biplane.route(&slug("zeta")).await.unwrap().tenant(),
        acme.id
    );
    assert_eq!(kind(world.biplane.route(&slug("acme")).await), unknown);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_a_data_source_acts_on_every_tenant_of_it_and_on_no_other() {
    let world = world();
    world.looks(1).await;
    let mut tenants = Vec::new();
    for name in ["a", "b"] {
        let mut new = NewTenant::new(slug(name), DataSourceId::DEFAULT);
        new.isolation = Isolation::Row;
        let tenant = world.control.create(&by(), new).await.unwrap();
        tenants.push(world.control.turn(tenant.id, TenantStatus::Active).await);
        world.biplane.route(tenant.id).await.unwrap();
    }
    let (other, _) = world.cached("other").await;
    world.looks(2).await;
    let _ = world.repository.take_asked();
    let change = SourceChange::default().pool(PoolSettings::new(0, 3).unwrap());
    world
        .control
        .update_source(&by(), DataSourceId::DEFAULT, Version::FIRST, change)
        .await
        .unwrap();
    world.looks(1).await;
    let mut asked = world.repository.take_asked();
    asked.sort_unstable_by_key(|name| format!("{name:?}"));
    let mut expected: Vec<_> = tenants
        .iter()
        .map(|tenant| TenantRef::Id(tenant.id).to_name())
        .collect();
    expected.sort_unstable_by_key(|name| format!("{name:?}"));
    assert_eq!(asked, expected);
    assert!(world.biplane.cached(&other.slug).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_changed_tenant_that_is_cached_is_read_again_before_anybody_asks() {
    let world = world();
    world.looks(1).await;
    let (acme, _) = world.cached("acme").await;
    world.looks(1).await;
    world.control.touch(acme.id).await;
    let unused = world.control.tenant("unused").await;
    let _ = world.repository.take_asked();
    world.looks(1).await;
    let calls = world.repository.calls();
    world.biplane.route(&acme.slug).await.unwrap();
    world.biplane.route(acme.id).await.unwrap();
    assert_eq!(world.repository.calls(), calls);
    assert!(
        !world
            .repository
            .take_asked()
            .contains(&TenantRef::Id(unused.id).to_name())
    );
}
