//! For how long a route is believed.

use std::time::Duration;

use biplane::{
    Biplane,
    error::ErrorKind,
    repository::MemoryControl,
    router::{CacheOptions, Clock, FeedOptions},
    tenant::TenantStatus,
    testing::faulty::{Fault, FaultyRepository},
};

use crate::support::{Records, Steps, gated, kind, seconds, settle, world};

#[tokio::test]
async fn a_fresh_route_is_not_asked_for_again() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    world.biplane.route(&acme.slug).await.unwrap();
    world
        .clock
        .advance(CacheOptions::default().fresh_for - Duration::from_millis(1));
    for _ in 0..100 {
        world.biplane.route(&acme.slug).await.unwrap();
    }
    assert_eq!(world.repository.calls(), 1);
}

#[tokio::test]
async fn a_route_that_is_no_longer_fresh_is_confirmed_once_and_keeps_its_handle() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    world.route(&acme.slug).await.unwrap();
    for confirmed in 1..4 {
        world.clock.advance(CacheOptions::default().fresh_for);
        assert!(world.biplane.cached(&acme.slug).is_none());
        for _ in 0..10 {
            world.route(&acme.slug).await.unwrap();
        }
        assert_eq!(world.gate.begun(), 1 + confirmed);
    }
    assert_eq!(world.records.made(), 1);
}

#[tokio::test]
async fn a_route_past_its_freshness_is_served_while_one_refresh_runs_behind_it() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    world.route(&acme.slug).await.unwrap();
    world.clock.advance(CacheOptions::default().fresh_for);
    // Nobody answers, and nobody waits: by whatever name, and whoever they are.
    for _ in 0..10 {
        let callers = [world.caller(&acme.slug).await, world.caller(acme.id).await];
        for caller in callers {
            assert!(caller.is_finished());
            assert_eq!(caller.await.unwrap().unwrap().0.version, acme.version);
        }
    }
    assert_eq!(world.gate.begun(), 2);
    let touched = world.control.touch(acme.id).await;
    world.gate.call().await.answer();
    settle().await;
    assert_eq!(world.route(&acme.slug).await.unwrap().0.version, touched.version);
}

#[tokio::test]
async fn a_route_too_old_for_that_is_waited_for() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    world.route(&acme.slug).await.unwrap();
    world.clock.advance(CacheOptions::default().refresh_for);
    let caller = world.caller(&acme.slug).await;
    assert!(!caller.is_finished());
    let touched = world.control.touch(acme.id).await;
    world.gate.call().await.answer();
    assert_eq!(caller.await.unwrap().unwrap().0.version, touched.version);
}

#[tokio::test]
async fn a_tenant_that_is_not_open_is_not_told_so_from_memory_while_it_is_refreshed() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    world.control.turn(acme.id, TenantStatus::Suspended).await;
    world.biplane.route(&acme.slug).await.unwrap_err();
    world.control.turn(acme.id, TenantStatus::Active).await;
    world.clock.advance(CacheOptions::default().fresh_for);
    world.biplane.route(&acme.slug).await.unwrap();
}

#[tokio::test]
async fn a_bound_that_fails_closed_holds_whatever_else_is_said() {
    let bound = seconds(10);
    let control = MemoryControl::new();
    let acme = control.tenant("acme").await;
    let repository = FaultyRepository::new(control);
    let clock = Clock::manual();
    let biplane = Biplane::memory(repository.clone(), |_| ())
        .cache(CacheOptions::default().fail_closed_after(bound))
        .clock(clock.clone())
        .build()
        .unwrap();
    let held = biplane.route(&acme.slug).await.unwrap();
    repository.set(Fault::Unreachable);
    clock.advance(bound - Duration::from_millis(1));
    biplane.route(&acme.slug).await.unwrap();
    held.read(|()| ()).await.unwrap();
    clock.advance(Duration::from_millis(1));
    let unavailable = Some(ErrorKind::ControlPlaneUnavailable);
    assert!(biplane.cached(&acme.slug).is_none());
    assert_eq!(kind(biplane.route(&acme.slug).await), unavailable);
    assert_eq!(kind(held.read(|()| ()).await), unavailable);
    repository.set(Fault::None);
    clock.advance(CacheOptions::default().retry_after);
    biplane.route(&acme.slug).await.unwrap();
}

#[tokio::test]
async fn what_one_name_confirms_is_confirmed_for_all() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    world.route(&acme.slug).await.unwrap();
    world.route(acme.id).await.unwrap();
    world.clock.advance(CacheOptions::default().fresh_for);
    world.route(acme.id).await.unwrap();
    assert!(world.biplane.cached(&acme.slug).is_some());
    assert_eq!(world.gate.begun(), 2);
}

#[tokio::test]
async fn freshness_counts_from_the_question_and_not_from_the_answer() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    let caller = world.caller(&acme.slug).await;
    let call = world.gate.call().await;
    call.read().await;
    world.clock.advance(seconds(20));
    call.answer();
    caller.await.unwrap().unwrap();
    assert!(world.biplane.cached(&acme.slug).is_some());
    world.clock.advance(seconds(10));
    assert!(world.biplane.cached(&acme.slug).is_none());
}

#[tokio::test]
async fn a_handle_tells_how_long_ago_its_route_was_confirmed() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    assert_eq!(db.route_age(), Some(Duration::ZERO));
    world.clock.advance(seconds(12));
    assert_eq!(db.route_age(), Some(seconds(12)));
    world.clock.advance(seconds(18));
    db.read(|_| ()).await.unwrap();
    settle().await;
    assert_eq!(db.route_age(), Some(Duration::ZERO));
    world.biplane.invalidate(acme.id).await;
    assert_eq!(db.route_age(), None);
}

#[tokio::test]
async fn with_the_clock_of_the_process_time_passes_by_itself() {
    let control = MemoryControl::new();
    let acme = control.tenant("acme").await;
    let biplane = Biplane::builder(control, Records::default())
        .without_changes()
        .cache(CacheOptions::default().fresh_for(Duration::from_millis(300)))
        .build()
        .unwrap();
    biplane.route(&acme.slug).await.unwrap();
    assert!(biplane.cached(&acme.slug).is_some());
    let cold = async || biplane.cached(&acme.slug).is_none();
    biplane::testing::wait::until("the route is no longer fresh", seconds(20), cold)
        .await
        .unwrap();
    // And nobody moves it.
    biplane.route(&acme.slug).await.unwrap();
    Clock::system().advance(seconds(60));
    assert!(biplane.cached(&acme.slug).is_some());
}

#[test]
fn times_that_cannot_work_are_refused_when_building() {
    let build = |options: CacheOptions| {
        let builder = Biplane::memory(MemoryControl::new(), |_| ());
        kind(builder.cache(options).build())
    };
    let invalid = Some(ErrorKind::InvalidConfiguration);
    let options = CacheOptions::default();
    assert_eq!(build(options), None);
    assert_eq!(build(options.fresh_for(Duration::ZERO)), invalid);
    assert_eq!(build(options.load_timeout(Duration::ZERO)), invalid);
    assert_eq!(build(options.retry_after(Duration::ZERO)), invalid);
    assert_eq!(build(options.stale_for(seconds(29))), invalid);
    assert_eq!(build(options.fail_closed_after(Duration::ZERO)), invalid);
    let build = |options: FeedOptions| {
        let builder = Biplane::memory(MemoryControl::new(), |_| ());
        kind(builder.feed(options).build())
    };
    let options = FeedOptions::default();
    assert_eq!(build(options), None);
    assert_eq!(build(options.interval(Duration::ZERO)), invalid);
    assert_eq!(build(options.query_timeout(Duration::ZERO)), invalid);
    assert_eq!(build(options.resync_interval(Duration::ZERO)), invalid);
}

#[tokio::test]
async fn times_without_end_are_no_trouble() {
    let control = MemoryControl::new();
    let acme = control.tenant("acme").await;
    let for_ever = Duration::MAX;
    let options = CacheOptions::default()
        .fresh_for(for_ever)
        .refresh_for(for_ever)
        .stale_for(for_ever)
        .fail_closed_after(for_ever)
        .retry_after(for_ever)
        .unknown_for(for_ever)
        .load_timeout(for_ever);
    let clock = Clock::manual();
    let biplane = Biplane::builder(control, Records::default())
        .cache(options)
        .clock(clock.clone())
        .build()
        .unwrap();
    biplane.route(&acme.slug).await.unwrap();
    let nobody = crate::support::slug("nobody");
    biplane.route(&nobody).await.unwrap_err();
    clock.advance(seconds(1_000_000_000));
    assert!(biplane.cached(&acme.slug).is_some());
    biplane.route(&nobody).await.unwrap_err();
    assert_eq!(biplane.stats().known_unknown, 1);
}
