//! What is confirmed by a look at the log, as of when, and what becomes of routes while the log cannot be read.

use std::{num::NonZeroU32, time::Duration};

use biplane::{
    Biplane,
    error::ErrorKind,
    repository::{ChangeLog, MemoryControl},
    router::{CacheOptions, Clock, FeedEngine, FeedOptions},
    tenant::TenantStatus,
    testing::faulty::{Fault, FaultyRepository},
};
use tokio::time::Instant;

use super::{SUSPENDED, world, world_with};
use crate::support::{LogGate, Steps, kind, seconds, settle};

#[tokio::test(start_paused = true)]
async fn the_bound_of_polling_alone_is_interval_and_time_limit() {
    let options = FeedOptions::default();
    let bound = options.interval.mul_f64(1.2).max(options.query_timeout) + options.query_timeout;
    assert!(bound <= seconds(3), "{bound:?}");
    let world = world();
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    for round in 0..20 {
        let status = [TenantStatus::Suspended, TenantStatus::Active][round % 2];
        tokio::time::sleep(Duration::from_millis(137)).await;
        world.control.turn(acme.id, status).await;
        let committed = Instant::now();
        let expected = SUSPENDED.filter(|_| status == TenantStatus::Suspended);
        while kind(held.read(|_| ()).await) != expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let passed = committed.elapsed();
            assert!(
                passed <= options.interval.mul_f64(1.2) + Duration::from_millis(2),
                "{passed:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_feed_confirms_nothing_is_asked_for_again_and_the_age_is_its_lag() {
    let world = world();
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    // That it was created is news to the feed.
    world.looks(2).await;
    world.biplane.route(&acme.slug).await.unwrap();
    let calls = world.repository.calls();
    for _ in 0..500 {
        world.clock.advance(seconds(1));
        world.looks(1).await;
        assert!(world.biplane.cached(&acme.slug).is_some());
        assert_eq!(held.route_age(), Some(Duration::ZERO));
    }
    assert_eq!(world.repository.calls(), calls);
    let feed = world.biplane.stats().feed;
    assert_eq!(feed.engine, FeedEngine::Polling);
    assert_eq!(feed.lag, Some(Duration::ZERO));
    assert_eq!(feed.applied, Some(world.control.head().await.unwrap().seq));
    assert_eq!(world.biplane.applied(), feed.applied.unwrap());
    assert_eq!((feed.failing_for, feed.last_error), (None, None));
}

#[tokio::test(start_paused = true)]
async fn when_the_log_cannot_be_read_routes_go_by_their_age_and_say_so() {
    let options = CacheOptions::default();
    let world = world();
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    world.looks(1).await;
    for fault in [Fault::Unreachable, Fault::Hang] {
        world.log.set(fault);
        world.looks(1).await;
        tokio::time::sleep(FeedOptions::default().query_timeout).await;
        settle().await;
        let before = world.repository.calls();
        world.clock.advance(options.fresh_for - Duration::from_millis(1));
        assert!(world.biplane.cached(&acme.slug).is_some());
        world.clock.advance(Duration::from_millis(1));
        assert!(world.biplane.cached(&acme.slug).is_none());
        assert_eq!(held.route_age(), Some(options.fresh_for));
        let feed = world.biplane.stats().feed;
        assert_eq!(feed.lag, Some(options.fresh_for));
        assert_eq!(feed.failing_for, Some(options.fresh_for));
        assert_eq!(feed.last_error, Some(ErrorKind::ControlPlaneUnavailable));
        // Served, while it is refreshed.
        held.read(|_| ()).await.unwrap();
        settle().await;
        assert_eq!(world.repository.calls(), before + 1);
        assert_eq!(held.route_age(), Some(Duration::ZERO));

        world.log.set(Fault::None);
        world.looks(2).await;
        let feed = world.biplane.stats().feed;
        assert_eq!((feed.lag, feed.failing_for), (Some(Duration::ZERO), None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_was_missed_while_the_log_could_not_be_read_acts_when_it_can() {
    let world = world();
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    world.looks(1).await;
    world.log.set(Fault::Unreachable);
    world.looks(3).await;
    world.control.turn(acme.id, TenantStatus::Suspended).await;
    world.looks(3).await;
    held.read(|_| ()).await.unwrap();
    world.log.set(Fault::None);
    world.looks(1).await;
    assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
}

#[tokio::test(start_paused = true)]
async fn routes_are_confirmed_as_of_the_question_and_not_of_the_answer() {
    let world = world_with(FeedOptions::default().query_timeout(seconds(1_000)));
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    world.looks(1).await;
    world.log.set(Fault::HoldAnswer);
    world.looks(1).await;
    // The log has been read, and the answer is a long time coming.
    world.clock.advance(seconds(20));
    world.control.turn(acme.id, TenantStatus::Suspended).await;
    world.log.set(Fault::None);
    settle().await;
    assert_eq!(held.route_age(), Some(seconds(20)));
    world.clock.advance(seconds(10));
    assert!(world.biplane.cached(&acme.slug).is_none());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_confirmed_before_the_last_page_was_applied() {
    let control = MemoryControl::new();
    let (log, mut looks) = LogGate::new(control.clone());
    let clock = Clock::manual();
    let options = FeedOptions::default()
        .page(NonZeroU32::MIN)
        .query_timeout(seconds(1_000));
    let biplane = Biplane::memory(FaultyRepository::new(control.clone()), |_| ())
        .changes(log)
        .feed(options)
        .clock(clock.clone())
        .build()
        .unwrap();
    let (zeta, acme) = (control.tenant("zeta").await, control.tenant("acme").await);
    assert!(looks.recv().await.unwrap().answer().await);
    biplane.route(&acme.slug).await.unwrap();
    assert!(looks.recv().await.unwrap().answer().await);

    clock.advance(seconds(20));
    control.touch(zeta.id).await;
    control.turn(acme.id, TenantStatus::Suspended).await;
    // The first page names zeta alone.
    assert!(looks.recv().await.unwrap().answer().await);
    let second = looks.recv().await.unwrap();
    clock.advance(seconds(10));
    assert!(
        biplane.cached(&acme.slug).is_none(),
        "confirmed while its change was on the way"
    );
    assert!(second.answer().await);
    assert_eq!(kind(biplane.route(&acme.slug).await), SUSPENDED);
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_the_first_look_is_not_confirmed_by_it() {
    // Read and published before, or read before and published after.
    for fault in [Fault::None, Fault::HoldAnswer] {
        let world = world_with(FeedOptions::default().query_timeout(seconds(1_000)));
        let acme = world.control.tenant("acme").await;
        world.log.set(Fault::Hang);
        world.repository.set(fault);
        let biplane = world.biplane.clone();
        let caller = tokio::spawn(async move { biplane.route(acme.id).await });
        world.repository.reached(1).await;
        settle().await;
        assert_eq!(caller.is_finished(), fault == Fault::None);
        world.control.turn(acme.id, TenantStatus::Suspended).await;
        // The position is taken after the change.
        world.log.set(Fault::None);
        settle().await;
        world.repository.set(Fault::None);
        let held = caller.await.unwrap().unwrap();
        world.looks(5).await;
        assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
        assert_eq!(world.biplane.stats().feed.unsure_tenants, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_that_succeeds_ends_the_pause_after_a_failed_load() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    world.looks(1).await;
    world.repository.set(Fault::Unreachable);
    let unavailable = Some(ErrorKind::ControlPlaneUnavailable);
    assert_eq!(kind(world.biplane.route(&acme.slug).await), unavailable);
    world.repository.set(Fault::None);
    assert_eq!(kind(world.biplane.route(&acme.slug).await), unavailable);
    world.looks(1).await;
    world.biplane.route(&acme.slug).await.unwrap();
}
