//! What changes in the control plane, or ends, and when callers notice.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod routing_support;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use biplane::{
    Biplane,
    connector::memory::MemoryDb,
    error::ErrorKind,
    router::{CacheOptions, Clock},
    tenant::{TenantId, TenantName, TenantStatus},
    testing::faulty::{Fault, FaultyRepository},
};
use futures_util::FutureExt;

use routing_support::{
    MILLISECOND, Notes, Odd, SECOND, World, domain, eventually, inactive, kind, names, slug,
};

// Invalidation.

#[tokio::test]
async fn nothing_that_was_read_before_an_invalidation_reaches_anybody_who_asks_after_it() {
    let acme_has_three_names = 3;
    for early_by in 0..acme_has_three_names {
        for late_by in 0..acme_has_three_names {
            let world = World::seeing();
            let old = world.add("acme").await;
            let names = names(&old);
            world.plane.set(Fault::HoldAnswer);
            let early = world.spawn(&names[early_by]);
            world.plane.reached(1).await;
            world.biplane.invalidate(old.id).await;
            let new = world.touch(old.id).await;
            let late = world.spawn(&names[late_by]);
            world.plane.reached(2).await;
            world.plane.set(Fault::None);
            let early = early.await.unwrap().unwrap();
            assert_eq!(early.tenant.id, old.id);
            assert_eq!(late.await.unwrap().unwrap().tenant, new, "{early_by} {late_by}");
            for name in &names {
                assert_eq!(world.biplane.route(name).await.unwrap().tenant, new, "{name}");
                assert_eq!(world.biplane.cached(name).unwrap().tenant, new, "{name}");
            }
            // The handle from before goes by the new record too.
            assert_eq!(early.current().await.unwrap().tenant(), &new);
        }
    }
}

#[tokio::test]
async fn an_answer_from_before_an_invalidation_is_not_kept() {
    for n in 0..3 {
        let world = World::seeing();
        let old = world.add("acme").await;
        let name = names(&old).remove(n);
        world.plane.set(Fault::HoldAnswer);
        let early = world.spawn(&name);
        world.plane.reached(1).await;
        let new = world.touch(old.id).await;
        world.biplane.invalidate(old.id).await;
        world.plane.set(Fault::None);
        early.await.unwrap().unwrap();
        assert!(world.biplane.cached(&name).is_none(), "{name}");
        for name in names(&old) {
            assert_eq!(world.biplane.route(&name).await.unwrap().tenant, new, "{name}");
        }
    }
}

#[tokio::test]
async fn a_suspension_that_overtakes_a_load_acts_on_its_handle() {
    let world = World::new();
    let acme = world.add("acme").await;
    world.plane.set(Fault::HoldAnswer);
    let early = world.spawn(&acme.slug);
    world.plane.reached(1).await;
    world.set(acme.id, TenantStatus::Suspended).await;
    world.biplane.invalidate(acme.id).await;
    world.plane.set(Fault::None);
    let suspended = inactive(TenantStatus::Suspended);
    match early.await.unwrap() {
        Ok(db) => assert_eq!(kind(db.read(Notes::len).await), suspended),
        Err(error) => assert_eq!(error.kind(), suspended),
    }
    for name in names(&acme) {
        assert_eq!(kind(world.biplane.route(&name).await), suspended);
    }
}

#[tokio::test]
async fn a_tenant_created_while_its_name_was_being_looked_up_is_found_once_it_is_announced() {
    let world = World::new();
    world.plane.set(Fault::HoldAnswer);
    let early = world.spawn(&slug("acme"));
    world.plane.reached(1).await;
    let acme = world.add("acme").await;
    world.biplane.invalidate(acme.id).await;
    world.plane.set(Fault::None);
    assert_eq!(kind(early.await.unwrap()), ErrorKind::UnknownTenant);
    assert_eq!(
        world.biplane.route(&slug("acme")).await.unwrap().tenant(),
        acme.id
    );
}

#[tokio::test]
async fn an_invalidation_takes_every_name_of_the_tenant_and_no_other_tenant_from_the_cache() {
    let world = World::new();
    let (acme, other) = (world.add("acme").await, world.add("other").await);
    for tenant in [&acme, &other] {
        for name in names(tenant) {
            world.biplane.route(&name).await.unwrap();
        }
    }
    assert_eq!(world.biplane.stats().cached_tenants, 2);
    world.biplane.invalidate(acme.id).await;
    assert_eq!(world.biplane.stats().cached_tenants, 1);
    for name in names(&acme) {
        assert!(world.biplane.cached(&name).is_none(), "{name}");
    }
    for name in names(&other) {
        assert_eq!(world.biplane.cached(&name).unwrap().tenant(), other.id);
    }
    world.biplane.invalidate(TenantId::new()).await;
    assert_eq!(world.biplane.stats().cached_tenants, 1);
}

// Versions.

#[tokio::test]
async fn a_late_answer_never_overwrites_a_newer_version() {
    // The late answer names the tenant in each way, and so does the answer that is in time.
    for late_by in 0..3 {
        for timely_by in (0..3).filter(|by| *by != late_by) {
            let world = World::seeing();
            let old = world.add("acme").await;
            let names = names(&old);
            let release = world.odd().hold_next();
            let late = world.spawn(&names[late_by]);
            world.odd().has_read(1).await;
            let new = world.touch(old.id).await;
            let timely = world.biplane.route(&names[timely_by]).await.unwrap();
            assert_eq!(timely.tenant, new);
            release.send(()).unwrap();
            assert_eq!(late.await.unwrap().unwrap().tenant, new, "{late_by} {timely_by}");
            for name in &names {
                assert_eq!(world.biplane.route(name).await.unwrap().tenant, new, "{name}");
            }
        }
    }
}

#[tokio::test]
async fn a_control_plane_that_falls_behind_reopens_no_suspended_tenant() {
    let world = World::new();
    let acme = world.add("acme").await;
    let names = names(&acme);
    let behind = world.odd().remember(&names).await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    world.set(acme.id, TenantStatus::Suspended).await;
    world.biplane.invalidate(acme.id).await;
    for name in &names {
        assert_eq!(
            kind(world.biplane.route(name).await),
            inactive(TenantStatus::Suspended)
        );
    }
    world.odd().set(behind);
    for _ in 0..3 {
        world.clock.advance(31 * SECOND);
        for name in &names {
            let told = kind(world.biplane.route(name).await);
            assert_ne!(told, ErrorKind::UnknownTenant, "{name}");
            assert!(world.biplane.cached(name).is_none(), "{name}");
        }
        kind(held.read(Notes::len).await);
    }
}

#[tokio::test]
async fn a_control_plane_that_falls_behind_gives_no_domain_back_to_whom_it_was_taken_from() {
    let world = World::new();
    let (from, to) = (world.add("from").await, world.add("to").await);
    let moving = domain("from");
    let behind = world.odd().remember(&[TenantName::Domain(moving.clone())]).await;
    world.move_domain(&moving, from.id, to.id).await;
    assert_eq!(world.biplane.route(&moving).await.unwrap().tenant(), to.id);
    world.odd().set(behind);
    for _ in 0..3 {
        world.clock.advance(31 * SECOND);
        assert_eq!(world.biplane.route(&moving).await.unwrap().tenant(), to.id);
    }
}

// Names.

#[tokio::test]
async fn a_renamed_slug_is_unknown_at_once_and_leads_to_whom_it_is_given_next() {
    let world = World::new();
    let (acme, other) = (world.add("acme").await, world.add("other").await);
    for name in names(&acme).iter().chain(&names(&other)) {
        world.biplane.route(name).await.unwrap();
    }
    world.rename(acme.id, "apex").await;
    world.biplane.invalidate(acme.id).await;
    assert_eq!(
        kind(world.biplane.route(&slug("acme")).await),
        ErrorKind::UnknownTenant
    );
    assert_eq!(
        world.biplane.route(&slug("apex")).await.unwrap().tenant(),
        acme.id
    );
    assert_eq!(
        world.biplane.route(&domain("acme")).await.unwrap().tenant(),
        acme.id
    );
    world.rename(other.id, "acme").await;
    world.biplane.invalidate(other.id).await;
    assert_eq!(
        world.biplane.route(&slug("acme")).await.unwrap().tenant(),
        other.id
    );
    assert_eq!(
        kind(world.biplane.route(&slug("other")).await),
        ErrorKind::UnknownTenant
    );
    assert_eq!(
        world.biplane.route(&slug("apex")).await.unwrap().tenant(),
        acme.id
    );
}

#[tokio::test]
async fn a_slug_that_changes_hands_during_its_lookup_leads_to_its_new_owner_afterwards() {
    for old_answer_first in [true, false] {
        let world = World::new();
        let (acme, other) = (world.add("acme").await, world.add("other").await);
        let (release_old, release_new) = (world.odd().hold_next(), world.odd().hold_next());
        let early = world.spawn(&slug("acme"));
        world.odd().has_read(1).await;
        world.rename(acme.id, "apex").await;
        world.rename(other.id, "acme").await;
        world.biplane.invalidate(acme.id).await;
        world.biplane.invalidate(other.id).await;
        let late = world.spawn(&slug("acme"));
        world.odd().has_read(2).await;
        // Who asked before may be told what was true then, unless the router knows better by the time it answers.
        let (early, late) = if old_answer_first {
            release_old.send(()).unwrap();
            let early = early.await.unwrap().unwrap();
            assert!(world.biplane.cached(&slug("acme")).is_none());
            release_new.send(()).unwrap();
            (early, late.await.unwrap().unwrap())
        } else {
            release_new.send(()).unwrap();
            let late = late.await.unwrap().unwrap();
            release_old.send(()).unwrap();
            (early.await.unwrap().unwrap(), late)
        };
        assert!([acme.id, other.id].contains(&early.tenant()));
        assert_eq!(late.tenant(), other.id);
        for _ in 0..2 {
            let now = world.biplane.route(&slug("acme")).await.unwrap();
            assert_eq!(now.tenant(), other.id);
        }
    }
}

#[tokio::test]
async fn a_domain_that_moves_leads_to_its_new_owner_at_once() {
    let world = World::new();
    let (from, to) = (world.add("from").await, world.add("to").await);
    let moving = domain("from");
    assert_eq!(world.biplane.route(&moving).await.unwrap().tenant(), from.id);
    world.biplane.route(&domain("to")).await.unwrap();
    world.move_domain(&moving, from.id, to.id).await;
    world.biplane.invalidate(from.id).await;
    world.biplane.invalidate(to.id).await;
    assert!(world.biplane.cached(&moving).is_none());
    assert_eq!(world.biplane.route(&moving).await.unwrap().tenant(), to.id);
    assert_eq!(world.biplane.route(&from.slug).await.unwrap().tenant(), from.id);
    assert_eq!(world.biplane.route(&domain("to")).await.unwrap().tenant(), to.id);
}

#[tokio::test]
async fn names_that_changed_hands_unannounced_act_when_the_route_is_no_longer_fresh() {
    let world = World::new();
    let (from, to) = (world.add("from").await, world.add("to").await);
    let moving = domain("from");
    world.biplane.route(&moving).await.unwrap();
    world.biplane.route(&from.slug).await.unwrap();
    world.move_domain(&moving, from.id, to.id).await;
    world.rename(from.id, "elsewhere").await;
    world.clock.advance(30 * SECOND);
    assert_eq!(world.biplane.route(&moving).await.unwrap().tenant(), to.id);
    assert_eq!(
        kind(world.biplane.route(&from.slug).await),
        ErrorKind::UnknownTenant
    );
    assert_eq!(
        world.biplane.route(&slug("elsewhere")).await.unwrap().tenant(),
        from.id
    );
}

// Handles that are held.

#[tokio::test]
async fn a_held_handle_is_refused_as_soon_as_its_tenant_is_not_open() {
    for status in [
        TenantStatus::Suspended,
        TenantStatus::Archived,
        TenantStatus::Deleted,
    ] {
        let world = World::new();
        let acme = world.add("acme").await;
        let held = world.biplane.route(&acme.slug).await.unwrap();
        held.write(|notes| notes.push("before".into())).await.unwrap();
        world.set(acme.id, status).await;
        world.biplane.invalidate(acme.id).await;
        assert_eq!(kind(held.read(Notes::len).await), inactive(status));
        assert_eq!(kind(held.write(|notes| notes.clear()).await), inactive(status));
        assert_eq!(kind(held.begin().await), inactive(status));
        assert_eq!(kind(held.clone().read(Notes::len).await), inactive(status));
    }
}

#[tokio::test]
async fn a_held_handle_works_again_when_its_tenant_is_open_again() {
    let world = World::new();
    let acme = world.add("acme").await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    held.write(|notes| notes.push("before".into())).await.unwrap();
    world.set(acme.id, TenantStatus::Suspended).await;
    world.biplane.invalidate(acme.id).await;
    kind(held.read(Notes::len).await);
    world.set(acme.id, TenantStatus::Active).await;
    world.biplane.invalidate(acme.id).await;
    assert_eq!(held.read(Notes::clone).await.unwrap(), ["before"]);
}

#[tokio::test]
async fn a_suspension_that_nobody_announced_acts_on_held_handles_after_fresh_for() {
    let world = World::new();
    let acme = world.add("acme").await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    world.set(acme.id, TenantStatus::Suspended).await;
    world.clock.advance(30 * SECOND - MILLISECOND);
    held.read(Notes::len).await.unwrap();
    world.clock.advance(MILLISECOND);
    assert_eq!(
        kind(held.read(Notes::len).await),
        inactive(TenantStatus::Suspended)
    );
    assert_eq!(
        kind(world.biplane.route(&acme.slug).await),
        inactive(TenantStatus::Suspended)
    );
}

#[tokio::test]
async fn a_held_handle_follows_its_tenant_to_another_database() {
    let world = World::new();
    let acme = world.add("acme").await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    held.write(|notes| notes.push("in the old place".into()))
        .await
        .unwrap();
    world.place_elsewhere(acme.id, "elsewhere").await;
    world.biplane.invalidate(acme.id).await;
    assert_eq!(held.read(Notes::len).await.unwrap(), 0);
    held.write(|notes| notes.push("in the new place".into()))
        .await
        .unwrap();
    let anew = world.biplane.route(&acme.slug).await.unwrap();
    assert_eq!(anew.read(Notes::clone).await.unwrap(), ["in the new place"]);
}

// Freshness.

#[tokio::test]
async fn a_route_is_served_without_asking_until_fresh_for_and_then_asked_for_once() {
    let world = World::with(CacheOptions::default().fresh_for(10 * SECOND));
    let acme = world.add("acme").await;
    for name in names(&acme) {
        world.biplane.route(&name).await.unwrap();
    }
    for _ in 0..3 {
        let asked = world.plane.calls();
        world.clock.advance(10 * SECOND - MILLISECOND);
        for name in names(&acme) {
            world.biplane.cached(&name).unwrap();
            world.biplane.route(&name).await.unwrap();
        }
        assert_eq!(world.plane.calls(), asked);
        world.clock.advance(MILLISECOND);
        for name in names(&acme) {
            assert!(world.biplane.cached(&name).is_none(), "{name}");
        }
        for _ in 0..3 {
            for name in names(&acme) {
                world.biplane.route(&name).await.unwrap();
            }
        }
        assert_eq!(world.plane.calls(), asked + 1);
    }
}

#[tokio::test]
async fn a_handle_tells_how_long_ago_its_route_was_confirmed() {
    let world = World::new();
    let acme = world.add("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    assert_eq!(db.route_age(), Some(Duration::ZERO));
    world.clock.advance(29 * SECOND);
    assert_eq!(db.route_age(), Some(29 * SECOND));
    world.clock.advance(SECOND);
    db.read(Notes::len).await.unwrap();
    assert_eq!(db.route_age(), Some(Duration::ZERO));
    world.plane.set(Fault::Unreachable);
    world.clock.advance(100 * SECOND);
    db.read(Notes::len).await.unwrap();
    assert_eq!(db.route_age(), Some(100 * SECOND), "an old route stays old");
    world.biplane.invalidate(acme.id).await;
    assert_eq!(db.route_age(), None);
}

#[tokio::test]
async fn the_age_of_a_route_counts_from_the_question_and_not_from_the_answer() {
    let world = World::new();
    let acme = world.add("acme").await;
    world.plane.set(Fault::HoldAnswer);
    let lookup = world.spawn(&acme.slug);
    world.plane.reached(1).await;
    world.clock.advance(20 * SECOND);
    world.plane.set(Fault::None);
    let db = lookup.await.unwrap().unwrap();
    assert_eq!(db.route_age(), Some(20 * SECOND));
    world.clock.advance(10 * SECOND);
    assert!(world.biplane.cached(&acme.slug).is_none());
}

// Closing.

#[tokio::test]
async fn a_closed_router_answers_closed_for_every_name_and_through_every_handle() {
    let world = World::new();
    let acme = world.add("acme").await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    kind(world.biplane.route(&slug("nobody")).await);
    let other_owner = world.biplane.clone();
    world.biplane.close(Duration::ZERO).await;
    let asked = world.plane.calls();
    for name in names(&acme) {
        assert_eq!(kind(other_owner.route(&name).await), ErrorKind::Closed, "{name}");
        assert!(other_owner.cached(&name).is_none(), "{name}");
    }
    assert_eq!(kind(other_owner.route(&slug("nobody")).await), ErrorKind::Closed);
    assert_eq!(kind(held.read(Notes::len).await), ErrorKind::Closed);
    assert_eq!(kind(held.write(|notes| notes.clear()).await), ErrorKind::Closed);
    assert_eq!(kind(held.begin().await), ErrorKind::Closed);
    assert_eq!(world.plane.calls(), asked);
    assert_eq!(other_owner.stats().cached_tenants, 0);
}

#[tokio::test]
async fn closing_tells_those_who_wait_for_a_control_plane_that_hangs() {
    let world = World::new();
    let (acme, other) = (world.add("acme").await, world.add("other").await);
    world.plane.set(Fault::Hang);
    let waiting = [&acme, &other].map(|tenant| world.spawn(&tenant.slug));
    world.waiting(2).await;
    world.biplane.close(Duration::ZERO).await;
    for waiting in waiting {
        assert_eq!(kind(waiting.await.unwrap()), ErrorKind::Closed);
    }
}

#[tokio::test]
async fn an_answer_that_comes_after_the_close_is_not_given_out() {
    let world = World::new();
    let acme = world.add("acme").await;
    world.plane.set(Fault::HoldAnswer);
    let waiting = world.spawn(&acme.slug);
    world.plane.reached(1).await;
    world.biplane.close(Duration::ZERO).await;
    world.plane.set(Fault::None);
    assert_eq!(kind(waiting.await.unwrap()), ErrorKind::Closed);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(world.biplane.cached(&acme.slug).is_none());
    assert_eq!(world.biplane.stats().cached_tenants, 0);
}

#[tokio::test]
async fn closing_twice_and_invalidating_afterwards_does_no_harm() {
    let world = World::new();
    let acme = world.add("acme").await;
    world.biplane.route(&acme.slug).await.unwrap();
    for _ in 0..2 {
        world.biplane.close(SECOND).await;
        world.biplane.invalidate(acme.id).await;
        assert_eq!(kind(world.biplane.route(&acme.slug).await), ErrorKind::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn closing_waits_for_transactions_until_the_deadline_and_then_lets_none_commit() {
    let world = World::new();
    let acme = world.add("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    let (mut quick, mut slow) = (db.begin().await.unwrap(), db.begin().await.unwrap());
    quick.write().unwrap().push("in time".into());
    slow.write().unwrap().push("too late".into());
    let began = tokio::time::Instant::now();
    let mut closing = Box::pin(world.biplane.close(60 * SECOND));
    assert!((&mut closing).now_or_never().is_none());
    assert_eq!(kind(db.begin().await), ErrorKind::Closed);
    quick.commit().unwrap();
    closing.await;
    assert!(began.elapsed() >= 60 * SECOND, "{:?}", began.elapsed());
    assert_eq!(kind(slow.commit()), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn closing_is_over_as_soon_as_the_last_transaction_is() {
    let world = World::new();
    let acme = world.add("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    let (first, last) = (db.begin().await.unwrap(), db.begin().await.unwrap());
    let mut closing = Box::pin(world.biplane.close(60 * SECOND));
    assert!((&mut closing).now_or_never().is_none());
    first.commit().unwrap();
    assert!((&mut closing).now_or_never().is_none());
    drop(last);
    assert!(closing.now_or_never().is_some());
}

#[tokio::test]
async fn a_close_that_nobody_waits_for_closes_all_the_same() {
    let world = World::new();
    let acme = world.add("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    let tx = db.begin().await.unwrap();
    assert!(world.biplane.close(60 * SECOND).now_or_never().is_none());
    assert_eq!(kind(world.biplane.route(&acme.slug).await), ErrorKind::Closed);
    assert_eq!(kind(db.read(Notes::len).await), ErrorKind::Closed);
    drop(tx);
    world.biplane.close(60 * SECOND).await;
}

// Statistics.

#[tokio::test]
async fn statistics_count_each_lookup_once() {
    let world = World::new();
    let acme = world.add("acme").await;
    let other = world.add("other").await;
    let stats = || {
        let now = world.biplane.stats();
        let lookups = (now.hits, now.misses, now.known_unknown);
        let loads = (now.loads, now.names_loaded, now.failed_loads);
        (lookups, loads, now.served_stale, now.cached_tenants)
    };
    assert_eq!(stats(), ((0, 0, 0), (0, 0, 0), 0, 0));
    world.biplane.route(&acme.slug).await.unwrap();
    assert_eq!(stats(), ((0, 1, 0), (1, 1, 0), 0, 1));
    world.biplane.route(&acme.slug).await.unwrap();
    world.biplane.route(acme.id).await.unwrap();
    world.biplane.cached(&acme.slug).unwrap();
    assert_eq!(stats(), ((3, 1, 0), (1, 1, 0), 0, 1));
    for _ in 0..3 {
        kind(world.biplane.route(&slug("nobody")).await);
    }
    assert_eq!(stats(), ((3, 2, 2), (2, 2, 0), 0, 1));
    world.biplane.route(&other.slug).await.unwrap();
    assert_eq!(stats(), ((3, 3, 2), (3, 3, 0), 0, 2));
    world.plane.set(Fault::Unreachable);
    world.clock.advance(31 * SECOND);
    world.biplane.route(&acme.slug).await.unwrap();
    assert_eq!(stats(), ((3, 4, 2), (4, 4, 1), 1, 2));
    world.biplane.route(&acme.slug).await.unwrap();
    assert_eq!(stats(), ((4, 4, 2), (4, 4, 1), 1, 2));
    world.biplane.invalidate(acme.id).await;
    assert_eq!(stats(), ((4, 4, 2), (4, 4, 1), 1, 1));
    kind(world.biplane.route(&acme.slug).await);
    assert_eq!(stats(), ((4, 5, 2), (5, 5, 2), 1, 1));
}

#[tokio::test]
async fn statistics_count_a_refusal_from_the_cache_as_a_hit() {
    let world = World::new();
    let acme = world.provision("acme").await;
    for _ in 0..3 {
        kind(world.biplane.route(&acme.slug).await);
    }
    let stats = world.biplane.stats();
    assert_eq!((stats.hits, stats.misses, stats.loads), (2, 1, 1));
}

#[tokio::test]
async fn statistics_tell_of_databases_and_transactions() {
    let world = World::new();
    let acme = world.add("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    assert_eq!(world.biplane.stats().connector.pools, 0, "not used yet");
    let (first, second) = (db.begin().await.unwrap(), db.begin().await.unwrap());
    let connector = world.biplane.stats().connector;
    assert_eq!((connector.pools, connector.connections), (1, 2));
    first.commit().unwrap();
    drop(second);
    assert_eq!(world.biplane.stats().connector.connections, 0);
}

// The end.

/// A router and its control plane, and whether what it, its connector, its closures and its tenants' data
/// hold on to is still there.
struct Held {
    biplane: Biplane<Arc<Kept>>,
    plane: FaultyRepository<Odd>,
    tokens: [Weak<()>; 2],
}

type Token = Arc<()>;

/// An application's own repositories, made of a handle.
struct Kept {
    db: MemoryDb<(Notes, Token)>,
    _token: Token,
}

fn held() -> Held {
    let token = Token::new(());
    let (data, mapped) = (Arc::clone(&token), Arc::clone(&token));
    let plane = FaultyRepository::new(Odd::default());
    let biplane = Biplane::memory(plane.clone(), move |_| (Notes::new(), Arc::clone(&data)))
        .clock(Clock::manual())
        .map(move |db| {
            Arc::new(Kept {
                db,
                _token: Arc::clone(&mapped),
            })
        })
        .build()
        .unwrap();
    let tokens = [&token, &plane.inner().token].map(Arc::downgrade);
    Held {
        biplane,
        plane,
        tokens,
    }
}

async fn freed(tokens: [Weak<()>; 2]) {
    eventually("the router and what it asks to be freed", || {
        tokens.iter().all(|token| token.strong_count() == 0)
    })
    .await;
}

impl Held {
    /// The same router as a world, to set the control plane up.
    fn world(&self) -> World<Arc<Kept>> {
        World {
            plane: self.plane.clone(),
            biplane: self.biplane.clone(),
            clock: Clock::manual(),
        }
    }
}

#[tokio::test]
async fn a_router_that_is_dropped_with_its_handles_frees_everything() {
    let held = held();
    let acme = held.world().add("acme").await;
    let suspended = held.world().add("suspended").await;
    let mut handles = Vec::new();
    for name in names(&acme).iter().chain(&names(&suspended)) {
        let handle = held.biplane.route(name).await.unwrap();
        handle
            .db
            .write(|(notes, _)| notes.push("kept".into()))
            .await
            .unwrap();
        handles.push(handle);
    }
    held.world().set(suspended.id, TenantStatus::Suspended).await;
    held.biplane.invalidate(suspended.id).await;
    kind(held.biplane.route(&suspended.slug).await);
    let Held {
        biplane,
        plane,
        tokens,
    } = held;
    drop(biplane);
    drop(plane);
    assert_eq!(handles[0].db.read(|(notes, _)| notes.len()).await.unwrap(), 3);
    drop(handles);
    freed(tokens).await;
}

#[tokio::test]
async fn a_router_that_was_closed_and_dropped_frees_everything() {
    let held = held();
    let acme = held.world().add("acme").await;
    let handle = held.biplane.route(&acme.slug).await.unwrap();
    handle.db.read(|(notes, _)| notes.len()).await.unwrap();
    held.biplane.close(SECOND).await;
    let Held {
        biplane,
        plane,
        tokens,
    } = held;
    drop((biplane, plane, handle));
    freed(tokens).await;
}

#[tokio::test(start_paused = true)]
async fn a_router_that_is_dropped_during_a_load_frees_everything() {
    let held = held();
    let acme = held.world().add("acme").await;
    held.plane.set(Fault::Hang);
    let lookup = held.world().spawn(&acme.slug);
    held.plane.reached(1).await;
    lookup.abort();
    assert!(lookup.await.err().unwrap().is_cancelled());
    let Held {
        biplane,
        plane,
        tokens,
    } = held;
    drop((biplane, plane));
    freed(tokens).await;
}
